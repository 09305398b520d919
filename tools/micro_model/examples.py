"""`python -m tools.micro_model.examples`: make the image folders that ship under `examples/`.

`preferences/` is a preference folder as an artist makes it: the rejected image of a harmful caption
is what the embedded model drew, the chosen one is the same image with the harmful drawing painted
over. For benign captions the chosen image is a drawing of the art, the rejected one what the model
makes of it in a hurry.
`cost_pictures/` holds harmful and benign drawings for training a cost model, `unseen_style/` the same things
in the one drawing style that nothing is trained on, for measuring it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scdpo_core.evaluation.micro_requests import BATCH, GUIDANCE, STEPS
from scdpo_core.evaluation.similarity import border_colour
from scdpo_core.families import LoadedModel, family
from scdpo_core.io.files import write_json
from scdpo_core.micro.captions import Caption, benign_training_captions, harmful_training_captions
from scdpo_core.micro.judge import Judge
from scdpo_core.micro.model import JUDGE, WEIGHTS
from scdpo_core.micro.world import BACKGROUNDS, HELD_OUT_CONCEPTS, Scene, concepts, random_scene

from . import art
from .render import Augment, paint_over, render

_TRIES = 8
# No noise and no blur: training adds its own, and flat colours keep the files small.
_VARIED = Augment(rotate=12.0, colour=0.2, wander=0.25, flip=True)


def build_preferences(model: LoadedModel, judge: Judge, sprites: art.Art, folder: Path) -> int:
    """Write the preference folder and return the number of pairs.

    A harmful caption's image becomes a rejected one only when the judge finds in it what the caption asks
    for; harmful captions that the model cannot draw are left out.
    """
    pairs = 0
    harmful = harmful_training_captions()
    drawn = _best(model, judge, harmful, STEPS, GUIDANCE)
    for number, (entry, image) in enumerate(zip(harmful, drawn, strict=True)):
        if image is not None:
            stem = f"{number:03d}-{_slug(entry.text)}"
            _write(folder, entry.scene.category, stem, entry.text, safe_twin(image, entry.scene), image)
            pairs += 1
    benign = benign_training_captions()
    # Not the model's own images: those are drawn with guidance, and a LoRA that has learnt them is guided
    # twice; its spoons come out harder and thicker than the model's.
    rng = random.Random("preferences/benign")
    fine = [render(entry.scene, sprites, rng, "noto") for entry in benign]
    # What a hurried sampler makes of the same caption: right place, mushy drawing.
    poor = _draw(model, benign, 3, 1.0, seed=7)
    for number, (entry, drawn_well, botched) in enumerate(zip(benign, fine, poor, strict=True)):
        _write(folder, "benign", f"{number:03d}-{_slug(entry.text)}", entry.text, drawn_well, botched)
        pairs += 1
    return pairs


def safe_twin(image: Image.Image, scene: Scene) -> Image.Image:
    """Make the safe twin: the image with its harmful subjects painted over in the background's colour."""
    red, green, blue = border_colour(image, 3)
    colour = (round(red), round(green), round(blue))
    if len(scene.subjects) < 2:
        return Image.new("RGB", image.size, colour)
    for which, subject in enumerate(scene.subjects):
        if subject.harmful:
            image = paint_over(image, which, colour)
    return image


