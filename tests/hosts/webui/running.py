"""A real A1111, Forge or Forge Neo in a folder of its own, with a tiny checkpoint, its API locked."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tests.hosts.webui.checkpoint import write_checkpoint, write_lora

ROOT = Path(__file__).resolve().parents[3]
NAME, PASSWORD = "anna", "secret"
START_SECONDS = 600

# Wraps our scorer, and makes it fail while a file of this name lies in the data folder.
_BREAKS = """
from pathlib import Path
from a1111_extension import script

class Broken:
    def __init__(self, scorer):
        self.scorer = scorer
    def __getattr__(self, name):
        return getattr(self.scorer, name)
    def score(self, images):
        if Path({flag!r}).exists():
            raise RuntimeError("the scorer lost its mind")
        return self.scorer.score(images)

if not hasattr(script.SCORER_CACHE, "whole"):
    script.SCORER_CACHE.whole = script.SCORER_CACHE.get
    script.SCORER_CACHE.get = lambda *wanted: Broken(script.SCORER_CACHE.whole(*wanted))
"""

# Another extension, whose script and callback come after ours, and which does what a file says.
_LATER = """
from pathlib import Path

import numpy as np
from PIL import Image
from modules import script_callbacks, scripts

FLAG = Path({flag!r})

def does(what):
    return FLAG.exists() and what in FLAG.read_text().split()

def red(size=(128, 128)):
    return Image.new("RGB", size, "red")

class Later(scripts.Script):
    def title(self):
        return "later"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def postprocess_image_after_composite(self, p, pp, *values):
        if does("exchange"):
            pp.image = red((64, 64))
        if does("paint"):
            pp.image.paste(red((64, 64)))

    def postprocess(self, p, processed, *values):
        if does("append"):
            path = FLAG.with_suffix(".png")
            red().save(path)
            empty = Image.new("RGB", (0, 0))
            processed.images += [red(), empty, np.array(red()), str(path), np.ones((9, 9, 3))]

def exchange(params):
    if does("save"):
        params.image = red()

script_callbacks.on_before_image_saved(exchange)

try:
    from modules_forge import api_providers
except ImportError:  # Forge Neo alone can have images drawn by a remote service
    pass
else:
    api_providers.get_session_api_key = lambda: "a key"
    api_providers.generate_with_api = lambda **_: [red()] if does("remote") else []
