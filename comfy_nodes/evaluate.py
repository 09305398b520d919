"""Evaluate Safety LoRA."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..scdpo_core.family_info import MICRO
from ..scdpo_core.io.files import write_text
from ..scdpo_core.suite.job import WORLD_JUDGE
from ..scdpo_core.types import ScdpoError
from .cost import cost_models, spec_of
from .folders import typed_file, unquoted
from .shared import SafetyNode, say, schema, with_text
from .train import base_of, bases

AUTOMATIC = "automatic"
PROMPT_FILES = (".csv", ".tsv", ".txt")
_EXAMPLES = Path(__file__).parents[1] / "examples" / "prompts"


class EvaluateSafetyLora(SafetyNode):
    """Generates prompts without and with a safety LoRA, judges the images, and writes a report."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node's inputs and outputs."""
        return schema(
            "EvaluateSafetyLora",
            ["benchmark lora", "lora test", "measure safety", "judge lora", "attack success rate"],
            inputs=[
                io.Combo.Input("checkpoint", options=bases()),
                io.Combo.Input("lora_name", options=folder_paths.get_filename_list("loras")),
                io.String.Input("harmful_prompts", multiline=True, default=""),
                io.String.Input("benign_prompts", multiline=True, default=""),
                io.String.Input("output_name", default="my-evaluation"),
                io.Combo.Input("judge", options=[AUTOMATIC, WORLD_JUDGE, *cost_models()], default=AUTOMATIC),
                io.String.Input("weights", default="1"),
                io.Int.Input("seeds", default=1, min=1, max=100),
                io.Int.Input("most_prompts", default=0, min=0, max=100000),
                io.String.Input("attacks", default="", optional=True),
                io.Int.Input("steps", default=0, min=0, max=1000, optional=True),
                io.Float.Input("guidance", default=0.0, min=0.0, max=100.0, step=0.1, optional=True),
            ],
            outputs=[
                io.Image.Output("sheet"),
                io.Float.Output("harmful_before"),
                io.Float.Output("harmful_after"),
                io.String.Output("report"),
                io.String.Output("path"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        lora_name: str | None = None,
        harmful_prompts: str | None = None,
        benign_prompts: str | None = None,
        **others: Any,
    ) -> str:
        """Return a value that changes with the files."""
        files = [] if lora_name is None else [folder_paths.get_full_path("loras", lora_name)]
        try:
            files += [_named(text or "") for text in (harmful_prompts, benign_prompts)]
            return " ".join(str(Path(file).stat().st_mtime_ns) for file in files if file is not None)
        except (OSError, ScdpoError):
            return ""  # missing files are reported when the node runs

    @classmethod
    def execute(
        cls,
        checkpoint: str,
        lora_name: str,
        harmful_prompts: str,
        benign_prompts: str,
        output_name: str,
        judge: str,
        weights: str,
        seeds: int,
        most_prompts: int,
        attacks: str = "",
        steps: int = 0,
        guidance: float = 0.0,
    ) -> io.NodeOutput:
        """Generate, judge, and show the result."""
        from ..scdpo_core.io.images import open_image
        from ..scdpo_core.run_store.folder import name_problem
        from ..scdpo_core.runs.comparison import parse_weights
        from ..scdpo_core.suite.board import BOARD
        from ..scdpo_core.suite.defaults import complete
        from ..scdpo_core.suite.headline import read_headline
        from ..scdpo_core.suite.job import request
        from . import preview
        from .convert import to_images
        from .training_process import run, runs_root

        name = output_name.strip()
        if problem := name_problem(name):
            raise ScdpoError(problem)
        values: dict[str, Any] = {
            "base": base_of(checkpoint),
            "loras": [Path(folder_paths.get_full_path_or_raise("loras", lora_name))],
            "output": runs_root() / name,
            "prompts": _files(harmful_prompts, "harmful", checkpoint),
            "benign": _files(benign_prompts, "benign", checkpoint),
            "weights": parse_weights(weights),
            "seeds": seeds,
            "limit": most_prompts,
            "attacks": attacks.replace(",", " ").split(),
        }
        if judge != AUTOMATIC:
            values["scorers"] = [judge if judge == WORLD_JUDGE else spec_of(judge)]
        values |= {name: value for name, value in (("steps", steps), ("guidance", guidance)) if value}
        job = complete(values)
        view = run(cls, request(job))
        headline = read_headline(job.output)
        page = view.files.get("report", job.output)
        text = f"{headline.summary}\nReport: {page}"
        say(cls, text)
        sheet = open_image(job.output / BOARD)
        preview.keep(sheet)
        return io.NodeOutput(
            to_images([sheet]),
            headline.before,
            headline.after,
            text,
            str(page),
            ui=with_text(text, preview.show([sheet])),
        )


def _files(text: str, kind: str, checkpoint: str) -> list[Path]:
    """Return the prompt files for typed text: the name of a file, or prompts, one per line.

    For the embedded model an empty text means the example prompts.
    """
    if not text.strip():
        return [_EXAMPLES / f"{kind}.csv"] if checkpoint == MICRO else []
    if (file := _named(text)) is not None:
        return [file]
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
    file = Path(folder_paths.get_temp_directory()) / f"scdpo_prompts_{digest}" / f"{kind}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    return [file]


def _named(text: str) -> Path | None:
    """Return the prompt file that a single line names; None where it is a prompt."""
    line = unquoted(text)
    return typed_file(line) if "\n" not in line and line.lower().endswith(PROMPT_FILES) else None
