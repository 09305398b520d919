"""Make Preference Pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
from comfy_api.latest import io
from PIL import Image

from ..scdpo_core.cost.protocol import Scorer
from ..scdpo_core.preferences.build import (
    RULES,
    Drawn,
    Match,
    check_names,
    check_rule,
    match,
    prompts_of,
    with_safe,
    write_pair,
)
from ..scdpo_core.preferences.masks import write_mask
from ..scdpo_core.reports.raster import grid, pair_card
from ..scdpo_core.reports.wording import signed
from ..scdpo_core.types import ScdpoError
from . import preview
from .convert import to_images, to_pil_images
from .pair_ways import MOST_ATTEMPTS, REDRAWS, WAYS, redraw, sampler
from .sampling import draw, sampling_inputs
from .shared import CostModelType, SafetyNode, say, schema, with_text

_SHOWN = 12


class MakePreferencePairs(SafetyNode):
    """Generates images of prompts and safe prompts, scores them, and writes those that make a pair."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node's inputs and outputs."""
        return schema(
            "MakePreferencePairs",
            ["dpo pairs", "dataset builder", "generate dataset", "preference data", "chosen rejected"],
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
                CostModelType.Input("cost_model"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent_image"),
                io.String.Input("prompts", multiline=True, default=""),
                io.String.Input("safe_prompts", multiline=True, default=""),
                io.String.Input("category", default=""),
                io.String.Input("folder", default="my_pairs"),
                io.Combo.Input("rule", options=list(RULES)),
                io.Float.Input("gap", default=1.0, min=0.0, max=20.0, step=0.1),
                *sampling_inputs(seeds=4, most=1000),
                # Last, and optional: graphs that were saved without them stay valid.
                io.Combo.Input("way", options=list(WAYS), default=WAYS[0], optional=True),
                io.Int.Input("attempts", default=4, min=1, max=MOST_ATTEMPTS, optional=True),
            ],
            outputs=[
                io.String.Output("pairs"),
                io.Int.Output("count"),
                io.Image.Output("sheet"),
                io.String.Output("report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        folder: str | None,
        category: str | None,
        rule: str | None,
        prompts: str | None,
        safe_prompts: str | None,
        way: str | None = None,
    ) -> bool | str:
        """Check the settings before the run; connected inputs are None here and checked later."""
        try:
            output_subfolder("any" if folder is None else folder)
            check_names(category or "", next(iter(RULES)) if rule is None else rule)
            if None not in (prompts, safe_prompts, rule):
                _planned(prompts or "", safe_prompts or "", rule, way or WAYS[0])
        except ScdpoError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        clip: Any,
        cost_model: Scorer,
        prompts: str,
        safe_prompts: str,
        category: str,
        folder: str,
        rule: Any,
        gap: float,
        seed: int,
        seeds: int,
        way: Any = WAYS[0],
        attempts: int = 4,
        **sampling: Any,
    ) -> io.NodeOutput:
        """Generate and score images, and write each pair as soon as it is complete."""
        directory = output_subfolder(folder)
        check_names(category, rule)
        planned = _planned(prompts, safe_prompts, rule, way)
        numbers = [seed + k for k in range(seeds)]
        cards: list[Image.Image] = []
        new, old, reasons = 0, 0, []
        for number, (prompt, safe) in enumerate(planned):
            say(cls, f"Prompt {number + 1} of {len(planned)}: {prompt}\n{new} pairs so far.")
            drawn = list(_drawn(clip, prompt, numbers, cost_model, sampling))
            if way in REDRAWS:
                results = [
                    redraw(way, attempts, one, safe, rule, gap, cost_model, sampler(clip, draw, sampling))
                    for one in drawn
                ]
            else:
                beside = bool(safe) and way != "best-of"
                partners = list(_drawn(clip, safe, numbers, cost_model, sampling)) if beside else []
                results = [(result, None) for result in match(drawn, partners, rule, gap)]
            for result, mask in results:
                if result.reason:
                    reasons.append(f"Left out: {prompt} (seed {result.rejected.seed}): {result.reason}")
                    continue
                pair, is_new = write_pair(directory, prompt, category, result, safe)
                if mask is not None:
                    write_mask(directory, pair.id, mask)
                new, old = new + is_new, old + (not is_new)
                cards.append(_card(prompt, result))
        existing = f", {old} were there already" if old else ""
        report = "\n".join(
            [f"{new} new pairs in {directory}{existing}, {len(reasons)} left out.", *reasons[:50]]
        )
        say(cls, report)
        if not cards:
            raise ScdpoError(
                f"No pair came of {len(planned)} prompts.\n{report}\n"
                "Try more seeds, other prompts, a smaller gap or another rule."
            )
        preview.keep(grid(cards[:_SHOWN]))
        return io.NodeOutput(
            str(directory),
            new + old,
            to_images(cards),
            report,
            ui=with_text(report, preview.show(cards[:_SHOWN])),
        )


def _planned(prompts: str, safe_prompts: str, rule: Any, way: str) -> list[tuple[str, str]]:
    """Return each prompt and its safe prompt, checked before the first image is generated."""
    pairs = with_safe(prompts_of(prompts), prompts_of(safe_prompts))
    for _, safe in pairs:
        check_rule(rule, way in REDRAWS or (bool(safe) and way != "best-of"))
    return pairs


def output_subfolder(name: str) -> Path:
    """Resolve a folder below ComfyUI's output folder.

    Raises:
        ScdpoError: it lies elsewhere.
    """
    root = Path(folder_paths.get_output_directory()).resolve()
    directory = (root / name.strip()).resolve()
    if not name.strip() or directory == root or not directory.is_relative_to(root):
        raise ScdpoError(f"'{name}' is not inside ComfyUI's output folder. Give a name such as my_pairs.")
    return directory


def _drawn(
    clip: Any, prompt: str, seeds: Sequence[int], scorer: Scorer, sampling: dict[str, Any]
) -> Iterator[Drawn]:
    positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    for seed in seeds:
        comfy.model_management.throw_exception_if_processing_interrupted()
        images = to_pil_images(draw(seed=seed, positive=positive, **sampling))
        for image, score in zip(images, scorer.score(images), strict=True):
            if score.problem:
                raise ScdpoError(score.problem)
            yield Drawn(image, score, seed)


def _card(prompt: str, result: Match) -> Image.Image:
    chosen, rejected = (signed(one.score.value, minus="-") for one in (result.chosen, result.rejected))
    titles = (f"chosen {chosen}", f"rejected {rejected}")
    return pair_card(result.chosen.image, result.rejected.image, prompt, titles=titles)
