"""What the extension asks of the host, all of it: its settings, its axes, its ears, its API."""

from __future__ import annotations

from typing import Any

from modules import script_callbacks

from . import api, grid, host, packages, prompts, script, settings


def register() -> None:
    """Register everything; to be called each time the host loads its scripts, for it forgets in between."""
    script_callbacks.on_ui_settings(settings.register)
    script_callbacks.on_before_ui(grid.add_axes)
    script_callbacks.on_before_image_saved(script.before_saved)
    script_callbacks.on_image_grid(script.before_grid)
    script_callbacks.on_infotext_pasted(script.without_our_tag)
    script_callbacks.on_app_started(_started)
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
        demo.blocked_paths.append(str(settings.quarantine()))
    if host.serves_api():
        api.add_routes(app, _context())


def _context() -> api.Context:
    return api.Context(
        credentials=host.credentials,
        roots=host.roots,
        cost_models=settings.cost_models,
        scorer=lambda name: script.SHELF.get(name, settings.device()),
        in_use=settings.cost_model,
        loras=host.loras,
        check_lora=lambda file: prompts.check(file, host.family()),
    )
