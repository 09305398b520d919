"""The API through FastAPI's own client: what it tells, and what it refuses, always with a sentence."""

from __future__ import annotations

import base64
import importlib
import io
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

import preload
from tests.a1111_extension.test_webui_lora import a_lora
from tests.support.scoring_helpers import Redness, plain
from tests.support.webui_stub import Host, installed


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "models" / "Lora").mkdir(parents=True)
    with installed(tmp_path) as host:
        yield host


@pytest.fixture
def client(host: Host) -> TestClient:
    importlib.import_module("a1111_extension.script").SCORER_CACHE.get = lambda *_: Redness()
    app = FastAPI()
    importlib.import_module("a1111_extension.register")._started(None, app)
    return TestClient(app, base_url="http://127.0.0.1:7860")


def sent(colour: str) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def refused(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    sentence = answer.json()["detail"]
    assert isinstance(sentence, str) and sentence.endswith(".")
    return str(sentence)


def test_a_image_sent_along_is_scored(client: TestClient) -> None:
    for image in (sent("red"), f"data:image/png;base64,{sent('red')}"):
        answer = client.post("/scdpo/v1/score", json={"image": image})
        assert answer.json() == {
            "scores": [
                {
                    "path": "",
                    "cost": 5.0,
                    "details": {},
                    "band": "unsafe",
                    "categories": {"red": 5.0, "green": 0.0, "unknown": None},
                    "scorer": "redness@0123456789ab",
                    "error": None,
                }
            ]
        }


def test_a_folder_is_scored_the_costliest_first(client: TestClient, host: Host) -> None:
    outputs = host.root / "outputs"
    for name, colour in (("a", "blue"), ("b", "red"), ("deep/c", "gray")):
        plain(outputs / f"{name}.png", colour)
    (outputs / "d.png").write_bytes(b"no image")
    for path in (str(outputs), "."):
        rows = client.post("/scdpo/v1/score", json={"path": path}).json()["scores"]
        assert [Path(row["path"]).name for row in rows] == ["b.png", "c.png", "a.png", "d.png"]
        assert [row["cost"] for row in rows] == [5.0, 0.0, -5.0, None]
        assert rows[3]["error"]
    one = client.post("/scdpo/v1/score", json={"path": "deep/c.png"}).json()["scores"]
    assert [row["cost"] for row in one] == [0.0]


def test_nothing_outside_of_the_roots_is_read(client: TestClient, host: Host) -> None:
    outputs, outside = host.root / "outputs", host.root / "outside"
    secret = plain(outside / "secret.png", "red")
    (outputs / "link.png").symlink_to(secret)
    (outputs / "folder").symlink_to(outside)
    (host.root / "outputs-too").mkdir()
    for path in (
        str(secret),
        "/etc/passwd",
        "../outside/secret.png",
        str(outputs / ".." / "outside"),
        str(outputs / "link.png"),
        "folder",
        "folder/secret.png",
        str(host.root / "outputs-too"),
        str(outside / "not there.png"),
    ):
        assert "Only what lies in" in refused(client.post("/scdpo/v1/score", json={"path": path}), 403), path
    plain(outputs / "mine.png", "blue")
    rows = client.post("/scdpo/v1/score", json={"path": "."}).json()["scores"]
    assert [Path(row["path"]).name for row in rows] == ["mine.png"], "links out of the folder are passed over"


def test_more_folders_can_be_allowed(client: TestClient, host: Host) -> None:
    mine = plain(host.root / "mine" / "a.png", "red")
    parser = ArgumentParser()
    preload.preload(parser)
    assert parser.parse_args([]).scdpo_folder == []
    host.shared.cmd_opts.scdpo_folder = parser.parse_args(["--scdpo-folder", str(mine.parent)]).scdpo_folder
    assert client.post("/scdpo/v1/score", json={"path": str(mine)}).json()["scores"][0]["cost"] == 5.0


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "either 'image'"),
        ({"image": "x", "path": "y"}, "either 'image'"),
        ({"image": "no base64!"}, "not base64"),
        ({"image": base64.b64encode(b"no image").decode()}, "image: "),
        ({"image": ""}, "empty"),
        ({"path": " "}, "Name an image"),
        ({"path": "a\0b"}, "Name an image"),
        ({"path": "a.png", "cost_model": "/etc/passwd"}, "no cost model '/etc/passwd'"),
        ({"path": 3.5, "image": {}}, "not valid: "),
    ],
)
def test_requests_that_make_no_sense_get_a_sentence(
    client: TestClient, body: dict[str, Any], sentence: str
) -> None:
    answer = client.post("/scdpo/v1/score", json=body)
    assert answer.status_code == 422, answer.text
    assert sentence in answer.json()["detail"]


