"""The flags of build_pairs.py."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scdpo_core.cost.scorers import offered_scorers
from scdpo_core.family_info import MICRO
from scdpo_core.pairs.job import MOST_ATTEMPTS, WAYS, BuildJob
from scdpo_core.preferences.build import RULES
from trainer.arguments import count, weight

_DESCRIPTION = """Build preference pairs out of prompts, with your own model: it draws each harmful prompt,
finds a harmless image for it, and keeps what makes a pair. The same command goes on where it was interrupted.
A file named 'stop' in the output folder, Ctrl-C or SIGTERM ends it, and nothing that was drawn is lost. It
ends with a contact sheet, building.html, and a table."""


def pair_flags() -> argparse.ArgumentParser:
    """Make a parser with every flag and its help."""
    parser = argparse.ArgumentParser(description=_DESCRIPTION)
    defaults = BuildJob(Path(), ())

    def add(flag: str, text: str, default: Any = None, **more: Any) -> None:
        help_text = text if default in (None, "", (), 0) else f"{text} (default: {default})"
        parser.add_argument(flag, help=help_text, default=default, **more)

    add("--config", "TOML file with the flags' names (_ for -) as keys; flags win over it", type=Path)
    add("--base", "model that draws, as train_lora.py's --base", MICRO)
    table = "a column safe_prompt says what to draw instead"
    files = f"harmful prompts: .csv, .tsv or .txt files, or folders of images that carry theirs; {table}"
    add("--prompts", files, (), type=Path, nargs="+")
    add("--benign", "harmless prompts, likewise", (), type=Path, nargs="+")
    add("--output", "preference folder to make or to continue", required=True)
    ways = (
        "to the chosen image: regenerate only the harmful part; draw the safe prompt from the same noise; "
        "edit the rejected image, with more noise each time; take the best of --attempts images"
    )
    add("--way", ways, defaults.way, choices=WAYS)
    scorers = f"{', '.join(offered_scorers())}, or a cost model file"
    default = "(default: embedded; micro for --base micro)"
    add("--scorer", f"what tells harmful from harmless: {scorers} {default}")
    instead = "harmful words and what to draw instead, for prompts without a safe prompt"
    add("--rules", f"file of {instead}; 'none' for none (default: the included one)")
    add("--rule", "what makes two images a pair", defaults.rule, choices=RULES)
    add("--gap", "smallest difference of the costs", defaults.gap, type=weight)
    add("--attempts", f"at each chosen image, 1 to {MOST_ATTEMPTS}", defaults.attempts, type=count)
    add("--per-prompt", "images of each harmful prompt", defaults.per_prompt, type=count)
    kinds = "make pairs of harmless prompts, a good against a hasty drawing, or only list them for training"
    add("--benign-images", kinds, "pairs", choices=("pairs", "none"))
    add("--category", "folder of pairs for which neither file nor rule names a category", defaults.category)
    add("--column", "column of the prompts in a table (default: the names that benchmarks use)")
    add("--limit", "prompts of each kind at most (default: all)", defaults.limit, type=count)
    add("--batch", "images drawn together", defaults.batch, type=count)
    add("--steps", "denoising steps (default: as for samples of this model)", type=count)
    add("--guidance", "classifier-free guidance (default: likewise)", type=weight)
    add("--width", "pixels (default: the model's own size)", type=count)
    add("--height", "pixels", type=count)
    add("--seed", "of the first prompt without a seed in its file (default: 0)", defaults.seed, type=int)
    share = "this process's share: 1/4 is the first of four (default: all)"
    parser.add_argument("--shard", help=share, default=(0, 1), type=_shard)
    parser.add_argument(
        "--review", action="store_true", help="open the labelling page on the pairs at the end"
    )
    _add_model(parser.add_argument_group("the model, as for train_lora.py"))
    return parser


def _add_model(group: Any) -> None:
    group.add_argument("--family", default="auto")
    group.add_argument("--vae", type=Path)
    group.add_argument("--text-encoders", type=Path)
    group.add_argument("--t5-tokens", type=int, default=0)
    group.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    group.add_argument("--quantize", choices=("off", "int8", "fp8", "nf4"), default="off")
    group.add_argument("--vae-tiling", action="store_true")
    group.add_argument("--device", default="auto")


def _shard(text: str) -> tuple[int, int]:
    """'1/4' as (0, 4)."""
    number, _, of = text.partition("/")
    rank, processes = int(number) - 1, int(of)
    if not 0 <= rank < processes:
        raise argparse.ArgumentTypeError("write 1/4 for the first of four")
    return rank, processes
