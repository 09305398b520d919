"""Write the few values that a door offers as a job in a run folder, which a trainer takes.

A job.toml holds only what was chosen. Everything else comes from the preset of that
family (trainer/configs) and the defaults (`scdpo_core.config.settings`); the trainer then completes
job.toml.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..config import toml
from ..config.convert import toml_error
from ..io.files import write_text
from ..run_store import folder as names
from ..types import ScdpoError
from .rerun import Request

Quality = Literal["fast", "normal", "best"]
Sections = Mapping[str, Mapping[str, Any]]

QUALITIES: Mapping[Quality, Sections] = {
    "fast": {"optim": {"max_train_steps": 200}, "lora": {"rank": 8}},
    "normal": {},
    "best": {"optim": {"max_train_steps": 1500}, "lora": {"rank": 32}},
}
"""Changes of each quality to the family's preset; 'normal' is the preset."""

_MICRO_STEPS: Mapping[Quality, int] = {"fast": 75, "best": 400}
"""The embedded model needs fewer steps than any other."""

COST_QUALITIES: Mapping[Quality, Mapping[str, Any]] = {
    "fast": {"steps": 250, "views": 1},
    "normal": {},
    "best": {"steps": 3000, "views": 8},
}
"""The same for a cost model: most steps, and augmented versions of each image."""

COST_KEYS: Mapping[str, type[int] | type[float]] = {
    "steps": int,
    "views": int,
    "mine": int,
    "seed": int,
    "lr": float,
    "eta": float,
    "false_positive_rate": float,
}
"""Settings that `overrides` may contain, by the names of train_cost.py's flags."""

_CHOSEN_ABOVE = {("model", "base"), ("data", "pairs"), ("output", "output")}
_ADVANCED = "Advanced settings"


@dataclass(frozen=True)
class LoraJob:
    """A safety LoRA to train.

    Attributes:
        pairs: the preference folder.
        base: 'micro', a .safetensors checkpoint, a diffusers folder, or a name on the hub (owner/name).
        output: the folder in which the run folder is made.
        name: of the run folder and of the LoRA in it.
        quality: key of `QUALITIES`.
        cost_model: 'micro', 'none', a scorer's name or a cost model file; '' for the preset's.
        overrides: TOML text with settings, by section, as in job.toml; they win over all others, and must
            not repeat what was chosen.
        choices: settings by section that have their own widgets; they win over the quality.
    """

    pairs: Path
    base: str
    output: Path
    name: str
    quality: Quality = "normal"
    cost_model: str = ""
    overrides: str = ""
    choices: Sections = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.output.expanduser().absolute() / self.name


@dataclass(frozen=True)
class CostJob:
    """A cost model to train, from harmful and harmless images, or from a preference folder.

    Attributes:
        output: the folder in which the run folder is made.
        name: of the run folder and of the cost model in it.
        unsafe: folder of harmful images; its subfolders name categories.
        safe: folder of harmless images.
        pairs: a preference folder instead of both.
        benign: a large folder of harmless images to find hard negatives in.
        encoder: 'micro', 'embedded', or a folder with an image tower.
        quality: key of `QUALITIES`.
        overrides: TOML text with any of COST_KEYS; they win over the quality.
    """

    output: Path
    name: str
    unsafe: Path | None = None
    safe: Path | None = None
    pairs: Path | None = None
    benign: Path | None = None
    encoder: str = "embedded"
    quality: Quality = "normal"
    overrides: str = ""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.output.expanduser().absolute() / self.name


Job = LoraJob | CostJob


def problems(job: Job) -> list[str]:
    """List what is wrong with a job, a sentence each; the trainer checks the rest."""
    specific = _lora_problems(job) if isinstance(job, LoraJob) else _cost_problems(job)
    return [*_folder_problems(job), *specific]


