"""What the extension asks of the host, all of it: its settings, its axes, its ears, its API."""

from __future__ import annotations

import os
from typing import Any

from modules import processing, script_callbacks

from . import (
    api,
    filter_hooks,
    host,
    host_context,
    jobs_api,
    packages,
    prompts,
    remote,
    script,
    settings,
    xyz_axes,
)
from .path_policy import Reach
from .request_checks import Callers


def register() -> None:
    """Register everything; called each time the host loads its scripts, which clears registrations."""
    script_callbacks.on_ui_settings(settings.register)
    script_callbacks.on_before_ui(xyz_axes.add_axes)
    script_callbacks.on_before_image_saved(filter_hooks.before_saved)
    script_callbacks.on_image_grid(filter_hooks.before_grid)
    script_callbacks.on_infotext_pasted(script.without_our_tag)
    script_callbacks.on_ui_tabs(host_context.tabs)
    script_callbacks.on_app_started(_started)
    remote.watch_remote(processing, script.begin_remote, filter_hooks.leave)
    if packages.hint():
        host.log(packages.hint())


def _started(demo: Any, app: Any) -> None:
    """Add the routes, and keep the quarantine from being served.

    Args:
        demo: the page; None with --nowebui.
        app: the FastAPI application.
    """
    if demo is not None:
        # Gradio serves every file below the host's folder otherwise, and looks at this list each time.
        demo.blocked_paths.append(_Quarantine())
    if host.serves_api():
        api.add_routes(app, _context())
        jobs_api.add_routes(
            app, host_context.ui_context(), _callers(), Reach(host_context.roots, host_context.quarantine)
        )
    host_context.ui_context().jobs.wake()


class _Quarantine(os.PathLike[str]):
    """The quarantine folder of the current settings, read at each use."""

    def __fspath__(self) -> str:
        return str(settings.quarantine())


def _callers() -> Callers:
    return Callers(host.credentials, host.welcomes, host_context.exposed)


def _context() -> api.Context:
    return api.Context(
        callers=_callers(),
        reach=Reach(host.roots, host_context.quarantine),
        cost_models=settings.cost_models,
        scorer=lambda name: script.SCORER_CACHE.get(name, settings.device()),
        in_use=settings.cost_model,
        loras=host.loras,
        check_lora=lambda file: prompts.check(file, host.checkpoint()),
    )
