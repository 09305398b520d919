"""The settings that peft and diffusers keep beside a LoRA's weights, and the alphas that they give.

peft writes them into `adapter_config.json` beside `adapter_model.safetensors`, diffusers into the file's own
metadata. Without them such a file says nothing of its alpha. Sources: peft's `LoraConfig`, `LoHaConfig` and
`LoKrConfig`, and how their layers scale: alpha / r, or alpha / sqrt(r) with `use_rslora`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ...types import ScdpoError
from ..weights import rank_of
from .names import FLAT_PREFIXES, split_key, strip_prefix

FILE = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
"""What peft calls the file beside it."""
METADATA = "lora_adapter_metadata"
"""Of the file's own metadata."""

_MOST_BYTES = 16 << 20
_KNOWN_TYPES = ("LORA", "LOHA", "LOKR")
# Ways to begin that change the base model too: what was learnt is a difference from that other base.
_OTHER_BASE = ("pissa", "olora", "corda", "loftq")
# A module's name, or the end of one. peft takes any regular expression, and some never come to an end.
_LITERAL = re.compile(r"\^?(?:[\w-]|\\?[.-])+\$?")


class Scale(NamedTuple):
    """How strongly a module's weights count: times alpha / rank."""

    alpha: float
    rank: int


class PeftSettings:
    """The settings of one file; see `find_settings`."""

    def __init__(self, source: str, values: Mapping[str, Any]) -> None:
        """Check what was read.

        Args:
            source: what to call it in an error.
            values: as JSON gave them; diffusers puts the part of the pipeline before each name.

        Raises:
            ScdpoError: they are those of a method that is not read here.
        """
        self._source, self._values = source, values
        self._patterns: dict[str, _Patterns] = {}
        for name, value in values.items():
            own = name.rpartition(".")[2]
            if own == "peft_type" and str(value).rpartition(".")[2] not in _KNOWN_TYPES:
                raise ScdpoError(f"{source} says that it is a {value}; LoRA, LoHa and LoKr are read here.")
            if own == "init_lora_weights" and str(value).lower().startswith(_OTHER_BASE):
                raise ScdpoError(
                    f"{source} says that the training began with '{value}', which changes the base model "
                    "too, so these weights alone are not the change. Save it from peft as a plain LoRA: "
                    "save_pretrained(..., path_initial_model_for_weight_conversion=...)."
                )

    def scale(self, owner: str, path: str) -> Scale | None:
        """The alpha of a module in peft's network, and the rank that it counts against; None if not said.

        Args:
            owner: '' for a denoiser, or one of `TEXT_ENCODERS`.
            path: of the module in that network, as the file's key has it.
        """
        for prefix in (owner, "") if owner else ("unet.", "transformer.", ""):
            alpha = self._values.get(f"{prefix}lora_alpha", self._values.get(f"{prefix}alpha"))
            if alpha is not None:
                break
        alpha = self._pattern(f"{prefix}alpha_pattern", path, alpha)
        rank = self._pattern(f"{prefix}rank_pattern", path, self._values.get(f"{prefix}r"))
        if not is_number(alpha) or not is_number(rank) or rank < 1 or rank != int(rank):
            return None
        rank = int(rank)
        # alpha / sqrt(rank) is (alpha * sqrt(rank)) / rank.
        factor = math.sqrt(rank) if self._values.get(f"{prefix}use_rslora") is True else 1.0
        return Scale(float(alpha) * factor, rank)

    def _pattern(self, name: str, path: str, default: Any) -> Any:
        if name not in self._patterns:
            self._patterns[name] = _Patterns(self._source, self._values.get(name))
        # transformers 5 dropped CLIPTextModel's outer `text_model`.
        return self._patterns[name].value((path, path.removeprefix("text_model.")), default)


