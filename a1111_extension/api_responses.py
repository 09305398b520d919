"""How the API answers, and how it says no: always JSON with a sentence."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from secrets import compare_digest
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from starlette.exceptions import HTTPException

from scdpo_core.types import ScdpoError

from .request_checks import Callers, RefusalError, check_page

MOST_BYTES = 64 << 20
"""Largest body of a request."""
_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")
_LOG = logging.getLogger("scdpo")


class PlainJSON(JSONResponse):
    """JSON that can always be sent: half characters of file names that are not UTF-8 are escaped."""

    def render(self, content: Any) -> bytes:
        """Encode the body."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")


def router(callers: Callers, prefix: str) -> APIRouter:
    """Make a router whose routes check their callers and whose errors are sentences."""

    class Route(SentenceRoute):
        check = staticmethod(lambda request: check_page(request, callers))

    basic = HTTPBasic(auto_error=False)

    def authorised(credentials: HTTPBasicCredentials | None = Depends(basic)) -> None:  # noqa: B008
        check_password(callers.credentials(), credentials)

    return APIRouter(
        prefix=prefix,
        route_class=Route,
        default_response_class=PlainJSON,
        dependencies=[Depends(authorised)],
        tags=["SC-DPO safety"],
    )


class SentenceRoute(APIRoute):
    """A route whose every error is `{"detail": "a sentence"}`, and that reads no body larger than allowed.

    Attributes:
        check: raises RefusalError for requests that may not come in.
    """

    check: Callable[[Request], None] = staticmethod(lambda request: None)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of a request."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                self.check(request)
                _check_body(request)
                return await handler(request)
            except RefusalError as error:
                return PlainJSON({"detail": str(error)}, error.status, error.headers)
            except ScdpoError as error:
                return PlainJSON({"detail": str(error)}, 422)
            except RequestValidationError as error:
                return PlainJSON({"detail": _sentence(error)}, 422)
            # Fastapi's own is one of these, and raises them too.
            except HTTPException as error:
                return PlainJSON({"detail": f"{error.detail}."}, error.status_code, error.headers)
            except Exception as error:
                _LOG.exception("a request failed")
                what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                return PlainJSON({"detail": f"This did not work ({what}). The host's log says where."}, 500)

        return answer


def check_password(passwords: Mapping[str, str], credentials: HTTPBasicCredentials | None) -> None:
    """Let only those in whom the host's --api-auth names.

    Args:
        known: passwords by name; empty if everybody may come in.
        given: what the request says.

    Raises:
        RefusalError: with 401.
    """
    if not passwords:
        return
    name, password = (credentials.username, credentials.password) if credentials else ("", "")
    # Compared in any case, so that the time it takes tells nothing of the names.
    right = compare_digest(passwords.get(name, "").encode(), password.encode("utf-8", "replace"))
    if credentials is None or name not in passwords or not right:
        raise RefusalError(
            401,
            "Log in with the name and password that the host was started with (--api-auth).",
            {"WWW-Authenticate": "Basic"},
        )


def _check_body(request: Request) -> None:
    if request.method not in _WITH_BODY:
        return
    endless = "transfer-encoding" in request.headers
    length = request.headers.get("content-length", "" if endless else "0")
    if not (length.isascii() and length.isdecimal()):
        raise RefusalError(411, "Say how long the request is (Content-Length).")
    # Numbers of more digits than Python reads are too large in any case.
    if len(length) > 18 or int(length) > MOST_BYTES:
        size = f"{int(length[:18]) >> 20} MiB" if len(length) <= 18 else "far too many bytes"
        raise RefusalError(
            413,
            f"The request has {size}; up to {MOST_BYTES >> 20} MiB are read. Put the "
            "images into a folder that may be read, and name that.",
        )
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Forms of other web pages, and what they send without a type, are no JSON.
    if kind != "application/json" and (kind or int(length)):
        raise RefusalError(415, "Send JSON, and say so: Content-Type: application/json.")


def _sentence(error: RequestValidationError) -> str:
    first = error.errors()[0]
    location = ".".join(str(part) for part in first["loc"] if part != "body") or "the request"
    return f"The request is not valid: {location}: {first['msg']}."