def test_what_is_no_json_gets_a_sentence(client: TestClient) -> None:
    answer = client.post("/scdpo/v1/score", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and isinstance(answer.json()["detail"], str)


def test_a_file_that_is_not_there_gets_a_sentence(client: TestClient) -> None:
    refused(client.post("/scdpo/v1/score", json={"path": "nothing.png"}), 404)


def test_sizes_are_limited(client: TestClient, monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    access, api = (importlib.import_module(f"a1111_extension.{name}") for name in ("api_responses", "api"))
    monkeypatch.setattr(access, "MOST_BYTES", 1 << 20)
    large = client.post("/scdpo/v1/score", json={"image": "A" * (3 << 20)})
    assert "3 MiB; up to 1 MiB are read" in refused(large, 413)
    endless = client.post("/scdpo/v1/score", content=(part for part in [b"{}"]))
    assert "Content-Length" in refused(endless, 411)
    monkeypatch.setattr(api, "MOST_IMAGES", 2)
    for name in "abc":
        plain(host.root / "outputs" / f"{name}.png")
    assert "3 images; at most 2" in refused(client.post("/scdpo/v1/score", json={"path": "."}), 413)


def test_loras_are_listed_with_what_is_wrong_with_them(client: TestClient, host: Host) -> None:
    folder = host.root / "models" / "Lora"
    host.add_lora(a_lora(folder / "calm.safetensors"))
    host.add_lora(a_lora(folder / "big.safetensors", "sdxl"))
    broken = folder / "broken.safetensors"
    broken.write_bytes(b"")
    host.add_lora(broken)
    found = {lora["name"]: lora for lora in client.get("/scdpo/v1/loras").json()["loras"]}
    calm = {"name": "calm", "family": "sd1", "rank": 2, "safety": True, "problem": None, "caution": None}
    assert found["calm"] == {**calm, "folder": str(folder)}
    assert found["big"]["family"] == "sdxl" and "is for Stable Diffusion XL" in found["big"]["problem"]
    assert "damaged" in found["broken"]["problem"] and found["broken"]["rank"] == 0
    # Nothing loaded yet: nobody knows whether it fits, and that is said.
    host.shared.sd_model = object()
    found = {lora["name"]: lora for lora in client.get("/scdpo/v1/loras").json()["loras"]}
    assert (
        found["calm"]["problem"] is None
        and "is unknown, so it could not be checked" in found["calm"]["caution"]
    )


def test_cost_models_are_listed(client: TestClient) -> None:
    found = client.get("/scdpo/v1/cost-models").json()["cost_models"]
    assert (
        found[0]["name"] == "embedded"
        and found[0]["in_use"]
        and found[0]["licence"] == "BSD-2-Clause and MIT"
    )
    assert [model["in_use"] for model in found[1:]] == [False] * (len(found) - 1)


def test_the_hosts_passwords_are_honoured(client: TestClient, host: Host) -> None:
    host.shared.cmd_opts.api_auth = "anna:secret,ben:word"
    for path in ("/scdpo/v1/loras", "/scdpo/v1/cost-models"):
        answer = client.get(path)
        assert answer.headers["WWW-Authenticate"] == "Basic"
        assert "--api-auth" in refused(answer, 401)
        for name, password in (("anna", "wrong"), ("carl", "secret"), ("", ""), ("anna", "word")):
            assert client.get(path, auth=(name, password)).status_code == 401
        for name, password in (("anna", "secret"), ("ben", "word")):
            assert client.get(path, auth=(name, password)).status_code == 200
    assert client.post("/scdpo/v1/score", json={"image": sent("red")}).status_code == 401
    odd = client.get("/scdpo/v1/loras", headers={"Authorization": "Basic ?"})
    assert odd.status_code == 401 and isinstance(odd.json()["detail"], str)


EVERY = [
    ("GET", "/scdpo/v1/loras"),
    ("GET", "/scdpo/v1/cost-models"),
    ("POST", "/scdpo/v1/score"),
    ("GET", "/scdpo/v1/jobs"),
    ("POST", "/scdpo/v1/jobs"),
    ("GET", "/scdpo/v1/jobs/calm"),
    ("GET", "/scdpo/v1/jobs/calm/events"),
    ("POST", "/scdpo/v1/jobs/calm/stop"),
    ("POST", "/scdpo/v1/jobs/calm/resume"),
    ("POST", "/scdpo/v1/pairs"),
    ("POST", "/scdpo/v1/evaluations"),
]


def test_this_is_every_route(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    ours = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert {(m, p.replace("calm", "{name}")) for m, p in EVERY} == {x for x in ours if "scdpo" in x[1]}


@pytest.mark.parametrize(("method", "path"), EVERY)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:7861"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        {"Host": "example.org:7860", "Origin": "http://example.org:7860"},
        {"Host": "example.org:7860"},
    ],
)
def test_no_other_web_page_may_call(
    client: TestClient, method: str, path: str, headers: dict[str, str]
) -> None:
    refused(client.request(method, path, headers=headers, json={} if method == "POST" else None), 403)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://127.0.0.1:7860"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        {"Host": "localhost:7860", "Origin": "http://localhost:7860"},
        {"Host": "[::1]:7860"},
    ],
)
def test_the_page_itself_links_and_programs_may(client: TestClient, headers: dict[str, str]) -> None:
    assert client.get("/scdpo/v1/loras", headers=headers).status_code == 200


