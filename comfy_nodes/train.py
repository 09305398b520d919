"""Train Safety LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..scdpo_core.family_info import MICRO
from ..scdpo_core.runs.jobs import QUALITIES, LoraJob
from ..scdpo_core.runs.objectives import DEFAULT_LABEL, LABELS, objective_choice
from ..scdpo_core.types import ScdpoError
from .cost import cost_models, spec_of
from .folders import typed_folder, unquoted
from .shared import AnyMenuType, SafetyNode, say, schema, with_text

DIFFUSERS = "diffusers"
NO_COSTS = "none"


class TrainSafetyLora(SafetyNode):
    """Trains a safety LoRA in a separate process."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node's inputs and outputs."""
        return schema(
            "TrainSafetyLora",
            ["train lora", "lora training", "dpo", "fine-tune", "safety lora", "preference training"],
            inputs=[
                io.Combo.Input("checkpoint", options=bases()),
                io.String.Input("pairs", default=""),
                io.String.Input("output_name", default="my-safety-lora"),
                io.Combo.Input("quality", options=list(QUALITIES), default="normal"),
                io.Int.Input("steps", default=0, min=0, max=100000),
                io.Int.Input("rank", default=0, min=0, max=256),
                io.Float.Input("learning_rate", default=0.0, min=0.0, max=0.01, step=0.00001, round=False),
                io.Int.Input("resolution", default=0, min=0, max=4096, step=8),
                io.Combo.Input("cost_model", options=[NO_COSTS, *cost_models()], default=NO_COSTS),
                io.String.Input("settings", multiline=True, default="", optional=True),
                # Last, and optional: graphs that were saved without it stay valid.
                io.Combo.Input("objective", options=list(LABELS), default=DEFAULT_LABEL, optional=True),
            ],
            outputs=[
                AnyMenuType.Output("lora_name"),
                io.String.Output("path"),
                io.Image.Output("plot"),
                io.String.Output("report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, pairs: str | None = None, **others: Any) -> str:
        """Return a value that changes with the images of a typed folder."""
        from ..scdpo_core.preferences.summary import stamp_of_pairs

        return stamp_of_pairs(typed_folder(pairs)) if unquoted(pairs or "") else ""

    @classmethod
    def execute(
        cls,
        checkpoint: str,
        pairs: str,
        output_name: str,
        quality: Any,
        cost_model: str,
        settings: str = "",
        objective: str = DEFAULT_LABEL,
        **numbers: Any,
    ) -> io.NodeOutput:
        """Train, and copy the LoRA into ComfyUI's folder."""
        from ..scdpo_core.preferences.summary import stamp_of_pairs
        from ..scdpo_core.reports.raster_charts import training_board, training_curves
        from ..scdpo_core.runs.summary import report
        from . import preview
        from .convert import to_images
        from .training_process import runs_root, train

        if not unquoted(pairs):
            raise ScdpoError("Connect Preference Folder to pairs, or type a folder.")
        job = LoraJob(
            pairs=typed_folder(pairs),
            base=base_of(checkpoint),
            output=runs_root(),
            name=output_name.strip(),
            quality=quality,
            cost_model=NO_COSTS if cost_model == NO_COSTS else spec_of(cost_model),
            choices={**_choices(**numbers), **objective_choice(objective)},
            overrides=settings,
        )
        view, installed = train(cls, job, stamp_of_pairs(job.pairs), "loras")
        summary = f"{report(view)}\nLoRA: {installed}"
        if checkpoint == MICRO:
            summary += "\nIt is for the embedded demo model, which ComfyUI cannot run."
        say(cls, summary)
        plot = to_images([training_curves(view.curves, view.steps)])
        board = training_board(view.curves, view.steps, view.samples)
        preview.keep(board)
        return io.NodeOutput(
            installed.name,
            str(installed),
            plot,
            summary,
            ui=with_text(summary, preview.show([board])),
        )


def bases() -> list[str]:
    """List what can be trained on; a .ckpt may contain code, and is ignored."""
    names = folder_paths.get_filename_list("checkpoints")
    files = [name for name in names if name.lower().endswith(".safetensors")]
    return [*files, *_diffusers(), MICRO]


def base_of(name: str) -> str:
    """Return the base model of a menu entry, as `families.family_of` takes it."""
    if name == MICRO:
        return MICRO
    folders = _diffusers()
    return str(folders[name]) if name in folders else _full("checkpoints", name)


def _diffusers() -> dict[str, Path]:
    """Return the models that ComfyUI's DiffusersLoader lists, by their menu names."""
    return {
        f"{DIFFUSERS}/{mark.parent.relative_to(root).as_posix()}": mark.parent
        for root in map(Path, folder_paths.get_folder_paths(DIFFUSERS))
        for mark in sorted(root.glob("*/model_index.json"))
    }


def _full(kind: str, name: str) -> str:
    path: str = folder_paths.get_full_path_or_raise(kind, name)
    return path


def _choices(
    steps: int, rank: int, learning_rate: float, resolution: int
) -> dict[str, dict[str, int | float]]:
    """Return the settings that were set by hand; 0 leaves one to the quality and the preset."""
    chosen = {
        "optim": {"max_train_steps": steps, "lr": learning_rate},
        "lora": {"rank": rank},
        "data": {"width": resolution, "height": resolution},
    }
    nonzero = {section: {k: v for k, v in values.items() if v} for section, values in chosen.items()}
    return {section: values for section, values in nonzero.items() if values}
