"""The report of an evaluation: one HTML file that needs nothing else, no network, no JavaScript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..io.files import write_json, write_text
from ..reports import html
from ..reports.terms import what_terms_did
from ..reports.training_charts import training_charts
from . import report_sections as sections
from .findings import finding
from .judges import JudgedImage
from .results import EvalReport

MICRO = "micro"
"""Family of the embedded model; its LoRAs fit no other."""

_OPEN_IMAGES = 8


@dataclass(frozen=True)
class NextStep:
    """Something to do after reading the report.

    Attributes:
        title: a few words.
        text: one or two sentences.
        command: for a terminal, shown as it is; '' for none.
    """

    title: str
    text: str
    command: str = ""


def write_report(
    path: Path,
    report: EvalReport,
    images: Sequence[JudgedImage],
    curves: Sequence[Mapping[str, float]] = (),
    next_steps: Sequence[NextStep] | None = None,
    *,
    veil: bool = False,
) -> None:
    """Write the report as one HTML file, atomically; under about 3 MB for 200 image pairs.

    Args:
        path: the .html file.
        report: what was found.
        images: the judged images, in the order to show them; their groups are named as in
            `report.groups`, others are shown at the end.
        curves: one row per logged training step: 'step' and any of 'loss', 'implicit_accuracy',
            'winner_gap', 'loser_gap'.
        next_steps: advice; by default how to train on one's own model and where to put the LoRA.
        veil: whether harmful images are blurred until the reader uncovers them.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, render_report(report, images, curves, next_steps, veil=veil))


def write_report_json(path: Path, report: EvalReport) -> None:
    """Write the report's figures as JSON, atomically; see `EvalReport.to_json`.

    Raises:
        OSError: the file cannot be written.
    """
    write_json(path, report.to_json(path.parent))


def render_report(
    report: EvalReport,
    images: Sequence[JudgedImage],
    curves: Sequence[Mapping[str, float]] = (),
    next_steps: Sequence[NextStep] | None = None,
    *,
    veil: bool = False,
) -> str:
    """Return the HTML that `write_report` writes."""
    inlined = sections.inline(images)
    attacks = {group.name for group in report.attacks}
    # Attacks use captions of other groups once more; those images are not the LoRA's alone.
    unattacked = [pair for pair in images if pair.request.group not in attacks]
    opening = [item for item in inlined if item.pair.request.group not in attacks]
    logged = sections.curves_of(curves)
    return html.render(
        "report.html",
        report=report,
        finding=finding(report),
        cards=sections.cards(report),
        strip=sections.strip(opening, report),
        sections=sections.image_sections(report, inlined),
        open_images=_OPEN_IMAGES,
        covered=veil,
        histograms=sections.histograms(report, unattacked),
        charts=training_charts(logged, detail=True),
        terms=what_terms_did(logged),
        rows=sections.figure_rows(report),
        facts=sections.facts(report),
        next_steps=default_next_steps(report) if next_steps is None else next_steps,
        limits=limits(report),
    )


def default_next_steps(report: EvalReport) -> list[NextStep]:
    """Return the next steps for the user's own model and LoRA."""
    toy = report.lora is not None and report.lora.family == MICRO
    file = "my_lora.safetensors" if toy or report.lora is None else report.lora.path.name
    stem = file.removesuffix(".safetensors")
    steps = [
        NextStep(
            "Collect pairs",
            "Two folders, chosen and rejected, with equally named images, and beside each pair a .txt "
            "file with its prompt. Put in benign prompts too: they keep the rest of the model as it is.",
        ),
        NextStep(
            "Train on your own model",
            "Any checkpoint or diffusers folder of a supported family, straight from disk. Ctrl-C saves "
            "and stops; --resume continues.",
            "python trainer/train_lora.py --pairs my_pairs --base model.safetensors --output runs/my_lora",
        ),
        NextStep(
            "Use it in ComfyUI",
            f"Copy {file} to ComfyUI/models/loras and put a LoRA loader between checkpoint and sampler.",
        ),
        NextStep(
            "Use it in AUTOMATIC1111 or Forge",
            f"Copy {file} to models/Lora in the web UI's folder and add this to the prompt:",
            f"<lora:{stem}:1>",
        ),
        NextStep(
            "Judge it as strictly",
            "Draw the same captions and seeds with and without the LoRA, and let something judge that had "
            "no part in the training. A low loss alone proves nothing.",
        ),
    ]
    if toy:
        steps[2] = replace(
            steps[2],
            text="The LoRA of this run fits the embedded toy model alone. One trained on your own model: "
            f"copy {file} to ComfyUI/models/loras and put a LoRA loader between checkpoint and sampler.",
        )
    return steps


def limits(report: EvalReport) -> list[str]:
    """Return what the figures mean and what they do not, for this report."""
    texts = [
        "Harmful is what the judge calls harmful. It makes mistakes too; its accuracy is listed under What "
        "was trained.",
        "Before and after use the same captions and the same starting noise, so a difference "
        "comes from the LoRA, not from luck with the seed.",
        "The intervals take every image for independent. Seeds of one caption are not quite, and another "
        "training seed would give another LoRA, so the true uncertainty is somewhat larger.",
        "The cost on an image comes from the cost model that training used. Read it as a hint; the "
        "figures above rest on the judge instead.",
        "The attacks above are the cheap ones: no gradient, one minute. A determined attacker does better."
        if report.attacks
        else "Nobody attacked the model while these figures were taken. A determined attacker does better "
        "than a list of captions.",
        "What the paper states (FOUND): SC-DPO rewards preferred images and penalises safety cost; the "
        "cost model is a frozen CLIP encoder with an adapter; DFM focuses on difficult pairs. What we had to "
        "choose ourselves (RECONSTRUCTED): the exact losses, the calibration and the form of DFM. Redirect "
        "and keep, the default objective, and every default are this project's own (OURS). No code of the "
        "authors exists to compare with.",
    ]
    if report.lora is not None and report.lora.family == MICRO:
        texts.insert(
            0,
            "This is a toy world: a small model that ships with the program and generates emoji-like images "
            "at 64 x 64 pixels. The run shows that every part works together on real training. It does not "
            "show how much safer Stable Diffusion becomes.",
        )
    if report.ua_proxy is not None:
        texts.append(
            "ua_proxy is our own definition, 2SQ/(S+Q) averaged over images; it does not compare with a "
            "published UAScore, whose formula is not public."
        )
    return [*texts, *report.notes]
