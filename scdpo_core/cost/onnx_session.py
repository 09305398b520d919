"""Load networks from ONNX files, pinned by hash, with onnxruntime; sessions are thread-safe."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from ..telemetry import decline_onnxruntime
from .protocol import ScorerError


def package_file(package: str, name: str) -> Path | None:
    """Return a file of an installed package without importing it; None where there is no such file.

    Args:
        package: as it is imported.
        name: path inside the package's folder.
    """
    spec = importlib.util.find_spec(package)
    files = (Path(folder) / name for folder in (spec and spec.submodule_search_locations) or ())
    return next((file for file in files if file.is_file()), None)


def read_pinned(path: Path, sha256: str, name: str, remedy: str) -> bytes:
    """Read a network's file and refuse any other, whose costs would not be comparable.

    Args:
        path: the file.
        sha256: of the expected network, hexadecimal.
        name: of the network, for the error.
        remedy: what to do if the file is another one, a sentence.

    Raises:
        ScorerError: the file cannot be read, or is not that network.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ScorerError(f"{path} could not be read ({error.strerror or error}).") from error
    actual = hashlib.sha256(model).hexdigest()
    if actual != sha256:
        raise ScorerError(
            f"{path} is not the network of {name} (SHA-256 {actual[:12]}, expected {sha256[:12]}), "
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
        # A second build beside it, such as onnxruntime over onnxruntime-gpu, breaks both.
        raise ScorerError(
            f"The embedded scorer needs the package 'onnxruntime'. It is installed but cannot be imported "
            f"({error}). Repair the installed one; do not install a second one beside it."
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Spinning threads would take CPU time from the decoding of the next images and from the host.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.startswith("cuda") and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        card = int(device.partition(":")[2] or 0)
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": card}))
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime's exception types differ between versions
        raise ScorerError(
            f"onnxruntime {onnxruntime.__version__} cannot load the embedded scorer ({error}). "
            "Install a newer onnxruntime."
        ) from error
