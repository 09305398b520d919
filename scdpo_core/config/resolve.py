"""What is asked of a training, made whole: the preset of its base model, and paths that hold everywhere."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from ..types import ScdpoError
from .settings import TrainSettings, load_toml
from .terms import KEEP_PROMPTS


def on_top_of_preset(
    presets: Path, source: Path | None, family: str | None, base: str | None
) -> TrainSettings:
    """The defaults, on them the preset of the base model, on it a file of settings.

    Args:
        presets: folder of the presets.
        source: the file; None for none.
        family: of the base model, where something is to win over the file.
        base: the base model, likewise.

    Raises:
        ScdpoError: a file is missing or wrong, or the hub cannot tell what the base model is.
    """
    told = TrainSettings() if source is None else load_toml(source)
    preset = load_toml(presets / preset_for(family or told.model.family, base or told.model.base))
    return preset if source is None else load_toml(source, preset)


def unasked(presets: Path, source: Path | None, resume: bool, settings: TrainSettings) -> list[TrainSettings]:
    """What nobody asked for: defaults, presets, and all of a run that is resumed, which was accepted once.

    Args:
        presets: folder of the presets; a file of settings in it is a preset too.
        source: the file of settings that was given; None for none.
        resume: whether a run is resumed.
        settings: of the run.

    Raises:
        ScdpoError: see `on_top_of_preset`.
    """
    layers = [TrainSettings(), on_top_of_preset(presets, None, settings.model.family, settings.model.base)]
    output = settings.output.output
    job = None if output is None or not resume else output / "job.toml"
    if source is not None:
        own = load_toml(source).model
        layers.append(on_top_of_preset(presets, None, own.family, own.base))
        if source.resolve().parent == presets.resolve():
            layers.append(load_toml(source))
    return [*layers, load_toml(job)] if job is not None and job.is_file() else layers


def preset_for(family: str, base: str) -> str:
    """The preset of a base model, which its own files choose if the family is 'auto'.

    Raises:
        ScdpoError: the model is on the hub, and the hub cannot tell what it is.
    """
    from ..families import MICRO, family_of, is_hub_id

    if base == MICRO:
        return "micro.toml"
    try:
        return f"{family_of(family, base).name}.toml"
    except ScdpoError:
        # The checks say it, together with everything else that is wrong.
        if is_hub_id(base):
            raise
        return "sd1.toml"


def with_full_paths(settings: TrainSettings) -> TrainSettings:
    """Relative paths, which mean the current folder, made good for any other."""

    def full(path: Path | None) -> Path | None:
        return None if path is None else Path(os.path.abspath(path.expanduser()))

    def full_name(name: str, *words: str) -> str:
        return name if name in words else str(full(Path(name)))

    from ..cost.scorers import SCORERS
    from ..families import MICRO, is_hub_id

    data, model = settings.data, settings.model
    return dataclasses.replace(
        settings,
        model=dataclasses.replace(
            model,
            base=model.base if is_hub_id(model.base) else full_name(model.base, MICRO),
            reference_lora=full(model.reference_lora),
            vae=full(model.vae),
            text_encoders=full(model.text_encoders),
        ),
        data=dataclasses.replace(
            data,
            pairs=full(data.pairs),
            more_pairs=tuple(str(full(Path(entry))) for entry in data.more_pairs),
            prompts=full(data.prompts),
            cache=full(data.cache),
            cost_model=full_name(data.cost_model, *SCORERS, "none"),
        ),
        terms=dataclasses.replace(
            settings.terms, keep_prompts=full_name(settings.terms.keep_prompts, *KEEP_PROMPTS)
        ),
        lora=dataclasses.replace(settings.lora, init_lora=full(settings.lora.init_lora)),
        output=dataclasses.replace(settings.output, output=full(settings.output.output)),
    )
