"""Look into LoRA files and change them: `python trainer/lora.py inspect|convert|resize|merge|export ...`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence

from scdpo_core.runs.interrupt import INTERRUPTED, waking

with waking():
    import torch

    from scdpo_core.devices import is_out_of_memory
    from scdpo_core.family_info import FAMILY_INFO
    from scdpo_core.io.printable import print_any_name, printable
    from scdpo_core.lora.edit import Target, convert_file, merge_files, resize_file
    from scdpo_core.lora.file import load_lora
    from scdpo_core.lora.formats.keys import DIALECTS
    from scdpo_core.lora.merge import METHODS
    from scdpo_core.lora.resize import Resized
    from scdpo_core.lora.summary import as_text, describe
    from scdpo_core.training.saving import export
    from scdpo_core.types import LoraFile, ScdpoError
    from trainer.arguments import count, part

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    print_any_name()
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ScdpoError as error:
        _say(f"Error: {error}", sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _say(f"Error: there is not enough memory for {_inputs(options)}. Close other programs.", sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _inspect(options: argparse.Namespace) -> None:
    summary = describe(*load_lora(options.lora))
    if options.json:
        print(json.dumps({**dataclasses.asdict(summary), "path": str(summary.path)}, indent=2))
    else:
        _note(summary.notes)
        _say(as_text(summary))


def _convert(options: argparse.Namespace) -> None:
    written = convert_file(options.lora, _target(options))
    _say(f"{written.path}: {written.keys} keys in '{options.to}'")
    _note(written.notes)


def _resize(options: argparse.Namespace) -> None:
    _say_resized(*resize_file(options.lora, _target(options), rank=options.rank, energy=options.energy))


def _merge(options: argparse.Namespace) -> None:
    written, result = merge_files(
        options.loras,
        _target(options),
        weights=options.weights or (),
        method=options.method,
        rank=options.rank,
        energy=options.energy,
    )
    _say_resized(written, result)


def _export(options: argparse.Namespace) -> None:
    written = export(options.run_folder, step=options.step, best=options.best, output=options.output)
    print(f"{written.path}: {written.metadata['scdpo_train_steps']} steps")


def _target(options: argparse.Namespace) -> Target:
    named = getattr(options, "dtype", None)
    return Target(
        options.output,
        options.to,
        options.family or "",
        None if named is None else DTYPES[named],
        options.overwrite,
    )


def _say_resized(written: LoraFile, result: Resized) -> None:
    worst = min(result.kept, key=lambda module: result.kept[module])
    mean = sum(result.kept.values()) / len(result.kept)
    _say(f"{written.path}: highest rank {written.rank or 'none (LoKr)'}, {len(result.kept)} modules")
    _say(f"kept of the change: {mean:.2%} on average, {result.kept[worst]:.2%} at worst ({worst})")
    _note(written.notes)


def _say(text: str, stream: TextIO | None = None) -> None:
    print(printable(text, lines=True), file=stream)


def _note(notes: Sequence[str]) -> None:
    for note in notes:
        _say(f"Note: {note}", sys.stderr)


def _inputs(options: argparse.Namespace) -> str:
    return ", ".join(str(path) for path in getattr(options, "loras", None) or [options.lora])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Look into LoRA files, convert, resize and merge them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    inspect = command(
        "inspect", _inspect, "Show a LoRA's base model, ranks, and how strongly it changes what."
    )
    inspect.add_argument("lora", type=Path, help="a .safetensors file in any dialect")
    inspect.add_argument("--json", action="store_true", help="everything, for programs")

    convert = command("convert", _convert, "Rename a LoRA's weights for another program.")
    convert.add_argument("lora", type=Path, help="a .safetensors file in any dialect")
    _writes(convert, required=True)

    smaller = command("resize", _resize, "Approximate a LoRA with a lower rank.")
    smaller.add_argument("lora", type=Path, help="a .safetensors file in any dialect")
    _cuts(smaller.add_mutually_exclusive_group(required=True))
    _writes(smaller)

    together = command("merge", _merge, "Merge several LoRAs into one.")
    together.add_argument("loras", type=Path, nargs="+", help="two or more .safetensors files in any dialect")
    together.add_argument("--weights", type=float, nargs="+", help="strength of each (default: 1)")
    how = "add the changes up, or keep in each place the strongest (default: sum)"
    together.add_argument("--method", choices=METHODS, default=METHODS[0], help=how)
    _cuts(together.add_mutually_exclusive_group())
    _writes(together)

    export = command("export", _export, "Export the LoRA of a training checkpoint.")
    export.add_argument("run_folder", type=Path, help="the run folder, with checkpoints/ in it")
    selection = export.add_mutually_exclusive_group()
    selection.add_argument("--step", type=count, help="of the checkpoint (default: the newest)")
    selection.add_argument("--best", action="store_true", help="the best so far on the held-out pairs")
    export.add_argument("--output", type=Path, help="the file (default: in the run folder's loras/)")
    return parser


def _cuts(group: argparse._MutuallyExclusiveGroup) -> None:
    group.add_argument("--rank", type=count, help="the highest rank of the result")
    group.add_argument("--energy", type=part, help="share of each module's change to keep, such as 0.95")


def _writes(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if there is one")
    default = None if required else "kohya"
    parser.add_argument(
        "--to", choices=DIALECTS, required=required, default=default, help="dialect of the names"
    )
    parser.add_argument(
        "--family", choices=[*FAMILY_INFO], help="of the base model, where the file does not tell"
    )
    if not required:
        stored = "number format of the weights (default: resized, the input's; merged, fp32)"
        parser.add_argument("--dtype", choices=[*DTYPES], help=stored)


if __name__ == "__main__":
    sys.exit(main())
