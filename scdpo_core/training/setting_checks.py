"""Values that make no sense, alone or beside the others, by the settings alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..config.bounds import out_of_bounds
from ..config.requirements import UNETS, without_effect
from ..config.settings import TrainSettings
from ..config.terms import HARM_TERMS, term_weights
from ..types import ScdpoError
from . import optimizers, tracking


def invalid(
    settings: TrainSettings, family: str | None = None, unasked: Sequence[TrainSettings] = (TrainSettings(),)
) -> list[str]:
    """Return a sentence about each value that makes no sense; empty when all do.

    Args:
        settings: of a run.
        family: of the base model; None where nobody has looked yet.
        unasked: settings that nobody gave, see `requirements.without_effect`.
    """
    data, objective = settings.data, settings.objective
    rules = [
        (bool(data.width) == bool(data.height), "data.width and data.height are given together, or neither"),
        (
            objective.timestep_min < objective.timestep_max,
            "objective.timestep_min and objective.timestep_max are shares of the schedule, in this order",
        ),
    ]
    sentences = [*out_of_bounds(settings), *(sentence for fine, sentence in rules if not fine)]
    sentences += [*meaningless(settings, family, unasked), *optimizers.invalid(settings.optim)]
    sentences += tracking.unknown(settings.output.track)
    return [f"{sentence}." for sentence in sentences]


def meaningless(
    settings: TrainSettings, family: str | None, unasked: Sequence[TrainSettings]
) -> Iterator[str]:
    """Say of each setting why it would do nothing, or cannot be had, beside the others.

    Args:
        settings: of a run.
        family: of the base model; None where nobody has looked yet.
        unasked: settings that nobody gave, see `without_effect`.
    """
    yield from without_effect(settings, family, unasked)
    yield from _nothing_learnt(settings)
    lora = settings.lora
    coded = settings.model.quantize
    if coded != "off" and (lora.kind == "dora" or (coded == "nf4" and lora.kind != "lora")):
        yield (
            f"lora.kind '{lora.kind}' looks at the base's own matrices, which model.quantize '{coded}' has "
            "coded: leave one of them out"
        )
    if settings.model.offload_blocks != 0 and settings.model.compile != "off":
        yield (
            "model.offload_blocks and model.compile do not go together, for a compiled block expects its "
            "weights to stay where they are: leave one of them out"
        )
    if lora.targets == "self-attention" and not UNETS.is_met(settings, family):
        yield (
            "lora.targets 'self-attention' needs attention layers to which no prompt comes, and this family "
            "has none: take 'attention'"
        )
    try:
        _ = lora.rank_of_block
    except ScdpoError as error:
        yield str(error).removesuffix(".")


def _nothing_learnt(settings: TrainSettings) -> Iterator[str]:
    """A sentence for an objective that lacks what it would learn from."""
    objective = settings.objective
    harm = HARM_TERMS & term_weights(objective.objective, settings.terms, 0).keys()
    if objective.objective == "safedpo" and settings.data.cost_model == "none":
        yield (
            "objective.objective 'safedpo' is plain DPO without costs: give --cost-model, or take "
            "--objective diffusion_dpo"
        )
    if objective.objective == "winner_only" and objective.winner == 0 and not harm:
        yield (
            "objective.winner 0 leaves nothing to learn to winner_only, which has this term alone: give a "
            "weight above 0, or another objective"
        )
    if not objective.has_pair_loss and not harm:
        yield (
            "terms.redirect 0 leaves nothing to learn, for the other terms only keep what the base model "
            "does: give a weight above 0, or another objective"
        )
