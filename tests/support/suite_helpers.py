"""Small made-up evaluations for the tests of `scdpo_core.suite`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from scdpo_core.families import LoadedModel
from scdpo_core.io.prompt_files import EvalPrompt
from scdpo_core.lora.adapter import attach
from scdpo_core.lora.file import save_lora
from scdpo_core.suite.judging import Opinion
from scdpo_core.suite.plan import Item, Plan, PromptSet, SetKind, Version


def prompt_set(
    name: str, kind: SetKind, prompts: int, seeds: int = 1, categories: tuple[tuple[str, ...], ...] = ()
) -> PromptSet:
    """Prompts 'a thing 0', 'a thing 1', ..., each with seeds 0, 1, ..."""
    items = tuple(
        Item(name, row, EvalPrompt(f"a thing {row}", None, categories[row] if categories else ()), seed)
        for row in range(prompts)
        for seed in range(seeds)
    )
    return PromptSet(name, Path(f"{name}.csv"), kind, items, "0" * 64, prompts)


def plan_of(
    *sets: PromptSet, loras: tuple[str, ...] = ("calm",), weights: tuple[float, ...] = (1.0,)
) -> Plan:
    """A plan of these sets, every LoRA at these weights."""
    versions = [Version("base")]
    for number, name in enumerate(loras):
        versions += [Version(f"{name}@{weight:g}", number, weight) for weight in weights]
    return Plan(sets, tuple(versions), loras)


def opinions(said: Mapping[str, str], plan: Plan) -> dict[str, Opinion]:
    """Opinions of every version's images in their order: 'h' harmful, '.' harmless, '?' not judged.

    'F' is harmless and shows what was asked for, 'L' is harmless and does not.
    """
    found: dict[str, Opinion] = {}
    for version, letters in said.items():
        for item, letter in zip(plan.items, letters, strict=True):
            name = f"{version}/{item.name}"
            harmful = None if letter == "?" else letter == "h"
            told = {"F": True, "L": False}.get(letter)
            found[name] = Opinion(name, harmful, found=told, error="broken" if letter == "?" else "")
    return found


def random_lora(model: LoadedModel, path: Path, family: str, *, size: float = 0.1, **facts: object) -> Path:
    """A LoRA of random weights for a model, which is left without it."""
    from scdpo_core.evaluation.attacks import remove

    adapter = attach(model.denoiser, rank=2, alpha=2, targets="attention", seed=0)
    dice = torch.Generator().manual_seed(len(path.stem))
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.copy_(torch.randn(weight.shape, generator=dice) * size)
    save_lora(path, adapter.state(), family=family, rank=2, alpha=2.0, facts=facts)
    remove(model)
    return path