def test_the_host_can_be_told_of_other_pages(client: TestClient, host: Host) -> None:
    other, ours = {"Origin": "https://example.org"}, {"Host": "example.org"}
    for flags in (
        {"cors_allow_origins": "https://a.example, https://example.org"},
        {"cors_allow_origins_regex": r"https://[a-z]+\.org"},
        {"cors_allow_origins": "*"},
    ):
        vars(host.shared.cmd_opts).update(flags)
        assert client.get("/scdpo/v1/loras", headers=other).status_code == 200
        if flags != {"cors_allow_origins": "*"}:
            assert client.get("/scdpo/v1/loras", headers=ours).status_code == 200
        vars(host.shared.cmd_opts).update(cors_allow_origins=None, cors_allow_origins_regex=None)
    # By network a host has whatever name its users gave it, and with a password no page gets in anyway.
    host.shared.cmd_opts.listen = True
    assert client.get("/scdpo/v1/loras", headers={"Host": "studio.lan:7860"}).status_code == 200
    host.shared.cmd_opts.listen = False
    host.shared.cmd_opts.api_auth = "anna:secret"
    assert client.get("/scdpo/v1/loras", headers=ours, auth=("anna", "secret")).status_code == 200


@pytest.mark.parametrize("path", [path for method, path in EVERY if method == "POST"])
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_only_json_is_taken(client: TestClient, path: str, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    assert "Content-Type: application/json" in refused(client.post(path, content=b"{}", headers=headers), 415)


def test_no_api_without_the_hosts_own(host: Host) -> None:
    host.shared.cmd_opts.api = False
    app = FastAPI()
    importlib.import_module("a1111_extension.register")._started(None, app)
    assert not any("scdpo" in route.path for route in app.routes if hasattr(route, "path"))


def test_the_schema_describes_every_route(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    paths = [path for path in schema["paths"] if path.startswith("/scdpo/v1") and "/jobs" not in path]
    assert paths == [
        f"/scdpo/v1/{name}" for name in ("score", "loras", "cost-models", "pairs", "evaluations")
    ]
    assert "HTTPBasic" in schema["components"]["securitySchemes"]
    assert {"image", "path", "cost_model"} == set(
        schema["components"]["schemas"]["ScoreRequest"]["properties"]
    )
