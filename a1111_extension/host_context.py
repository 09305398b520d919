"""The tab's desk in A1111 and Forge: their models and LoRAs, and their graphics card, which is lent out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from . import host, script, settings
from .jobs import Jobs
from .path_policy import Reach
from .ui_context import Desk

EMBEDDED = "embedded model (emoji, for a try)"
_desk: Desk | None = None


def desk() -> Desk:
    """The one of this host, made when it is first needed; reloading the page's scripts keeps it."""
    global _desk
    if _desk is None:
        own = folder()
        _desk = Desk(
            jobs=Jobs(
                own / "runs",
                lend=lend,
                shelf=host.lora_folders,
                versions=host.lora_versions,
                shelved=host.find_loras_again,
                scorer=lambda: script.SHELF.get(settings.cost_model(), settings.device()),
            ),
            preferences=own / "preferences",
            images=str(host.output_folder()),
            bases=bases,
            base=base,
            loras=host.loras,
            cost_models=settings.cost_models,
            in_use=settings.cost_model,
            scorer=lambda name: script.SHELF.get(name, settings.device()),
            reach=Reach(lambda: roots() if exposed() else None, quarantine),
        )
    return _desk


def tabs() -> list[tuple[Any, str, str]]:
    """The tab, as the host asks for it."""
    # Not before a page is wanted: an API alone needs none of it.
    from . import tab

    return [(tab.build(desk()), tab.TITLE, tab.ID)]


def folder() -> Path:
    """Where runs and pairs lie."""
    from modules import paths_internal

    return Path(paths_internal.data_path) / "safety_lora"


def bases() -> dict[str, str]:
    """Checkpoints that can be trained for, by their names, which no hash changes."""
    from modules import sd_models

    files = {info.name: Path(info.filename) for info in sd_models.checkpoints_list.values()}
    safe = {name: str(file) for name, file in files.items() if file.suffix == ".safetensors"}
    return {**safe, EMBEDDED: "micro"}


def base() -> str:
    """The checkpoint that the host draws with, if it can be trained for."""
    from modules import sd_models

    found = bases()
    info = sd_models.checkpoints_list.get(host.option("sd_model_checkpoint"))
    return info.name if info is not None and info.name in found else next(iter(found))


def quarantine() -> list[Path]:
    """Where hidden originals lie, which nobody sees by network."""
    return [settings.quarantine()]


def roots() -> list[Path]:
    """Folders that those who come by network may use."""
    return [*host.roots(), folder()]


def exposed() -> bool:
    """Whether others than who sits at the machine can open the page."""
    from modules import shared

    flags = shared.cmd_opts
    return bool(flags.listen or flags.share or flags.ngrok or flags.server_name or flags.hide_ui_dir_config)


@contextmanager
def lend(name: str) -> Iterator[None]:
    """Keep the host from drawing and its model off the graphics card until the block ends, come what may.

    What is asked of the host meanwhile waits and is drawn afterwards.
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
