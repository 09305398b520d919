"""The tab as a page of its own, under the current gradio, with the embedded model and its scorer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hmac import compare_digest
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from scdpo_core.cost.scorers import SCORERS
from scdpo_core.runs.interpreter import ROOT

from . import api, jobs_api, tab
from .desk import Desk
from .jobs import Jobs
from .shelf import Shelf

LOCAL = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "scdpo_token"
_DEVICE = "cpu"


def desk_of(data: Path) -> Desk:
    """The surroundings of a page that keeps everything in one folder.

    Args:
        data: runs/, preferences/ and cost_models/ lie in it.
    """
    shelf = Shelf()

    def cost_models() -> list[str]:
        own = (data / "cost_models").glob("*.safetensors")
        # The pictures of the embedded model are what a page with nothing else shows first.
        return ["micro", *(name for name in SCORERS if name != "micro"), *sorted(map(str, own))]

    jobs = Jobs(data / "runs", scorer=lambda: shelf.get("micro", _DEVICE))
    example = ROOT / "examples" / "preferences"
    return Desk(
        jobs=jobs,
        preferences=data / "preferences",
        pictures=str(example) if example.is_dir() else "",
        bases=lambda: {"the embedded model (draws emoji)": "micro"},
        base=lambda: "the embedded model (draws emoji)",
        loras=dict,
        cost_models=cost_models,
        in_use=lambda: "micro",
        scorer=lambda name: shelf.get(name, _DEVICE),
    )


def make_app(desk: Desk, data: Path, token: str = "") -> FastAPI:
    """The page and its API.

    Args:
        desk: its surroundings.
        data: folder whose pictures the API may score.
        token: that every request has to know; '' for a page that only this machine can reach.
    """
    app = FastAPI(title="SC-DPO safety")
    roots = [data]

    @app.middleware("http")
    async def guard(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _refused(request, token)
        return refused if refused is not None else await follow(request)

    context = api.Context(
        credentials=dict,
        roots=lambda: roots,
        cost_models=desk.cost_models,
        scorer=desk.scorer,
        in_use=desk.in_use,
        loras=desk.loras,
        check_lora=lambda file: None,
    )
    api.add_routes(app, context)
    jobs_api.add_routes(app, desk, context.credentials, context.roots)
    script = (ROOT / "javascript" / "scdpo_tab.js").read_text("utf-8")
    desk.jobs.wake()
    return gr.mount_gradio_app(
        app,
        tab.build(desk),
        path="/",
        head=f"<script>{script}</script>",
        footer_links=[],
        ssr_mode=False,
        theme=_theme(),
    )


def _theme() -> gr.themes.Base:
    """Gradio's own, with buttons dark enough for white words."""
    return gr.themes.Default(primary_hue="teal").set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )


def _refused(request: Request, token: str) -> Response | None:
    """The answer to a request that may not come in; None for all others."""
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if not token and host.rsplit(":", 1)[0] not in LOCAL:
        # A web page whose name was pointed at this machine would be as good as the artist.
        return JSONResponse({"detail": "This page answers to this machine alone."}, 403)
    if origin is not None and urlsplit(origin).netloc != host:
        return JSONResponse({"detail": "Another web page may not use this one."}, 403)
    if not token:
        return None
    given = request.query_params.get("token", "")
    if compare_digest(given.encode(), token.encode()):
        answer = RedirectResponse(request.url.remove_query_params("token"), 303)
        answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return answer
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
    known = (request.cookies.get(COOKIE, ""), bearer)
    if any(compare_digest(one.encode(), token.encode()) for one in known):
        return None
    return JSONResponse(
        {"detail": "Open the page with the address that the program printed: it ends with ?token=..."}, 401
    )
