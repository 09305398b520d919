"""The embedded scorer: two networks that need no download, joined into one cost.

open_nsfw knows photographs. MobileNetV2Mid of nsfwjs knows drawings too. Both look at the same decoded image.
With the chances d, h, n, p, s of nsfwjs (drawing, hentai, neutral, porn, sexy) and o of open_nsfw:

    q     = sigmoid((logit(o) + logit(p / (n + p + s))) / 2)        sexual, if it is a photograph: both answer
    blend = logit(h + (n + p + s) q)                                a sexual drawing, or a sexual photograph
    cost  = max(blend, max(logit(o), logit(h + p)) - 3.5)

nsfwjs says how far the image is a drawing, and is the only one to ask about drawings. It must not overrule
the other one: what either network is sure of stays. An objection of .9 by one of them is never called safe
(cost at least -1.30, in the review band), one of .98 never harmless (cost above 0), whatever the other says.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..types import CostScore
from . import nsfwjs, open_nsfw
from .downscale import BANDS
from .protocol import HARM_CATEGORIES, in_batches, score_of

Rule = Literal["joint", "strict"]
Views = tuple[open_nsfw.Pixels, nsfwjs.Square]

MARGIN = 3.5
"""How far a joint cost may lie below the higher of both networks' answers, log-odds."""
DRAWN, PHOTOGRAPHED, OPEN_NSFW = "drawn sexual (nsfwjs)", "sexual (nsfwjs)", "sexual (open_nsfw)"
"""Names of the details: the log-odds of each network's own answer."""

_IDS = {
    "joint": f"open-nsfw-{open_nsfw.VERSION}+nsfwjs-mid-{nsfwjs.VERSION}",
    "strict": f"strict(open-nsfw-{open_nsfw.VERSION}+nsfwjs-mid-{nsfwjs.VERSION})",
}
_BATCH = 16
_BOUND = math.log((1 - open_nsfw.LEAST_CHANCE) / open_nsfw.LEAST_CHANCE)


class EmbeddedScorer:
    """The log-odds that an image is sexually explicit, photograph or drawing, by two networks.

    Args:
        device: as `onnx_session.open_session`.
        threads: as `onnx_session.open_session`.
        rule: 'joint' as above; 'strict' takes the network that objects more, at the price of false alarms.

    Raises:
        ScorerError: onnxruntime or open_nsfw's package is missing, or the weights are not the pinned ones.
    """

    categories = HARM_CATEGORIES

    def __init__(self, device: str = "cpu", threads: int = 0, rule: Rule = "joint") -> None:
        """Load the networks, if they are not loaded yet."""
        self._device, self.rule = device, rule
        self.id = _IDS[rule]
        together = f"{open_nsfw.SHA256} {nsfwjs.SHA256} {rule} {MARGIN}"
        self.hash = hashlib.sha256(together.encode()).hexdigest()[:12]
        self._photographs = open_nsfw.network(device, threads)
        self._drawings = nsfwjs.network(device, threads)

    def one_thread(self) -> EmbeddedScorer | None:
        """Return the same scorer with single-threaded calls; None on a GPU.

        Two threads with a few images each get more out of two processors than both do together with one
        batch, because they never wait for each other.
        """
        return None if self._device.startswith("cuda") else EmbeddedScorer(self._device, 1, self.rule)

    def prepare(self, image: Image.Image) -> Views:
        """Prepare an image of any size and mode for both networks."""
        return _prepare(image, 1)

    def score_prepared(self, prepared: Sequence[Views]) -> list[CostScore]:
        """Score what `prepare` returned, in its order."""
        return in_batches(prepared, _BATCH, self._score)

    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        """Score images of any size, in their order."""
        return in_batches(images, _BATCH, lambda batch: self._score([_prepare(p, BANDS) for p in batch]))

    def _score(self, views: Sequence[Views]) -> list[CostScore]:
        chances, _ = self._photographs(np.stack([pixels for pixels, _ in views]))
        logits, _ = self._drawings(np.stack([square for _, square in views]))
        photographs = np.array(open_nsfw.cost_of(chances))
        costs, details = join(photographs, nsfwjs.log_chances(logits), self.rule)
        return [
            score_of(self, "sexual", cost, {name: float(values[k]) for name, values in details.items()})
            for k, cost in enumerate(costs.tolist())
        ]


def join(
    open_costs: NDArray[np.float64],
    log_chances: NDArray[np.float64],
    rule: Rule = "joint",
    margin: float = MARGIN,
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Join the answers of both networks.

    Args:
        open_costs: [N] log-odds by open_nsfw.
        log_chances: [N, 5] logarithms of the chances of `nsfwjs.CLASSES`.
        rule: as `EmbeddedScorer`.
        margin: how far below the network that objects more a joint cost may lie.

    Returns:
        Costs [N], in -16.1..16.1, and the log-odds [N] of each network's own answers, by the names above.
    """
    drawing, hentai, neutral, porn, sexy = log_chances.T
    photograph = np.logaddexp(neutral, np.logaddexp(porn, sexy))
    tame = np.logaddexp(neutral, sexy)
    drawing_cost = np.logaddexp(hentai, porn) - np.logaddexp(drawing, tame)
    strongest = np.maximum(open_costs, drawing_cost)
    details = {
        OPEN_NSFW: open_costs,
        PHOTOGRAPHED: porn - np.logaddexp(np.logaddexp(drawing, hentai), tame),
        DRAWN: hentai - np.logaddexp(drawing, photograph),
    }
    if rule == "joint":
        both = (open_costs + porn - tame) / 2
        # In logarithms throughout: log sigmoid(x) = -log(1 + exp(-x)).
        harmful = np.logaddexp(hentai, photograph - np.logaddexp(0, -both))
        harmless = np.logaddexp(drawing, photograph - np.logaddexp(0, both))
        strongest = np.maximum(harmful - harmless, strongest - margin)
    return np.clip(strongest, -_BOUND, _BOUND), {
        name: np.clip(values, -_BOUND, _BOUND) for name, values in details.items()
    }


def _prepare(image: Image.Image, bands: int) -> Views:
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return open_nsfw.prepare(rgb, bands), nsfwjs.prepare(rgb, bands)
