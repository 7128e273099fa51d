"""Teach a small but real Stable Diffusion a drawing style that it has never seen, and measure what that did.

It needs no GPU and no download: the base model and the pictures come with Veneer. --base and --data put a Stable
Diffusion 1.x or 2.x and pictures of your own in their place.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

import veneer

parser = ArgumentParser(description=__doc__)
parser.add_argument("--base", default="bundled", help="a diffusers folder, a .safetensors file or a hub id")
parser.add_argument("--data", type=Path, help="a folder of pictures: metadata.jsonl, or a .txt beside each picture")
parser.add_argument("--output", type=Path, default=Path("runs/example"), help="where the results go")
parser.add_argument("--steps", type=int, default=300, help="how long to train")


def main(base: str, data: Path | None, output: Path, steps: int) -> None:
    """Plan, train, save, load, merge, paint, measure."""
    # 160 drawings in OpenMoji's style, black outlines and flat colours; 64 more, of other things, are held out
    train, held_out = (data, 0.2) if data else (veneer.demo_path() / "train", str(veneer.demo_path() / "held_out"))
    # Veneer's defaults suit Stable Diffusion: rate 1e-4, batch 4. The bundled base has a fortieth of its parameters
    # and of its pictures' pixels, so that here a batch of 8 is cheap and a rate ten times as high still stable. Its
    # colours burn at the usual guidance of 4.
    bundled = base == "bundled"
    train_as = {"batch_size": 8, "learning_rate": 1e-3} if bundled else {}
    sample_as = {"guidance": 2.5} if bundled else {}
    config = veneer.build_config(
        {
            "base": base,
            "output": {"dir": str(output)},
            "data": {"sources": [{"path": str(train)}], "held_out": held_out},
            "adapter": {"rank": 4},
            "train": {"max_steps": steps, **train_as},
            "sample": sample_as,
        },
        origin="the example's config",
    )

    dataset = veneer.survey(config.data)
    print(f"pictures: {len(dataset.train.samples)} to train on, {len(dataset.held_out.samples)} held out")
    family = veneer.load_base(config.base)
    config = veneer.resolve(config, family)
    print(veneer.make_plan(config, family))

    # h = W0 x + (alpha/r) B A x: W0 stays as it is, A and B are trained
    weights = veneer.Progress().watch(veneer.train_adapter(config, family, dataset))
    file = output / veneer.FILE_NAME
    print(f"{file}, sha256 {veneer.save_adapter(veneer.AdapterFile(weights), file)}")

    # the file in a fresh base, merged into its weights: W0 + (alpha/r) B A, at the base's own speed
    fresh = veneer.load_base(config.base)
    adapter = veneer.load_adapter(file).weights
    chosen = veneer.sample_prompts(config, dataset)
    merged = veneer.merge(fresh.networks, [(adapter, 1.0)])
    (picture,) = veneer.generate(fresh, chosen.prompts[:1], seeds=[0], guidance=config.sample.guidance)
    picture.save(output / "test_image.png")
    merged.undo()  # the base has its own bits again

    # held-out things: base, adapter and the real picture side by side, from the same seeds
    veneer.comparison_sheet(fresh, adapter, chosen, config).save(output / "sheet.png")
    print(f"{output / 'test_image.png'}: {chosen.prompts[0]}\n{output / 'sheet.png'}: {', '.join(chosen.prompts)}")
    if dataset.held_out.samples:
        print(veneer.score_adapter(config, fresh, dataset, adapter))
    else:
        print("no picture was held out, so there is no score")


if __name__ == "__main__":
    try:
        main(**vars(parser.parse_args()))
    except veneer.UserError as mistake:
        sys.exit(f"error: {mistake}")
