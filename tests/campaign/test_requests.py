"""Requests that nobody means well: every one gets an answer, or a 4xx with a sentence.

python -m pytest -m "" tests/campaign/test_requests.py
"""

from __future__ import annotations

import base64
import importlib
import io
import itertools
import json
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the tab's parts need gradio: pip install -e .[ui]")
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.a1111_extension.test_webtab_jobs import House
from tests.support.scoring_helpers import Redness, plain
from tests.support.webui_stub import Host, installed

pytestmark = pytest.mark.slow
PLACE, API = "http://127.0.0.1:7860", "/scdpo/v1"

NAMES = (
    *("", " ", ".", "..", "...", "/", "\\", "a/b", "../x", "..\\x", "/etc/passwd", "C:\\x", "\\\\server\\x"),
    *("\0", "a\0b", "\x01", "a\nb", "a\tb", "\x1b[31mred", "\u202egnp.exe", "\ufeff", "\u2028", "a\x7fb"),
    *("\ud800", "a\udc80b", "\udfff" * 40, "💣" * 80, "💣" * 20, "ä" * 80, "a" * 80, "a" * 81),
    *("a" * 300, "a" * 5000),
    *(
        "con",
        "NUL",
        "aux.txt",
        "COM1",
        "lpt9.x",
        "a.",
        "a ",
        " a",
        ".hidden",
        "a:b",
        "a*b",
        "a?b",
        "a|b",
        'a"b',
    ),
    *("active.json", "ACTIVE.JSON", "queue.json", "Queue.Json", "queue.lock", "supervisor.lock", "run.json"),
    *(
        "x.safetensors",
        "x.CKPT",
        "x.pt",
        "job.toml",
        "events.jsonl",
        "-rf",
        "--help",
        "$(id)",
        "`id`",
        "';--",
    ),
    *("<script>alert(1)</script>", "{{7*7}}", "${jndi:ldap://x}", "~", "~root", "~nobody-here", "%s%n"),
    *(
        "file:///etc/passwd",
        "http://127.0.0.1:1/",
        "data:,x",
        "\u0130",
        "\ufb00",
        "e\u0301",
        "\u200b",
        "None",
    ),
    *("null", "true", "0", "-1", "1e999"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1 << 70, 0.5, 1e308, "", [], {}, [[]], {"a": {}}, ["x"], "x" * 100_000),
    *("\0", "\ud800", ["\ud800"], {"\ud800": 1}),
)
BODIES = (
    *(
        b"",
        b" ",
        b"{",
        b"}",
        b"[]",
        b"{}",
        b"null",
        b"true",
        b"0",
        b'"x"',
        b"NaN",
        b"\xff",
        b"\xff\xfe{\0}\0",
    ),
    *(b"\xef\xbb\xbf{}", b'{"name": "a", "name": "b"}', b"[" * 100_000, b'{"a":' * 50_000, b"9" * 50_000),
    *(b'{"name": ' + b"9" * 50_000 + b"}", b'{"name": "\\ud800"}', b'{"name": "\xff"}', b"name=x&pairs=y"),
    b"\0" * 1000,
)
SETTINGS = (
    *(
        "[optim",
        "[" * 5000,
        "a = " + "[" * 5000,
        "a." * 5000 + "b = 1",
        "#" * (2 << 20),
        "\ud800",
        'x = "\ud800"',
    ),
    *("\0", "[optim]\nlr = nan", "[optim]\nlr = -inf", "[optim]\nlr = 1e999", "[optim]\nlr = true"),
    *(
        "[optim]\nlr = 1979-05-27",
        "[optim]\nmax_train_steps = " + "9" * 5000,
        "[optim]\nmax_train_steps = -1",
    ),
    *("[optim]\nmax_train_steps = 9223372036854775808", "[[optim]]\nlr = 1", "optim = []"),
    *("[optim]\nlr = {a = 1}", "[optim]\nlr = 1\nlr = 2", "[lora]\nrank = 0", "[lora]\nblock_ranks = ['a']"),
    *("[sampling]\nsample_prompts = [1]", "[sampling]\nsample_prompts = ['\\u0000']", "[nothing]\nx = 1"),
    *("[data]\ncache = '/x'", "[model]\nvae = '/etc/passwd'", "[output]\noutput = '/x'"),
    *(
        "[output]\ntrack = ['wandb']",
        '["\\u0000"]\nx = 1',
        "[objective]\nbeta = 'x'",
        "[objective]\nobjective = 'x'",
    ),
)
HEADERS: tuple[dict[str, str], ...] = (
    *(
        {"Origin": origin}
        for origin in ("null", "https://example.org", "http://[", "x", "http://127.0.0.1:1")
    ),
    *(
        {"Host": host}
        for host in ("", "x", "[", "[::1", "example.org", "127.0.0.1.x", "127.0.0.1@x", "a:b:c")
    ),
    *(
        {"Content-Type": kind}
        for kind in ("", "text/plain", "application/jsonx", "x", ";", "multipart/form-data")
    ),
    *({"Content-Length": size} for size in ("x", "-1", "1e3", "\u0663", "9" * 30, str(1 << 40), " ")),
    *(
        {"Authorization": text}
        for text in ("Basic", "Basic ?", "Basic /w==", "Bearer x", "Basic " + "A" * 10_000)
    ),
    {"Sec-Fetch-Site": "cross-site"},
    {"Transfer-Encoding": "chunked"},
    {"Accept": "text/html", "Range": "bytes=0-", "X-HTTP-Method-Override": "DELETE"},
)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    (tmp_path / "house").mkdir()
    house = House(tmp_path / "house", steps=1)
    house.client = TestClient(house.client.app, base_url=PLACE, raise_server_exceptions=False)
    yield house
    house.ui.jobs.supervisor.wait(60)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[tuple[Host, TestClient]]:
    plain(tmp_path / "outputs" / "a.png")
    (tmp_path / "models" / "Lora").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outputs" / "out").symlink_to(tmp_path / "outside")
    with installed(tmp_path) as host:
        importlib.import_module("a1111_extension.settings").register()
        importlib.import_module("a1111_extension.script").SHELF.get = lambda *_: Redness()
        app = FastAPI()
        importlib.import_module("a1111_extension.register")._started(None, app)
        yield host, TestClient(app, base_url=PLACE, raise_server_exceptions=False)


