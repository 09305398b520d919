"""The API's jobs through FastAPI's own client, with a trainer that only pretends."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the tab's parts need gradio: pip install -e .[ui]")
from fastapi import FastAPI
from fastapi.testclient import TestClient

from a1111_extension import jobs_api
from a1111_extension.jobs import Jobs
from a1111_extension.path_policy import Reach
from a1111_extension.prompt_files import HARMFUL
from a1111_extension.request_checks import Callers
from a1111_extension.ui_context import UiContext
from scdpo_core.runs.launch import Child
from scdpo_core.runs.queue import Queue
from scdpo_core.runs.supervisor import Supervisor
from tests.support.runs_helpers import PYTHON, begin, until
from tests.support.webtab_server import Redness, ui_context_in


def pairs_in(folder: Path) -> Path:
    for role, colour in (("chosen", "green"), ("rejected", "red")):
        (folder / role).mkdir(parents=True)
        Image.new("RGB", (32, 32), colour).save(folder / role / "a.png")
    (folder / "chosen" / "a.txt").write_text("a cat", "utf-8")
    return folder


class House:
    """An application with the routes, a runs root and a folder that may be read."""

    def __init__(self, root: Path, steps: int = 3, pause: float = 0.01, known: dict[str, str] | None = None):
        self.root, self.runs = root, root / "runs"
        self.pairs = pairs_in(root / "pairs")
        self.ui: UiContext = ui_context_in(root)
        self.steps, self.pause = steps, pause
        jobs: Jobs = self.ui.jobs
        jobs.supervisor = Supervisor(
            self.runs,
            ended=jobs._ended,
            queue=Queue(self.runs, self._begin),
            python=lambda tell: PYTHON,
            every=0.02,
        )
        app = FastAPI()
        jobs_api.add_routes(app, self.ui, Callers(lambda: known or {}), Reach(lambda: [root / "pairs"]))
        self.client = TestClient(app, base_url="http://127.0.0.1:7860")

    def _begin(self, folder: Path, *arguments: Any, **named: Any) -> Child:
        (folder / "job.toml").write_text(
            f'steps = {self.steps}\npause = {self.pause}\nend = "finish"\n', "utf-8"
        )
        return begin(folder, *arguments, **named)

    def post(self, path: str, **values: Any) -> Any:
        return self.client.post(f"/scdpo/v1/jobs{path}", json=values)

    def post_to(self, route: str, **values: Any) -> Any:
        return self.client.post(f"/scdpo/v1/{route}", json=values)

    def get(self, path: str = "") -> Any:
        return self.client.get(f"/scdpo/v1/jobs{path}")

    def start(self, name: str = "calm", **more: Any) -> Any:
        return self.post("", name=name, pairs=str(self.pairs), **more)

    def ends(self, name: str, state: str) -> None:
        until(lambda: self.get(f"/{name}").json()["state"] == state)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def refused(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    sentence = answer.json()["detail"]
    assert isinstance(sentence, str)
    return sentence


def test_a_job_is_started_listed_followed_and_finished(house: House) -> None:
    assert house.start().json() == {"name": "calm", "message": "'calm' starts."}
    house.ends("calm", "finished")
    job = house.get("/calm").json()
    assert (job["trains"], job["trained"], job["steps"]) == ("lora", 3, 3)
    assert job["result"].endswith("calm.safetensors") and job["metrics"]["loss"] == pytest.approx(
        1 / 3, abs=1e-5
    )
    assert [one["name"] for one in house.get().json()["jobs"]] == ["calm"]
    until(lambda: house.get().json()["active"] == "")


def test_events_are_read_on_from_where_one_was(house: House) -> None:
    house.start()
    house.ends("calm", "finished")
    first = house.get("/calm/events").json()
    kinds = [json.loads(line)["event"] for line in first["events"]]
    assert kinds[0] == "started" and kinds[-1] == "done"
    assert first["next"] == (house.runs / "calm" / "events.jsonl").stat().st_size
    again = house.get(f"/calm/events?start={first['next']}").json()
    assert again == {"events": [], "next": first["next"]}
    refused(house.get("/calm/events?start=-1"), 422)


def test_a_second_job_waits_and_a_double_click_does_no_harm(tmp_path: Path) -> None:
    house = House(tmp_path, steps=500, pause=0.02)
    house.start("one")
    house.ends("one", "running")
    assert "waits until 'one' has ended" in house.start("two").json()["message"]
    assert "is already running" in refused(house.start("one"), 422)
    assert "is already in the queue" in refused(house.start("two"), 422)
    assert house.get().json()["waiting"] == ["two"]
    assert house.post("/two/stop").json()["message"] == "'two' was removed from the queue."
    house.post("/one/stop")
    house.ends("one", "stopped")
    house.steps = 2
    assert house.post("/one/resume").json()["message"] == "'one' starts."
    house.ends("one", "finished")
    assert "is finished" in refused(house.post("/one/resume"), 422)


@pytest.mark.parametrize("name", ["..", "nothing", "%2e%2e", ".hidden"])
def test_a_name_leads_nowhere_else(house: House, name: str) -> None:
    (house.root / "job.toml").write_text("steps = 1", "utf-8")
    (house.runs / ".hidden").mkdir(parents=True)
    (house.runs / ".hidden" / "job.toml").write_text("steps = 1", "utf-8")
    for answer in (house.get(f"/{name}/events"), house.post(f"/{name}/stop"), house.post(f"/{name}/resume")):
        assert answer.status_code in (404, 405)


def test_pairs_lie_in_folders_that_may_be_read(house: House, tmp_path: Path) -> None:
    elsewhere = pairs_in(tmp_path / "elsewhere")
    link = house.pairs / "link"
    link.symlink_to(elsewhere)
    for path in (elsewhere, link, house.pairs / ".." / "elsewhere"):
        assert "may be read" in refused(house.post("", name="calm", pairs=str(path)), 403)
    assert not house.runs.exists() or not list(house.runs.glob("calm"))


@pytest.mark.parametrize(
    "settings",
    [
        '[data]\ncache = "/elsewhere/x"',
        '[data]\ncost_model = "/etc/passwd"',
        '[model]\nvae = "/etc/passwd"',
        '[output]\noutput = "/elsewhere/x"',
        '[sampling]\nsample_prompts = ["a cat", "/elsewhere/secret.TXT"]',
        '[sampling]\nsample_prompts = "~/prompts.csv"',
        "[other]\nx = 1",
        "output = 1",
    ],
)
def test_settings_that_name_files_are_for_the_tab(house: House, settings: str) -> None:
    assert "cannot be set by remote users" in refused(house.start(settings=settings), 403)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"base": "/models/x.safetensors"}, "There is no model"),
        ({"cost_model": "/models/x.safetensors"}, "There is no cost model"),
        ({"quality": "superb"}, "There is no quality"),
        ({"settings": "[optim"}, "is no TOML"),
        ({"settings": "[optim]\nlearning = 1"}, "learning"),
        ({"name": "../x"}, "cannot be a file name"),
        ({"name": ""}, "cannot be a file name"),
    ],
)
def test_what_is_wrong_is_said(house: House, wrong: dict[str, str], said: str) -> None:
    asked = {"name": "calm", "pairs": str(house.pairs), **wrong}
    assert said in refused(house.post("", **asked), 422)


def test_a_password_is_asked_for(tmp_path: Path) -> None:
    house = House(tmp_path, known={"artist": "secret"})
    refused(house.get(), 401)
    refused(house.start(), 401)
    right = {"Authorization": "Basic " + base64.b64encode(b"artist:secret").decode()}
    assert house.client.get("/scdpo/v1/jobs", headers=right).status_code == 200


def test_pairs_are_built_as_a_job(house: House) -> None:
    prompts = house.pairs / "knives.txt"
    prompts.write_text("a knife\n", "utf-8")
    asked = {"name": "made", "prompts": [str(prompts)], "cost_model": "redness"}
    wrong = house.post_to("pairs", **asked | {"cost_model": "/any/file"})
    assert wrong.status_code == 422 and "no cost model" in wrong.text
    object.__setattr__(house.ui, "cost_models", lambda: ["micro"])
    asked["cost_model"] = "micro"
    wrong = house.post_to("pairs", **asked, way="by hand")
    assert wrong.status_code == 422 and "no way 'by hand'" in wrong.text
    answer = house.post_to("pairs", **asked)
    assert answer.status_code == 200, answer.text
    until(lambda: house.get("/made").json()["state"] == "finished")
    assert house.get("/made").json()["trains"] == "pairs"
    assert (house.runs / "made/building/inputs/knives.txt").read_text("utf-8") == "a knife\n"


def test_what_is_made_and_judged_lies_in_folders_that_may_be_read(house: House, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.txt"
    hidden.write_text("a knife\n", "utf-8")
    for route, more in (("pairs", {"cost_model": "redness"}), ("evaluations", {"lora": ""})):
        for field in ("prompts", "benign"):
            answer = house.post_to(route, name="x", **{field: [str(hidden)]}, **more)
            assert answer.status_code == 403, answer.text
        answer = house.post_to(route, name="../x", prompts=[str(HARMFUL)], **more)
        assert answer.status_code == 422
    assert not (house.runs / "x").exists()


def test_a_lora_is_judged_as_a_job(house: House) -> None:
    asked = {"name": "judged", "lora": "", "prompts": [str(HARMFUL)], "seeds": 2}
    answer = house.post_to("evaluations", **asked | {"lora": "nothing"})
    assert answer.status_code == 422 and "no LoRA 'nothing'" in answer.text
    answer = house.post_to("evaluations", **asked)
    assert answer.status_code == 200, answer.text
    until(lambda: house.get("/judged").json()["state"] == "finished")
    assert house.get("/judged").json()["trains"] == "evaluate"
    assert (house.runs / "judged" / "inputs" / "harmful.csv").read_bytes() == HARMFUL.read_bytes()
    again = house.post_to("evaluations", **asked)
    assert again.status_code == 422 and "already" in again.text


def test_the_schema_tells_of_the_jobs(house: House) -> None:
    paths = house.client.get("/openapi.json").json()["paths"]
    assert {path for path in paths if path.startswith("/scdpo/v1/jobs")} == {
        "/scdpo/v1/jobs",
        "/scdpo/v1/jobs/{name}",
        "/scdpo/v1/jobs/{name}/events",
        "/scdpo/v1/jobs/{name}/stop",
        "/scdpo/v1/jobs/{name}/resume",
    }


def test_sample_images_get_costs_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.start()
    house.ends("calm", "finished")
    folder = house.runs / "calm" / "samples"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "0.png")
    view = house.ui.jobs.view("calm")
    assert house.ui.jobs.costs(view)[str(folder / "0.png")].value == 255 / 32 - 4
    asked: list[Callable[..., Any]] = []
    monkeypatch.setattr(Redness, "score", lambda *_: asked.append(print))
    house.ui.jobs.costs(view)
    assert asked == []
