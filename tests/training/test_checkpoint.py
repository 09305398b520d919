"""Checkpoints: whole or absent, the newest good one wins, and another run's is refused."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from scdpo_core.io import files
from scdpo_core.io.tensor_tree import save_tree
from scdpo_core.run_store.folder import checkpoint_steps
from scdpo_core.training import checkpoint
from scdpo_core.training.checkpoint import Checkpoint, check_same_run, latest, path_of, save
from scdpo_core.types import ScdpoError


def _checkpoint(step: int, **changes: Any) -> Checkpoint:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.square().sum().backward()
    optimizer.step()
    values: dict[str, Any] = {
        "step": step,
        "adapter": {"a.down": weight.detach()},
        "optimizer": optimizer.state_dict(),
        "extra": {"loss": {"total": torch.zeros(10)}, "scaler": {}},
        "identity": {"optim.lr": 0.1, "sampling.prompts": ["a"]},
        "dataset_hash": "abc",
    }
    return Checkpoint(**(values | changes))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = _checkpoint(7)
    assert save(tmp_path / "new", saved, keep=2) == path_of(tmp_path / "new", 7)
    found, damaged = latest(tmp_path / "new")
    assert damaged == []
    assert found is not None
    assert _same(vars(found), vars(saved))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 10, 9, 100):
        save(tmp_path, _checkpoint(step), keep=2)
    assert checkpoint_steps(tmp_path) == [10, 100]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000010.state.safetensors",
        "step-000100.state.safetensors",
    ]


def test_a_damaged_checkpoint_gives_way_to_an_older_one(tmp_path: Path) -> None:
    save(tmp_path, _checkpoint(1), keep=9)
    save(tmp_path, _checkpoint(2), keep=9)
    path_of(tmp_path, 3).write_bytes(b"")
    files.write_tensors(path_of(tmp_path, 4), {"x": torch.zeros(1)}, {})
    save_tree(path_of(tmp_path, 5), {"format": 99, "step": 5})
    save_tree(path_of(tmp_path, 6), [1, 2])
    content = path_of(tmp_path, 2).read_bytes()
    path_of(tmp_path, 2).write_bytes(content[: len(content) // 2])
    found, damaged = latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert damaged == [path_of(tmp_path, step) for step in (6, 5, 4, 3, 2)]


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") == (None, [])


def test_a_full_disk_leaves_older_checkpoints_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, _checkpoint(1), keep=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, _checkpoint(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == [path_of(tmp_path, 1).name]
    found, _ = latest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_another_runs_checkpoint_is_refused_and_says_why() -> None:
    state = _checkpoint(1)
    check_same_run(state, dict(state.identity), "abc")
    check_same_run(state, dict(state.identity))
    with pytest.raises(ScdpoError, match=r"optim\.lr: 0\.1 -> 0\.2"):
        check_same_run(state, dict(state.identity) | {"optim.lr": 0.2})
    with pytest.raises(ScdpoError, match="pairs have changed"):
        check_same_run(state, dict(state.identity), "abd")
    assert checkpoint.path_of(Path("x"), 5).name == "step-000005.state.safetensors"
