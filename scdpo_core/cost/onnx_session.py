"""Networks in ONNX files: pinned by their hash, loaded by onnxruntime, safe to use from several threads."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..telemetry import decline_onnxruntime
from .protocol import ScorerError


def read_pinned(path: Path, sha256: str, name: str, remedy: str) -> bytes:
    """Read a network's file, and refuse any other: its costs would not be comparable.

    Args:
        path: the file.
        sha256: of the network that is wanted, hexadecimal.
        name: of the network, for the error.
        remedy: what to do where the file is another one, a sentence.

    Raises:
        ScorerError: the file cannot be read, or is not that network.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ScorerError(f"{path} could not be read ({error.strerror or error}).") from error
    found = hashlib.sha256(model).hexdigest()
    if found != sha256:
        raise ScorerError(
            f"{path} is not the network of {name} (SHA-256 {found[:12]}, wanted {sha256[:12]}), "
            f"so its costs would not be comparable. {remedy}"
        )
    return model


def open_session(model: bytes, device: str, threads: int, install: str) -> Any:
    """Load a network: an `onnxruntime.InferenceSession`.

    Args:
        model: the ONNX file's bytes.
        device: 'cpu', or 'cuda' or 'cuda:1' where onnxruntime has it.
        threads: processor threads of one call; 0 lets onnxruntime choose.
        install: how to install what is missing, a sentence.

    Raises:
        ScorerError: onnxruntime is missing or broken, or cannot load the network.
    """
    decline_onnxruntime()
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ScorerError(f"The embedded scorer needs the package 'onnxruntime'. {install}") from error
    except ImportError as error:
        # Another one beside it, such as onnxruntime over onnxruntime-gpu, would break both.
        raise ScorerError(
            f"The embedded scorer needs the package 'onnxruntime'. It is there, but cannot be imported "
            f"({error}). Repair the one that is installed; do not install another one beside it."
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Waiting threads would otherwise burn the processor that decodes the next images, or a host's own.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.startswith("cuda") and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        card = int(device.partition(":")[2] or 0)
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": card}))
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime has exceptions of its own, by version
        raise ScorerError(
            f"onnxruntime {onnxruntime.__version__} cannot load the embedded scorer ({error}). "
            "Install a newer onnxruntime."
        ) from error