def sound(answer: Any, asked: object) -> int:
    """The status of an answer that is right, or a refusal with a sentence."""
    text = answer.text
    assert answer.status_code < 500, (str(asked)[:300], text[:500])
    if answer.status_code < 300:
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON: {asked!r}"))
    elif answer.status_code not in (307, 404, 405) or "detail" in text:
        detail = answer.json()["detail"]
        assert isinstance(detail, str) and len(detail) < 10_000, (str(asked)[:300], text[:500])
        # Starlette's own, for addresses that are no route of ours.
        if detail not in ("Not Found", "Method Not Allowed"):
            assert detail.rstrip().endswith((".", "?token=...")) and "Traceback" not in detail, detail[:500]
    return int(answer.status_code)


def in_path(name: str) -> str:
    return quote(name.encode("utf-8", "surrogatepass"), safe="")


def body_of(value: object) -> dict[str, Any]:
    """A body as a program sends it, half characters and all."""
    return {"content": json.dumps(value).encode(), "headers": {"Content-Type": "application/json"}}


def test_names_in_addresses(house: House) -> None:
    house.start("calm")
    house.ends("calm", "finished")
    for name in NAMES:
        if name in ("", ".", ".."):
            continue  # which a client leaves out of an address
        place = f"{API}/jobs/{in_path(name)}"
        for method, path in (
            ("GET", place),
            ("GET", f"{place}/events"),
            ("POST", f"{place}/stop"),
            ("POST", f"{place}/resume"),
            ("DELETE", place),
        ):
            status = sound(house.client.request(method, path), (method, name))
            assert status in (200, 307, 404, 405), (method, name, status)
            # A slash too many is passed over: that is the list.
            assert status != 200 or (method, name) == ("GET", "/"), (method, name)
    for start in (*NAMES, "99999999999999999999", "9" * 5000, "-1", "0x10", "\uff11", "1_000"):
        given = {"start": start.encode("utf-8", "replace")}
        sound(house.client.get(f"{API}/jobs/calm/events", params=given), start)


def test_names_of_runs(house: House) -> None:
    before = {path for path in house.root.rglob("*") if house.runs not in path.parents}
    for name in NAMES:
        asked = {"name": name, "pairs": str(house.pairs)}
        status = sound(house.client.post(f"{API}/jobs", **body_of(asked)), asked)
        assert status in (200, 422), (name, status)
        sound(house.get(), name)
    house.ui.jobs.supervisor.wait(120)
    after = {path for path in house.root.rglob("*") if house.runs not in path.parents}
    assert after - before <= {house.runs}, "nothing came to be elsewhere"
    assert {path.name for path in house.runs.iterdir() if path.is_dir()}.isdisjoint(
        {"active.json", "queue.json", "queue.lock", "supervisor.lock"}
    )
    # The queue still works.
    assert house.start("afterwards").status_code == 200


def test_every_field_of_a_job(house: House) -> None:
    right = {"name": "calm", "pairs": str(house.pairs), "base": "micro", "quality": "fast", "settings": ""}
    for field, value in itertools.product([*right, "cost_model", "more"], (*VALUES, *NAMES)):
        # Texts are tried elsewhere, and old versions of pydantic make texts of numbers.
        if field == "name" and not isinstance(value, dict | list):
            continue
        asked = {**right, "name": "../no", field: value}
        status = sound(house.client.post(f"{API}/jobs", **body_of(asked)), asked)
        assert status in (403, 404, 422), (field, value)
    for settings in SETTINGS:
        asked = {**right, "name": "../no", "settings": settings}
        status = sound(house.client.post(f"{API}/jobs", **body_of(asked)), settings)
        assert status in (403, 422), settings[:200]
    assert not house.runs.exists()


