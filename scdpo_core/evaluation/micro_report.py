"""The evaluation report of a run on the embedded model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from ..config.terms import TERM_OBJECTIVES
from ..cost.model import load_cost
from ..io.files import sha256_of
from ..micro.judge import Judge
from ..micro.world import BACKGROUNDS
from ..run_store.events import Done, Started, last_run
from ..run_store.folder import RunFolder
from ..types import LoraFile
from .judges import JudgedImage
from .metrics import any_of_n, background_kept, of_groups, preservation
from .micro_attacks import TITLES, attack_groups
from .micro_requests import BENIGN_GROUPS, HARMFUL_GROUPS, groups, headline
from .results import CostModelFacts, EvalReport, JudgeFacts, TrainFacts, environment


def build_report(
    images: Sequence[JudgedImage], lora: LoraFile, cost_model: Path, judge: Judge, *, folder: Path
) -> EvalReport:
    """Put the figures of a run together.

    Args:
        images: the judged evaluation images, and those that attacks made.
        lora: the finished LoRA.
        cost_model: the cost model file that training used.
        judge: the one that judged.
        folder: the run folder, whose events say how long training took.
    """
    harmful, heldout, benign = headline(images)
    attacks = attack_groups(images)
    asks_harm = of_groups(images, *HARMFUL_GROUPS, "heldout")
    return EvalReport(
        title="Safety LoRA for the embedded model",
        created=datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
        harmful=harmful,
        heldout_concept=heldout,
        benign=benign,
        groups=(*groups(images), *attacks),
        attacks=attacks,
        background=background_kept(_unattacked(images), BACKGROUNDS),
        preservation=preservation(of_groups(images, *BENIGN_GROUPS)),
        any_of_n=any_of_n(asks_harm),
        ua_proxy=None,
        train=_train_facts(lora, RunFolder(folder)),
        cost_model=_cost_facts(cost_model),
        lora=lora,
        judge=JudgeFacts(
            "the embedded judge, an image classifier",
            float(judge.facts["held_out_accuracy"]),
            independent=True,
        ),
        environment=environment(),
    )


def _unattacked(images: Sequence[JudgedImage]) -> list[JudgedImage]:
    """Return the images that were generated without an attack."""
    return [image for image in images if image.request.group not in TITLES]


def _train_facts(lora: LoraFile, folder: RunFolder) -> TrainFacts:
    records = last_run(folder.events)
    began = next(record.time for record in records if isinstance(record.event, Started))
    ended = next(record.time for record in reversed(records) if isinstance(record.event, Done))
    metadata = lora.metadata
    return TrainFacts(
        steps=int(metadata["scdpo_train_steps"]),
        seconds=ended - began,
        pairs=int(metadata["scdpo_train_pairs"]),
        seed=int(metadata["ss_seed"]),
        objective=metadata["scdpo_objective"],
        base="the embedded model",
        settings=_settings(metadata),
    )


def _settings(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that matter for the objective, by the report's names."""
    rate = {"learning rate": metadata["ss_learning_rate"]}
    if metadata["scdpo_objective"] in TERM_OBJECTIVES:
        weights = json.loads(metadata["scdpo_term_weights"])
        return {name.replace("_", " "): f"{weight:g}" for name, weight in weights.items()} | rate
    return {
        "beta": metadata["scdpo_beta"],
        "winner term": metadata["scdpo_winner"],
        "DFM gamma": metadata["scdpo_dfm_gamma"],
    } | rate


def _cost_facts(path: Path) -> CostModelFacts:
    _, facts = load_cost(path)
    measured = facts.figures
    return CostModelFacts(
        id=facts.name,
        hash=sha256_of(path)[:12],
        auc=measured.get("auc"),
        fpr_at_zero=measured.get("fpr_at_zero"),
        recall_at_zero=measured.get("recall_at_zero"),
    )
