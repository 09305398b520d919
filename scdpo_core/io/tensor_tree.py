"""Nested dicts and lists of tensors and plain values as one safetensors file; reading runs no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .files import read_tensors, write_tensors

_TREE = "scdpo_tree"


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dicts and lists of tensors and plain values (an optimizer's state, say).

    Tensors go into the safetensors body, everything else into its JSON header, so reading it
    never runs code. Dict keys may be strings or integers.
    """
    tensors: dict[str, torch.Tensor] = {}

    def pack(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            name = f"t{len(tensors)}"
            # Shared storage is legal in a tree but not in safetensors.
            tensors[name] = value.detach().cpu().clone()
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[key, pack(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [pack(item) for item in value]}
        return {"value": value}

    header = json.dumps(pack(tree))
    write_tensors(path, tensors, {_TREE: header})


def load_tree(path: Path) -> Any:
    """Read what `save_tree` wrote. Tuples come back as lists.

    Raises:
        FileNotFoundError, ValueError: as `read_tensors`; also when the file is not such a tree.
    """
    tensors, metadata = read_tensors(path)
    if _TREE not in metadata:
        raise ValueError(f"{path} is not a checkpoint written by this trainer.")

    def unpack(node: Any) -> Any:
        if "tensor" in node:
            return tensors[node["tensor"]]
        if "dict" in node:
            return {key: unpack(item) for key, item in node["dict"]}
        if "list" in node:
            return [unpack(item) for item in node["list"]]
        return node["value"]

    try:
        return unpack(json.loads(metadata[_TREE]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its tree cannot be read.") from error
