"""The part of the API that builds pairs and judges LoRAs; `jobs_api` follows, stops and resumes them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from scdpo_core.pairs.start import PairsJob
from scdpo_core.run_store.folder import name_problem
from scdpo_core.suite.defaults import complete

from .api import PREFIX
from .api_responses import router
from .api_schemas import EvaluationRequest, JobDone, PairsRequest
from .path_policy import Reach, listed_cost_model
from .prompt_files import named_files
from .request_checks import Callers, RefusalError
from .ui_context import UiContext

COST_MODELS = f"{PREFIX}/cost-models"


def add_routes(app: FastAPI, ui: UiContext, callers: Callers, reach: Reach) -> None:
    """Add the routes to the application; see `jobs_api.add_routes`."""
    routes = router(callers, PREFIX)

    @routes.post("/pairs", response_model=JobDone, summary="Build preference pairs, or wait for the turn")
    def make_pairs(request: PairsRequest) -> JobDone:
        job = PairsJob(
            ui.jobs.root,
            request.name,
            reach.base(request.base, ui.bases()),
            named_files(reach, request.prompts),
            named_files(reach, request.benign),
            way=request.way,  # type: ignore[arg-type]
            scorer=listed_cost_model(request.cost_model, ui.cost_models(), COST_MODELS),
            per_prompt=request.per_prompt,
            attempts=request.attempts,
            limit=request.limit,
        )
        return JobDone(name=request.name, message=ui.jobs.start(job))

    @routes.post(
        "/evaluations", response_model=JobDone, summary="Judge a LoRA on prompt files, or wait for the turn"
    )
    def evaluate(request: EvaluationRequest) -> JobDone:
        if wrong := name_problem(request.name):
            raise RefusalError(422, wrong)
        loras = ui.all_loras()
        if request.lora and request.lora not in loras:
            raise RefusalError(
                422, f"There is no LoRA '{request.lora[:300]}'; there are: {', '.join(loras)}."
            )
        settings: dict[str, Any] = {
            "output": ui.jobs.root / request.name,
            "lora": [loras[request.lora]] if request.lora else [],
            "base": reach.base(request.base, ui.bases()),
            "prompts": named_files(reach, request.prompts),
            "benign": named_files(reach, request.benign),
            "weights": request.weights,
            "seeds": request.seeds,
            "limit": request.limit,
        }
        if request.cost_model:
            settings["scorer"] = [listed_cost_model(request.cost_model, ui.cost_models(), COST_MODELS)]
        return JobDone(name=request.name, message=ui.jobs.start(complete(settings)))

    app.include_router(routes)
