"""The page alone: a secret for every request, and no other web page around it or behind it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio", minversion="5", reason="the page needs gradio 5 or newer: pip install -e .[ui]")
from fastapi import FastAPI
from fastapi.testclient import TestClient

from a1111_extension.app import make_app
from tests.support.webtab_server import ui_context_in

ROOT = Path(__file__).resolve().parents[2]
PLACE, TOKEN = "http://127.0.0.1:7870", "a secret"
PATHS = ("/", "/config", "/gradio_api/info", "/theme.css", "/scdpo/v1/jobs", "/openapi.json", "/nothing")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    data = tmp_path_factory.mktemp("data")
    return make_app(ui_context_in(data), data, TOKEN)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url=PLACE, follow_redirects=False) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_answered_without_the_secret(client: TestClient, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "scdpo_token_7870=wrong"}):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401 and "?token=" in answer.json()["detail"]
        assert client.get(f"{path}?token=wrong", headers=headers).status_code == 401
    assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code in (200, 404)


def test_the_printed_address_opens_the_page(client: TestClient) -> None:
    answer = client.get("/", params={"token": TOKEN})
    assert answer.status_code == 303 and TOKEN not in answer.headers["location"]
    cookie = answer.headers["set-cookie"]
    # Cookies of 127.0.0.1 go to all its ports: each page has its own.
    assert cookie.startswith("scdpo_token_7870=") and "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert client.get("/").status_code == 200
    assert client.get("http://127.0.0.1:7871/").status_code == 401


@pytest.mark.parametrize("path", PATHS)
def test_no_other_page_may_lay_it_under_its_own(client: TestClient, path: str) -> None:
    for headers in ({}, {"Authorization": f"Bearer {TOKEN}"}, {"Origin": "https://example.org"}):
        answer = client.get(path, headers=headers)
        assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
        assert answer.headers["x-frame-options"] == "SAMEORIGIN"


def test_no_other_page_may_call_it_whatever_it_knows(client: TestClient) -> None:
    known = {"Authorization": f"Bearer {TOKEN}"}
    for path in PATHS:
        for origin in ("https://example.org", "null", "http://[", "http://127.0.0.1:7871"):
            assert client.get(path, headers={**known, "Origin": origin}).status_code == 403
    stop = client.post("/scdpo/v1/jobs/calm/stop", headers={**known, "Content-Type": "text/plain"})
    assert stop.status_code == 415


def test_without_a_secret_it_answers_to_this_machine_alone(tmp_path: Path) -> None:
    client = TestClient(make_app(ui_context_in(tmp_path), tmp_path, ""), base_url=PLACE)
    assert client.get("/scdpo/v1/jobs").status_code == 200
    assert client.get("/scdpo/v1/jobs", headers={"Host": "example.org:7870"}).status_code == 403


@pytest.mark.slow
def test_the_page_has_a_secret_unless_somebody_wants_none() -> None:
    code = (
        "import a1111_extension.__main__ as page, uvicorn, os\n"
        "uvicorn.run = lambda *given, **named: print(oct(os.stat(os.environ['GRADIO_TEMP_DIR']).st_mode))\n"
        "page.main({flags!r})"
    )

    def said(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code.format(flags=[*flags, "--data", "/nowhere"])]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    first = said()
    assert re.search(r"Open http://127\.0\.0\.1:7870/\?token=[\w-]{32}\n", first.stdout), first.stderr
    # What is dropped into the page, other users of the machine do not see.
    assert first.stdout.splitlines()[-1] == "0o40700"
    assert "Open http://127.0.0.1:7870/?token=mine\n" in said("--token", "mine").stdout
    assert "Open http://127.0.0.1:7870/\n" in said("--token", "").stdout
    assert "needs a token" in said("--listen", "--token", "").stderr