def test_bodies_that_are_none(house: House, host: tuple[Host, TestClient]) -> None:
    for (client, path), body, kind in itertools.product(
        ((house.client, f"{API}/jobs"), (host[1], f"{API}/score"), (house.client, f"{API}/jobs/x/stop")),
        BODIES,
        ("application/json", "application/json; charset=utf-16", "APPLICATION/JSON", "text/plain"),
    ):
        answer = client.post(path, content=body, headers={"Content-Type": kind})
        assert sound(answer, (path, body, kind)) in (400, 404, 415, 422), (path, body[:100], kind)


def test_headers(house: House, host: tuple[Host, TestClient]) -> None:
    paths = [f"{API}/jobs", f"{API}/jobs/x", f"{API}/jobs/x/events", f"{API}/loras", f"{API}/cost-models"]
    posts = [f"{API}/jobs", f"{API}/jobs/x/stop", f"{API}/jobs/x/resume", f"{API}/score"]
    for headers in HEADERS:
        coded = [(name.encode(), value.encode()) for name, value in headers.items()]
        for path in paths:
            sound(host[1].get(path, headers=coded), (path, headers))
        for path in posts:
            json_too = [] if "Content-Type" in headers else [(b"Content-Type", b"application/json")]
            sound(host[1].post(path, content=b"{}", headers=[*coded, *json_too]), (path, headers))
    host[0].shared.cmd_opts.api_auth = "anna:secret"
    for headers in HEADERS:
        coded = [(name.encode(), value.encode()) for name, value in headers.items()]
        assert sound(host[1].get(f"{API}/loras", headers=coded), headers) in (401, 403)


def test_paths_to_score(host: tuple[Host, TestClient], tmp_path: Path) -> None:
    (tmp_path / "outside" / "secret.png").write_bytes((tmp_path / "outputs" / "a.png").read_bytes())
    inside = str(tmp_path / "outputs")
    tries = [
        f"{inside}/../outside",
        "out",
        "out/secret.png",
        "out/../out",
        f"{inside}-too",
        "a.png/..",
        "a.png/x",
    ]
    for path in (*NAMES, *tries, *(f"{inside}/{name}" for name in NAMES), "a/" * 3000, "../" * 3000):
        status = sound(host[1].post(f"{API}/score", **body_of({"path": path})), path)
        assert status in (200, 403, 404, 422), path
    for path in ("out", "out/secret.png", "../outside/secret.png", str(tmp_path / "outside")):
        assert host[1].post(f"{API}/score", json={"path": path}).status_code == 403
    for field, value in itertools.product(("path", "image", "cost_model", "more"), (*VALUES, *NAMES)):
        asked = {"path": "a.png", field: value} if field != "image" else {field: value}
        sound(host[1].post(f"{API}/score", **body_of(asked)), asked)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def images() -> Iterator[bytes]:
    """Files that are none, or that want more than they should."""
    head, end = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")
    for width, height in ((0, 0), (1, 0), (60_000, 60_000), (1 << 31, 1), ((1 << 32) - 1, (1 << 32) - 1)):
        size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        yield head + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100))) + end
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(8 << 20)))
    yield head + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)) + text + end
    yield from (b"GIF89a", b"RIFF\xff\xff\xff\xffWEBP", b"BM", b"%!PS\n(%pipe%id) run", b"<svg onload=x>")
    yield b"\0" * 99
    yield b"II*\0\x08\0\0\0" + b"\xff" * 200
    stream = io.BytesIO()
    noise = Image.frombytes("RGB", (24, 24), random.Random(0).randbytes(24 * 24 * 3))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        stream = io.BytesIO()
        noise.save(stream, kind)
        whole, dice = stream.getvalue(), random.Random(1)
        for _ in range(60):
            broken = bytearray(whole)
            for _ in range(dice.randrange(1, 8)):
                broken[dice.randrange(len(broken))] = dice.randrange(256)
            yield bytes(broken[: dice.randrange(1, len(broken) + 1)] if dice.randrange(3) == 0 else broken)


def test_images_sent_along(host: tuple[Host, TestClient]) -> None:
    for number, image in enumerate(images()):
        sent = {"image": base64.b64encode(image).decode()}
        assert sound(host[1].post(f"{API}/score", json=sent), number) in (200, 422)
    for text in (*NAMES, "data:", "data:,", "data:image/png;base64,", "=", "====", "A" * 7, "A" * (1 << 20)):
        assert sound(host[1].post(f"{API}/score", **body_of({"image": text})), text) in (200, 422)
