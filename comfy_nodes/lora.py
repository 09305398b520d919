"""Load Safety LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..scdpo_core.types import ScdpoError
from .folders import lora_changed_at
from .shared import SafetyNode, say, schema, with_text


class LoadSafetyLora(SafetyNode):
    """A LoRA that is checked before it is applied."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node's inputs and outputs."""
        return schema(
            "LoadSafetyLora",
            ["lora loader", "load lora", "safe lora", "nsfw lora", "peft lora", "diffusers lora"],
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                ),
                io.Float.Input("strength_model", default=1.0, min=0.0, max=2.0, step=0.05),
                io.Float.Input("strength_clip", default=1.0, min=0.0, max=2.0, step=0.05),
                io.Clip.Input("clip", optional=True),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True),
            ],
            outputs=[
                io.Model.Output("model"),
                io.Clip.Output("clip"),
                io.String.Output("info"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None, **others: Any) -> int:
        """Return a value that changes with the LoRA's file."""
        return lora_changed_at(lora_name)

    @classmethod
    def execute(
        cls,
        model: Any,
        lora_name: str,
        strength_model: float,
        strength_clip: float,
        clip: Any = None,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
    ) -> io.NodeOutput:
        """Check the LoRA and apply it."""
        from ..scdpo_core.lora.summary import card_of
        from .lora_apply import apply, read
        from .lora_window import Window

        if start_percent >= end_percent:
            raise ScdpoError("The LoRA would end before it begins: start_percent must be below end_percent.")
        lora = read(Path(folder_paths.get_full_path_or_raise("loras", lora_name)))
        window = Window(start_percent, end_percent)
        applied = apply(lora, model, clip, strength_model, strength_clip, window)
        info = f"{card_of(lora.file)}\n{applied.note}"
        say(cls, info)
        return io.NodeOutput(applied.model, applied.clip, info, ui=with_text(info))
