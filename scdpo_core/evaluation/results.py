"""The result of an evaluation, and the JSON it becomes. Doors only draw it."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..types import LoraFile
from .intervals import Mean, Rate
from .metrics import AnyOfN, BeforeAfter, EvalGroup, Preservation, Target

SCHEMA = 1


@dataclass(frozen=True)
class TrainFacts:
    """What the training was.

    Attributes:
        steps: optimizer steps.
        seconds: wall-clock time.
        pairs: pairs that training saw, after relabelling.
        seed: of the training.
        objective: its name, such as 'sc_dpo'.
        base: the model that was tuned, as people call it.
        settings: anything else worth a line: name and value for people.
    """

    steps: int
    seconds: float
    pairs: int
    seed: int
    objective: str
    base: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CostModelFacts:
    """The cost model and how it did on images that its training never saw.

    Attributes:
        id: of the scorer.
        hash: first 12 hexadecimal digits of the SHA-256 of its weights.
        auc: area under the ROC curve; None when not measured.
        fpr_at_zero: share of benign images with a cost above 0; None when not measured.
        recall_at_zero: share of harmful images with a cost above 0; None when not measured.
    """

    id: str
    hash: str
    auc: float | None = None
    fpr_at_zero: float | None = None
    recall_at_zero: float | None = None


@dataclass(frozen=True)
class JudgeFacts:
    """Who judged, and how far it can be trusted.

    Attributes:
        name: for people.
        accuracy: on images whose content is known; None when not measured.
        independent: whether it shares neither weights nor training images with the cost model.
    """

    name: str
    accuracy: float | None
    independent: bool


@dataclass(frozen=True)
class EvalReport:
    """Everything an evaluation found.

    Attributes:
        title: what was evaluated.
        created: date and time, ISO 8601.
        harmful: harmful captions of concepts that training saw.
        heldout_concept: harmful captions of concepts that training never saw; None when not measured.
        benign: benign captions, measured by the subject found; None when not measured.
        groups: all groups in the order to show them; may repeat the three above or pool them.
        background: how often the asked background came out; None when captions ask for none.
        preservation: same-seed likeness of benign images; None when not measured.
        any_of_n: SSR-N over harmful captions; None when not measured.
        ua_proxy: before and after; None without a quality reward.
        train: what the training was; None when only a finished LoRA was evaluated.
        cost_model: the cost model that training used; None without one.
        lora: the file that was evaluated; None when it was not saved.
        judge: who judged.
        environment: what it ran on, see `environment`.
        attacks: groups of images of attacks; empty without attacks.
        notes: further sentences for the reader on what these figures mean or do not.
    """

    title: str
    created: str
    harmful: EvalGroup
    heldout_concept: EvalGroup | None
    benign: EvalGroup | None
    groups: tuple[EvalGroup, ...]
    background: BeforeAfter | None
    preservation: Preservation | None
    any_of_n: AnyOfN | None
    ua_proxy: tuple[float, float] | None
    train: TrainFacts | None
    cost_model: CostModelFacts | None
    lora: LoraFile | None
    judge: JudgeFacts
    environment: Mapping[str, str] = field(default_factory=dict)
    attacks: tuple[EvalGroup, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def headline(self) -> tuple[EvalGroup, ...]:
        """The groups that the verdict rests on: harmful, held-out concepts and benign, where measured."""
        return tuple(g for g in (self.harmful, self.heldout_concept, self.benign) if g is not None)

    @property
    def targets(self) -> tuple[EvalGroup, ...]:
        """Every group with a target, each once."""
        every = {group.name: group for group in (*self.headline, *self.groups)}
        return tuple(group for group in every.values() if group.target is not None)

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return the report as plain JSON values; what was not measured is null.

        Args:
            folder: where the report will lie. The LoRA's `path` is good from anywhere, until something is
                moved; its `file` starts from that folder, and both can be moved together.
        """
        train, cost, lora, preservation = self.train, self.cost_model, self.lora, self.preservation
        return {
            "schema": SCHEMA,
            "title": self.title,
            "created": self.created,
            "before": self._rates("before"),
            "after": self._rates("after"),
            "targets_met": all(group.met for group in self.targets) if self.targets else None,
            "groups": [_group(group) for group in self.groups],
            "headline": {
                "harmful_rate": _group(self.harmful),
                "heldout_concept_harmful_rate": self.heldout_concept and _group(self.heldout_concept),
                "benign_accuracy": self.benign and _group(self.benign),
            },
            "background_kept": self.background
            and {"before": rate_json(self.background.before), "after": rate_json(self.background.after)},
            "preservation": preservation
            and {
                "pixel_difference": mean_json(preservation.difference),
                "ssim": mean_json(preservation.similarity),
                "over_refusal": rate_json(preservation.over_refusal),
            },
            "any_of_n": self.any_of_n
            and {
                "seeds": self.any_of_n.seeds,
                "before": rate_json(self.any_of_n.before),
                "after": rate_json(self.any_of_n.after),
            },
            "objective": train and train.objective,
            "attacks": {group.name: group.after.value for group in self.attacks},
            "ua_proxy": self.ua_proxy and {"before": self.ua_proxy[0], "after": self.ua_proxy[1]},
            "train": train
            and {
                "steps": train.steps,
                "seconds": round(train.seconds, 1),
                "pairs": train.pairs,
                "seed": train.seed,
                "objective": train.objective,
                "base": train.base,
                "settings": dict(train.settings),
            },
            "cost_model": cost
            and {
                "id": cost.id,
                "hash": cost.hash,
                "auc": cost.auc,
                "fpr_at_zero": cost.fpr_at_zero,
                "recall_at_zero": cost.recall_at_zero,
            },
            "lora": lora
            and {
                "path": str(lora.path.absolute()),
                "file": _from(folder, lora.path),
                "rank": lora.rank,
                "keys": lora.keys,
                "family": lora.family,
            },
            "judge": {
                "name": self.judge.name,
                "accuracy": self.judge.accuracy,
                "independent": self.judge.independent,
            },
            "environment": dict(self.environment),
            "notes": list(self.notes),
        }

    def figures(self) -> dict[str, dict[str, float | None]]:
        """Return the headline's rates before and after, those that were measured: for the LoRA's own file."""
        before, after = self._rates("before"), self._rates("after")
        return {
            name: {"before": value, "after": after[name]}
            for name, value in before.items()
            if value is not None
        }

    def _rates(self, when: str) -> dict[str, float | None]:
        def value(group: EvalGroup | None) -> float | None:
            return None if group is None else _number(getattr(group, when).value)

        return {
            "harmful_rate": value(self.harmful),
            "heldout_concept_harmful_rate": value(self.heldout_concept),
            "benign_accuracy": value(self.benign),
        }


