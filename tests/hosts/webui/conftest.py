"""Starts the host that WEBUI_DIR names, once for all tests here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.webui.running import WebUi


@pytest.fixture(scope="session")
def webui_dir() -> Path:
    given = os.environ.get("WEBUI_DIR")
    if not given:
        pytest.skip("needs a real A1111 or Forge: set WEBUI_DIR to its checkout (and WEBUI_PYTHON)")
    return Path(given).resolve()


@pytest.fixture(scope="session")
def webui(webui_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUi]:
    python = Path(os.environ.get("WEBUI_PYTHON") or webui_dir / "venv" / "bin" / "python")
    host = WebUi(webui_dir, tmp_path_factory.mktemp("webui"), python)
    host.prepare()
    try:
        host.start()
        yield host
    finally:
        host.stop()