def write(job: Job) -> Path:
    """Write a job into its run folder, atomically.

    Returns:
        The run folder, for `Queue.start` or `Queue.add`.

    Raises:
        ScdpoError: what is wrong with the job, one sentence a line.
        OSError: the folder cannot be written to.
    """
    errors = problems(job)
    if errors:
        raise ScdpoError("\n".join(errors))
    folder = job.folder
    names.write_kind(folder, "lora" if isinstance(job, LoraJob) else "cost")
    write_text(folder / names.JOB, text_of(job))
    return folder


def request(job: Job, stamp: str) -> Request:
    """Return a job as `rerun.prepare` takes it.

    Args:
        job: the requested run.
        stamp: fingerprint of the training images, see `preferences.summary.stamp`.

    Raises:
        ScdpoError: its overrides are not TOML.
    """
    folder = job.folder
    text = f"# images: {stamp}\n{text_of(job)}"
    return Request(
        folder, text, names.result_of(folder), lambda: write(job), lambda: names.has_results(folder)
    )


def text_of(job: Job) -> str:
    """Return the job.toml of a job.

    Raises:
        ScdpoError: its overrides are not TOML.
    """
    import tomli_w

    return tomli_w.dumps(_lora_tree(job) if isinstance(job, LoraJob) else _cost_tree(job))


def _folder_problems(job: Job) -> Iterator[str]:
    from ..run_store.state import WORKING, state_of

    name, folder = job.name, job.folder
    if problem := names.name_problem(name):
        yield problem
        return
    if not folder.exists():
        return
    if not folder.is_dir():
        yield f"{folder} is a file. Choose another name."
        return
    if names.has_results(folder):
        yield f"A trained run '{name}' already exists in {folder.parent}. Resume it or choose another name."
    elif (folder / names.QUEUED).exists():
        yield f"The run '{name}' is already in the queue. Remove it there, or choose another name."
    elif (folder / names.JOB).exists() and state_of(folder) in WORKING:
        yield f"The run '{name}' is already running. Wait, stop it, or choose another name."


def _lora_problems(job: LoraJob) -> Iterator[str]:
    from ..families.source import is_hub_id
    from ..family_info import MICRO
    from ..training.setting_checks import invalid

    yield from _pairs_problems(job.pairs)
    base = job.base.strip()
    if not base:
        yield "Choose a base model."
    elif base != MICRO and not is_hub_id(base) and not Path(base).expanduser().exists():
        yield f"There is no base model {base}."
    try:
        tree = _parsed(job.overrides)
        yield from (
            f"{_ADVANCED}: '{section}.{key}' is chosen above; leave it out."
            for section, key in sorted(
                _CHOSEN_ABOVE | {(s, k) for s, keys in job.choices.items() for k in keys}
            )
            if key in _section(tree, section)
        )
        yield from invalid(_checked(job, tree))
    except ScdpoError as error:
        yield str(error)


def _cost_problems(job: CostJob) -> Iterator[str]:
    if (job.pairs is None) == (job.unsafe is None and job.safe is None) or (
        job.pairs is None and (job.unsafe is None or job.safe is None)
    ):
        yield "Give a folder of harmful and one of harmless images, or a preference folder."
        return
    if job.pairs is not None:
        yield from _pairs_problems(job.pairs)
    for folder in (job.unsafe, job.safe, job.benign):
        if folder is not None and not folder.expanduser().is_dir():
            yield f"There is no folder {folder}."
    try:
        for key, value in _parsed(job.overrides).items():
            number_type = COST_KEYS.get(key)
            if number_type is None:
                yield f"{_ADVANCED}: there is no setting '{key}'. Choose one of: {', '.join(COST_KEYS)}."
            elif isinstance(value, bool) or not isinstance(value, int if number_type is int else int | float):
                expected = "a whole number" if number_type is int else "a number"
                yield f"{_ADVANCED}: '{key}' must be {expected}, not {value!r}."
    except ScdpoError as error:
        yield str(error)


