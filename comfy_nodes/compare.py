"""Compare Before/After."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
import torch
from comfy_api.latest import io

from ..scdpo_core.types import ScdpoError
from .folders import lora_changed_at
from .sampling import draw, sampling_inputs
from .shared import CostModelType, SafetyNode, say, schema, with_text

if TYPE_CHECKING:
    from ..scdpo_core.cost.protocol import Scorer
    from ..scdpo_core.reports.raster import Strip

MOST_STRENGTH = 2.0
_LEFT_OUT = (
    "Its text encoder weights are not used, because the prompts are already encoded. To use them, connect "
    "clip and write the prompts into positive_text and negative_text."
)


class CompareBeforeAfter(SafetyNode):
    """The same seeds without a LoRA and with it, at one or several strengths."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node's inputs and outputs."""
        return schema(
            "CompareBeforeAfter",
            ["xy plot", "lora comparison", "before after", "lora strength test", "grid"],
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                ),
                io.String.Input("strengths", default="0, 1"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent_image"),
                io.Vae.Input("vae"),
                CostModelType.Input("cost_model"),
                *sampling_inputs(seeds=2, most=64),
                io.Clip.Input("clip", optional=True),
                io.String.Input("positive_text", default="", optional=True),
                io.String.Input("negative_text", default="", optional=True),
            ],
            outputs=[
                io.Image.Output("grid"),
                io.Image.Output("histogram"),
                io.Image.Output("images"),
                io.Float.Output("costs", is_output_list=True),
                io.String.Output("report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None, **others: Any) -> int:
        """Return a value that changes with the LoRA's file."""
        return lora_changed_at(lora_name)

    @classmethod
    def validate_inputs(cls, strengths: str) -> bool | str:
        """Check the strengths before the run."""
        try:
            parse(strengths)
        except ScdpoError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        lora_name: str,
        strengths: str,
        vae: Any,
        cost_model: Scorer,
        positive: Any,
        negative: Any,
        seed: int,
        seeds: int,
        clip: Any = None,
        positive_text: str = "",
        negative_text: str = "",
        **sampling: Any,
    ) -> io.NodeOutput:
        """Generate, score and lay out the images."""
        from ..scdpo_core.lora.summary import card_of
        from ..scdpo_core.reports.raster import Strip, comparison
        from ..scdpo_core.reports.raster_charts import cost_histogram
        from . import preview
        from .convert import to_images
        from .lora_apply import apply, read
        from .lora_window import Window
        from .scoring import judged

        lora = read(Path(folder_paths.get_full_path_or_raise("loras", lora_name)))
        if clip is None and not lora.adapts_denoiser:
            raise ScdpoError(
                f"{lora_name} changes only the text encoders, so every row would be the same. {_LEFT_OUT}"
            )
        if clip is not None and not positive_text.strip():
            raise ScdpoError("With clip connected the prompt is encoded here: write it into positive_text.")
        # Before the first preview: the page puts the text above what is already shown.
        say(cls, card_of(lora.file))
        strips, batches = [], []
        for strength in parse(strengths):
            changed = apply(lora, model, clip, strength, strength, Window())
            conditionings = {"positive": positive, "negative": negative}
            if clip is not None:
                texts = {"positive": positive_text, "negative": negative_text}
                conditionings = {
                    side: _encoded(changed.clip, texts[side], conditioning)
                    for side, conditioning in conditionings.items()
                }
            images = torch.cat(
                [draw(changed.model, vae, seed + k, **conditionings, **sampling) for k in range(seeds)]
            )
            title = "without the LoRA" if strength == 0 else f"strength {strength:g}"
            strips.append(Strip(title, *judged(cost_model, images)))
            batches.append(images)
        report = _report(strips)
        if clip is None and lora.adapts_words:
            report += f"\n{_LEFT_OUT}"
        say(cls, report)
        grid = comparison(strips)
        preview.keep(grid)
        costs = [[score.value for score in strip.scores] for strip in strips]
        bars = cost_histogram([(strip.title, row) for strip, row in zip(strips, costs, strict=True)])
        return io.NodeOutput(
            to_images([grid]),
            to_images([bars]),
            torch.cat(batches),
            [cost for row in costs for cost in row],
            report,
            ui=with_text(report, preview.show([grid])),
        )


def _encoded(clip: Any, text: str, conditioning: Any) -> list[Any]:
    """Encode a prompt with these text encoders, and keep the conditioning's options such as ControlNets."""
    options = conditioning[0][1] if conditioning else {}
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return [[states, {**options, **encoded_options}] for states, encoded_options in encoded]


def parse(strengths: str) -> list[float]:
    """Parse '0, 0.5, 1' as numbers.

    Raises:
        ScdpoError: the text is not a list of numbers in 0..2.
    """
    try:
        values = [float(part) for part in strengths.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or not all(0.0 <= value <= MOST_STRENGTH for value in values):
        raise ScdpoError(
            f"strengths is '{strengths}'; write numbers from 0 to 2 with commas between them, such as: "
            "0, 0.5, 1"
        )
    return values


def _report(strips: Sequence[Strip]) -> str:
    from ..scdpo_core.reports.wording import signed

    lines = []
    for strip in strips:
        costs = [score.value for score in strip.scores]
        harmful = sum(cost > 0 for cost in costs)
        mean = signed(sum(costs) / len(costs), minus="-")
        lines.append(f"{strip.title}: {harmful} of {len(costs)} harmful, mean cost {mean}")
    return "\n".join(lines)
