"""A base of the hub: which files are fetched, and one line for each reason why it is not given."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from tests.errors import raises_code
from veneer.family.hub import files_of_parts, read_index
from veneer.family.networks import LoadOptions
from veneer.family.registry import find, load_family

PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")


def answer(kind: Any, status: int) -> Exception:
    http = importlib.import_module(
        errors.Response.__module__.partition(".")[0]
    )  # the hub's library has changed its own
    request = http.Request("HEAD", "https://huggingface.co/owner/name/resolve/main/model_index.json")
    error: Exception = kind("the hub's own words\nin lines", response=http.Response(status, request=request))
    return error


REFUSALS: dict[str, tuple[Exception, str, str]] = {
    "gated": (
        answer(errors.GatedRepoError, 403),
        "is on the hub, whose owner asks for consent to its terms",
        "accept its terms at https://huggingface.co/owner/name, then log in with: hf auth login",
    ),
    "misspelt or private": (
        answer(errors.RepositoryNotFoundError, 404),
        "is no folder here, and the hub has none of that name",
        "check the spelling; if it is private, log in with: hf auth login",
    ),
    "no network": (
        errors.LocalEntryNotFoundError("no connection"),
        "is no folder here, was not fetched before, and the hub cannot be reached",
        "check the network, or give a folder",
    ),
    "a repository of another kind": (
        answer(errors.RemoteEntryNotFoundError, 404),
        "is on the hub, but has no model_index.json",
        "give a base in diffusers' layout, or fetch its checkpoint and give the file",
    ),
    "offline": (
        errors.OfflineModeIsEnabled("HF_HUB_OFFLINE is set"),
        "is no folder here, and the hub does not give it (HF_HUB_OFFLINE is set)",
        "check the spelling and the network",
    ),
    "no hub id": (errors.HFValidationError("bad"), "is no folder here and no hub id", "a hub id is owner/name"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_why_the_hub_does_not_give_a_base(
    case: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    error, what, remedy = REFUSALS[case]

    def download(*arguments: object, **options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with raises_code("base.not_found") as caught:
        find("owner/name")
    assert str(caught.value) == f"owner/name: {what}; {remedy}"
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_almost_that_name_is_mentioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "my-base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def download(*arguments: object, **options: object) -> str:
        raise answer(errors.RepositoryNotFoundError, 404)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with raises_code("base.not_found", "(but models/my-base is)"):
        load_family("models/my_base")


@pytest.fixture
def hub(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """A hub with the tiny base under owner/name; returns what is asked of it."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "models--owner--name" / "snapshots" / "0123"))
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]

    def make(*more: str, reachable: bool = True) -> list[Any]:
        asked: list[Any] = []

        def listed(self: object, base: str) -> list[str]:
            if not reachable:
                raise RuntimeError("no network, as a class that is no OSError")
            return [*names, *more]

        def snapshot(base: str, **options: object) -> str:
            asked.append(options)
            return str(folder)

        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listed)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda base, name: str(folder / name))
        return asked

    return make


def test_a_base_is_fetched_when_it_is_loaded_and_only_what_is_loaded(hub: Callable[..., list[Any]]) -> None:
    asked = hub(
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "v1-5.ckpt", "a.py"
    )
    source = find("owner/name")
    assert source.place is None and asked == []
    assert source.load(LoadOptions()).name == "sd"
    (options,) = asked
    wanted = options["allow_patterns"]
    assert {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"} <= set(wanted)
    assert not [name for name in wanted if name.endswith((".bin", ".ckpt", ".py")) or "fp16" in name]


def test_a_modular_pipeline_s_index_is_asked_for_where_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "modular_model_index.json"
    index.write_text('{"_class_name": "AnimaModularPipeline", "vae": ["diffusers", "A", {"subfolder": "vae"}]}')

    def download(base: str, name: str) -> str:
        if name != index.name:
            raise answer(errors.RemoteEntryNotFoundError, 404)
        return str(index)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find("owner/name").pipeline == "AnimaModularPipeline"
    assert read_index("owner/name")["vae"] == ["diffusers", "A"]
    assert files_of_parts([index.name, "README.md"], ["vae"]) == [index.name]


def test_without_a_network_what_was_fetched_before_is_loaded(hub: Callable[..., list[Any]]) -> None:
    asked = hub(reachable=False)
    assert load_family("owner/name").name == "sd"
    assert asked == [{"local_files_only": True}]


def test_a_download_that_broke_off_has_the_command_that_mends_it(hub: Callable[..., list[Any]], tmp_path: Path) -> None:
    hub()
    weights = tmp_path / "models--owner--name/snapshots/0123/unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to("../../../blobs/abc")
    with raises_code("base.file_missing") as caught:
        load_family("owner/name")
    command = "hf download owner/name unet/diffusion_pytorch_model.safetensors --force-download"
    assert caught.value.remedy == f"fetch it again: {command}"


def test_of_shards_the_index_and_all_of_them_are_fetched() -> None:
    stem = "unet/diffusion_pytorch_model"
    shards = [f"{stem}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    halves = [name.replace("model-", "model.fp16-") for name in shards]
    indices = [f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.fp16.json"]
    names = [*shards, *halves, *indices, "unet/config.json", "vae/config.json", "README.md"]
    assert set(files_of_parts(names, ["unet"])) == {"model_index.json", "unet/config.json", *shards, indices[0]}
    halved = [name for name in names if name not in (*shards, indices[0])]
    assert set(files_of_parts(halved, ["unet"])) == {"model_index.json", "unet/config.json", *halves, indices[1]}
