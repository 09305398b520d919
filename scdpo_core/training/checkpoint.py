"""Checkpoints: everything that a resumed run needs to go on as if it had never been interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config.settings import changes
from ..io.tensor_tree import load_tree, save_tree
from ..run_store.folder import CHECKPOINT_SUFFIX, checkpoint_steps
from ..types import ScdpoError

_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after some steps.

    Attributes:
        step: how many steps are behind it.
        adapter: the LoRA's float32 masters by canonical name.
        optimizer: its state_dict.
        extra: state of the objective (difficulty by timestep) and of the gradient scaler.
        identity: `config.identity` of the settings.
        dataset_hash: of the pairs and their labels.
    """

    step: int
    adapter: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    dataset_hash: str = ""


class OtherRunError(ScdpoError):
    """A run that is asked to go on as another than the one that it is."""


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:06d}{CHECKPOINT_SUFFIX}"


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint; once it is whole, remove all but the newest `keep`.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; older checkpoints are untouched.
    """
    path = path_of(folder, checkpoint.step)
    save_tree(path, {"format": _FORMAT, **vars(checkpoint)})
    for step in checkpoint_steps(folder)[:-keep]:
        path_of(folder, step).unlink(missing_ok=True)
    return path


def latest(folder: Path) -> tuple[Checkpoint | None, list[Path]]:
    """The newest checkpoint that can be read, and those newer ones that cannot."""
    damaged: list[Path] = []
    for step in reversed(checkpoint_steps(folder)):
        found = read(folder, step)
        if found is not None:
            return found, damaged
        damaged.append(path_of(folder, step))
    return None, damaged


def read(folder: Path, step: int) -> Checkpoint | None:
    """The checkpoint of a step; None if it cannot be read."""
    try:
        tree = load_tree(path_of(folder, step))
        found = Checkpoint(**tree) if tree.pop("format") == _FORMAT else None
        return found if found is not None and _is_sound(found) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_sound(found: Checkpoint) -> bool:
    """Whether what was read has the shape of a checkpoint, down to the weights."""
    texts = (found.optimizer, found.extra, found.identity)
    averaged, patience = found.extra.get("averaged"), found.extra.get("patience") or {}
    best = patience.get("best")
    return (
        type(found.step) is int
        and isinstance(found.dataset_hash, str)
        and all(isinstance(tree, Mapping) and all(isinstance(name, str) for name in tree) for tree in texts)
        and _are_weights(found.adapter)
        and (not averaged or _are_weights(averaged))
        and (not best or (type(best["step"]) is int and _are_weights(best["adapter"])))
    )


def _are_weights(tree: Any) -> bool:
    return isinstance(tree, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tree.items()
    )


def check_same_run(
    checkpoint: Checkpoint,
    identity: Mapping[str, Any],
    dataset_hash: str | None = None,
    base_hash: str = "",
) -> None:
    """Refuse to go on with other settings, another model or other pairs than the checkpoint was made with.

    Raises:
        OtherRunError: says what has changed.
    """
    changed = changes(checkpoint.identity, identity)
    if changed:
        raise OtherRunError(
            f"This run cannot be resumed with other settings than it was begun with ({'; '.join(changed)}). "
            "Take these settings back, or give --output a new folder."
        )
    known = checkpoint.extra.get("base")
    if base_hash and known and known != base_hash:
        raise OtherRunError(
            "This run cannot be resumed: --base is another model than it was begun with. Give that one, "
            "wherever it lies now, or give --output a new folder."
        )
    if dataset_hash is not None and checkpoint.dataset_hash != dataset_hash:
        raise OtherRunError(
            "This run cannot be resumed: the preference pairs have changed since it was begun (images, "
            "prompts, labels or costs), or the VAE or a text encoder has. Put them back as they were, or "
            "give --output a new folder."
        )
