"""Trainings in a real host: images wait meanwhile, a restart loses nothing, the LoRA lands on its page."""

from __future__ import annotations

import threading
import time
import urllib.error
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from scdpo_core.run_store.events import Done, EventLog
from tests.hosts.webui.checkpoint import write_lora
from tests.hosts.webui.running import WebUi
from tests.support import runs_helpers

pytestmark = pytest.mark.slow
JOBS = "/scdpo/v1/jobs"
SHORT = "[optim]\nmax_train_steps = {steps}\nbatch_size = {batch}\naccumulation = 1\n"
SAMPLES = "[sampling]\nsamples = 1\nsample_steps = 2\n"


def start(webui: WebUi, name: str, base: str, settings: str) -> Any:
    pairs = str(webui.data / "safety_lora" / "preferences")
    return webui.post(JOBS, {"name": name, "pairs": pairs, "base": base, "settings": settings})


def until(webui: WebUi, name: str, true: Callable[[dict[str, Any]], bool], seconds: float = 600) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = webui.get(f"{JOBS}/{name}")
        if true(job):
            return job
        assert job["state"] not in ("failed", "interrupted"), job["message"]
        time.sleep(0.5)
    raise AssertionError(f"it never came: {job}\n{webui.get(JOBS)}")


def test_images_wait_while_a_lora_is_trained(trains: WebUi) -> None:
    start(trains, "waiting", "micro", SHORT.format(steps=200, batch=4) + SAMPLES)
    until(trains, "waiting", lambda job: job["trained"] > 0)
    states: list[str] = []

    def draw() -> None:
        trains.draw()
        states.append(trains.get(f"{JOBS}/waiting")["state"])

    drawing = threading.Thread(target=draw)
    drawing.start()
    with pytest.raises(urllib.error.HTTPError) as error:
        start(trains, "waiting", "micro", "")
    assert error.value.code == 422
    until(trains, "waiting", lambda job: job["state"] == "finished")
    drawing.join(600)
    assert states == ["finished"]


def test_a_restart_of_the_host_loses_nothing(trains: WebUi) -> None:
    start(trains, "long", "micro", SHORT.format(steps=5000, batch=4) + SAMPLES)
    before = until(trains, "long", lambda job: job["trained"] > 5)["trained"]
    trains.stop()
    trains.start()
    job = until(trains, "long", lambda job: job["trained"] > before)
    assert job["state"] == "running" and trains.get(JOBS)["active"] == "long"
    trains.post(f"{JOBS}/long/stop", {})
    stopped = until(trains, "long", lambda job: job["state"] == "stopped")
    assert 0 < stopped["trained"] < 5000
    trains.post(f"{JOBS}/long/resume", {})
    until(trains, "long", lambda job: job["trained"] > stopped["trained"])
    trains.post(f"{JOBS}/long/stop", {})
    until(trains, "long", lambda job: job["state"] == "stopped")


def test_a_lora_that_was_finished_meanwhile_is_on_the_hosts_page_and_draws(trains: WebUi) -> None:
    # The trainer cannot load the host's tiny checkpoint, so that the run itself is made up.
    run = trains.data / "safety_lora" / "runs" / "quiet"
    run.mkdir(parents=True)
    write_lora(run / "quiet.safetensors")
    Image.new("RGB", (64, 64), "green").save(run / "quiet.png")
    (run / "job.toml").write_text("", "utf-8")
    EventLog(run / "events.jsonl")(Done("finished", 2, "quiet.safetensors", 1.0))
    trains.stop()
    trains.start()
    shelf = trains.data / "models" / "Lora"
    # The host's process looks for finished runs beside its start, and a busy machine takes a while.
    whole = {"quiet.safetensors", "quiet.json", "quiet.png"}
    runs_helpers.until(lambda: {path.name for path in shelf.glob("quiet.*")} >= whole)
    listed = {lora["name"]: lora for lora in trains.get("/scdpo/v1/loras")["loras"]}
    assert listed["quiet"]["safety"] and listed["quiet"]["problem"] is None
    with_it, without = trains.draw(prompt="a cat <lora:quiet:1>"), trains.draw(prompt="a cat")
    assert with_it.images[0].tobytes() != without.images[0].tobytes()
