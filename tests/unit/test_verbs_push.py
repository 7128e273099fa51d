"""Uploads to a stand-in of the hub: what arrives, byte for byte, and one line for whatever goes wrong."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file

from tests.errors import raises_code
from tests.hub import OWNER, TOKEN, Hub, serving
from tests.running import quick_config, use_base
from veneer.cli.main import main
from veneer.errors import UserError
from veneer.run.folder import CARD, CONFIG, GALLERY, SHEET
from veneer.run.session import run_training
from veneer.verbs.publication import publication_of
from veneer.verbs.push import PushOptions, check_repo_name, push_adapter
from veneer.weights.adapter_path import FILE_NAME
from veneer.weights.file import AdapterFile, load, save

REPO = f"{OWNER}/shapes"


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run; its base and pictures lie in somebody's home."""
    from veneer.family.registry import load_family

    folder = tmp_path_factory.mktemp("runs") / "shapes"
    with pytest.MonkeyPatch.context() as patch:
        use_base(patch, load_family(str(tiny_base)))
        run_training(quick_config(tiny_base, tiny_pictures, folder, data={"held_out": 0.2}))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return copytree(finished, tmp_path / "shapes")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(monkeypatch) as hub:
        yield hub


def test_what_arrives_is_what_is_here(run: Path, hub: Hub) -> None:
    pushed = push_adapter(run, REPO, options=PushOptions(message="first"))
    assert pushed is not None and pushed.url == f"{hub.url}/{REPO}/commit/{'1' * 40}"
    arrived = hub.repos[REPO].branches["main"]
    pictures = {path.relative_to(run).as_posix() for path in (run / GALLERY).iterdir()}
    assert len(pictures) == 1
    assert arrived.keys() >= {CARD, CONFIG, FILE_NAME, SHEET} | pictures
    for name, content in arrived.items():
        if name not in (CONFIG, ".gitattributes"):
            assert content == (run / name).read_bytes(), name
    assert hub.repos[REPO].messages == ["first"] and not hub.repos[REPO].private


def test_nothing_of_the_machine_arrives(run: Path, hub: Hub, tiny_base: Path, tiny_pictures: Path) -> None:
    push_adapter(run, REPO)
    arrived = hub.repos[REPO].branches["main"]
    assert not [name for name in arrived if name.startswith(("checkpoints", "run.jsonl", "plan", "report", "tensor"))]
    places = [str(place).encode() for place in (run, run.parent, tiny_base, tiny_pictures, Path.home())]
    assert [(name, place) for name, content in arrived.items() for place in places if place in content] == []
    config = yaml.safe_load(arrived[CONFIG])
    assert (config["base"], config["data"]["sources"][0]["path"]) == (tiny_base.name, tiny_pictures.name)


def test_the_card_fits_the_files_that_arrive(run: Path, hub: Hub) -> None:
    push_adapter(run, REPO)
    arrived = hub.repos[REPO].branches["main"]
    card = ModelCard(arrived[CARD].decode())
    widgets = card.data.to_dict()["widget"]
    assert widgets and all(each["output"]["url"] in arrived for each in widgets)


def test_a_dry_run_asks_nothing(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapter", "push", str(run), REPO, "--dry-run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert hub.asked == [] and printed[-1] == "nothing was uploaded"
    sizes = {line.split()[0]: line.split()[1] for line in printed}
    assert sizes[FILE_NAME] == f"{(run / FILE_NAME).stat().st_size:,}"
    assert "stays here: checkpoints (state of the training)" in "\n".join(printed)


def test_the_command_prints_the_page(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapter", "push", str(run), REPO, "--private", "--revision", "v2", "--message", "x"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{hub.url}/{REPO}/commit/")
    repo = hub.repos[REPO]
    assert repo.private and FILE_NAME in repo.branches["v2"] and FILE_NAME not in repo.branches["main"]


def test_an_interrupted_upload_goes_on(run: Path, hub: Hub) -> None:
    hub.breaks_after = 1
    with raises_code("push.failed") as caught:
        push_adapter(run, REPO)
    assert "run the same command again" in str(caught.value)
    assert hub.repos[REPO].branches["main"].keys() == {".gitattributes"}, "nothing is half there"
    sent, hub.breaks_after = hub.received[:], None
    push_adapter(run, REPO)
    assert FILE_NAME in hub.repos[REPO].branches["main"]
    assert len(hub.received) == len(hub.blobs) and hub.received[:1] == sent, "nothing is sent twice"


def test_a_name_that_is_taken_is_not_written_over(run: Path, hub: Hub) -> None:
    push_adapter(run, REPO)
    with raises_code("push.name_taken") as caught:
        push_adapter(run, REPO)
    assert "--update" in str(caught.value) and len(hub.repos[REPO].messages) == 1
    (run / CARD).write_text((run / CARD).read_text("utf-8") + "\nmore\n", "utf-8")
    push_adapter(run, REPO, options=PushOptions(update=True))
    assert hub.repos[REPO].branches["main"][CARD].endswith(b"more\n")
    assert len(hub.received) == len(hub.blobs), "what is there already is not sent again"


def test_what_should_be_private_is_not_sent_to_where_all_see_it(run: Path, hub: Hub) -> None:
    push_adapter(run, REPO)
    with raises_code("push.repo_is_public"):
        push_adapter(run, REPO, options=PushOptions(private=True, update=True))
    assert len(hub.repos[REPO].messages) == 1


@pytest.mark.parametrize(
    ("part", "status", "code"),
    [
        ("/create", 403, "push.no_rights"),
        ("/create", 401, "push.bad_token"),
        ("/preupload", 403, "push.no_rights"),
        ("/commit", 409, "push.conflict"),
        ("/commit", 412, "push.conflict"),
        ("/commit", 500, "push.failed"),
        ("/lfs/", 403, "push.no_rights"),
        ("/objects/batch", 413, "push.too_large"),
        ("/preupload", 429, "push.too_often"),
        ("/preupload", 404, "push.not_found"),
    ],
)
def test_each_refusal_is_one_line_without_the_token(run: Path, hub: Hub, part: str, status: int, code: str) -> None:
    hub.refuses = {part: status}
    with raises_code(code) as caught:
        push_adapter(run, REPO)
    assert TOKEN not in str(caught.value) and "\n" not in str(caught.value) and REPO in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_somebody_elses_name_is_refused(run: Path, hub: Hub) -> None:
    with raises_code("push.no_rights"):
        push_adapter(run, "bob/shapes")


def test_without_a_token_nothing_is_asked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch, token=None) as hub:
        with raises_code("push.no_token") as caught:
            push_adapter(run, REPO)
        assert "hf auth login" in str(caught.value) and hub.asked == []


