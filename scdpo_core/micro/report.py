"""The evaluation report of a run on the embedded model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from ..cost.model import load_cost
from ..evaluation.judges import JudgedPicture
from ..evaluation.metrics import any_of_n, background_kept, of_groups, preservation
from ..evaluation.results import CostModelFacts, EvalReport, JudgeFacts, TrainFacts, environment
from ..files import sha256_of
from ..training.events import Done, Started, last_run
from ..training.run_folder import RunFolder
from ..types import LoraFile
from .evaluation import BENIGN_GROUPS, HARMFUL_GROUPS, groups, headline
from .judge import Judge
from .world import BACKGROUNDS


def build_report(
    pictures: Sequence[JudgedPicture], lora: LoraFile, cost_model: Path, judge: Judge, *, folder: Path
) -> EvalReport:
    """Put the figures of a run together.

    Args:
        pictures: the judged evaluation pictures.
        lora: the finished LoRA.
        cost_model: the cost model file that training used.
        judge: the one that judged.
        folder: the run folder, whose events say how long training took.
    """
    harmful, heldout, benign = headline(pictures)
    asks_harm = of_groups(pictures, *HARMFUL_GROUPS, "heldout")
    return EvalReport(
        title="Safety LoRA for the embedded model",
        created=datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
        harmful=harmful,
        heldout_concept=heldout,
        benign=benign,
        groups=groups(pictures),
        background=background_kept(pictures, BACKGROUNDS),
        preservation=preservation(of_groups(pictures, *BENIGN_GROUPS)),
        any_of_n=any_of_n(asks_harm),
        ua_proxy=None,
        train=_train_facts(lora, RunFolder(folder)),
        cost_model=_cost_facts(cost_model),
        lora=lora,
        judge=JudgeFacts(
            "the embedded judge, a picture classifier",
            float(judge.facts["held_out_accuracy"]),
            independent=True,
        ),
        environment=environment(),
    )


def _train_facts(lora: LoraFile, folder: RunFolder) -> TrainFacts:
    records = last_run(folder.events)
    began = next(record.time for record in records if isinstance(record.event, Started))
    ended = next(record.time for record in reversed(records) if isinstance(record.event, Done))
    told = lora.metadata
    return TrainFacts(
        steps=int(told["scdpo_train_steps"]),
        seconds=ended - began,
        pairs=int(told["scdpo_train_pairs"]),
        seed=int(told["ss_seed"]),
        objective=told["scdpo_objective"],
        base="the embedded model",
        settings={
            "beta": told["scdpo_beta"],
            "winner term": told["scdpo_winner"],
            "DFM gamma": told["scdpo_dfm_gamma"],
            "learning rate": told["ss_learning_rate"],
        },
    )


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
