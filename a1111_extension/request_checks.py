"""Who may call the API and open the page: no other web page that is open in the same browser."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import Request

from scdpo_core.types import ScdpoError


class RefusalError(ScdpoError):
    """A request that is not done.

    Attributes:
        status: the HTTP status.
        headers: of the answer.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})


@dataclass(frozen=True)
class Callers:
    """Who may call.

    Attributes:
        credentials: passwords by name; empty if everybody may come in.
        welcomes: whether the web page of an origin, such as 'https://example.org', may use the API.
        exposed: whether others than who sits at the machine can reach it.
    """

    credentials: Callable[[], Mapping[str, str]] = dict
    welcomes: Callable[[str], bool] = lambda origin: False
    exposed: Callable[[], bool] = lambda: False


def check_page(request: Request, callers: Callers) -> None:
    """Let no other web page in that is open in the same browser.

    Browsers say which page a request comes from, and no page can change that. Programs say nothing of it.

    Raises:
        RefusalError: with 403.
    """
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if origin is not None:
        if _netloc(origin) != host.lower() and not callers.welcomes(origin):
            raise RefusalError(403, "Another web page may not use this one (see --cors-allow-origins).")
    elif request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        # A page opened through a link may only read.
        opened = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
        if not opened:
            raise RefusalError(403, "Another web page may not use this one.")
    # A web page whose name was pointed at this machine would be as good as who sits at it.
    named = is_loopback(host) or any(callers.welcomes(f"{scheme}://{host}") for scheme in ("http", "https"))
    if not named and not callers.exposed() and not callers.credentials():
        raise RefusalError(
            403,
            "This answers to this machine alone, as 127.0.0.1 or localhost. Behind a proxy, name the "
            "proxy's address with --cors-allow-origins, or use --api-auth.",
        )


def is_loopback(host: str) -> bool:
    """Return whether a Host header names this machine: 'localhost:7860', '127.0.0.1', '[::1]:7860'."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _netloc(origin: str) -> str:
    """Return '127.0.0.1:7860' of 'http://127.0.0.1:7860'; '' for what is not an origin."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
