"""What is wrong with a base model's files, found without loading them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..family_info import FAMILY_INFO, MICRO
from ..io.safetensors_header import Header, read_header
from ..types import Problem, ScdpoError
from .base import LoadOptions
from .component_layout import DENOISER_PREFIX, VAE_PREFIXES, ComponentLayout, TextEncoderSpec
from .detect import Kind, detect, read_config
from .source import is_hub_id, locate, vae_beside
from .text_encoders import text_home, tokenizer_home
from .vaes import latent_channels
from .weight_formats import check_folder, check_stored


def check(base: str | Path, family: str, layout: ComponentLayout, options: LoadOptions) -> list[Problem]:
    """Everything that is wrong with a base model's files for a family, found without loading them."""
    try:
        # Of a model on the hub only the small files are looked at: its own listing vouches for the others.
        path = locate(base, folders(layout), weights=False)
    except ScdpoError as error:
        return [Problem(Path(base), str(error))]
    if str(base) == MICRO and not (path / "model_index.json").is_file():
        what = "The embedded model is missing from this copy. Clone the repository again, or build it with "
        return [Problem(path, what + "'python -m tools.micro_model.build'.")]
    if not path.exists():
        what = (
            "There is no such base model. Give 'micro', a diffusers model folder or a .safetensors file on "
            "this machine, or the name of a model on the hub (owner/name)."
        )
        return [Problem(path, what)]
    try:
        kind = detect(path)
    except ScdpoError as error:
        return [Problem(path, str(error))]
    if kind.family != family:
        return [Problem(path, _mistaken(kind, family))]
    extras = [
        *_check_vae(options.vae),
        *_check_prediction(path, family, options),
        *_check_guidance(path, family, layout, options),
        *_check_unused_texts(path, layout, options.text_encoders),
    ]
    if path.is_file():
        return [*_check_file(path, layout, options), *extras]
    return [*_check_folder(path, layout, options, weights=not is_hub_id(base)), *extras]


def folders(layout: ComponentLayout) -> list[str]:
    """The subfolders of a family's diffusers folders."""
    texts = [folder for part in layout.texts for folder in (part.folder, part.tokenizer)]
    return [layout.denoiser, "vae", "scheduler", *texts]


def _mistaken(kind: Kind, family: str) -> str:
    what = f"This is {kind.title}; a {FAMILY_INFO[family].title} model was expected."
    if kind.family is not None:
        return f"{what} Set the family to '{kind.family}' or 'auto', or give another base."
    return f"{what} {kind.advice}".strip()


def _check_prediction(path: Path, family: str, options: LoadOptions) -> Iterator[Problem]:
    header = _header(path) if path.is_file() and FAMILY_INFO[family].denoiser == "unet" else None
    if isinstance(header, Header) and header.unknown_prediction and options.prediction == "auto":
        what = (
            f"Its metadata says that it predicts '{header.unknown_prediction}', which is not known here. If "
        )
        yield Problem(path, what + "you know better, set prediction to 'epsilon' or 'v_prediction'.")
    info = FAMILY_INFO[family]
    if info.denoiser == "transformer" and (options.prediction, options.zero_snr) != (
        "auto",
        "auto",
    ):
        what = (
            f"{FAMILY_INFO[family].title} predicts a flow, so that prediction and zero_snr must stay 'auto'."
        )
        yield Problem(path, what)


def _check_guidance(
    path: Path, family: str, layout: ComponentLayout, options: LoadOptions
) -> Iterator[Problem]:
    """A guidance embedding that the base has not (FLUX.1 schnell) would be told to nobody."""
    if family != "flux" or options.guidance == 1:
        return
    if path.is_file():
        header = _header(path)
        told = isinstance(header, Problem) or any("guidance_in." in name for name in header.shapes)
    else:
        try:
            told = bool(read_config(path / layout.denoiser / "config.json").get("guidance_embeds", False))
        except ScdpoError:
            return  # said of the folder itself
    if not told:
        what = "This model takes no guidance embedding, as FLUX.1 schnell does not: leave "
        yield Problem(path, what + "--guidance-embedding out, or take FLUX.1 dev.")


def _check_unused_texts(path: Path, layout: ComponentLayout, home: Path | None) -> Iterator[Problem]:
    """A folder of text encoders beside a base that has all of them would not be read."""
    if home is None:
        return
    header = _header(path) if path.is_file() else None
    if isinstance(header, Problem):
        return
    for part in layout.texts:
        if header is None:
            lacks = not (path / part.folder).is_dir()
        else:
            lacks = not (part.prefix and header.begins(part.prefix)) or not part.own_tokenizer
        if lacks:
            return
    what = "This model holds its own text encoders, and another folder of them is not read: leave "
    yield Problem(path, what + "--text-encoders out.")


def _check_folder(
    folder: Path, layout: ComponentLayout, options: LoadOptions, *, weights: bool
) -> list[Problem]:
    problems: list[Problem] = []
    for part in layout.texts:
        if not (folder / part.folder).is_dir():
            problems += _check_text(folder, None, part, options.text_encoders)
    texts = [part for part in layout.texts if (folder / part.folder).is_dir()]
    if weights:
        for name in (layout.denoiser, "vae", *(part.folder for part in texts)):
            problems += _check_weights(folder / name)
    for part in texts:
        if not (folder / part.tokenizer).is_dir():
            problems.append(
                Problem(folder / part.tokenizer, "The tokenizer is missing. Copy the model again.")
            )
    for name in ("scheduler/scheduler_config.json", f"{layout.denoiser}/config.json", "vae/config.json"):
        try:
            read_config(folder / name)
        except ScdpoError as error:
            problems.append(Problem(folder / name, str(error)))
    if not any(problem.fatal for problem in problems):
        problems += _check_channels(folder, layout)
    return problems


