"""The part of the API for jobs: start one of each kind, list, look, events, stop, resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from scdpo_core.run_store.folder import EVENTS
from scdpo_core.runs.follow import RunView
from scdpo_core.runs.jobs import QUALITIES, LoraJob
from scdpo_core.types import ScdpoError

from . import work_api
from .api import PREFIX
from .api_responses import router
from .api_schemas import Job, JobDone, JobEvents, JobRequest, JobsList
from .path_policy import Reach, listed_cost_model
from .request_checks import Callers, RefusalError
from .ui_context import UiContext

MOST_EVENTS = 1 << 20
"""Most bytes of a log in one answer."""


def add_routes(app: FastAPI, ui: UiContext, callers: Callers, reach: Reach) -> None:
    """Add the routes to the application.

    Args:
        app: the host's.
        ui: what can be trained.
        callers: who may call.
        reach: where preference folders may lie; never everywhere, for a program is not who sits here.
    """
    routes = router(callers, f"{PREFIX}/jobs")

    def existing(name: str) -> Path:
        try:
            return ui.jobs.folder(name)
        except ScdpoError as error:
            raise RefusalError(404, str(error)) from None

    @routes.post("", response_model=JobDone, summary="Train a safety LoRA, or let it wait for its turn")
    def start(request: JobRequest) -> JobDone:
        if request.quality not in QUALITIES:
            raise RefusalError(422, f"There is no quality '{request.quality[:80]}': {', '.join(QUALITIES)}.")
        base = reach.base(request.base, ui.bases())
        listed_cost_model(request.cost_model, ["none", *ui.cost_models()], f"{PREFIX}/cost-models")
        settings = reach.settings(request.settings)
        reach.existing(request.pairs)
        job = LoraJob(
            reach.folder(request.pairs),
            base,
            ui.jobs.root,
            request.name,
            request.quality,  # type: ignore[arg-type]
            request.cost_model,
            settings,
        )
        return JobDone(name=request.name, message=ui.jobs.start(job))

    @routes.get("", response_model=JobsList, summary="All runs, the one that changed last first")
    def listed() -> JobsList:
        names = ui.jobs.names()
        return JobsList(
            jobs=[_job(ui, name) for name in names], active=ui.jobs.active(), waiting=ui.jobs.waiting()
        )

    @routes.get("/{name}", response_model=Job, summary="How a run stands")
    def look(name: str) -> Job:
        existing(name)
        return _job(ui, name)

    @routes.get("/{name}/events", response_model=JobEvents, summary="What happened in a run, from a byte on")
    def events(name: str, start: int = 0) -> JobEvents:
        path = existing(name) / EVENTS
        if start < 0:
            raise RefusalError(422, "'start' is at least 0.")
        if not path.is_file():
            return JobEvents(events=[], next=0)
        size = path.stat().st_size
        with path.open("rb") as stream:
            stream.seek(min(start, size))
            text = stream.read(MOST_EVENTS).rpartition(b"\n")
        whole = text[0] + text[1]
        lines = whole.decode("utf-8", "replace").splitlines()
        return JobEvents(events=[line for line in lines if line.strip()], next=min(start, size) + len(whole))

    @routes.post("/{name}/stop", response_model=JobDone, summary="Save and stop, or leave the queue")
    def stop(name: str) -> JobDone:
        existing(name)
        return JobDone(name=name, message=ui.jobs.stop(name))

    @routes.post("/{name}/resume", response_model=JobDone, summary="Go on from the newest checkpoint")
    def resume(name: str) -> JobDone:
        existing(name)
        return JobDone(name=name, message=ui.jobs.resume(name))

    app.include_router(routes)
    work_api.add_routes(app, ui, callers, reach)


def _job(ui: UiContext, name: str) -> Job:
    view = ui.jobs.view(name)
    return Job(
        name=name,
        trains=ui.jobs.kind(name),
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
