"""What the packages that we use tell their makers about whoever runs them: nothing."""

from __future__ import annotations

import os

ONNXRUNTIME = ("ORT_DISABLE_TELEMETRY", "1")
"""Read at its import. Version 1.32 keeps a device id and usage in the user's cache and sends them."""
_OTHERS = (
    ("HF_HUB_DISABLE_TELEMETRY", "1"),  # the hub's library, and diffusers and transformers through it
    ("DISABLE_TELEMETRY", "1"),  # the same by an older name
    ("GRADIO_ANALYTICS_ENABLED", "False"),  # the page: usage, and whether there is a newer version
    ("WANDB_ERROR_REPORTING", "false"),  # where the run itself goes is the user's choice
    ("DO_NOT_TRACK", "1"),
)


def decline_onnxruntime() -> None:
    """Tell onnxruntime to send nothing; before its import. What the user has set stays."""
    os.environ.setdefault(*ONNXRUNTIME)


def decline() -> None:
    """Tell every package to send nothing, in a process that is ours alone; before they are imported."""
    decline_onnxruntime()
    for name, value in _OTHERS:
        os.environ.setdefault(name, value)
