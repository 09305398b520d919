"""Notes what leaves the machine, also from compiled code, which Python's audit hooks do not see."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
# Libraries that were told to stay offline would not show what they do of their own.
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_DECLINED = (
    "ORT_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_TELEMETRY",
    "DISABLE_TELEMETRY",
    "GRADIO_ANALYTICS_ENABLED",
    "WANDB_ERROR_REPORTING",
    "DO_NOT_TRACK",
)


def can_watch() -> bool:
    """Whether this machine can preload a library, and has a compiler to make it."""
    return sys.platform == "linux" and shutil.which("cc") is not None


class Outside:
    """An empty home, and an environment in which each look-up and address outside is noted and refused.

    Attributes:
        home: of the processes that run in the environment.
        environment: for them.
    """

    def __init__(self, folder: Path) -> None:
        """Compile the library into a folder, and make the home there."""
        self.home, self._log, library = folder / "home", folder / "outside.txt", folder / "outside.so"
        self.home.mkdir()
        command = ["cc", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in (*_OFFLINE, *_DECLINED) and not name.startswith(("XDG_", "HF_"))
        }
        self.environment = {
            **kept,
            "HOME": str(self.home),
            "LD_PRELOAD": str(library),
            "OUTSIDE_LOG": str(self._log),
            "OMP_NUM_THREADS": "1",
        }

    @property
    def attempts(self) -> list[str]:
        """What was tried, one look-up or address each."""
        return self._log.read_text("utf-8").splitlines() if self._log.exists() else []

    @property
    def files(self) -> list[str]:
        """What was left in the home."""
        return sorted(
            path.relative_to(self.home).as_posix() for path in self.home.rglob("*") if path.is_file()
        )
