"""Functions of the host with something of ours around them, until it is undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def around(owner: Any, name: str, call: Callable[..., Any]) -> Callable[[], None]:
    """Call a function in the place of a function of the host, until it is undone.

    Args:
        owner: a module or object of the host.
        name: of its function; nothing happens in a host that has none of that name.
        call: gets the host's function, then its arguments.

    Returns:
        What undoes it.
    """
    if not hasattr(owner, name):
        return lambda: None
    original, hidden = getattr(owner, name), vars(owner).get(name)

    def ours(*arguments: Any, **named: Any) -> Any:
        return call(original, *arguments, **named)

    def undo() -> None:
        # Another extension may have wrapped it since; then ours stays, and has no guard to ask.
        if vars(owner).get(name) is not ours:
            return
        if hidden is None:
            delattr(owner, name)
        else:
            setattr(owner, name, hidden)

    setattr(owner, name, ours)
    return undo


def after(owner: Any, name: str, follow: Callable[..., None]) -> Callable[[], None]:
    """Call a function with the same arguments after each call of a function of the host, until it is undone.

    Other extensions are asked by the host's own function, in an order that nobody is sure of: what is called
    after that comes last, whether or not that one raised. Arguments are as for `around`.
    """

    def both(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return original(*arguments, **named)
        finally:
            follow(*arguments)

    return around(owner, name, both)
