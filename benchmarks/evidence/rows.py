"""What is trained in each row: settings by 'section.key' over those that all rows have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.evidence.worlds import WORLDS, Built
from scdpo_core.config.settings import DEFAULT_BETAS, TrainSettings, load_toml
from scdpo_core.types import ScdpoError

ROOT = Path(__file__).resolve().parents[2]
PRESET = ROOT / "trainer" / "configs" / "micro.toml"
COMMON = Path(__file__).with_name("common.toml")
OURS = "redirect_keep"
"""The row that others are compared with."""

Kind = Literal["base", "control", "sc_dpo", "peer", "ours"]


@dataclass(frozen=True)
class Row:
    """One way of training.

    Attributes:
        title: what a table calls it.
        kind: which part of the table it stands in.
        changes: settings by 'section.key'; those of `SCALED` multiply the common ones.
        grid: values to try where a peer is tuned, by 'section.key'; their first is taken untuned.
        like: the row whose images a step are this one's, where `images_of` is given.
        images_of: the row after whose number of computed images this one stops, instead of its steps.
        prompts: learns from prompts alone.
        untrained: the base model itself.
        preset: the settings over which the row's stand.
    """

    title: str
    kind: Kind
    changes: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    like: str = ""
    images_of: str = ""
    prompts: bool = False
    untrained: bool = False
    preset: Path = COMMON


SCALED = frozenset({"optim.lr", "optim.max_train_steps"})
_SC_DPO = {"objective.objective": "sc_dpo", "objective.beta": 200.0, "objective.winner": 0.5}
_SD = {**_SC_DPO, "objective.winner": 0.05}
_WIDE = {"lora.targets": "attention+ff", "optim.lr": 2.0}
_OURS = {"objective.objective": OURS}


def _peer(title: str, objective: str, betas: tuple[float, ...] = (0.1, 1.0, 0.01), **changes: Any) -> Row:
    """A peer's loss; its betas are shares of its usual one: the errors of so small a model differ more."""
    usual = DEFAULT_BETAS.get(objective, 1.0)  # type: ignore[call-overload]
    told = {"objective.objective": objective, **{key.replace("__", "."): v for key, v in changes.items()}}
    grid = {"optim.lr": (1.0, 0.5, 2.0), "objective.beta": tuple(share * usual for share in betas)}
    return Row(title, "peer", told, grid)


