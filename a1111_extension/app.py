"""The tab as a standalone page, under the current gradio, with the embedded model and its scorer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hmac import compare_digest
from pathlib import Path

import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from scdpo_core.cost.scorers import offered_scorers
from scdpo_core.runs.interpreter import ROOT

from . import api, jobs_api, tab
from .api_responses import PlainJSON
from .jobs import Jobs
from .path_policy import Reach
from .request_checks import Callers, RefusalError, check_page
from .scorer_cache import ScorerCache
from .ui_context import UiContext

COOKIE = "scdpo_token"
_OURS_ALONE = {"Content-Security-Policy": "frame-ancestors 'self'", "X-Frame-Options": "SAMEORIGIN"}
"""No other web page may lay this one under its own, for clicks that seem to be for that one."""
_DEVICE = "cpu"


def ui_context_of(data: Path) -> UiContext:
    """Make the context of a page that keeps everything in one folder.

    Args:
        data: runs/, preferences/ and cost_models/ lie in it.
    """
    cache = ScorerCache()

    def cost_models() -> list[str]:
        trained = (data / "cost_models").glob("*.safetensors")
        # The embedded model's images are what an empty page shows first.
        return ["micro", *(name for name in offered_scorers() if name != "micro"), *sorted(map(str, trained))]

    jobs = Jobs(data / "runs", scorer=lambda: cache.get("micro", _DEVICE))
    example = ROOT / "examples" / "preferences"
    return UiContext(
        jobs=jobs,
        preferences=data / "preferences",
        images=str(example) if example.is_dir() else "",
        bases=lambda: {"the embedded model (draws emoji)": "micro"},
        base=lambda: "the embedded model (draws emoji)",
        loras=dict,
        cost_models=cost_models,
        in_use=lambda: "micro",
        scorer=lambda name: cache.get(name, _DEVICE),
    )


def make_app(ui: UiContext, data: Path, token: str = "") -> FastAPI:
    """Make the page and its API.

    Args:
        ui: its surroundings.
        data: folder whose images the API may score.
        token: that every request has to know, for other users of this machine can reach the page too; '' lets
            all of them in.
    """
    app = FastAPI(title="SC-DPO safety")
    callers = Callers(exposed=lambda: bool(token))
    reach = Reach(lambda: [data])

    @app.middleware("http")
    async def guard(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = _refused(request, token, callers) or await follow(request)
        answer.headers.update(_OURS_ALONE)
        return answer

    context = api.Context(
        callers=callers,
        reach=reach,
        cost_models=ui.cost_models,
        scorer=ui.scorer,
        in_use=ui.in_use,
        loras=ui.loras,
        check_lora=lambda file: "",
    )
    api.add_routes(app, context)
    jobs_api.add_routes(app, ui, callers, reach)
    script = (ROOT / "javascript" / "scdpo_tab.js").read_text("utf-8")
    ui.jobs.wake()
    return gr.mount_gradio_app(
        app,
        tab.build(ui),
        path="/",
        head=f"<script>{script}</script>",
        footer_links=[],
        ssr_mode=False,
        theme=_theme(),
    )


def _theme() -> gr.themes.Base:
    """Make Gradio's theme, with buttons dark enough for white text."""
    return gr.themes.Default(primary_hue="teal").set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )


def _refused(request: Request, token: str, callers: Callers) -> Response | None:
    """Return the answer to a request without access; None for all others."""
    try:
        check_page(request, callers)
    except RefusalError as error:
        return PlainJSON({"detail": str(error)}, error.status)
    if not token:
        return None
    # Browsers send cookies to every port of a machine: two pages must not take each other's.
    cookie = f"{COOKIE}_{request.url.port or 80}"
    token_sent = request.query_params.get("token", "")
    if _same(token_sent, token):
        answer = RedirectResponse(request.url.remove_query_params("token"), 303)
        answer.set_cookie(cookie, token, httponly=True, samesite="strict")
        return answer
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
    if _same(request.cookies.get(cookie, ""), token) or _same(bearer, token):
        return None
    sentence = "Open the page with the address that the program printed: it ends with ?token=..."
    return PlainJSON({"detail": sentence}, 401)


def _same(sent: str, token: str) -> bool:
    return compare_digest(sent.encode("utf-8", "replace"), token.encode())
