"""The hashes in an adapter's file, and that they show what was changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import write_tiny_pictures
from tests.errors import raises_code
from tests.running import quick_config, use_base
from veneer.cli.main import main
from veneer.config.fingerprint import config_hash
from veneer.config.load import load_config, write_config
from veneer.family.fingerprint import fingerprint
from veneer.family.registry import load_family
from veneer.run.folder import CONFIG
from veneer.run.session import run_training
from veneer.verbs.verify import verify_adapter
from veneer.weights.file import FILE_NAME, info

TWO = {"train": {"max_steps": 2}}


@pytest.fixture(scope="module")
def shared(tiny_base: Path) -> Iterator[None]:
    family = load_family(str(tiny_base))
    with pytest.MonkeyPatch.context() as patch:
        use_base(patch, family)
        yield


@pytest.fixture(scope="module")
def made(shared: None, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, with its pictures beside it."""
    folder = tmp_path_factory.mktemp("made")
    pictures = write_tiny_pictures(folder / "pictures")
    prior: dict[str, Any] = {"prior": {"prompt": "a shape", "count": 2}, "trigger": "sks"}
    run_training(quick_config(tiny_base, pictures, folder / "run", data=prior, seed=5, **TWO))
    return folder / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil; its config names the originals."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def verdicts(file: Path, **options: Any) -> dict[str, str]:
    states = {True: "differs", False: "ok"}
    checks = verify_adapter(file, **options)
    return {check.subject: "missing" if check.current is None else states[check.differs] for check in checks}


def test_a_file_has_the_hashes_of_what_it_was_made_from(made: Path, tiny_base: Path) -> None:
    metadata = info(made / FILE_NAME).metadata
    assert metadata["veneer.seed"] == "5" and metadata["veneer.steps"] == "2" and metadata["veneer.trigger"] == "sks"
    assert metadata["veneer.base.sha256"] == fingerprint(str(tiny_base))
    assert metadata["veneer.config.sha256"] == config_hash(load_config(made / CONFIG))
    assert {len(metadata["veneer.data.fingerprint"]), len(metadata["veneer.prior.fingerprint"])} == {32}
    assert not [value for value in metadata.values() if "/" in value]  # no path of this machine


def test_a_sound_file_is_ok_in_all(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapter", "verify", str(made)]) == 0
    rows = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        [what, "ok"] for what in ("tensors", "config", "base", "base settings", "pictures", "class pictures")
    ]


def test_the_same_run_elsewhere_gives_the_same_bytes(made: Path, shared: None, tiny_base: Path, tmp_path: Path) -> None:
    """Base, pictures and results in other places, under other names, with the pictures in another order."""
    base = shutil.copytree(tiny_base, tmp_path / "elsewhere" / tiny_base.name)
    pictures = tmp_path / "others"
    shutil.copytree(made.parent / "pictures", pictures)
    lines = (pictures / "metadata.jsonl").read_text().splitlines()
    for place, line in enumerate(lines):
        name = line.split('"')[3]
        (pictures / name).rename(pictures / f"{99 - place}.png")
        lines[place] = line.replace(name, f"{99 - place}.png")
    (pictures / "metadata.jsonl").write_text("\n".join(lines))
    prior: dict[str, Any] = {"prior": {"prompt": "a shape", "count": 2}, "trigger": "sks"}
    run_training(quick_config(base, pictures, tmp_path / "run", data=prior, seed=5, **TWO))
    assert (tmp_path / "run" / FILE_NAME).read_bytes() == (made / FILE_NAME).read_bytes()


