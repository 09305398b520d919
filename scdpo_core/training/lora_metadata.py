"""What a run and its LoRA say of where they come from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence

from ..config.settings import TrainSettings, config_hash
from ..families.base import LoadedModel
from ..run_store.events import Record, Sample
from ..types import CachedPair, LabelledPair
from .starting_loras import facts_of_loras


def dataset_hash(cached: Sequence[CachedPair], labelled: Sequence[LabelledPair]) -> str:
    """12 hexadecimal digits that change with any image, prompt, encoder, order, label, weight or cost."""
    rows: list[list[object]] = []
    for pair, label in zip(cached, labelled, strict=True):
        own = label.pair
        row = [pair.key, label.weight, label.label, label.chosen_cost, label.rejected_cost, own.category]
        # Runs that were begun when pairs had neither are to go on.
        if own.safe_prompt:
            row.append(own.safe_prompt)
        if own.repeats != 1:
            row.append(own.repeats)
        if pair.mask is not None:
            row.append(hashlib.sha256(pair.mask.numpy().tobytes()).hexdigest())
        rows.append(row)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def categories(labelled: Sequence[LabelledPair]) -> dict[str, int]:
    """How many pairs of each kind of harm a run uses, in the order of the names; '' where none is said."""
    return dict(sorted(Counter(pair.pair.category for pair in labelled).items()))


def facts(settings: TrainSettings, model: LoadedModel, kind: str) -> dict[str, object]:
    """What the LoRA's file says of its making; nothing that differs between two runs of one job.

    Args:
        settings: of the run.
        model: the base.
        kind: of the LoRA.
    """
    own = settings.objective
    return {
        **facts_of_loras(settings),
        "objective": own.objective,
        "beta": own.effective_beta,
        "winner": own.winner,
        "margin": own.margin,
        "weighting": own.weighting,
        "prediction": model.prediction,
        "zero_snr": model.zero_snr,
        "dfm_gamma": own.dfm_gamma,
        "terms": {name: value for name, value in vars(settings.terms).items() if value is not None},
        "kind": kind,
        "targets": settings.lora.targets,
        "block_ranks": list(settings.lora.block_ranks),
        "train_text": settings.lora.train_text,
        "quantize": settings.model.quantize,
        "optimizer": settings.optim.optimizer,
        "ema": settings.optim.ema,
        "config_hash": config_hash(settings),
        "base_encoder": model.encoder_id,
        "ss_sd_model_name": model.name,
        "ss_optimizer": settings.optim.optimizer,
        "ss_lr_scheduler": settings.optim.schedule,
        "ss_max_train_steps": settings.optim.max_train_steps,
        "ss_resolution": "({}, {})".format(*(settings.data.size or model.default_size)),
        "ss_enable_bucket": str(settings.data.buckets),
        "ss_learning_rate": settings.optim.lr,
        "ss_seed": settings.optim.seed,
        "ss_batch_size_per_device": settings.optim.batch_size,
        "ss_gradient_accumulation_steps": settings.optim.accumulation,
    }


def sample_costs(records: Iterable[Record], step: int) -> dict[str, object]:
    """What a run's sample images cost before training and after it, as a fact for the LoRA's file.

    Args:
        records: of the run.
        step: the last one that samples were drawn at.

    Returns:
        The mean over the images; nothing when they were not scored at both ends.
    """
    costs: dict[int, dict[int, float]] = {0: {}, step: {}}
    for record in records:
        sample = record.event
        if isinstance(sample, Sample) and sample.step in costs and sample.cost is not None:
            # A resumed run may have drawn a step twice: by its seed each image counts once.
            costs[sample.step][sample.seed] = sample.cost
    before, after = costs[0], costs[step]
    if not step or not before or before.keys() != after.keys():
        return {}
    means = {
        when: round(sum(values.values()) / len(values), 3)
        for when, values in (("before", before), ("after", after))
    }
    return {"evaluation": {"mean_cost_of_samples": means}}
