"""Python without a network: every way out is refused, and the attempt written down, before it is made.

As a module it forbids the network in this process, and as `sitecustomize` of a folder on PYTHONPATH in every
Python that a test starts. An audit hook sees sockets whoever opens them, and nobody can catch it unseen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# Name look-ups come first with every library; addresses are for those who have one already.
_WAYS_OUT = (
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.connect",
    "socket.sendto",
    "socket.sendmsg",
)
_LOG = "NO_NETWORK_LOG"


def forbid(log: Path) -> None:
    """From now on and to the end of this process."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in _WAYS_OUT:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{event} {arguments[1:] if event == 'socket.connect' else arguments}\n")
            raise OSError(f"There is no network: {event}")

    sys.addaudithook(hook)


def without_network(folder: Path) -> tuple[dict[str, str], Path]:
    """The environment of a Python without a network or a cache of models, and the list of its attempts."""
    site, log = folder / "no network", folder / "attempts.txt"
    site.mkdir()
    (site / "sitecustomize.py").write_text(Path(__file__).read_text("utf-8"), "utf-8")
    log.touch()
    kept: Mapping[str, str] = {
        # Told to stay offline, the libraries would not show what they do of their own.
        name: value
        for name, value in os.environ.items()
        if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    }
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "HF_HOME": str(folder / "no cache"), _LOG: str(log)}, log


if __name__ == "sitecustomize":
    forbid(Path(os.environ[_LOG]))
