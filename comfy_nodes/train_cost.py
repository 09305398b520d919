"""Train Cost Model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..scdpo_core.cost.encoders import DEFAULT_ENCODER, ENCODERS
from ..scdpo_core.runs.jobs import COST_QUALITIES, CostJob
from ..scdpo_core.types import ScdpoError
from .folders import typed_folder_or_none
from .shared import COST_FOLDER, AnyMenuType, CostModelType, SafetyNode, say, schema, with_text


class TrainCostModel(SafetyNode):
    """Trains a cost model in a separate process."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node's inputs and outputs."""
        return schema(
            "TrainCostModel",
            ["train classifier", "nsfw classifier training", "safety classifier", "reward model"],
            inputs=[
                io.String.Input("unsafe", default=""),
                io.String.Input("safe", default=""),
                io.String.Input("pairs", default=""),
                io.String.Input("output_name", default="my-cost-model"),
                io.Combo.Input("encoder", options=[*ENCODERS], default=DEFAULT_ENCODER),
                io.Combo.Input("quality", options=list(COST_QUALITIES), default="normal"),
                io.String.Input("encoder_folder", default="", optional=True),
                io.String.Input("benign", default="", optional=True),
                io.String.Input("settings", multiline=True, default="", optional=True),
            ],
            outputs=[
                CostModelType.Output("cost_model"),
                AnyMenuType.Output("name"),
                io.String.Output("path"),
                io.Image.Output("plot"),
                io.String.Output("report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        unsafe: str | None = None,
        safe: str | None = None,
        pairs: str | None = None,
        benign: str | None = None,
        **others: Any,
    ) -> str:
        """Return a value that changes with the images of typed folders."""
        return _stamp(*(typed_folder_or_none(text) for text in (unsafe, safe, pairs, benign)))

    @classmethod
    def execute(
        cls,
        unsafe: str,
        safe: str,
        pairs: str,
        output_name: str,
        encoder: str,
        quality: Any,
        encoder_folder: str = "",
        benign: str = "",
        settings: str = "",
    ) -> io.NodeOutput:
        """Train, and copy the cost model into its folder."""
        from ..scdpo_core.cost.scorers import load_scorer
        from ..scdpo_core.reports.raster_charts import training_curves
        from ..scdpo_core.runs.summary import report
        from . import preview
        from .convert import to_images
        from .training_process import runs_root, train

        if (unsafe.strip() or safe.strip()) and pairs.strip():
            raise ScdpoError("Give either the folders unsafe and safe, or pairs, not both.")
        job = CostJob(
            output=runs_root(),
            name=output_name.strip(),
            unsafe=typed_folder_or_none(unsafe),
            safe=typed_folder_or_none(safe),
            pairs=typed_folder_or_none(pairs),
            benign=typed_folder_or_none(benign),
            encoder=str(typed_folder_or_none(encoder_folder) or encoder),
            quality=quality,
            overrides=settings,
        )
        view, installed = train(cls, job, _stamp(job.unsafe, job.safe, job.pairs, job.benign), COST_FOLDER)
        summary = f"{report(view)}\nCost model: {installed}"
        say(cls, summary)
        plot = training_curves(view.curves, view.steps)
        preview.keep(plot)
        return io.NodeOutput(
            load_scorer(str(installed), "cpu"),
            installed.name,
            str(installed),
            to_images([plot]),
            summary,
            ui=with_text(summary, preview.show([plot])),
        )


def _stamp(*folders: Path | None) -> str:
    from ..scdpo_core.preferences.summary import stamp

    return stamp(*(folder for folder in folders if folder is not None))
