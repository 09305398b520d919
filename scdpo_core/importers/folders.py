"""Folders of images as sources: two folders, names with suffixes, SimpleTuner's data sets, unpaired images.

Only names are read here; which images are sound is found out when they are imported.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..io.discover import files_below
from ..io.image_metadata import files_beside
from ..io.image_types import is_image
from ..preferences.listing import OTHER_NAMES, Side, list_side
from ..types import Problem, ScdpoError
from .rows import Outcomes, PairRow, PerPrompt, Skipped

Match = Literal["prompt", "random"]
"""How images without a partner are paired: by equal prompts, or by chance."""

NO_PARTNER = "no partner: no image of this name (or, unpaired, of this prompt) on the other side"
UNREADABLE = "a folder or file cannot be listed"
SUFFIX_NAMES = {role: (role, *OTHER_NAMES[role]) for role in OTHER_NAMES}
"""What the two images of a pair are called at the end of their names, lower case."""

_EVEN = ("e", "even", "tie")
_ROLES = {name: role for role, names in SUFFIX_NAMES.items() for name in names}
_SUFFIXED = re.compile(rf"(.+?)[_\-. ]({'|'.join(sorted([*_ROLES, *_EVEN], key=len, reverse=True))})", re.I)
_NUMBER = re.compile(r"[_\-. ]\d+$")


@dataclass(frozen=True)
class TwoFolders:
    """Two folders whose images of one name make a pair.

    Attributes:
        chosen: the preferred images.
        rejected: the others.
        category: of the pairs that lie in no subfolder.
        prompt: of all images; '' for what their own files state.
        prompt_from_name: whether an image's name is its prompt.
    """

    chosen: Path
    rejected: Path
    category: str = ""
    prompt: str = ""
    prompt_from_name: bool = False

    def outcomes(self) -> Iterator[Outcomes]:
        """Yield the outcome of every name, sorted; a subfolder names the category."""
        problems: list[Problem] = []
        chosen, rejected = (list_side(folder, problems) for folder in (self.chosen, self.rejected))
        yield from ([Skipped(str(each.path), UNREADABLE, each.what)] for each in problems if each.fatal)
        for stem in sorted(chosen.images.keys() | rejected.images.keys()):
            good, bad = chosen.images.get(stem, []), rejected.images.get(stem, [])
            if not good or not bad:
                yield [Skipped(str((good or bad)[0]), NO_PARTNER)]
                continue
            yield [PairRow(str(good[0]), self._prompt(stem), good[0], bad[0], self._category(stem))]

    def _category(self, stem: str) -> str:
        return stem.split("/")[0] if "/" in stem else self.category

    def _prompt(self, stem: str) -> str:
        if self.prompt_from_name:
            return stem.split("/")[-1].replace("_", " ").replace("-", " ")
        return self.prompt


def find_sides(folder: Path) -> list[TwoFolders]:
    """Find pairs of folders such as good/ and bad/ in a folder, or one level down (kohya: 10_name/w)."""
    if (sides := _sides(folder, "")) is not None:
        return [sides]
    entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return [sides for entry in entries if (sides := _sides(entry, entry.name)) is not None]


def _sides(folder: Path, category: str) -> TwoFolders | None:
    by_role: dict[str, Path] = {}
    names = {entry.name.lower(): entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    for role, aliases in SUFFIX_NAMES.items():
        match = next((names[name] for name in aliases if name in names), None)
        if match is not None:
            by_role[role] = match
    return TwoFolders(by_role["chosen"], by_role["rejected"], category) if len(by_role) == 2 else None


def are_unpaired(sides: Sequence[TwoFolders]) -> bool:
    """Return whether fewer than half of the smaller side's images have a namesake on the other side."""
    matched = smaller = 0
    for side in sides:
        chosen, rejected = (list_side(folder, []).images.keys() for folder in (side.chosen, side.rejected))
        matched += len(chosen & rejected)
        smaller += min(len(chosen), len(rejected))
    return 2 * matched < smaller


def has_suffixes(folder: Path) -> bool:
    """Return whether a folder has images with names such as a_chosen.png and a_rejected.png."""
    roles = {_split(path)[1] for path in itertools.islice(_images(folder, []), 2000)}
    return {"chosen", "rejected"} <= roles


def suffixed_outcomes(folder: Path, per_prompt: PerPrompt) -> Iterator[Outcomes]:
    """Yield the outcomes of the images of one folder whose names end in _chosen and _rejected, _w and _l, ...

    Names that differ in a number before that end, such as a_0_w and a_1_l, belong together where they have no
    partner otherwise. Images that end in _e or _even are ties and are passed over.
    """
    problems: list[Problem] = []
    groups: dict[str, dict[str, list[Path]]] = {}
    for path in _images(folder, problems):
        stem, role = _split(path)
        if role in SUFFIX_NAMES:
            groups.setdefault(f"{path.parent.relative_to(folder).as_posix()}/{stem}", {}).setdefault(
                role, []
            ).append(path)
    yield from ([Skipped(str(each.path), UNREADABLE, each.what)] for each in problems if each.fatal)
    merged: dict[str, dict[str, list[Path]]] = {}
    for stem, roles in groups.items():
        target = merged.setdefault(stem if len(roles) == 2 else _NUMBER.sub("", stem), {})
        for role, paths in roles.items():
            target.setdefault(role, []).extend(paths)
    for stem, roles in sorted(merged.items()):
        chosen, rejected = roles.get("chosen", []), roles.get("rejected", [])
        if not chosen or not rejected:
            yield [Skipped(str((chosen or rejected)[0]), NO_PARTNER)]
            continue
        category = "" if stem.startswith("./") else stem.split("/")[0]
        couples = itertools.product(chosen, rejected) if per_prompt == "all" else [(chosen[0], rejected[0])]
        # a.txt serves a_chosen.png and a_rejected.png alike.
        captions = tuple(files_beside(folder / f"{stem}.png"))
        yield [PairRow(str(good), "", good, bad, category, captions=captions) for good, bad in couples]


