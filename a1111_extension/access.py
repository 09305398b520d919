"""Who may use the API, what it may read, and how it says no: always JSON with a sentence."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from secrets import compare_digest
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBasicCredentials

from scdpo_core.types import ScdpoError

MOST_BYTES = 64 << 20
"""Largest body of a request."""


class RefusalError(ScdpoError):
    """A request that is not done.

    Attributes:
        status: the HTTP status.
        headers: of the answer.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})


class SentenceRoute(APIRoute):
    """A route whose every error is `{"detail": "a sentence"}`, and that reads no body larger than allowed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                _check_length(request)
                return await handler(request)
            except RefusalError as error:
                return JSONResponse({"detail": str(error)}, error.status, error.headers)
            except ScdpoError as error:
                return JSONResponse({"detail": str(error)}, 422)
            except RequestValidationError as error:
                return JSONResponse({"detail": _sentence(error)}, 422)
            except HTTPException as error:
                return JSONResponse({"detail": f"{error.detail}."}, error.status_code, error.headers)

        return answer


def check_password(known: Mapping[str, str], given: HTTPBasicCredentials | None) -> None:
    """Let only those in whom the host's --api-auth names.

    Args:
        known: passwords by name; empty if everybody may come in.
        given: what the request says.

    Raises:
        RefusalError: with 401.
    """
    if not known:
        return
    name, password = (given.username, given.password) if given else ("", "")
    # Compared in any case, so that the time it takes tells nothing of the names.
    right = compare_digest(known.get(name, "").encode(), password.encode())
    if given is None or name not in known or not right:
        raise RefusalError(
            401,
            "Name and password are needed, those that the host was started with (--api-auth).",
            {"WWW-Authenticate": "Basic"},
        )


def confined(path: str, roots: Sequence[Path]) -> Path:
    """The real file or folder of that name below one of the roots.

    Args:
        path: absolute, or relative to the first root.
        roots: folders that may be read.

    Raises:
        RefusalError: it lies elsewhere, by its name or by a link on the way, or is not there. Of what lies
            elsewhere it is not told whether it exists.
    """
    if "\0" in path or not path.strip():
        raise RefusalError(422, "Name a picture or a folder.")
    asked = Path(path)
    real = os.path.realpath(asked if asked.is_absolute() else roots[0] / asked)
    if not within(real, roots):
        names = ", ".join(map(str, roots))
        raise RefusalError(
            403, f"Only what lies in {names} may be read. The host's flag --scdpo-folder adds folders."
        )
    if not os.path.exists(real):
        raise RefusalError(404, f"There is no file or folder {path}.")
    return Path(real)


def within(path: str | Path, roots: Sequence[Path]) -> bool:
    """Whether a path lies in one of the folders, all links followed."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(root)) for root in roots)


def _check_length(request: Request) -> None:
    if request.method not in ("POST", "PUT", "PATCH"):
        return
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        raise RefusalError(411, "Say how long the request is (Content-Length).")
    if int(length) > MOST_BYTES:
        raise RefusalError(
            413,
            f"The request has {int(length) >> 20} MiB; up to {MOST_BYTES >> 20} MiB are read. Put the "
            "pictures into a folder that may be read, and name that.",
        )


def _sentence(error: RequestValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "the request"
    return f"The request is not understood: {place}: {first['msg']}."
