"""Where base models are found: names on the hub, its cache, and what is said when neither answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

from scdpo_core.families import FAMILIES, family_of
from scdpo_core.families.source import is_hub_id, locate, model_name, wanted_files
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_sd_folder

FILES = [
    "README.md",
    "model_index.json",
    "v1-5-pruned.safetensors",
    "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
]
PARTS = ["unet", "vae", "scheduler", "tokenizer"]


def test_names_on_the_hub_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("stabilityai/stable-diffusion-xl-base-1.0")
    for path in ("micro", "/a/b", "./a/b", "~/a", "a/b/c", "a/b.safetensors", "..\\model"):
        assert not is_hub_id(path)
    (tmp_path / "my" / "model").mkdir(parents=True)
    assert not is_hub_id("my/model")
    names = [model_name(base) for base in ("micro", "a/my model.safetensors", "a/sd-1.5", "owner/sd-xl-1.0")]
    assert names == ["micro", "my model", "sd-1.5", "sd-xl-1.0"]


def test_only_what_is_needed_is_fetched() -> None:
    small = wanted_files(FILES, PARTS, weights=False)
    assert small == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
    ]
    # fp16 only where there is nothing else.
    assert set(wanted_files(FILES, PARTS, weights=True)) - set(small) == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }


def test_fp16_in_parts_is_fp16() -> None:
    parts = [f"unet/model{fp16}-0000{n}-of-00002.safetensors" for fp16 in (".fp16", "") for n in (1, 2)]
    assert wanted_files(parts, ["unet"], weights=True) == parts[2:]


class _Hub:
    """A hub that answers as it is told, and a cache that holds a folder or nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path | None, error: Exception | None) -> None:
        self.fetched: list[list[str]] = []
        files = [] if folder is None else [str(p.relative_to(folder)) for p in folder.rglob("*.*")]

        def listed(*_: Any) -> list[str]:
            if error is not None:
                raise error
            return files

        def snapshot(name: str, allow_patterns: Any = None, local_files_only: bool = False) -> str:
            if folder is None:
                raise FileNotFoundError(name)
            self.fetched.append(["cache"] if local_files_only else allow_patterns)
            return str(folder)

        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listed)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)


def test_a_model_on_the_hub_is_checked_before_its_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = _Hub(monkeypatch, tiny_sd_folder(tmp_path / "tiny"), None)
    assert family_of("auto", "someone/tiny") is FAMILIES["sd1"]
    assert FAMILIES["sd1"].check("someone/tiny") == []
    assert not any(name.endswith(".safetensors") for names in hub.fetched for name in names)
    model = FAMILIES["sd1"].load("someone/tiny", torch.device("cpu"), torch.float32)
    assert model.name == "tiny"
    assert "unet/diffusion_pytorch_model.safetensors" in hub.fetched[-1]
    (problem,) = FAMILIES["sdxl"].check("someone/tiny")
    assert "This is a Stable Diffusion 1.x model" in problem.what


def test_without_a_network_the_cache_serves_and_else_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = OfflineModeIsEnabled("no network")
    hub = _Hub(monkeypatch, tmp_path, offline)
    assert locate("someone/model") == tmp_path
    assert hub.fetched == [["cache"]]
    _Hub(monkeypatch, None, offline)
    with pytest.raises(ScdpoError, match=r"cannot be reached.*give a \.safetensors file or a folder"):
        locate("someone/model")
    (problem,) = FAMILIES["sd1"].check("someone/model")
    assert "cannot be reached" in problem.what


@pytest.mark.parametrize(
    ("status", "sentence"), [(404, "has no such model"), (403, "accept its terms"), (500, "an error")]
)
def test_what_the_hub_answers_is_said(monkeypatch: pytest.MonkeyPatch, status: int, sentence: str) -> None:
    class Response:
        status_code = status
        headers: dict[str, str] = {}  # noqa: RUF012
        request = None

    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    error.response = Response()  # type: ignore[assignment]
    _Hub(monkeypatch, None, error)
    with pytest.raises(ScdpoError, match=f"no someone/model on this machine.*{sentence}"):
        locate("someone/model")
