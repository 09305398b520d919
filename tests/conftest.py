"""Lets pytest take the root as a plain folder: an `__init__.py` there is a door for hosts, not for tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings


class PlainRoot:
    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == parent.config.rootpath else None


def pytest_configure(config: pytest.Config) -> None:
    # How long an example takes says what else the machine is doing, not whether the code is right.
    settings.register_profile("no deadline", deadline=None)
    settings.load_profile("no deadline")
    # As a plugin: hooks of a conftest are not asked about the folders above it.
    config.pluginmanager.register(PlainRoot())
