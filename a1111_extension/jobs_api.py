"""The part of the API that trains: start, list, look, events, stop, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from scdpo_core.runs import toml
from scdpo_core.runs.folder import EVENTS
from scdpo_core.runs.follow import RunView
from scdpo_core.runs.jobs import QUALITIES, LoraJob
from scdpo_core.types import ScdpoError

from .access import RefusalError, SentenceRoute, check_password, confined
from .api import PREFIX
from .desk import Desk
from .messages import Job, JobDone, JobEvents, JobRequest, JobsList

MOST_EVENTS = 1 << 20
"""Most bytes of a log in one answer."""
_MAY_SET = {
    "objective": None,
    "optim": None,
    "lora": None,
    "sampling": None,
    "output": {"checkpoint_every", "keep", "log_every"},
    "data": {"width", "height", "safety_weight", "tie", "both_unsafe", "soft_tau", "benign_share"},
    "model": {
        "precision",
        "gradient_checkpointing",
        "prediction",
        "zero_snr",
        "t5_tokens",
        "guidance_embedding",
    },
}
"""Settings by section that the API takes; all others name files. None: all of the section."""


def add_routes(
    app: FastAPI,
    desk: Desk,
    credentials: Callable[[], Mapping[str, str]],
    roots: Callable[[], Sequence[Path]],
) -> None:
    """Add the routes to the application.

    Args:
        app: the host's.
        desk: what can be trained.
        credentials: passwords by name, see `access.check_password`.
        roots: folders that preference folders may lie in.
    """
    basic = HTTPBasic(auto_error=False)

    def authorised(given: HTTPBasicCredentials | None = Depends(basic)) -> None:  # noqa: B008
        check_password(credentials(), given)

    router = APIRouter(
        prefix=f"{PREFIX}/jobs",
        route_class=SentenceRoute,
        dependencies=[Depends(authorised)],
        tags=["SC-DPO safety"],
    )

    def known(name: str) -> Path:
        try:
            return desk.jobs.folder(name)
        except ScdpoError as error:
            raise RefusalError(404, str(error)) from None

    @router.post("", response_model=JobDone, summary="Train a safety LoRA, or let it wait for its turn")
    def start(request: JobRequest) -> JobDone:
        bases = desk.bases()
        if request.base not in bases and request.base not in bases.values():
            raise RefusalError(422, f"There is no model '{request.base}'; there are: {', '.join(bases)}.")
        if request.cost_model != "none" and request.cost_model not in desk.cost_models():
            raise RefusalError(
                422, f"There is no cost model '{request.cost_model}'; see {PREFIX}/cost-models."
            )
        if request.quality not in QUALITIES:
            raise RefusalError(422, f"There is no quality '{request.quality}': {', '.join(QUALITIES)}.")
        _check_settings(request.settings)
        job = LoraJob(
            confined(request.pairs, roots()),
            bases.get(request.base, request.base),
            desk.jobs.root,
            request.name,
            request.quality,  # type: ignore[arg-type]
            request.cost_model,
            request.settings,
        )
        return JobDone(name=request.name, message=desk.jobs.start(job))

    @router.get("", response_model=JobsList, summary="All runs, the one that changed last first")
    def listed() -> JobsList:
        names = desk.jobs.names()
        return JobsList(
            jobs=[_job(desk, name) for name in names], active=desk.jobs.active(), waiting=desk.jobs.waiting()
        )

    @router.get("/{name}", response_model=Job, summary="How a run stands")
    def look(name: str) -> Job:
        known(name)
        return _job(desk, name)

    @router.get("/{name}/events", response_model=JobEvents, summary="What happened in a run, from a byte on")
    def events(name: str, start: int = 0) -> JobEvents:
        path = known(name) / EVENTS
        if start < 0:
            raise RefusalError(422, "'start' is at least 0.")
        if not path.is_file():
            return JobEvents(events=[], next=0)
        with path.open("rb") as stream:
            stream.seek(start)
            text = stream.read(MOST_EVENTS).rpartition(b"\n")
        whole = text[0] + text[1]
        lines = whole.decode("utf-8", "replace").splitlines()
        return JobEvents(events=[line for line in lines if line.strip()], next=start + len(whole))

    @router.post("/{name}/stop", response_model=JobDone, summary="Save and stop, or leave the queue")
    def stop(name: str) -> JobDone:
        known(name)
        return JobDone(name=name, message=desk.jobs.stop(name))

    @router.post("/{name}/resume", response_model=JobDone, summary="Go on from the newest checkpoint")
    def resume(name: str) -> JobDone:
        known(name)
        return JobDone(name=name, message=desk.jobs.resume(name))

    app.include_router(router)


def _check_settings(text: str) -> None:
    try:
        tree = toml.loads(text)
    except ValueError as error:
        raise RefusalError(422, f"'settings' is no TOML: {error}.") from None
    for section, values in tree.items():
        allowed = _MAY_SET.get(section, set())
        for key in values if isinstance(values, dict) else ("",):
            if not isinstance(values, dict) or (allowed is not None and key not in allowed):
                raise RefusalError(403, f"'{section}.{key}' cannot be set here; it is for the tab.")


def _job(desk: Desk, name: str) -> Job:
    view = desk.jobs.view(name)
    return Job(
        name=name,
        trains=desk.jobs.kind(name),
        state=view.state,
        phase=view.phase,
        step=view.step,
        total=view.total,
        trained=view.trained,
        steps=view.steps,
        seconds_left=view.seconds_left(),
        metrics=_newest(view),
        warnings=list(view.warnings),
        message=view.message,
        result="" if view.result is None else str(view.result),
    )


def _newest(view: RunView) -> dict[str, Any]:
    return {
        name: round(curve[-1][1], 6) for name, curve in view.curves.items() if math.isfinite(curve[-1][1])
    }
