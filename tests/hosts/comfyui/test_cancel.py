"""Cancelling one job of ComfyUI's queue by its id, while our training is that job."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from scdpo_core.runs.follow import Follower
from scdpo_core.runs.launch import Child
from tests.hosts.comfyui.server import Host
from tests.hosts.comfyui.test_training import runs, until
from tests.hosts.comfyui.training_graphs import folder_node, in_background, lora_node

pytestmark = pytest.mark.slow


def cancel(host: Host, way: str, job: str) -> Any:
    if way == "interrupt":
        return host.post("/interrupt", {"prompt_id": job})
    if way == "job":
        return host.post(f"/api/jobs/{job}/cancel", {})
    return host.post("/api/jobs/cancel", {"job_ids": [job]})


@pytest.mark.parametrize("way", ["interrupt", "job", "jobs"])
def test_a_training_that_is_cancelled_by_its_id_is_saved_and_another_id_leaves_it(
    host: Host, way: str, request: pytest.FixtureRequest
) -> None:
    if way != "interrupt" and not host.has("/api/jobs"):
        pytest.skip("this ComfyUI has no jobs")
    name = f"cancelled-{way}"
    folder = runs(host) / name
    request.addfinalizer(Child(folder).kill)
    thread, ended = in_background(host, {"pairs": folder_node(), "train": lora_node(name, steps=4000)})
    until(lambda: (folder / "events.jsonl").exists() and Follower(folder).view().trained >= 1)
    ((_, job, *_),) = host.get("/queue")["queue_running"]
    cancel(host, way, str(uuid.uuid4()))
    trained = Follower(folder).view().trained
    until(lambda: Follower(folder).view().trained > trained)
    assert not ended and Child(folder).state == "running"
    cancel(host, way, job)
    thread.join(120)
    assert ended and ended[0].interrupted
    assert Child(folder).state == "stopped" and Child(folder).process is None
    assert list((folder / "checkpoints").iterdir())
    assert host.get("/queue")["queue_running"] == []
