"""`python -m a1111_extension`: the tab as a page of its own."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

from scdpo_core.runs.interpreter import ROOT

_NEEDED = "The page needs gradio 5 or newer ({error}). Install it: pip install -e '.[train,score,ui]'"


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until Ctrl-C; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m a1111_extension",
        description="Label pairs, train a safety LoRA and compare, in the browser, with no other program.",
    )
    parser.add_argument("--port", type=int, default=7870, help="(default: 7870)")
    parser.add_argument(
        "--listen", action="store_true", help="open the page to the network; the address has a secret in it"
    )
    parser.add_argument("--token", help="that secret, by default a new one each time")
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT / "runs" / "page",
        help="where runs and pairs lie (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        import gradio
        import uvicorn

        if int(gradio.__version__.split(".")[0]) < 5:
            raise ImportError(f"there is {gradio.__version__}")
    except ImportError as error:
        print(f"Error: {_NEEDED.format(error=error)}", file=sys.stderr)
        return 2
    from .app import desk_of, make_app

    token = (options.token or secrets.token_urlsafe(24)) if options.listen or options.token else ""
    data = options.data.expanduser().absolute()
    app = make_app(desk_of(data), data, token)
    host = "0.0.0.0" if options.listen else "127.0.0.1"
    shown = "THIS-MACHINE" if options.listen else host
    print(f"Open http://{shown}:{options.port}/{f'?token={token}' if token else ''}", flush=True)
    print("Ctrl-C closes the page; trainings go on.", flush=True)
    uvicorn.run(app, host=host, port=options.port, log_level="warning", timeout_graceful_shutdown=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