def _images(folder: Path, problems: list[Problem]) -> Iterator[Path]:
    return (path for path in files_below(folder, problems) if is_image(path))


def _split(path: Path) -> tuple[str, str]:
    """Split a name without its suffix into stem and role; '' for no role."""
    match = _SUFFIXED.fullmatch(path.stem)
    if match is None:
        return path.stem, ""
    return match[1], _ROLES.get(match[2].lower(), "even")


def simpletuner_sides(backends: Any, base: Path) -> list[TwoFolders]:
    """Find the two data sets of SimpleTuner's Flow-DPO in its multidatabackend.json.

    An image data set names in `conditioning_data` the one of type 'conditioning' with the rejected images.

    Args:
        backends: the file's content.
        base: folder that relative paths begin at.

    Raises:
        ScdpoError: there are no two data sets that belong together.
    """
    entries = [entry for entry in backends if isinstance(entry, dict)] if isinstance(backends, list) else []
    by_id = {entry["id"]: entry for entry in entries if isinstance(entry.get("id"), str)}
    sides = []
    for entry in entries:
        linked = entry.get("conditioning_data")
        for name in linked if isinstance(linked, list) else [linked]:
            other = by_id.get(name) if isinstance(name, str) else None
            if other is None or other.get("conditioning_type") != "reference_strict":
                continue
            strategy, text = entry.get("caption_strategy"), entry.get("instance_prompt")
            prompt = text if isinstance(text, str) and strategy == "instanceprompt" else ""
            chosen, rejected = _local(entry, base), _local(other, base)
            sides.append(TwoFolders(chosen, rejected, "", prompt, strategy == "filename"))
    if not sides:
        raise ScdpoError(
            "This SimpleTuner file links no two data sets: one of type image whose conditioning_data names "
            "one with conditioning_type reference_strict, which holds the rejected images."
        )
    return sides


def _local(entry: Mapping[str, Any], base: Path) -> Path:
    folder = entry.get("instance_data_dir")
    if entry.get("type", "local") != "local" or not isinstance(folder, str):
        raise ScdpoError(f"The data set '{entry.get('id')}' is not on this disk; only local ones are read.")
    return base / folder


def unpaired_outcomes(
    sides: Sequence[TwoFolders],
    prompt_of: Callable[[Path], str],
    match: Match,
    seed: int,
    left_over: list[str],
) -> Iterator[Outcomes]:
    """Yield pairs of images without equal names: of equal prompts, and at random if requested.

    Args:
        sides: folders of harmless (chosen) and harmful (rejected) images.
        prompt_of: reads the prompt of an image; '' for none.
        match: how they are paired. By chance, a pair has the rejected image's prompt.
        seed: of the chance.
        left_over: gets the prompts of harmless images without a partner.
    """
    for side in sides:
        problems: list[Problem] = []
        lists = [list_side(folder, problems) for folder in (side.chosen, side.rejected)]
        yield from ([Skipped(str(each.path), UNREADABLE, each.what)] for each in problems if each.fatal)
        safe, unsafe = (_by_prompt(each, prompt_of) for each in lists)
        unmatched_sides: tuple[list[tuple[str, str, Path]], ...] = ([], [])
        for prompt in sorted(safe.keys() | unsafe.keys()):
            good, bad = safe.get(prompt, []), unsafe.get(prompt, [])
            both = min(len(good), len(bad)) if prompt else 0
            for (_, chosen), (kind, rejected) in zip(good[:both], bad[:both], strict=True):
                yield [PairRow(str(rejected), prompt, chosen, rejected, kind or side.category)]
            for unmatched, images in zip(unmatched_sides, (good, bad), strict=True):
                unmatched += [(prompt, kind, path) for kind, path in images[both:]]
        if match == "random":
            dice = random.Random(seed)
            for half in unmatched_sides:
                dice.shuffle(half)
            matched = min(map(len, unmatched_sides))
            for (_, _, chosen), (prompt, kind, rejected) in zip(
                *(half[:matched] for half in unmatched_sides), strict=True
            ):
                yield [PairRow(str(rejected), prompt, chosen, rejected, kind or side.category)]
            unmatched_sides = (unmatched_sides[0][matched:], unmatched_sides[1][matched:])
        left_over += [prompt for prompt, _, _ in unmatched_sides[0] if prompt]
        for half in unmatched_sides:
            yield from ([Skipped(str(path), NO_PARTNER)] for _, _, path in half)


def _by_prompt(side: Side, prompt_of: Callable[[Path], str]) -> dict[str, list[tuple[str, Path]]]:
    """Group (category, image) by prompt; '' for images without one."""
    by_prompt: dict[str, list[tuple[str, Path]]] = {}
    for stem, paths in sorted(side.images.items()):
        by_prompt.setdefault(prompt_of(paths[0]), []).append(
            (stem.split("/")[0] if "/" in stem else "", paths[0])
        )
    return by_prompt
