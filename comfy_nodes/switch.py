"""Safety Switch."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from .shared import SafetyNode, schema


class SafetySwitch(SafetyNode):
    """Selects one of two branches; only that one is computed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node's inputs and outputs."""
        return schema(
            "SafetySwitch",
            ["if else", "lazy switch", "branch on nsfw", "conditional"],
            inputs=[
                io.Boolean.Input("any_held", default=False),
                io.AnyType.Input("if_safe", optional=True, lazy=True),
                io.AnyType.Input("if_held", optional=True, lazy=True),
            ],
            outputs=[io.AnyType.Output("chosen")],
        )

    @classmethod
    def check_lazy_status(cls, any_held: bool, **sides: Any) -> list[str]:
        """Return the side that must be computed, if it is connected."""
        side = _side(any_held)
        return [side] if side in sides and sides[side] is None else []

    @classmethod
    def execute(cls, any_held: bool, if_safe: Any = None, if_held: Any = None) -> io.NodeOutput:
        """Return the selected side."""
        chosen = {"if_safe": if_safe, "if_held": if_held}[_side(any_held)]
        return io.NodeOutput(ExecutionBlocker(None) if chosen is None else chosen)


def _side(any_held: bool) -> str:
    return "if_held" if any_held else "if_safe"
