"""The tab's context in A1111 and Forge: their models and LoRAs, and their graphics card, which they lend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from . import host, script, settings
from .jobs import Jobs
from .path_policy import Reach
from .ui_context import UiContext

EMBEDDED = "embedded model (emoji, for a try)"
_ui_context: UiContext | None = None


def ui_context() -> UiContext:
    """Return the host's context, made when first needed; reloading the page's scripts keeps it."""
    global _ui_context
    if _ui_context is None:
        data = folder()
        _ui_context = UiContext(
            jobs=Jobs(
                data / "runs",
                lend=lend,
                lora_folders=host.lora_folders,
                versions=host.lora_versions,
                lora_installed=host.find_loras_again,
                scorer=lambda: script.SCORER_CACHE.get(settings.cost_model(), settings.device()),
            ),
            preferences=data / "preferences",
            images=str(host.output_folder()),
            bases=bases,
            base=base,
            loras=host.loras,
            cost_models=settings.cost_models,
            in_use=settings.cost_model,
            scorer=lambda name: script.SCORER_CACHE.get(name, settings.device()),
            reach=Reach(lambda: roots() if exposed() else None, quarantine),
        )
    return _ui_context


def tabs() -> list[tuple[Any, str, str]]:
    """Make the tab when the host asks for it."""
    # Imported only for a page: an API alone does not need it.
    from . import tab

    return [(tab.build(ui_context()), tab.TITLE, tab.ID)]


def folder() -> Path:
    """Return the folder of runs and pairs."""
    from modules import paths_internal

    return Path(paths_internal.data_path) / "safety_lora"


def bases() -> dict[str, str]:
    """Return the checkpoints that can be trained for, by names without hash."""
    from modules import sd_models

    files = {info.name: Path(info.filename) for info in sd_models.checkpoints_list.values()}
    safe = {name: str(file) for name, file in files.items() if file.suffix == ".safetensors"}
    return {**safe, EMBEDDED: "micro"}


def base() -> str:
    """Return the checkpoint in use, if it can be trained for."""
    from modules import sd_models

    choices = bases()
    info = sd_models.checkpoints_list.get(host.option("sd_model_checkpoint"))
    return info.name if info is not None and info.name in choices else next(iter(choices))


def quarantine() -> list[Path]:
    """Return the folders of hidden originals, which are not shown by network."""
    return [settings.quarantine()]


def roots() -> list[Path]:
    """Return the folders that remote users may access."""
    return [*host.roots(), folder()]


def exposed() -> bool:
    """Return whether others than the user at the machine can open the page."""
    from modules import shared

    flags = shared.cmd_opts
    return bool(flags.listen or flags.share or flags.ngrok or flags.server_name or flags.hide_ui_dir_config)


@contextmanager
def lend(name: str) -> Iterator[None]:
    """Keep the host from drawing and its model off the graphics card until the block ends, come what may.

    Image generation waits until the training has ended.
    """
    from modules import call_queue, shared

    with call_queue.queue_lock:
        shared.state.begin(job=f"safety LoRA '{name}'")
        try:
            with _model_away():
                yield
        finally:
            shared.state.end()


@contextmanager
def _model_away() -> Iterator[None]:
    from modules import sd_models

    data = sd_models.model_data
    # A1111 has a lock and may be loading its model just now; Forge loads and unloads as it needs.
    with getattr(data, "lock", None) or nullcontext():
        model = data.sd_model if hasattr(data, "lock") else None
    if model is None:
        # Not loaded yet (A1111), or all that is loaded is to go (Forge).
        if not hasattr(data, "lock"):
            sd_models.unload_model_weights()
        yield
        return
    sd_models.send_model_to_cpu(model)
    try:
        yield
    finally:
        sd_models.send_model_to_device(model)