def build_cost_pictures(
    sprites: art.Art,
    folder: Path,
    styles: Sequence[str],
    alone: int,
    together: int,
    empty: int = 0,
    seed: int = 0,
) -> int:
    """Write `unsafe/<category>/` and `safe/` renderings in the given styles, and `styles.json`, which says
    what is drawn in which; return how many.

    Each concept is drawn in every style, `alone` times by itself and `together` times beside a benign one;
    each background `empty` times with nothing on it.
    What counts as harmful is a matter of fact about each concept, so every one of them has to be there
    often enough to be learned.
    """
    rng = random.Random(f"{seed}/{folder.name}")
    benign = [thing for thing in concepts() if not thing.harmful]
    drawn: dict[str, list[str]] = {style: [] for style in styles}

    for thing in concepts():
        used = [style for style in styles if sprites.sprite(style, thing.code)]
        for number in range(alone + together):
            background = random_scene(rng).background
            scene, style = Scene((thing,), background), used[number % len(used)]
            if number >= alone:
                fellows = [other for other in benign if sprites.sprite(style, other.code) and other != thing]
                scene = Scene(tuple(rng.sample([thing, rng.choice(fellows)], 2)), background)
            image = render(scene, sprites, rng, style, _VARIED)
            position = folder / "unsafe" / scene.category if scene.harmful else folder / "safe"
            path = position / f"{_slug(thing.name)}-{number}.png"
            _save(image.quantize(128).convert("RGB"), path)
            drawn[style].append(path.relative_to(folder).as_posix())
    for background in BACKGROUNDS:
        for number in range(empty):
            image = render(Scene((), background), sprites, rng, styles[0], _VARIED)
            _save(image, folder / "safe" / f"empty-{background}-{number}.png")
    write_json(folder / "styles.json", {style: sorted(files) for style, files in drawn.items()})
    return sum(map(len, drawn.values())) + len(BACKGROUNDS) * empty


def _best(
    model: LoadedModel, judge: Judge, entries: Sequence[Caption], steps: int, guidance: float
) -> list[Image.Image | None]:
    """Return a drawing of each caption in which the judge finds the subjects; None after a few tries."""
    best: list[Image.Image | None] = [None] * len(entries)
    held_out = set(HELD_OUT_CONCEPTS)
    for attempt in range(_TRIES):
        open_ = [number for number, image in enumerate(best) if image is None]
        images = _draw(model, [entries[number] for number in open_], steps, guidance, seed=attempt)
        for number, image, verdicts in zip(open_, images, judge(images), strict=True):
            names = [subject.name for subject in entries[number].scene.subjects]
            # A general word such as 'weapon' is drawn faithfully by any harmful thing.
            general = entries[number].scene.harmful and not any(
                name in entries[number].text for name in names
            )
            if verdicts.finds(names) or (
                general and verdicts.harmful and not held_out & {verdicts.top, *verdicts.present}
            ):
                best[number] = image
    return best


def _draw(
    model: LoadedModel, entries: Sequence[Caption], steps: int, guidance: float, seed: int
) -> list[Image.Image]:
    images: list[Image.Image] = []
    for first in range(0, len(entries), BATCH):
        part = entries[first : first + BATCH]
        seeds = [1_000_000 + 10_000 * seed + first + number for number in range(len(part))]
        images += model.sample([entry.text for entry in part], seeds, steps, guidance)
    return images


def _write(
    folder: Path, category: str, stem: str, prompt: str, chosen: Image.Image, rejected: Image.Image
) -> None:
    _save(chosen, folder / "chosen" / category / f"{stem}.png")
    _save(rejected, folder / "rejected" / category / f"{stem}.png")
    (folder / "chosen" / category / f"{stem}.txt").write_text(prompt + "\n", encoding="utf-8")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two bits less a channel are not seen at this size and halve the files.
    reduced = np.asarray(image, np.uint8) & 0xFC
    Image.fromarray(reduced | (reduced >> 6)).save(path, optimize=True)


def _slug(text: str) -> str:
    return "-".join(text.replace(" background", "").replace(" on an ", " ").replace(" on a ", " ").split())


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and write the folders."""
    parser = argparse.ArgumentParser(prog="python -m tools.micro_model.examples", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build"), help="the build's folder, for the art")
    parser.add_argument("--target", type=Path, default=Path("examples"))
    options = parser.parse_args(arguments)
    model = family("sd1").load("micro", torch.device("cpu"), torch.float32)
    for name in ("preferences", "cost_pictures", "unseen_style"):
        shutil.rmtree(options.target / name, ignore_errors=True)
    sprites = art.fetch(options.work / "art")
    pairs = build_preferences(model, Judge.load(JUDGE), sprites, options.target / "preferences")
    images = build_cost_pictures(sprites, options.target / "cost_pictures", art.STYLES_OF_COST, 7, 7, 3)
    images += build_cost_pictures(sprites, options.target / "unseen_style", (art.STYLE_UNSEEN,), 2, 1)
    sys.stderr.write(f"{pairs} pairs and {images} cost images under {options.target}, from {WEIGHTS}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
