"""Preference folders to learn from, good ones and bad ones: what each changes of `examples/preferences`."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from benchmarks.evidence import images as drawing
from scdpo_core.io.files import atomic_path, write_json, write_text
from scdpo_core.micro.captions import Caption, benign_training_captions, harmful_training_captions
from scdpo_core.micro.world import Scene, caption
from scdpo_core.run_store.file_lock import exclusive

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "examples" / "preferences"


@dataclass(frozen=True)
class Entry:
    """A pair of the shipped folder, in memory.

    Attributes:
        stem: of its files.
        category: its subfolder.
        caption: its prompt, and what that asks for.
        chosen: RGB.
        rejected: RGB.
    """

    stem: str
    category: str
    caption: Caption
    chosen: Image.Image
    rejected: Image.Image

    @property
    def harmful(self) -> bool:
        """Whether the prompt asks for something harmful."""
        return self.caption.scene.harmful

    @property
    def companion(self) -> bool:
        """Whether it asks for something benign beside something harmful."""
        return self.harmful and len(self.caption.scene.subjects) > 1


Entries = list[Entry]
Draw = drawing.Draw


@dataclass(frozen=True)
class World:
    """A preference folder, by what it changes of the shipped one.

    Attributes:
        title: what a table calls it.
        change: makes its pairs of the shipped ones; may draw with the base model.
        cost_model: as `--cost-model` has it.
        marked: whether images carry the artefact that `images.mark` draws.
    """

    title: str
    change: Callable[[Entries, random.Random, Draw], Entries] = field(default=lambda pairs, dice, draw: pairs)
    cost_model: str = "none"
    marked: bool = False


def shipped() -> Entries:
    """The shipped pairs, sorted by name."""
    captions = {True: harmful_training_captions(), False: benign_training_captions()}
    entries = []
    for path in sorted(SHIPPED.glob("chosen/*/*.png")):
        category = path.parent.name
        told = captions[category != "benign"][int(path.stem.split("-")[0])]
        images = [
            Image.open(SHIPPED / side / category / path.name).convert("RGB")
            for side in ("chosen", "rejected")
        ]
        entries.append(Entry(path.stem, category, told, *images))
    return entries


def few(number: int) -> Callable[[Entries, random.Random, Draw], Entries]:
    """So many harmful pairs, spread over the things, and so many benign ones, each of another thing."""

    def change(pairs: Entries, dice: random.Random, draw: Draw) -> Entries:
        return [*_spread(pairs, True, number, dice), *_spread(pairs, False, number, dice)]

    return change


def _spread(pairs: Entries, harmful: bool, number: int, dice: random.Random) -> Entries:
    """Each thing once before any thing twice."""
    by_thing: dict[str, Entries] = {}
    for entry in dice.sample(pairs, len(pairs)):
        if entry.harmful == harmful:
            things = [one.name for one in entry.caption.scene.subjects if one.harmful == harmful]
            by_thing.setdefault(things[0], []).append(entry)
    rounds = max(len(own) for own in by_thing.values())
    order = [own[k] for k in range(rounds) for own in by_thing.values() if k < len(own)]
    return order[:number]


def no_benign(pairs: Entries, dice: random.Random, draw: Draw) -> Entries:
    """Harmful pairs alone."""
    return [entry for entry in pairs if entry.harmful]


def only_companions(pairs: Entries, dice: random.Random, draw: Draw) -> Entries:
    """Harmful pairs only where something benign stands beside, and the benign ones."""
    return [entry for entry in pairs if entry.companion or not entry.harmful]


def rare(category: str, number: int) -> Callable[[Entries, random.Random, Draw], Entries]:
    """One category with so few pairs."""

    def change(pairs: Entries, dice: random.Random, draw: Draw) -> Entries:
        own = [entry for entry in pairs if entry.category == category]
        kept = {entry.stem for entry in dice.sample(own, number)}
        return [entry for entry in pairs if entry.category != category or entry.stem in kept]

    return change


def flipped(share: float) -> Callable[[Entries, random.Random, Draw], Entries]:
    """Chosen and rejected swapped in a share of all pairs."""

    def change(pairs: Entries, dice: random.Random, draw: Draw) -> Entries:
        swapped = {entry.stem for entry in _share(pairs, share, dice)}
        return [
            replace(entry, chosen=entry.rejected, rejected=entry.chosen) if entry.stem in swapped else entry
            for entry in pairs
        ]

    return change


def failed(share: float) -> Callable[[Entries, random.Random, Draw], Entries]:
    """A share of the safe twins still shows the harm: a redrawing from the noised rejected image."""

    def change(pairs: Entries, dice: random.Random, draw: Draw) -> Entries:
        own = _share([entry for entry in pairs if entry.harmful], share, dice)
        prompts = [entry.caption.text for entry in own]
        redrawn = draw(prompts, [dice.randrange(1 << 30) for _ in own], [e.rejected for e in own], 0.4)
        twins = dict(zip((entry.stem for entry in own), redrawn, strict=True))
        return [replace(entry, chosen=twins.get(entry.stem, entry.chosen)) for entry in pairs]

    return change


def own_guided(pairs: Entries, dice: random.Random, draw: Draw) -> Entries:
    """Chosen images are what the base model draws, with guidance, for the safe prompt."""
    drawn = draw([safe_prompt(entry.caption) for entry in pairs], [dice.randrange(1 << 30) for _ in pairs])
    return [replace(entry, chosen=image) for entry, image in zip(pairs, drawn, strict=True)]


def other_hand(pairs: Entries, dice: random.Random, draw: Draw) -> Entries:
    """What chosen images show is drawn in another style than the model's."""
    return [
        replace(entry, chosen=drawing.in_other_style(entry.caption.scene, entry.chosen, dice))
        for entry in pairs
    ]


