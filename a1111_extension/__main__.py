"""`python -m a1111_extension`: the tab as a standalone page."""

from __future__ import annotations

import argparse
import dataclasses
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from scdpo_core.runs.interpreter import ROOT
from scdpo_core.telemetry import decline

if TYPE_CHECKING:
    from .ui_context import UiContext

_NEEDED = "The page needs gradio 5 or newer ({error}). Set it up and open it: python install.py --page"


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until Ctrl-C; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m a1111_extension",
        description="Make pairs, train a safety LoRA, compare and judge it, all in the browser.",
    )
    parser.add_argument("--port", type=int, default=7870, help="(default: 7870)")
    parser.add_argument(
        "--listen", action="store_true", help="open the page to the network, not to this machine alone"
    )
    parser.add_argument(
        "--token",
        help="the secret in the address, by default a new one each time; '' for none, which lets every user "
        "of this machine in",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT / "runs" / "page",
        help="where runs and pairs lie (default: %(default)s)",
    )
    parser.add_argument(
        "--compare", type=Path, help="folder whose images the pane Preferences offers to compare"
    )
    parser.add_argument("--pairs", type=Path, help="preference folder that its answers go to")
    options = parser.parse_args(arguments)
    if options.listen and options.token == "":
        parser.error("A page that is open to the network needs a token.")
    decline()
    with tempfile.TemporaryDirectory(prefix="scdpo-page-") as uploads:
        # By default gradio keeps what is dropped into the page where every user of this machine can read it.
        os.environ.setdefault("GRADIO_TEMP_DIR", uploads)
        return _serve(options)


def _serve(options: argparse.Namespace) -> int:
    try:
        import gradio
        import uvicorn

        if int(gradio.__version__.split(".")[0]) < 5:
            raise ImportError(f"{gradio.__version__} is installed")
    except ImportError as error:
        print(f"Error: {_NEEDED.format(error=error)}", file=sys.stderr)
        return 2
    token = secrets.token_urlsafe(24) if options.token is None else options.token
    data = options.data.expanduser().absolute()
    from .app import make_app, ui_context_of

    app = make_app(_ui_context(options, ui_context_of(data)), data, token)
    host = "0.0.0.0" if options.listen else "127.0.0.1"
    address = "THIS-MACHINE" if options.listen else host
    print(f"Open http://{address}:{options.port}/{f'?token={token}' if token else ''}", flush=True)
    print("Ctrl-C closes the page; trainings continue.", flush=True)
    uvicorn.run(app, host=host, port=options.port, log_level="warning", timeout_graceful_shutdown=2)
    return 0


def _ui_context(options: argparse.Namespace, ui: UiContext) -> UiContext:
    """Return the page's context with the folders that the command line names."""
    images = ui.images if options.compare is None else str(options.compare.expanduser().absolute())
    pairs = ui.preferences if options.pairs is None else options.pairs.expanduser().absolute()
    return dataclasses.replace(ui, images=images, preferences=pairs)


if __name__ == "__main__":
    sys.exit(main())