def test_a_refusal_is_one_line_of_the_command(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(monkeypatch, token=None):
        assert main(["adapter", "push", str(run), REPO]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"veneer: error: {REPO}: there is no token of the hub here; log in with")


def test_a_wrong_token_is_said_to_be_unknown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch, token="hf_wrongwrongwrong") as _, raises_code("push.bad_token") as caught:
        push_adapter(run, REPO)
    assert "wrong" not in str(caught.value)


def test_without_a_network(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with raises_code("push.no_network"):
            push_adapter(run, REPO)


@pytest.mark.parametrize(
    "name", ["shapes", "a/b/c", "alice/", "/shapes", "al ice/x", "alice/x.git", "a/--x", "a/x..y", ""]
)
def test_what_is_no_name(name: str) -> None:
    with raises_code("push.no_repo_name"):
        check_repo_name(name)


@pytest.mark.parametrize("name", ["alice/shapes", "a/b", "a-b/c_d.e-1"])
def test_what_is_a_name(name: str) -> None:
    check_repo_name(name)


def test_a_place_of_the_machine_in_the_card_is_not_uploaded(run: Path, hub: Hub) -> None:
    (run / CARD).write_text(f"I trained it from {run}/pictures.\n", "utf-8")
    with raises_code("push.names_place") as caught:
        push_adapter(run, REPO)
    assert "README.md names a place on a machine" in str(caught.value) and hub.asked == []
    push_adapter(run, REPO, options=PushOptions(anyway=True))
    assert CARD in hub.repos[REPO].branches["main"]


@pytest.mark.parametrize("path", ["/home/bob/x.safetensors", r"C:\Users\bob\x", "/workspace/data/x"])
def test_a_place_of_the_machine_in_anothers_metadata_is_found(path: str, run: Path, tmp_path: Path) -> None:
    weights = load(run / FILE_NAME).weights
    save(AdapterFile(weights, {"ot_config": f'{{"base": "{path}"}}'}), tmp_path / "x.safetensors")
    (doubt,) = publication_of(tmp_path / "x.safetensors").doubts
    assert doubt.startswith("x.safetensors, ot_config in its metadata, names a place on a machine")


@pytest.mark.parametrize("text", ["https://huggingface.co/data/x", "and/or", "12:30", "a/home/b", "ss: 1"])
def test_what_is_no_place_is_not_taken_for_one(text: str, run: Path, tmp_path: Path) -> None:
    weights = load(run / FILE_NAME).weights
    save(AdapterFile(weights, {"comment": text}), tmp_path / "x.safetensors")
    assert publication_of(tmp_path / "x.safetensors").doubts == ()


def test_a_single_file_gets_a_card_of_what_it_says(run: Path, hub: Hub, tmp_path: Path) -> None:
    weights = load(run / FILE_NAME).weights
    file = tmp_path / "mine.safetensors"
    save(
        AdapterFile(weights, {"veneer.base": "stabilityai/stable-diffusion-xl-base-1.0", "veneer.trigger": "zxc"}), file
    )
    push_adapter(file, REPO)
    arrived = hub.repos[REPO].branches["main"]
    assert arrived.keys() == {"mine.safetensors", CARD, ".gitattributes"}
    data = ModelCard(arrived[CARD].decode()).data
    assert data.license == "openrail++" and data.to_dict()["instance_prompt"] == "zxc"
    assert load_file(file).keys()


def test_peft_files_go_with_their_config(run: Path, hub: Hub) -> None:
    (run / "peft").mkdir()
    (run / "peft" / "adapter_model.safetensors").write_bytes((run / FILE_NAME).read_bytes())
    with raises_code("publish.no_peft_config"):
        push_adapter(run, REPO)
    (run / "peft" / "adapter_config.json").write_text("{}", "utf-8")
    push_adapter(run, REPO)
    assert {"peft/adapter_model.safetensors", "peft/adapter_config.json"} <= hub.repos[REPO].branches["main"].keys()


def test_a_folder_without_an_adapter(tmp_path: Path) -> None:
    with raises_code("weights.no_adapter_file"):
        push_adapter(tmp_path, REPO)
    with pytest.raises(UserError):
        push_adapter(tmp_path / "gone.safetensors", REPO)
