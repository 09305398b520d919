"""A real ComfyUI as a child process, and the little of its protocols that the tests speak."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PACK = "scdpo"


@dataclass
class Run:
    """What a prompt came to.

    Attributes:
        outputs: node -> what it showed.
        error: of the run, '' when all went well.
        executed: nodes that ran (not those whose result was reused).
        previews: JPEG or PNG bytes that came over the websocket while it ran.
        texts: node -> the text that our page shows on it last.
        told: node -> all such texts.
        wiring: gate -> what our page shows as wrong with its wiring.
        interrupted: whether somebody has interrupted it.
    """

    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str = ""
    executed: list[str] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    told: dict[str, list[str]] = field(default_factory=dict)
    wiring: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    def hear(self, node: str, text: str) -> None:
        self.texts[node] = text
        self.told.setdefault(node, []).append(text)


class Socket:
    """The receiving half of a websocket, which is all that ComfyUI's events need."""

    def __init__(self, port: int, path: str) -> None:
        self.stream = socket.create_connection(("127.0.0.1", port), timeout=180)
        key = base64.b64encode(os.urandom(16)).decode()
        self.stream.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.kept = b""
        while b"\r\n\r\n" not in self.kept:
            self.kept += self.stream.recv(4096)
        head, _, self.kept = self.kept.partition(b"\r\n\r\n")
        assert b" 101 " in head.split(b"\r\n")[0], head

    def __iter__(self) -> Iterator[str | bytes]:
        whole, kind = b"", 0
        while True:
            first, second = self._take(2)
            length = second & 127
            if length > 125:
                size, form = (2, ">H") if length == 126 else (8, ">Q")
                length = struct.unpack(form, self._take(size))[0]
            body = self._take(length)
            kind = first & 15 or kind
            whole += body
            if first & 128:
                if kind in (1, 2):
                    yield whole.decode() if kind == 1 else whole
                whole = b""

    def _take(self, count: int) -> bytes:
        while len(self.kept) < count:
            more = self.stream.recv(1 << 16)
            if not more:
                raise ConnectionError("ComfyUI closed the connection.")
            self.kept += more
        taken, self.kept = self.kept[:count], self.kept[count:]
        return taken

    def close(self) -> None:
        self.stream.close()


@dataclass
class Host:
    """A running ComfyUI.

    Attributes:
        base: its base directory with models, custom_nodes, input, output.
        port: where it listens.
        process: the child.
        log: the file that holds all it said.
    """

    base: Path
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, base: Path, environment: Mapping[str, str] | None = None) -> Host:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = base / f"log-{port}.txt"
        command = [
            python(),
            "main.py",
            *("--cpu", "--fp32-text-enc", "--disable-auto-launch", "--preview-method", "latent2rgb"),
            *("--base-directory", str(base), "--port", str(port), "--database-url", "sqlite:///:memory:"),
        ]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                cwd=os.environ["COMFYUI_DIR"],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )
        host = cls(base, port, process, log)
        deadline = time.monotonic() + 600  # seconds; a busy machine takes minutes to import it all
        while time.monotonic() < deadline and process.poll() is None:
            try:
                host.get("/system_stats")
                return host
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        process.kill()
        raise AssertionError(f"ComfyUI did not start:\n{host.said()}")

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.loads(answer.read())

    def has(self, path: str) -> bool:
        """Whether this version has a route."""
        try:
            self.get(path)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return False
        return True

    def post(self, path: str, value: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(value).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def run(
        self,
        prompt: Mapping[str, Any],
        pnginfo: Mapping[str, Any] | None = None,
        tell: Callable[[dict[str, Any]], None] = lambda event: None,
        only: Sequence[str] | None = None,
    ) -> Run:
        """Execute a prompt, or what `only` needs of it, and wait for its end; `tell` gets each event."""
        client = uuid.uuid4().hex
        events = Socket(self.port, f"/ws?clientId={client}")
        extra: dict[str, Any] = {} if pnginfo is None else {"extra_data": {"extra_pnginfo": pnginfo}}
        if only is not None:
            extra["partial_execution_targets"] = list(only)
        answer = self.post("/prompt", {"prompt": prompt, "client_id": client, **extra})
        if "prompt_id" not in answer:
            events.close()
            return Run(error=json.dumps(answer))
        run = Run()
        for message in events:
            if isinstance(message, bytes):
                _binary(message, run)
                continue
            event = json.loads(message)
            data = event.get("data", {})
            if data.get("prompt_id") not in (None, answer["prompt_id"]):
                continue
            tell(event)
            if event["type"] == "scdpo.text":
                run.hear(data["node"], data["text"])
            elif event["type"] == "scdpo.wiring":
                run.wiring[data["node"]] = data["text"]
            elif event["type"] == "executing" and data["node"] is not None:
                run.executed.append(data["node"])
            elif event["type"] == "executed":
                run.outputs[data["node"]] = data["output"] or {}
                for text in run.outputs[data["node"]].get("scdpo_text", []):
                    run.hear(data["node"], text)
            elif event["type"] == "execution_error":
                run.error = f"{data['exception_type']}: {data['exception_message']}"
            run.interrupted = run.interrupted or event["type"] == "execution_interrupted"
            if event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                break
        events.close()
        return run

    def file(self, shown: Mapping[str, str]) -> Path:
        """The file behind an entry of a node's images."""
        return self.base / shown["type"] / shown["subfolder"] / shown["filename"]


def python() -> str:
    return os.environ.get("COMFYUI_PYTHON", "python")


def _binary(message: bytes, run: Run) -> None:
    kind = struct.unpack(">I", message[:4])[0]
    if kind == 1:  # format of the image, then the image
        run.previews.append(message[8:])
    elif kind == 4:  # length of the JSON about it, the JSON, the image
        length = struct.unpack(">I", message[4:8])[0]
        run.previews.append(message[8 + length :])