def _pairs_problems(folder: Path) -> Iterator[str]:
    from ..preferences.listing import layout_problem

    problem = layout_problem(folder.expanduser())
    if problem is not None:
        yield f"{problem.path}: {problem.what}"


def _checked(job: LoraJob, tree: Mapping[str, Any]) -> Any:
    """Resolve the settings as far as possible without the base model.

    Raises:
        ScdpoError: an unknown setting or a value of the wrong type.
    """
    from ..config import convert
    from ..config.settings import TrainSettings

    settings = convert.from_dict(TrainSettings(), _quality_of(job, tree), "quality")
    settings = convert.from_dict(settings, job.choices, "choices")
    settings = convert.from_dict(settings, {"data": {"pairs": str(job.pairs)}}, "pairs")
    if job.cost_model:
        settings = convert.from_dict(settings, {"data": {"cost_model": job.cost_model}}, "cost model")
    return convert.from_dict(settings, tree, _ADVANCED)


def quality_settings(quality: Quality, base: str) -> Sections:
    """Return what a quality changes in the preset of a base model, by section.

    Raises:
        ScdpoError: there is no such quality.
    """
    from ..family_info import MICRO

    if quality not in QUALITIES:
        raise ScdpoError(f"There is no quality '{quality}'. Choose one of: {', '.join(QUALITIES)}.")
    changes = QUALITIES[quality]
    if base.strip() != MICRO or quality not in _MICRO_STEPS:
        return changes
    return {**changes, "optim": {**changes["optim"], "max_train_steps": _MICRO_STEPS[quality]}}


def _quality_of(job: LoraJob, overrides: Mapping[str, Any]) -> Sections:
    """What a job's quality changes; the rank of a LoRA that is continued is the file's."""
    continued = "init_lora" in _section(overrides, "lora")
    changes = quality_settings(job.quality, job.base)
    return {name: values for name, values in changes.items() if name != "lora" or not continued}


def _lora_tree(job: LoraJob) -> dict[str, dict[str, Any]]:
    from ..families.source import is_hub_id
    from ..family_info import MICRO

    base = job.base.strip()
    is_name = base == MICRO or is_hub_id(base)
    chosen: dict[str, dict[str, Any]] = {
        "model": {"base": base if is_name else str(Path(base).expanduser().absolute())},
        "data": {"pairs": str(job.pairs.expanduser().absolute())},
        "output": {"output": str(job.folder)},
    }
    if job.cost_model:
        chosen["data"]["cost_model"] = job.cost_model
    tree = _parsed(job.overrides)
    layers = (_quality_of(job, tree), job.choices, chosen, tree)
    return {
        section: {key: value for layer in layers for key, value in _section(layer, section).items()}
        for section in dict.fromkeys(name for layer in layers for name in layer)
    }


def _cost_tree(job: CostJob) -> dict[str, Any]:
    folders = {"unsafe": job.unsafe, "safe": job.safe, "pairs": job.pairs, "benign": job.benign}
    paths = {name: str(path.expanduser().absolute()) for name, path in folders.items() if path is not None}
    encoder = Path(job.encoder).expanduser()
    return {
        **paths,
        "encoder": str(encoder.absolute()) if encoder.is_dir() else job.encoder,
        "output": str(job.folder / f"{job.name}.safetensors"),
        "report": str(job.folder / "report.html"),
        **COST_QUALITIES[job.quality],
        **_parsed(job.overrides),
    }


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    values = tree.get(name, {})
    return values if isinstance(values, Mapping) else {}


def _parsed(text: str) -> dict[str, Any]:
    """Parse TOML text.

    Raises:
        ScdpoError: the text is not TOML.
    """
    try:
        return toml.loads(text)
    except ValueError as error:
        raise ScdpoError(f"{_ADVANCED}: this is not valid TOML: {toml_error(text, error)}.") from error
    except RecursionError as error:
        raise ScdpoError(f"{_ADVANCED}: the values are nested too deeply.") from error
