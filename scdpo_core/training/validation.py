"""What the LoRA makes of pairs that it never trains on, and when that says to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config.settings import TrainSettings
from ..families.parameterisation import Weighting
from ..families.timesteps import TimestepLaw
from ..objectives import preference_logit
from ..objectives.sc_dpo import preference_metrics
from ..preferences.batches import PairStore, Room
from ..run_store.events import Event, Validated, Warned
from ..types import CachedPair, LabelledPair, PairBatch, PairErrors
from .batches import slice_pairs, timestep_law, weighting_of
from .distributed import ProcessGroup
from .microbatch import MicroBatcher
from .reference import autocast_for, draw, pair_residuals

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..lora.adapter import LoraAdapter
    from .adapters import LiveEncoder

# Above every seed of training, whose noise must not come back here.
_SEED = 2**31


class HeldOut:
    """All pairs once, in order, in batches of one shape each, as often as somebody walks through them.

    A batch is put together when its turn comes: only one is on the device beside what has room there.
    """

    def __init__(
        self,
        cached: Sequence[CachedPair],
        labelled: Sequence[LabelledPair],
        batch_size: int,
        device: torch.device,
        sizes: Tensor | None = None,
        room: Room | None = None,
    ) -> None:
        """Batches of at most `batch_size` pairs; the other arguments are those of `BatchStream`."""
        room, shapes = room or Room(), dict[tuple[int, ...], list[int]]()
        for place, pair in enumerate(cached):
            shapes.setdefault(tuple(pair.latents.shape), []).append(place)
        self._parts: list[tuple[PairStore, Tensor]] = []
        for places in shapes.values():
            store = PairStore(
                [cached[place] for place in places],
                [labelled[place] for place in places],
                device,
                torch.float32,
                room,
                None if sizes is None else sizes[places],
            )
            self._parts += [(store, part) for part in torch.arange(len(places)).split(batch_size)]

    def __iter__(self) -> Iterator[PairBatch]:
        return (store.gather(index) for store, index in self._parts)


class Validator:
    """Errors of policy and reference on held-out pairs, at the same timesteps and noise on every call.

    Attributes:
        pairs: how many are held out.
    """

    def __init__(
        self,
        model: LoadedModel,
        adapter: LoraAdapter,
        batches: Iterable[PairBatch],
        *,
        law: TimestepLaw,
        weighting: Weighting,
        beta: float,
        draws: int,
        portions: MicroBatcher,
        encode_live: LiveEncoder | None = None,
    ) -> None:
        """Look at `batches`, see `HeldOut`.

        Args:
            model: with the LoRA attached.
            adapter: that LoRA.
            batches: the held-out pairs, walked through on every look.
            law: of the timesteps, as in training.
            weighting: of the errors, as in training.
            beta: for u; accuracy and gaps do not depend on it.
            draws: timesteps for every pair, each with noise of its own.
            portions: how many pairs there is memory for.
            encode_live: as in `Trainer`.
        """
        self._model, self._adapter, self._batches, self._encode_live = model, adapter, batches, encode_live
        self._law, self._weighting, self._beta, self._draws = law, weighting, beta, draws
        self._portions = portions
        self.pairs = sum(len(batch.weight) for batch in batches)

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """accuracy, u, winner_gap and loser_gap over all held-out pairs, errors averaged over the draws.

        accuracy is the share of pairs whose chosen image the policy prefers more than the base model does.

        Raises:
            ScdpoError: see `MicroBatcher.attempt`.
        """
        errors = _joined(
            [
                self._portions.attempt(partial(self._of_batch, number, batch))
                for number, batch in enumerate(self._batches)
            ]
        )
        figures = preference_metrics(errors, preference_logit(errors, self._beta))
        names = {
            "implicit_accuracy": "accuracy",
            "u": "u",
            "winner_gap": "winner_gap",
            "loser_gap": "loser_gap",
        }
        values = torch.stack([figures[name].float() for name in names]).tolist()
        return dict(zip(names.values(), values, strict=True))

    def _of_batch(self, number: int, batch: PairBatch) -> PairErrors:
        """[B, 2] each, averaged over the draws."""
        slices = self._portions.slices(len(batch.weight))
        return _joined([self._of_portion(number, batch, places or slice(None)) for places in slices])

    def _of_portion(self, number: int, batch: PairBatch, places: slice) -> PairErrors:
        """Of the pairs at these places, with the dice that the whole batch is thrown."""
        model, shape, pairs = self._model, tuple(batch.latents.shape[2:]), len(batch.weight)
        part = slice_pairs(batch, places)
        live = None
        if self._encode_live is not None:
            live = self._encode_live(part.prompts, part.conditioning)
        found = []
        for index in range(number * self._draws, (number + 1) * self._draws):
            noise_sample = draw(index, _SEED, pairs, shape, model.timesteps, self._law, model.device, places)
            with autocast_for(model):
                residuals = pair_residuals(model, self._adapter, part, noise_sample, self._weighting, live)
            found.append(residuals.errors())
        policy = torch.stack([errors.policy for errors in found]).mean(0)
        return PairErrors(policy, torch.stack([errors.reference for errors in found]).mean(0))


def _joined(parts: Sequence[PairErrors]) -> PairErrors:
    return PairErrors(
        torch.cat([part.policy for part in parts]), torch.cat([part.reference for part in parts])
    )


class Validation:
    """The held-out pairs of a run, whether they say to stop, and which LoRA was best on them.

    Attributes:
        patience: whether to stop.
        best: the best LoRA so far.
    """

    def __init__(
        self,
        model: LoadedModel,
        adapter: LoraAdapter,
        batches: Iterable[PairBatch],
        settings: TrainSettings,
        emit: Callable[[Event], None],
        team: ProcessGroup,
        encode_live: LiveEncoder | None = None,
    ) -> None:
        """Get ready; arguments as of `Trainer`, `batches` are its held-out ones."""
        own = settings.objective
        self._model, self._adapter, self._emit, self._team = model, adapter, emit, team
        self._validator = Validator(
            model,
            adapter,
            batches,
            law=timestep_law(settings),
            weighting=weighting_of(own),
            beta=own.effective_beta,
            draws=settings.validation.validation_draws,
            portions=MicroBatcher(
                settings,
                model.device,
                emit,
                team,
                together=False,
                what="held-out pairs",
                unchanged="what is said of them",
            ),
            encode_live=encode_live,
        )
        self.patience = Patience(settings.validation.patience)
        self.best = Best()

    def look(self, step: int) -> None:
        """Try the LoRA on the held-out pairs, if there are any, and say how it does."""
        if not self._validator.pairs:
            return
        self._model.denoiser.eval()
        # One process looks and decides for all; where weights are spread over them, all have to help.
        looks = self._team.rank == 0 or self._team.sharded
        figures = self._team.broadcast(self._validator.look() if looks else {})
        self._model.denoiser.train()
        self._emit(Validated(step, self._validator.pairs, figures))
        self.patience.see(figures["winner_gap"])
        self.best.see(step, figures["winner_gap"], self._adapter.state)
        if self.patience.is_over:
            self._emit(Warned(f"Stopped early at step {step}: {self.patience.reason}"))

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {**self.patience.state(), "best": self.best.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.patience.load_state(state)
        self.best.load_state(state.get("best"))


@dataclass
class Best:
    """The LoRA of the look at which the held-out chosen images' error was lowest, and of equals the latest.

    Attributes:
        step: of that look; 0 before the first.
        winner_gap: at that look.
        adapter: its weights on the CPU, see `LoraAdapter.state`.
    """

    step: int = 0
    winner_gap: float = math.inf
    adapter: dict[str, Tensor] = field(default_factory=dict)

    def see(self, step: int, winner_gap: float, state: Callable[[], dict[str, Tensor]]) -> None:
        """Take in another look; `state` gives the LoRA's weights."""
        if winner_gap <= self.winner_gap:
            self.step, self.winner_gap = step, winner_gap
            self.adapter = {name: weight.cpu() for name, weight in state().items()}

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint needs; None before the first look."""
        return dict(vars(self)) if self.step else None

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a `state`."""
        if state:
            self.step, self.winner_gap = int(state["step"]), float(state["winner_gap"])
            self.adapter = dict(state["adapter"])