def test_a_changed_tensor_differs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with safe_open(run / FILE_NAME, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(run / FILE_NAME)
    next(iter(tensors.values()))[0, 0] += 1e-6
    save_file(tensors, run / FILE_NAME, metadata)
    assert verdicts(run)["tensors"] == "differs"
    assert main(["adapter", "verify", str(run)]) == 1
    assert " is recorded, " in capsys.readouterr().out


def test_a_changed_strength_differs(run: Path) -> None:
    with safe_open(run / FILE_NAME, "pt") as file:
        metadata = file.metadata()
    metadata["lora_adapter_metadata"] = metadata["lora_adapter_metadata"].replace(
        '"unet.lora_alpha": 4', '"unet.lora_alpha": 8'
    )
    save_file(load_file(run / FILE_NAME), run / FILE_NAME, metadata)
    assert verdicts(run)["tensors"] == "differs"


def test_a_changed_config_differs_where_it_matters(run: Path) -> None:
    config = load_config(run / CONFIG)
    write_config(config.in_folder(Path("elsewhere")), run / CONFIG)
    assert verdicts(run)["config"] == "ok"
    write_config(config.model_copy(update={"seed": 6}), run / CONFIG)
    assert verdicts(run)["config"] == "differs"


def test_changed_pictures_differ(run: Path, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made.parent / "pictures", tmp_path / "fewer")
    lines = (tmp_path / "fewer" / "metadata.jsonl").read_text().splitlines()
    (tmp_path / "fewer" / "metadata.jsonl").write_text("\n".join([lines[0].replace("a red", "one red"), *lines[1:]]))
    config = load_config(run / CONFIG)
    source = config.data.sources[0].model_copy(update={"path": tmp_path / "fewer"})
    data = config.data.model_copy(update={"sources": (source,), "held_out": 0.0})
    write_config(config.model_copy(update={"data": data}), run / CONFIG)
    assert verdicts(run)["pictures"] == "differs"


def test_another_base_differs(run: Path, tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    assert verdicts(run, base=str(base))["base"] == "ok"
    weights = next((base / "unet").glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert verdicts(run, base=str(base))["base"] == "differs"


def test_a_base_with_other_settings_differs(run: Path, tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    assert verdicts(run, base=str(base))["base settings"] == "ok"
    path = base / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scaling_factor": 0.5}))
    found = verdicts(run, base=str(base))
    assert (found["base"], found["base settings"]) == ("ok", "differs")


def test_a_file_without_the_hash_of_its_bases_settings_is_verified_without(run: Path, tiny_base: Path) -> None:
    with safe_open(run / FILE_NAME, "pt") as file:
        metadata = file.metadata()
    del metadata["veneer.base.settings.sha256"]
    save_file(load_file(run / FILE_NAME), run / FILE_NAME, metadata)
    found = verdicts(run, base=str(tiny_base))
    assert "base settings" not in found and set(found.values()) == {"ok"}


def test_what_is_not_at_hand_is_named_and_is_no_fault(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / CONFIG).unlink()
    assert verdicts(run) == {
        "tensors": "ok",
        "config": "missing",
        "base": "missing",
        "base settings": "missing",
        "pictures": "missing",
        "class pictures": "missing",
    }
    assert main(["adapter", "verify", str(run / FILE_NAME)]) == 0
    assert "config          not checked: no config.yaml beside the file" in capsys.readouterr().out


def test_a_base_is_not_sought_by_its_name_alone(
    run: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies under that name in the working directory may be anything."""
    (run / CONFIG).unlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    other = Path(shutil.copytree(tiny_base, tiny_base.name))
    weights = next((other / "unet").glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (check,) = (check for check in verify_adapter(run) if check.subject == "base")
    assert check.current is None and "name it with --base" in str(check.reason)
    assert verdicts(run, base=str(tiny_base))["base"] == "ok"


def test_the_bundled_base_is_known_by_its_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / CONFIG).unlink()
    with safe_open(run / FILE_NAME, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(run / FILE_NAME), run / FILE_NAME, {**metadata, "veneer.base": "bundled"})
    monkeypatch.setattr(
        "veneer.verbs.verify.fingerprint", lambda base: {"bundled": metadata["veneer.base.sha256"]}[base]
    )
    assert verdicts(run)["base"] == "ok"


def test_a_file_of_another_program_has_no_hashes(run: Path) -> None:
    save_file(load_file(run / FILE_NAME), run / FILE_NAME)
    with raises_code("verify.no_hashes") as caught:
        verify_adapter(run)
    assert "has no hashes in its metadata, so there is nothing to verify" in str(caught.value)
