"""A real ComfyUI, started once for all tests of this folder, with tiny checkpoints and LoRAs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import record
from tests.hosts.comfyui import samples
from tests.hosts.comfyui.server import PACK, ROOT, Host, python
from tests.hosts.comfyui.trainable import make_trainable

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    recorder = record.recorder("comfyui", os.environ.get("COMFYUI_DIR", ""), python())
    if recorder is not None:
        config.pluginmanager.register(recorder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("COMFYUI_DIR"):
        return
    why = "no real ComfyUI: set COMFYUI_DIR to its folder and COMFYUI_PYTHON to the Python that runs it"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory for ComfyUI: this pack, checkpoints, LoRAs, images."""
    folder = tmp_path_factory.mktemp("comfyui")
    nodes = folder / "custom_nodes"
    nodes.mkdir()
    (nodes / PACK).symlink_to(ROOT, target_is_directory=True)
    command = [
        python(),
        HERE / "checkpoints.py",
        os.environ["COMFYUI_DIR"],
        folder / "models" / "checkpoints",
    ]
    made = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert made.returncode == 0, made.stderr
    samples.make_loras(folder / "models" / "loras")
    samples.make_images(folder / "input")
    (folder / "models" / "safety_cost").mkdir()
    return folder


@pytest.fixture(scope="session")
def host(base: Path) -> Iterator[Host]:
    running = Host.start(base)
    yield running
    running.stop()
    sys.stderr.write(f"\nComfyUI said: {running.log}\n")


@pytest.fixture(scope="session")
def trainable(base: Path) -> str:
    """A diffusers folder that the trainer can train on, with the denoiser of tiny-sd15.ckpt."""
    make_trainable(base / "models" / "diffusers" / "tiny")
    return "diffusers/tiny"