@dataclass
class Patience:
    """When to stop: the held-out chosen images' error stands above the base model's and keeps rising.

    That is how preference training falls apart: the loss still falls, for the rejected images' error
    rises faster.

    Attributes:
        looks: rises in a row that end the training; 0 never does.
        rises: rises in a row so far.
        last: the winner gap at the last look; None before the first.
    """

    looks: int
    rises: int = 0
    last: float | None = None

    def see(self, winner_gap: float) -> None:
        """Take in the winner gap of another look."""
        rising = self.last is not None and winner_gap > max(self.last, 0.0)
        self.rises = self.rises + 1 if rising else 0
        self.last = winner_gap

    @property
    def is_over(self) -> bool:
        """Whether it is time to stop."""
        return 0 < self.looks <= self.rises

    @property
    def reason(self) -> str:
        """Why it is, for the artist."""
        return (
            f"the held-out chosen images have become worse {self.rises} looks in a row. To train for longer, "
            "lower --beta or --lr, or raise --winner, and give --output a new folder."
        )

    def state(self) -> dict[str, float | None]:
        """What a checkpoint needs."""
        return {"rises": self.rises, "last": self.last}

    def load_state(self, state: Mapping[str, float | None]) -> None:
        """Go on from a `state`."""
        self.rises, self.last = int(state["rises"] or 0), state["last"]
