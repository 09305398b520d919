"""The API below /scdpo/v1: scores of images and folders, the LoRAs, the cost models."""

from __future__ import annotations

import base64
import binascii
import io
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from scdpo_core.cost.protocol import Scorer, provenance
from scdpo_core.cost.scorers import SCORERS
from scdpo_core.io.alpha_views import worst
from scdpo_core.io.discover import find_images
from scdpo_core.io.image_frames import open_frames
from scdpo_core.lora.file import read_lora_info
from scdpo_core.scoring.run import FolderRun
from scdpo_core.types import ScdpoError

from .api_responses import router
from .api_schemas import CostModel, CostModels, Lora, Loras, Score, ScoreRequest, Scores
from .path_policy import Reach, listed_cost_model
from .request_checks import Callers, RefusalError

PREFIX = "/scdpo/v1"
MOST_IMAGES = 2000
"""Most images of a folder that one request scores."""


@dataclass(frozen=True)
class Context:
    """What the API knows of the host.

    Attributes:
        callers: who may call.
        reach: which files may be scored.
        cost_models: what a cost model can be called.
        scorer: loads one of those; None is the one in use.
        in_use: name of the one in use.
        loras: files of the host's LoRAs by name.
        check_lora: what could not be checked of a LoRA, a sentence; raises ScdpoError with the reason why the
            host would not apply it.
    """

    callers: Callers
    reach: Reach
    cost_models: Callable[[], Sequence[str]]
    scorer: Callable[[str], Scorer]
    in_use: Callable[[], str]
    loras: Callable[[], Mapping[str, Path]]
    check_lora: Callable[[Path], str]


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the API to the host's application; its schema is part of the host's own (/docs)."""
    routes = router(context.callers, PREFIX)
    one_at_a_time = threading.Lock()

    @routes.post("/score", response_model=Scores, summary="Score an image, or all images of a folder")
    def score(request: ScoreRequest) -> Scores:
        if (request.image is None) == (request.path is None):
            raise RefusalError(422, "Give either 'image' (base64) or 'path'.")
        name = context.in_use() if request.cost_model is None else request.cost_model
        if name != context.in_use():
            listed_cost_model(name, context.cost_models(), f"{PREFIX}/cost-models")
        with one_at_a_time:
            scorer = context.scorer(name)
            if request.image is not None:
                return Scores(scores=[_score_sent(request.image, scorer)])
            location = context.reach.existing(request.path or "")
            return Scores(scores=_score_files(_files(location, context.reach), scorer))

    @routes.get("/loras", response_model=Loras, summary="The host's LoRAs, and whether it would apply them")
    def loras() -> Loras:
        return Loras(loras=[_lora(name, file, context.check_lora) for name, file in context.loras().items()])

    @routes.get("/cost-models", response_model=CostModels, summary="What can score")
    def cost_models() -> CostModels:
        return CostModels(cost_models=[_cost_model(n, context.in_use()) for n in context.cost_models()])

    app.include_router(routes)


def _score_sent(text: str, scorer: Scorer) -> Score:
    try:
        data = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise RefusalError(422, "'image' is not base64 text.") from None
    try:
        images = [image for _, image in open_frames(Path("image"), io.BytesIO(data))]
    except ScdpoError as error:
        raise RefusalError(422, str(error)) from error
    score = worst(scorer.score(images))
    if score.problem:
        raise RefusalError(422, score.problem)
    return Score(
        path="",
        cost=round(score.value, 4),
        band=score.band,
        categories=dict(score.categories),
        details=dict(score.details),
        scorer=provenance(scorer),
    )


def _files(location: Path, reach: Reach) -> list[Path]:
    files = reach.readable(find_images([location]).files)
    if len(files) > MOST_IMAGES:
        raise RefusalError(
            413,
            f"{location} holds {len(files)} images; at most {MOST_IMAGES} are scored per request.",
        )
    return files


def _score_files(files: Iterable[Path], scorer: Scorer) -> list[Score]:
    rows = sorted(
        FolderRun(scorer).rows([*files]),
        key=lambda row: (float("inf") if row.cost is None else -row.cost, row.path),
    )
    return [
        Score(
            path=row.path,
            cost=None if row.cost is None else round(row.cost, 4),
            band=row.band,
            categories=dict(row.categories),
            details=dict(row.details),
            scorer=row.scorer,
            error=row.error,
        )
        for row in rows
    ]


def _lora(name: str, file: Path, check: Callable[[Path], str]) -> Lora:
    fields = {"name": name, "folder": str(file.parent)}
    try:
        info = read_lora_info(file)
        about = {"family": info.family, "rank": info.rank, "safety": "scdpo_family" in info.metadata}
    except ScdpoError as error:
        return Lora(problem=str(error), **fields)
    try:
        return Lora(caution=check(file) or None, **fields, **about)
    except ScdpoError as error:
        return Lora(problem=str(error), **fields, **about)


def _cost_model(name: str, in_use: str) -> CostModel:
    choice = SCORERS.get(name)
    about = choice.about if choice else "a cost model file"
    licence = choice.licence if choice else ""
    return CostModel(name=name, about=about, licence=licence, in_use=name == in_use)
