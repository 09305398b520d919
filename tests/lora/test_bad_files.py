"""LoRA files that cannot be read, used or written: each gets a sentence, none is left half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from scdpo_core.lora.adapter import attach, attach_file, load_into
from scdpo_core.lora.file import load_lora, read_lora_info
from scdpo_core.lora.formats.keys import KeyNameError
from scdpo_core.types import ScdpoError
from tests.support.trained_lora import answer, save, to_kohya, trained, unet_of


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file with a LoRA on attention."""
    path = tmp_path_factory.mktemp("lora") / "calm.safetensors"
    save(path, trained(unet_of()))
    return path


def test_bad_files_are_explained(tmp_path: Path, example: Path) -> None:
    good = example.read_bytes()
    cases = {
        "cut.safetensors": (good[: len(good) // 2], "damaged or not a safetensors file"),
        "zero.safetensors": (b"", "damaged or not a safetensors file"),
        "text.safetensors": (b"<html>404 not found</html>", "damaged or not a safetensors file"),
    }
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickle.pt")
    cases["pickle.safetensors"] = ((tmp_path / "pickle.pt").read_bytes(), "can run code")
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        for read in (load_lora, read_lora_info):
            with pytest.raises(ScdpoError, match=message) as caught:
                read(path)
            assert name in str(caught.value)
    with pytest.raises(ScdpoError, match=r"There is no file .*nowhere\.safetensors"):
        load_lora(tmp_path / "nowhere.safetensors")


def test_files_that_are_no_lora_are_explained(tmp_path: Path, example: Path) -> None:
    state, _ = load_lora(example)
    module = next(iter(state)).rpartition(".")[0]

    def written(tensors: dict[str, Tensor]) -> Path:
        save_file(tensors, tmp_path / "odd.safetensors")
        return tmp_path / "odd.safetensors"

    with pytest.raises(KeyNameError, match=r"odd\.safetensors cannot be used: 'model\.conv\.weight'"):
        load_lora(written({"model.conv.weight": torch.zeros(2)}))
    with pytest.raises(ScdpoError, match="empty"):
        read_lora_info(written({}))
    kohya = {to_kohya(name): weight for name, weight in state.items()}
    with pytest.raises(ScdpoError, match=rf"incomplete: '{module}' has no up weight"):
        load_lora(written({key: weight for key, weight in kohya.items() if key != to_kohya(f"{module}.up")}))
    with pytest.raises(ScdpoError, match=rf"the weights of '{module}' do not fit"):
        load_lora(written({**kohya, to_kohya(f"{module}.up"): torch.zeros(16, 5)}))
    with pytest.raises(ScdpoError, match="not finite"):
        load_lora(written({**kohya, to_kohya(f"{module}.up"): torch.full((16, 4), torch.nan)}))


def test_a_lora_for_another_base_is_explained_and_changes_nothing(tmp_path: Path, example: Path) -> None:
    state, _ = load_lora(example)
    wide = tmp_path / "wide.safetensors"
    wider = {name: torch.zeros(4, 99) if name.endswith("attn2.to_k.down") else w for name, w in state.items()}
    save_file({to_kohya(name): weight for name, weight in wider.items()}, wide)
    unet = unet_of()
    adapter = attach(unet, rank=4, alpha=4.0, targets="attention", seed=0)
    before = answer(unet)
    with pytest.raises(ScdpoError, match=r"wide\.safetensors cannot .*\(4, 99\).*another base model"):
        load_into(adapter, wide)
    deeper = tmp_path / "deeper.safetensors"
    save_file({to_kohya(f"down_blocks.7.{name}"): weight for name, weight in state.items()}, deeper)
    with pytest.raises(KeyNameError, match=r"deeper\.safetensors cannot be used: 'lora_unet_down_blocks_7_"):
        load_into(adapter, deeper)
    assert torch.equal(answer(unet), before)


def test_mixed_ranks_are_kept(tmp_path: Path, example: Path) -> None:
    state, _ = load_lora(example)
    module = next(iter(state)).rpartition(".")[0]
    state |= {f"{module}.down": torch.ones(2, 16), f"{module}.up": torch.ones(16, 2)}
    path = tmp_path / "mixed.safetensors"
    save_file({to_kohya(name): weight for name, weight in state.items()}, path)
    unet = unet_of()
    adapter, info = attach_file(unet, path)
    assert (adapter.rank, info.rank) == (4, 4)
    assert all(torch.equal(adapter.state()[name], weight) for name, weight in state.items())


def test_weights_that_fell_apart_are_not_written(tmp_path: Path) -> None:
    adapter = trained(unet_of())
    for value in (torch.nan, 70000.0):  # float16 ends at 65504
        with torch.no_grad():
            adapter.parameters()[1].fill_(value)
        with pytest.raises(ScdpoError, match="not finite"):
            save(tmp_path / "calm.safetensors", adapter)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "calm.safetensors"
    adapter = trained(unet_of())
    save(path, adapter)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with torch.no_grad():
        adapter.parameters()[1].zero_()
    with pytest.raises(ScdpoError, match=r"calm\.safetensors \(No space left on device\).*Make room"):
        save(path, adapter)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["calm.json", "calm.safetensors"]


def test_a_file_in_the_folders_place_is_explained(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("not a folder")
    with pytest.raises(ScdpoError, match="could not be written"):
        save(tmp_path / "taken" / "calm.safetensors", trained(unet_of()))


def test_programming_errors() -> None:
    adapter = trained(unet_of())
    with pytest.raises(ValueError, match="sd99"):
        save(Path("calm.safetensors"), adapter, family="sd99")
    with pytest.raises(ValueError, match="ends in"):
        save(Path("calm.pt"), adapter)
    with pytest.raises(ValueError, match="is 4, not 5"):
        save(Path("calm.safetensors"), adapter, rank=5)