"""


def cost_in(text: str) -> float | None:
    """The cost that an infotext says."""
    found = re.search(r"Safety cost: ([+-]\d+\.\d\d)", text)
    return float(found[1]) if found else None


@dataclass
class Answer:
    """What a generation gave: its images, their infotexts, and the JSON that came with them."""

    images: list[Image.Image]
    infotexts: list[str]
    info: dict[str, Any]


@dataclass
class WebUi:
    """A host that runs.

    Attributes:
        root: its checkout.
        data: its data folder.
        port: where it listens on this machine.
        python: its interpreter.
        frozen: its packages before it was started for the first time.
    """

    root: Path
    data: Path
    python: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    frozen: list[str] = field(default_factory=list)

    @property
    def is_forge(self) -> bool:
        return (self.root / "modules_forge").is_dir()

    @property
    def is_neo(self) -> bool:
        version = self.root / "modules_forge" / "forge_version.py"
        return version.is_file() and '"neo"' in version.read_text("utf-8")

    @property
    def outputs(self) -> Path:
        return self.data / ("output" if self.is_neo else "outputs")

    @property
    def log(self) -> str:
        return (self.data / "host.log").read_text("utf-8", "replace")

    @property
    def breaks(self) -> Path:
        return self.data / "break-the-scorer"

    @property
    def later(self) -> Path:
        """What the other extension does, in words."""
        return self.data / "later"

    @property
    def more(self) -> Path:
        """A folder that a flag lets the API read."""
        return self.data.with_name(self.data.name + "-more")

    @property
    def more_loras(self) -> tuple[Path, Path]:
        """Two further folders of LoRAs, as only Neo can have."""
        return self.more / "loras", self.more / "other loras"

    def prepare(self) -> None:
        """Fill the data folder."""
        for folder in self.more_loras:
            folder.mkdir(parents=True)
        Image.linear_gradient("L").save(self.more / "grey.png")
        # Only A1111 reads what is made of these words, and only A1111 and Forge ship them.
        words = next(self.python.parents[1].glob("**/bpe_simple_vocab_16e6.txt.gz"), None)
        write_checkpoint(self.data / "models" / "Stable-diffusion", words)
        loras = self.data / "models" / "Lora"
        loras.mkdir(parents=True)
        write_lora(loras / "calm.safetensors")
        write_lora(loras / "toy.safetensors", "micro")
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        for name in filter(None, names):
            if not name.startswith("examples/") and (ROOT / name).is_file():
                target = self.data / "extensions" / "scdpo" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, target)
        scripts = self.data / "extensions" / "zz-breaks" / "scripts"
        scripts.mkdir(parents=True)
        (scripts / "breaks.py").write_text(_BREAKS.format(flag=str(self.breaks)), "utf-8")
        scripts = self.data / "extensions" / "zz-later" / "scripts"
        scripts.mkdir(parents=True)
        (scripts / "later.py").write_text(_LATER.format(flag=str(self.later)), "utf-8")
        # Forge's own extensions fetch things from the network when they are installed.
        builtin = os.listdir(self.root / "extensions-builtin")
        others = [n for n in builtin if n.startswith(("forge_", "sd_forge_")) and n != "sd_forge_lora"]
        settings: dict[str, Any] = {"disabled_extensions": others, "show_progress_type": "Approx cheap"}
        if self.is_neo:
            # Without the first one the host takes the settings for an old version's, and asks what to do.
            settings |= {"VERSION_UID": "PY313", "grid_format": "png"}
        (self.data / "config.json").write_text(json.dumps(settings), "utf-8")

    def freeze(self) -> list[str]:
        """Its packages."""
        command = [str(self.python), "-m", "pip", "freeze"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    def start(self) -> None:
        """Start it as its launcher does, installers of extensions included, and wait until it draws."""
        self.frozen = self.frozen or self.freeze()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [str(self.python), "launch.py", "--skip-torch-cuda-test", "--skip-version-check", "--api"]
        command += ["--port", str(self.port), "--data-dir", str(self.data)]
        command += ["--api-auth", f"{NAME}:{PASSWORD}"]
        if self.is_neo:
            command += ["--cpu", "--force-fp32"]
            for folder in self.more_loras:
                command += ["--lora-dirs", str(folder)]
        else:
            command += ["--no-half", "--no-download-sd-model"]
            command += ["--always-cpu"] if self.is_forge else ["--use-cpu", "all"]
        command += ["--gradio-allowed-path", str(self.root), "--scdpo-folder", str(self.more)]
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
        # Its log tells when it has started.
        offline["PYTHONUNBUFFERED"] = "1"
        # Neo breaks the lines of its log where it takes the terminal to end.
        offline["COLUMNS"] = "300"
        # Not this project's: our own environment of Python would lead the host's astray.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with (self.data / "host.log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.root,
                env={**kept, **offline},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the host ended:\n{self.log[-4000:]}"
            # An earlier request would end it: middleware cannot be added once one was answered.
            if "Startup time:" in self.log:
                return
            time.sleep(1)
        raise AssertionError(f"the host did not start in {START_SECONDS} s:\n{self.log[-4000:]}")

    def stop(self) -> None:
        """End it and all that it started."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
            self.process.wait(60)

    def request(self, path: str, body: Any = None, auth: str | None = f"{NAME}:{PASSWORD}") -> bytes:
        """The answer's body.

        Raises:
            HTTPError: the host refuses.
        """
        headers = {"Content-Type": "application/json"}
        if auth is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(auth.encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=540) as answer:
            found: bytes = answer.read()
        return found

    def get(self, path: str) -> Any:
        return json.loads(self.request(path))

    def post(self, path: str, body: Any) -> Any:
        return json.loads(self.request(path, body))

    def draw(self, *values: Any, kind: str = "txt2img", **request: Any) -> Answer:
        """Draw with our script's controls at these values; small, quick and the same every time."""
        standard = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 1, "save_images": True}
        if self.is_forge:
            standard["hr_additional_modules"] = ["Use same choices"]
        if self.is_neo and request.get("hr_upscaler") == "Latent":
            # It enlarges pixels alone; this is the one that needs no file.
            request["hr_upscaler"] = "None"
        script = {"alwayson_scripts": {"SC-DPO safety": {"args": list(values)}}}
        answer = self.post(f"/sdapi/v1/{kind}", {**standard, **script, **request})
        info = json.loads(answer["info"])
        images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in answer["images"]]
        return Answer([image.convert("RGB") for image in images], info["infotexts"], info)

    def saved(self, before: set[Path] = frozenset()) -> set[Path]:
        """Every image in the output folder that was not there before."""
        return set(self.outputs.rglob("*.png")) - before