def _check_channels(folder: Path, layout: ComponentLayout) -> list[Problem]:
    takes = read_config(folder / layout.denoiser / "config.json").get("in_channels", 4)
    gives = latent_channels(read_config(folder / "vae" / "config.json"))
    # FLUX sees blocks of 2x2 cells as channels.
    if takes in (gives, 4 * gives):
        return []
    what = "This denoiser takes extra channels (an inpainting or depth model). Use the plain model."
    return [Problem(folder / layout.denoiser, what)]


def _check_weights(folder: Path) -> list[Problem]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        if any(file.suffix in (".bin", ".ckpt", ".pt") for file in folder.glob("*")):
            what = "Only pickled weights are here, which can run code when opened. Get the .safetensors ones."
        else:
            what = f"The {folder.name} has no weights (.safetensors). Copy the model again."
        return [Problem(folder, what)]
    problems = [problem for file in files if isinstance(problem := _header(file), Problem)]
    if not problems:
        try:
            check_folder(folder)
        except ScdpoError as error:
            problems.append(Problem(folder, str(error)))
    return problems


def _header(path: Path) -> Header | Problem:
    try:
        return read_header(path)
    except ScdpoError as error:
        return Problem(path, str(error))


def _check_file(path: Path, layout: ComponentLayout, options: LoadOptions) -> list[Problem]:
    header = _header(path)
    if isinstance(header, Problem):
        return [header]
    problems = []
    if not header.begins(DENOISER_PREFIX) and not layout.bare_denoiser:
        problems.append(Problem(path, "It lacks the denoiser. Get the whole model."))
    beside = vae_beside(options.text_encoders)
    if options.vae is None and not header.begins(*VAE_PREFIXES) and beside is not None:
        problems += _check_weights(beside)
    elif options.vae is None and not header.begins(*VAE_PREFIXES):
        problems.append(Problem(path, "It lacks the VAE. Get the whole model, or give one: --vae FILE."))
    for part in layout.texts:
        problems += _check_text(path, header, part, options.text_encoders)
    used = [DENOISER_PREFIX if header.begins(DENOISER_PREFIX) else ""]
    used += [] if options.vae else [prefix for prefix in VAE_PREFIXES if header.begins(prefix)][:1]
    used += [part.prefix for part in layout.texts if part.prefix]
    for prefix in used:
        problems += _check_stored(path, header, prefix)
    return problems


def _check_stored(path: Path, header: Header, prefix: str = "") -> Iterator[Problem]:
    try:
        check_stored(header, prefix)
    except ScdpoError as error:
        yield Problem(path, str(error))


def _check_text(
    path: Path, header: Header | None, part: TextEncoderSpec, home: Path | None
) -> Iterator[Problem]:
    inside = header is not None and bool(part.prefix) and header.begins(part.prefix)
    try:
        outside = None if home is None else text_home(home, part)
        if outside is not None and not inside:
            yield from _check_text_weights(outside)
        if not inside and not outside and part.needed:
            what = f"It lacks the text encoder {part.stem}. Get the whole model, or give a folder that "
            yield Problem(path, what + "holds it: --text-encoders FOLDER.")
        elif not inside and not outside:
            what = f"It has no text encoder {part.stem}; zeros take its place. A folder that holds it helps: "
            yield Problem(path, what + "--text-encoders FOLDER.", fatal=False)
        elif not part.own_tokenizer and tokenizer_home(home, part) is None:
            # An optional encoder without its words is only a reason to draw without it.
            what = f"The tokenizer of {part.stem} is in no single file. Give a folder that holds it "
            what += f"({part.tokenizer}/tokenizer.json): --text-encoders FOLDER."
            if part.kind == "language":
                what += " ComfyUI has it in comfy/text_encoders/qwen25_tokenizer."
            yield Problem(path, what, fatal=part.needed)
    except ScdpoError as error:
        yield Problem(home or path, str(error))


def _check_text_weights(place: Path) -> Iterator[Problem]:
    if place.is_dir():
        yield from _check_weights(place)
    elif isinstance(header := _header(place), Problem):
        yield header
    else:
        yield from _check_stored(place, header)


def _check_vae(vae: Path | None) -> Iterator[Problem]:
    if vae is None:
        return
    if vae.is_dir():
        home = vae / "vae" if (vae / "vae").is_dir() else vae
        yield from _check_weights(home)
        return
    if not vae.is_file():
        yield Problem(vae, "There is no such VAE. Give a .safetensors file or a folder.")
        return
    header = _header(vae)
    if isinstance(header, Problem):
        yield header
    elif not header.begins("decoder.", *VAE_PREFIXES):
        yield Problem(vae, "This file holds no VAE.")
    else:
        yield from _check_stored(vae, header, next((p for p in VAE_PREFIXES if header.begins(p)), ""))
