"""Flags that do something else than they seem to: those of other trainers, and those given twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..types import ScdpoError

FOREIGN: Mapping[str, str] = {
    "pretrained-model-name-or-path": "--base",
    "pretrained-vae-model-name-or-path": "--vae",
    "v2": "--family sd2",
    "v-parameterization": "--prediction v_prediction",
    "zero-terminal-snr": "--zero-snr on",
    "train-data-dir": "--pairs",
    "dataset-config": "--pairs",
    "dataset-name": "--pairs",
    "output-dir": "--output PATH/NAME",
    "output-name": "--output PATH/NAME",
    "resolution": "--width and --height",
    "enable-bucket": "--buckets",
    "bucket-reso-steps": "--bucket-step",
    "train-batch-size": "--batch-size",
    "gradient-accumulation-steps": "--accumulation",
    "max-train-epochs": "--max-train-steps (steps = epochs * pairs / (batch-size * accumulation))",
    "num-train-epochs": "--max-train-steps (steps = epochs * pairs / (batch-size * accumulation))",
    "learning-rate": "--lr",
    "unet-lr": "--lr",
    "text-encoder-lr": "--text-lr, with --train-text",
    "train-text-encoder": "--train-text",
    "lr-scheduler": "--schedule",
    "lr-scheduler-num-cycles": "--schedule-cycles",
    "lr-scheduler-power": "--schedule-power",
    "lr-warmup-steps": "--warmup (a share of the steps)",
    "optimizer-type": "--optimizer",
    "use-8bit-adam": "--optimizer adamw8bit",
    "adam-beta1": "--beta1",
    "adam-beta2": "--beta2",
    "adam-weight-decay": "--weight-decay",
    "network-dim": "--rank",
    "network-alpha": "--alpha",
    "network-dropout": "--dropout",
    "network-module": "--kind",
    "network-args": "--kind and --block-ranks",
    "lora-rank": "--rank",
    "network-weights": "--init-lora",
    "base-weights": "--reference-lora",
    "blocks-to-swap": "--offload-blocks",
    "caption-dropout-rate": "--caption-dropout",
    "proportion-empty-prompts": "--caption-dropout",
    "flip-aug": "--flip",
    "random-flip": "--flip",
    "no-hflip": "--no-flip (the default)",
    "no-cross-attn": "--targets self-attention",
    "t-max": "--timestep-max (a share of the schedule)",
    "t-min": "--timestep-min (a share of the schedule)",
    "max-timestep": "--timestep-max (a share of the schedule)",
    "min-timestep": "--timestep-min (a share of the schedule)",
    "lora-alpha": "--alpha",
    "mixed-precision": "--precision",
    "save-precision": "--save-dtype",
    "save-every-n-steps": "--save-every",
    "save-every-n-epochs": "--save-every (steps)",
    "checkpointing-steps": "--checkpoint-every",
    "checkpoints-total-limit": "--keep",
    "resume-from-checkpoint": "--resume (the newest checkpoint in --output)",
    "validation-prompt": "--sample-prompts",
    "num-validation-images": "--samples",
    "validation-steps": "--sample-every (images) or --validation-every (held-out pairs)",
    "sample-every-n-steps": "--sample-every",
    "report-to": "--track",
    "log-with": "--track",
    "beta-dpo": "--beta (twice the number: it holds one half)",
    "snr-gamma": "--weighting min_snr with --min-snr-gamma",
    "ema-decay": "--ema",
    "dataloader-num-workers": ", and none is needed: images are encoded once, before training",
    "cache-latents": ", and none is needed: it is always so",
    "xformers": ", and none is needed: torch's own attention is used",
    "enable-xformers-memory-efficient-attention": ", and none is needed: torch's own attention is used",
    "sdpa": ", and none is needed: it is always so",
    "cache-dir": "--cache",
}
"""What kohya's and diffusers' trainers call it, and what it is here."""


def refuse_misunderstood(arguments: Sequence[str]) -> None:
    """Refuse flags of other trainers, and flags that are given twice, of which only the last would count.

    Raises:
        ScdpoError: names each of them, and what to give instead.
    """
    given = [text[2:].partition("=")[0] for text in arguments if text.startswith("--") and text != "--"]
    names = [name.replace("_", "-") for name in given]
    said = []
    for name in dict.fromkeys(names):
        ours = FOREIGN.get(name)
        if ours is not None:
            said.append(f"There is no --{name} here{ours if ours.startswith(',') else f': it is {ours}'}.")
        elif names.count(name) > 1:
            advice = "Give further folders with --more-pairs." if name == "pairs" else "Give it once."
            said.append(f"--{name} is given {names.count(name)} times, where only the last counts. {advice}")
    if said:
        raise ScdpoError("\n".join(said))
