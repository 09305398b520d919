"""The page alone: without its secret nothing at all is answered, and with it nothing outside is read.

python -m pytest -m "" tests/campaign/test_page_requests.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("gradio", minversion="5", reason="the page needs gradio 5 or newer: pip install -e .[ui]")
from fastapi.testclient import TestClient

from a1111_extension.app import make_app
from tests.campaign.test_requests import HEADERS, NAMES, in_path, sound
from tests.support.webtab_server import ui_context_in

pytestmark = pytest.mark.slow
PLACE, TOKEN = "http://127.0.0.1:7870", "a secret"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Path]]:
    data = tmp_path_factory.mktemp("page") / "data"
    data.mkdir()
    (data.parent / "secret.txt").write_text("the secret", "utf-8")
    app = make_app(ui_context_in(data), data, TOKEN)
    with TestClient(app, base_url=PLACE, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client, data


def addresses(data: Path) -> Iterator[str]:
    for name in NAMES:
        yield f"/{in_path(name)}"
        yield f"/scdpo/v1/{in_path(name)}"
        yield f"/?token={in_path(name)}"
    for path in ("/etc/passwd", "../secret.txt", f"{data}/../secret.txt", str(data.parent / "secret.txt")):
        for door in (
            "/file=",
            "/gradio_api/file=",
            "/gradio_api/file/",
            "/static/",
            "/assets/",
            "/custom_component/",
        ):
            yield door + path
            yield door + quote(path, safe="")
            yield door + path.replace("..", "%2e%2e")


def test_without_the_secret_nothing_is_answered(page: tuple[TestClient, Path]) -> None:
    client, data = page
    for address in addresses(data):
        for method in ("GET", "POST", "HEAD", "OPTIONS"):
            answer = client.request(method, address)
            assert answer.status_code in (401, 403), (method, address[:200], answer.status_code)
    for headers in HEADERS:
        coded = [(name.encode(), value.encode()) for name, value in headers.items()]
        for path in ("/", "/config", "/scdpo/v1/jobs", "/gradio_api/queue/join"):
            assert client.post(path, content=b"{}", headers=coded).status_code in (400, 401, 403), headers


def test_with_it_nothing_outside_is_read(page: tuple[TestClient, Path]) -> None:
    client, data = page
    for address in addresses(data):
        answer = client.get(address, headers=KNOWN)
        assert b"the secret" not in answer.content and b"root:" not in answer.content, address
        if address.startswith("/scdpo"):
            sound(answer, address)


def test_odd_headers_with_it(page: tuple[TestClient, Path]) -> None:
    client, _ = page
    for headers in HEADERS:
        if "Authorization" in headers:
            continue
        coded = [(name.encode(), value.encode()) for name, value in {**KNOWN, **headers}.items()]
        for path in ("/scdpo/v1/jobs", "/scdpo/v1/jobs/x/stop", "/scdpo/v1/score"):
            sound(client.post(path, content=b"{}", headers=coded), (path, headers))
            sound(client.get(path, headers=coded), (path, headers))