class _Patterns:
    """A table of peft's patterns: the first that matches the end of a module's path gives the value."""

    def __init__(self, source: str, table: Any) -> None:
        self._table: dict[str, tuple[int, bool, Any]] = {}
        for place, (pattern, value) in enumerate(table.items() if isinstance(table, dict) else ()):
            if not _LITERAL.fullmatch(pattern):
                raise ScdpoError(
                    f"{source} gives modules an alpha or a rank by the pattern '{pattern[:80]}', which is "
                    "not read here. Write the modules' names in its place."
                )
            text = pattern.removesuffix("$").replace("\\", "")
            self._table.setdefault(text.removeprefix("^"), (place, text.startswith("^"), value))

    def value(self, paths: Iterable[str], default: Any) -> Any:
        """The value of the first pattern that matches one of the paths."""
        found = []
        for path in dict.fromkeys(paths):
            ends = [path, *(path[match.end() :] for match in re.finditer(r"\.", path))]
            for number, end in enumerate(ends):
                place, whole, value = self._table.get(end, (0, True, None))
                # A pattern that begins with ^ matches only where nothing stands before it.
                if end in self._table and not (whole and number):
                    found.append((place, value))
        return min(found, key=lambda item: item[0])[1] if found else default


class Found(NamedTuple):
    """Settings that belong to a file, and what the artist should know of its alpha."""

    settings: PeftSettings | None
    notes: tuple[str, ...]


def find_settings(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Found:
    """Settings of a file whose own weights do not say their alpha.

    Args:
        path: the file.
        metadata: the file's.
        tensors: by the file's keys, which are understood; only shapes count.

    Raises:
        ScdpoError: the settings are those of a method that is not read here.
    """
    modules = _without_alpha(tensors)
    if not modules:
        return Found(None, ())
    notes = []
    for source, read in ((f"Its own metadata ({METADATA})", _inside), (str(path.with_name(FILE)), _beside)):
        try:
            values = read(path, metadata)
        except (OSError, ValueError, RecursionError):
            notes.append(f"{source} cannot be read.")
            continue
        if values is None:
            continue
        if read is _beside and not _belongs(path):
            notes.append(f"{source} lies beside several LoRAs, so it is not known whose it is.")
            continue
        settings = PeftSettings(source, values)
        scales = {stem: settings.scale(*strip_prefix(stem)) for stem in modules}
        ranks = {stem: rank_of(parts) for stem, parts in modules.items()}
        if None in scales.values():
            notes.append(f"{source} does not say the alpha of '{_first_none(scales)}'.")
        elif read is _beside and any(
            ranks[stem] not in (None, scale.rank) for stem, scale in scales.items() if scale is not None
        ):
            notes.append(f"{source} is another LoRA's: its ranks are not those of this file.")
        else:
            return Found(settings, tuple(notes))
    notes.append(
        "Nothing says its alpha, so it counts as the rank (strength 1), as other programs read such a file. "
        f"If it was trained with another alpha, its strength is wrong: put its {FILE} beside it."
    )
    return Found(None, tuple(notes))


def is_peft_stem(stem: str) -> bool:
    """Whether the stem of a key is one of peft's or diffusers', whose files have no place for alpha."""
    return "." in stem and not stem.startswith((*FLAT_PREFIXES, "diffusion_model.", "text_encoders."))


def _without_alpha(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, part = split_key(name)
        if is_peft_stem(stem):
            modules.setdefault(stem, {})[part] = tensor
    return {stem: parts for stem, parts in modules.items() if "alpha" not in parts}


def _inside(path: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    return _object(metadata[METADATA]) if metadata.get(METADATA) else None


def _beside(path: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    place = settings_file(path)
    if place is None:
        return None
    with place.open("rb") as stream:
        text = stream.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ValueError("too long")
    return _object(text.decode("utf-8"))


def _belongs(path: Path) -> bool:
    """Whether settings beside a file are its own: it has peft's name, or is the only LoRA there."""
    return path.name == WEIGHTS or all(other == path for other in path.parent.glob("*.safetensors"))


def settings_file(path: Path) -> Path | None:
    """The file of peft's settings beside a LoRA, which reading it may look at too; None if there is none."""
    place = path.with_name(FILE)
    return place if place.is_file() else None


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def is_number(value: Any) -> bool:
    """Whether a value out of JSON is a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _first_none(scales: Mapping[str, Scale | None]) -> str:
    return next(stem for stem, scale in scales.items() if scale is None)