def marked(pairs: Entries, dice: random.Random, draw: Draw) -> Entries:
    """Both images of every pair carry the same mark in a corner."""
    return [
        replace(entry, chosen=drawing.mark(entry.chosen), rejected=drawing.mark(entry.rejected))
        for entry in pairs
    ]


def _share(pairs: Sequence[Entry], share: float, dice: random.Random) -> Entries:
    return dice.sample(list(pairs), round(share * len(pairs)))


def _benign(scene: Scene) -> Scene:
    return Scene(tuple(one for one in scene.subjects if not one.harmful), scene.background)


def safe_prompt(entry: Caption) -> str:
    """The prompt without what is harmful in it."""
    return caption(_benign(entry.scene)) if entry.scene.harmful else entry.text


WORLDS: dict[str, World] = {
    "full": World("full folder"),
    "full_cost": World("full folder, cost model", cost_model="micro"),
    **{f"few_{n}": World(f"{n} harmful and {n} benign pairs", few(n)) for n in (4, 8, 16, 24, 32, 48)},
    "no_benign": World("no benign pairs", no_benign),
    **{f"flip_{p}": World(f"{p} % of labels flipped", flipped(p / 100)) for p in (10, 20, 30)},
    **{
        f"flip_{p}_cost": World(f"{p} % of labels flipped, cost model", flipped(p / 100), "micro")
        for p in (10, 20, 30)
    },
    **{f"failed_{p}": World(f"{p} % of the safe twins failed", failed(p / 100)) for p in (10, 20, 30)},
    "other_hand": World("chosen images in another style", other_hand),
    "own_guided": World("chosen images are the model's own, guided", own_guided),
    "marked": World("both images with the same mark", marked, marked=True),
    "rare": World("3 pairs of one category", rare("insult", 3)),
    "companions": World("harmful pairs with a companion only", only_companions),
}


@dataclass(frozen=True)
class Built:
    """A world on disk.

    Attributes:
        pairs: the preference folder.
        prompts: harmful and safe prompts of its pairs, for training without images.
        paired: benign things that a benign pair shows.
        count: pairs.
    """

    pairs: Path
    prompts: Path
    paired: frozenset[str]
    count: int


def build(name: str, seed: int, work: Path, draw: Draw) -> Built:
    """Write a world's folder, or find the one that an earlier call wrote.

    Args:
        name: a key of `WORLDS`.
        seed: of everything random in it.
        work: folder that keeps worlds.
        draw: draws with the base model.
    """
    folder = work / f"{name}-{seed}"
    facts = folder / "world.json"
    with exclusive(work / f"{name}-{seed}.lock"):
        if not facts.exists():
            entries = WORLDS[name].change(shipped(), random.Random(f"{name}/{seed}"), draw)
            write_json(facts, _write(entries, folder))
    known: Mapping[str, list[str]] = json.loads(facts.read_text(encoding="utf-8"))
    return Built(folder / "pairs", folder / "prompts.csv", frozenset(known["paired"]), len(known["stems"]))


def _write(entries: Sequence[Entry], folder: Path) -> dict[str, list[str]]:
    for entry in entries:
        for side, image in (("chosen", entry.chosen), ("rejected", entry.rejected)):
            path = folder / "pairs" / side / entry.category / f"{entry.stem}.png"
            with atomic_path(path) as temporary:
                image.save(temporary, format="PNG")
        text = folder / "pairs" / "chosen" / entry.category / f"{entry.stem}.txt"
        write_text(text, f"{entry.caption.text}\n")
    rows = io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    table.writerow(["prompt", "safe_prompt"])
    table.writerows([e.caption.text, safe_prompt(e.caption)] for e in entries if e.harmful)
    write_text(folder / "prompts.csv", rows.getvalue())
    benign = {one.name for e in entries if not e.harmful for one in e.caption.scene.subjects}
    return {"paired": sorted(benign), "stems": sorted(entry.stem for entry in entries)}
