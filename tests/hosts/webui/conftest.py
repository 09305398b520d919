"""Starts the host that WEBUI_DIR names, once for all tests here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import record
from tests.hosts.webui.running import ROOT, WebUi


def pytest_configure(config: pytest.Config) -> None:
    folder = os.environ.get("WEBUI_DIR", "")
    recorder = record.recorder("webui", folder, str(_python(Path(folder))))
    if recorder is not None:
        config.pluginmanager.register(recorder)


def _python(folder: Path) -> Path:
    return Path(os.environ.get("WEBUI_PYTHON") or folder / "venv" / "bin" / "python")


@pytest.fixture(scope="session")
def webui_dir() -> Path:
    given = os.environ.get("WEBUI_DIR")
    if not given:
        pytest.skip(
            "needs a real A1111, Forge or Forge Neo: set WEBUI_DIR to its checkout (and WEBUI_PYTHON)"
        )
    return Path(given).resolve()


@pytest.fixture(scope="session")
def webui(webui_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUi]:
    host = WebUi(webui_dir, tmp_path_factory.mktemp("webui"), _python(webui_dir))
    host.prepare()
    try:
        host.start()
        yield host
    finally:
        host.stop()


@pytest.fixture(scope="session")
def trains(webui: WebUi) -> WebUi:
    """The host with a few pairs, and this Python to train with, as install.py would have made one."""
    pairs = webui.data / "safety_lora" / "preferences"
    source = ROOT / "examples" / "preferences"
    for chosen in sorted((source / "chosen" / "weapon").glob("00*.png"))[:6]:
        for file in (chosen, chosen.with_suffix(".txt"), source / "rejected" / "weapon" / chosen.name):
            target = pairs / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    own = webui.data / "extensions" / "scdpo" / ".venv"
    if not own.exists():
        own.symlink_to(Path(sys.prefix), target_is_directory=True)
    return webui