ROWS: dict[str, Row] = {
    "base": Row("base model", "base", untrained=True),
    "default": Row("default of the preset", "ours", preset=PRESET),
    "winner_only": Row("winner only", "control", {"objective.objective": "winner_only"}),
    "winner_only_half": Row(
        "winner only, lr / 2", "control", {"objective.objective": "winner_only", "optim.lr": 0.5}
    ),
    "winner_only_double": Row(
        "winner only, lr x 2", "control", {"objective.objective": "winner_only", "optim.lr": 2.0}
    ),
    "winner_only_wide_double": Row(
        "winner only, wider targets, lr x 2",
        "control",
        {"objective.objective": "winner_only", **_WIDE},
    ),
    "winner_only_long": Row(
        "winner only, steps x 4",
        "control",
        {"objective.objective": "winner_only", "optim.max_train_steps": 4.0},
    ),
    "winner_only_images": Row(
        "winner only, as many images",
        "control",
        {"objective.objective": "winner_only"},
        like="winner_only",
        images_of=OURS,
    ),
    "winner_only_keep": Row(
        "winner only with the keep terms",
        "control",
        {
            "objective.objective": "winner_only",
            "terms.keep_benign": 5.0,
            "terms.keep_empty": 1.0,
            "terms.keep_text": 5.0,
        },
    ),
    "preference_only": Row("preference only", "sc_dpo", {**_SC_DPO, "objective.winner": 0.0}),
    "sc_dpo": Row("SC-DPO, embedded ratio", "sc_dpo", _SC_DPO),
    "sc_dpo_wide_double": Row("SC-DPO, wider targets, lr x 2", "sc_dpo", {**_SC_DPO, **_WIDE}),
    "sc_dpo_no_dfm": Row("SC-DPO, embedded ratio, no DFM", "sc_dpo", {**_SC_DPO, "objective.dfm_gamma": 0.0}),
    "sc_dpo_sd": Row("SC-DPO, ratio of SD", "sc_dpo", _SD),
    "sc_dpo_sd_no_dfm": Row("SC-DPO, ratio of SD, no DFM", "sc_dpo", {**_SD, "objective.dfm_gamma": 0.0}),
    **{
        f"sc_dpo_margin_{kappa}": Row(
            f"SC-DPO, margin {kappa}",
            "sc_dpo",
            {**_SC_DPO, "objective.margin": float(kappa), "data.cost_model": "micro"},
        )
        for kappa in (1, 10, 20)
    },
    "sc_dpo_images": Row("SC-DPO, as many images", "sc_dpo", _SC_DPO, like="sc_dpo", images_of=OURS),
    "sc_dpo_keep": Row(
        "SC-DPO with the keep terms",
        "sc_dpo",
        {**_SC_DPO, "terms.keep_benign": 5.0, "terms.keep_empty": 1.0, "terms.keep_text": 5.0},
    ),
    "diffusion_dpo": _peer("Diffusion-DPO", "diffusion_dpo"),
    "safetydpo": _peer("SafetyDPO", "safetydpo", lora__rank=4),
    "duo": _peer("DUO", "duo", lora__rank=32),
    "safedpo": _peer("SafeDPO", "safedpo", data__cost_model="micro", data__both_unsafe="order"),
    "mapo": _peer("MaPO", "mapo", (1.0, 10.0, 0.1)),
    "diffusion_kto": _peer("Diffusion-KTO", "diffusion_kto"),
    "esd": Row("ESD-like", "peer", {"objective.objective": "esd"}, {"optim.lr": (1.0, 0.5, 2.0)}),
    "gem": Row(
        "GEM-like", "peer", {"objective.objective": "gem"}, {"optim.lr": (1.0, 0.5, 2.0)}, prompts=True
    ),
    OURS: Row("redirect and keep", "ours", _OURS),
    "no_redirect": Row("without redirect", "ours", {**_OURS, "terms.redirect": 0.0}),
    "no_keep": Row("without keep", "ours", {**_OURS, "terms.keep_benign": 0.0}),
    "no_keep_empty": Row("without keep empty", "ours", {**_OURS, "terms.keep_empty": 0.0}),
    "no_keep_text": Row("without keep by text", "ours", {**_OURS, "terms.keep_text": 0.0}),
    "keep_text": Row("with keep by text", "ours", {**_OURS, "terms.keep_text": 5.0}),
    "redirect_only": Row(
        "redirect alone",
        "ours",
        {**_OURS, "terms.keep_benign": 0.0, "terms.keep_empty": 0.0, "terms.keep_text": 0.0},
    ),
    "pure": Row("m = 1 always", "ours", {**_OURS, "terms.redirect_pure": 1.0}),
    "pure_quarter": Row("m = 1 in a quarter", "ours", {**_OURS, "terms.redirect_pure": 0.25}),
    "redirect_half": Row("redirect and keep, lr / 2", "ours", {**_OURS, "optim.lr": 0.5}),
    "redirect_double": Row("redirect and keep, lr x 2", "ours", {**_OURS, "optim.lr": 2.0}),
    "redirect_text": Row("redirect and keep, text encoder too", "ours", {**_OURS, "lora.train_text": True}),
    "redirect_wide": Row(
        "redirect and keep, wider targets", "ours", {**_OURS, "lora.targets": "attention+ff"}
    ),
    "redirect_wide_double": Row(
        "redirect and keep, wider targets, lr x 2",
        "ours",
        {**_OURS, **_WIDE},
    ),
    "distil": Row("distil, prompts alone", "ours", {"objective.objective": "distil"}, prompts=True),
}


def settings_for(
    row: str,
    world: str,
    built: Built,
    seed: int,
    folder: Path,
    *,
    base: str = "micro",
    tuned: Mapping[str, float] | None = None,
    steps: int | None = None,
    batch: int | None = None,
) -> TrainSettings:
    """The settings of a row in a world.

    Args:
        row: a key of `ROWS`.
        world: a key of `WORLDS`.
        built: that world on disk.
        seed: of training.
        folder: of the run.
        base: the base model.
        tuned: what a peer's grid was decided for.
        steps: instead of the preset's, before a row multiplies them.
        batch: instead of the preset's.

    Raises:
        ScdpoError: this version has no such objective or term.
    """
    own = ROWS[row]
    preset = load_toml(own.preset)
    scale = {"optim.max_train_steps": steps, "optim.batch_size": batch}
    plain: dict[str, Any] = {
        "data.cost_model": WORLDS[world].cost_model,
        "model.base": base,
        "optim.seed": seed,
        "output.output": folder,
        "output.checkpoint_every": 1_000_000,
        "sampling.samples": 0,
        "data.prompts" if own.prompts else "data.pairs": built.prompts if own.prompts else built.pairs,
        **{key: value for key, value in scale.items() if value is not None},
    }
    settings = _changed(preset, plain)
    grid = {key: values[0] for key, values in own.grid.items()}
    changes = {**own.changes, **grid, **(tuned or {})}
    for key in SCALED & changes.keys():
        now = _value(settings, key)
        changes[key] = type(now)(now * changes[key])
    return _changed(settings, changes)


def _value(settings: TrainSettings, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(settings, section), name)


def _changed(settings: TrainSettings, changes: Mapping[str, Any]) -> TrainSettings:
    for key, value in changes.items():
        section, name = key.split(".")
        try:
            part = dataclasses.replace(getattr(settings, section), **{name: value})
        except (AttributeError, TypeError):
            raise ScdpoError(f"This version has no setting {key}, which the row needs.") from None
        settings = dataclasses.replace(settings, **{section: part})
    return settings