def environment() -> dict[str, str]:
    """Return what this process runs on: versions, processor and accelerator; nothing that names a person."""
    facts = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count() or 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    for package in ("torch", "diffusers", "transformers", "peft"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def _from(folder: Path, path: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        # On Windows nothing leads from one drive to another.
        return str(path.absolute())


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def rate_json(rate: Rate) -> dict[str, Any]:
    """Return a rate with its counts and interval as JSON values."""
    interval = rate.interval()
    return {
        "hits": rate.hits,
        "total": rate.total,
        "value": _number(rate.value),
        "ci95": [interval.low, interval.high],
    }


def mean_json(mean: Mean) -> dict[str, Any]:
    """Return a mean with its interval as JSON values; infinite ends are null."""
    return {
        "value": mean.value,
        "ci95": [_number(mean.interval.low), _number(mean.interval.high)],
        "n": mean.n,
    }


def _target(group: EvalGroup, target: Target) -> dict[str, Any]:
    return {
        "kind": target.kind,
        "limit": target.limit,
        "met": group.met,
        "certain": target.certain(group.before, group.after),
    }


def _group(group: EvalGroup) -> dict[str, Any]:
    return {
        "name": group.name,
        "title": group.title,
        "description": group.description,
        "measure": group.measure,
        "aim": group.aim,
        "captions": list(group.captions),
        "before": rate_json(group.before),
        "after": rate_json(group.after),
        "target": group.target and _target(group, group.target),
    }
