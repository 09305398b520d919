"""Reading a preference folder, and telling the artist everything that is wrong with it at once.

    my_pairs/
        chosen/    weapon/a.png  weapon/a.txt      the preferred images, and the prompt beside either
        rejected/  weapon/a.jpg                    the others, under the same names

The first subfolder names the category, here 'weapon'; images of no subfolder have the category ''. A number
before it, which kohya's trainer reads as repeats, is no part of the name. Beside these folders there may be
two more: safe_prompts/weapon/a.txt, a harmless prompt for the same image, and masks/weapon/a.png, white where
the two images differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..io.image_metadata import prompt_of
from ..io.images import MANY, ImageError, ImageInfo, inspect_images
from ..io.infotext import prompt_in
from ..types import PreferencePair, Problem, ScdpoError
from .listing import LAYOUT, Side, layout_problem, list_side, repeats_note, reserved, without_repeats
from .masks import mask_of
from .problems import in_words, name_in
from .verified_images import KnownImages
from .weights import WEIGHTS, read_weights

SAFE_PROMPTS = "safe_prompts"
"""Folder beside chosen/ and rejected/ with a harmless prompt for each pair, under the pair's name."""

BENIGN_PROMPTS = "benign_prompts.txt"
"""File in a preference folder: harmless prompts, one a line, that training keeps though no pair has them."""

_MAX_PROMPT_BYTES = 65536
_SHOWN = 80


class FolderError(ScdpoError):
    """A preference folder that cannot be trained on; its message names every file with a problem.

    Attributes:
        folder: the folder.
        problems: everything that has to be mended, by file name.
    """

    def __init__(self, folder: Path, problems: Sequence[Problem]) -> None:
        super().__init__(folder, problems)
        self.folder = folder
        self.problems = tuple(problems)

    def __str__(self) -> str:
        count = len(self.problems)
        amount = "1 problem" if count == 1 else f"{count} problems"
        text = in_words(self.problems, self.folder)
        return f"The preference folder {self.folder} cannot be used yet; it has {amount}:\n{text}"


def check_folder(
    folder: Path,
    *,
    notice: Callable[[Problem], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    decode: bool = True,
    known: KnownImages | None = None,
) -> list[PreferencePair]:
    """Return the pairs of a folder that nothing is wrong with; see `read_folder`.

    Args:
        folder: holds chosen/ and rejected/.
        notice: called with what is odd but stops nothing, such as a file that is left out.
        progress: see `read_folder`.
        decode: see `read_folder`.
        known: see `read_folder`.

    Raises:
        FolderError: with every fatal problem at once.
    """
    pairs, problems = read_folder(folder, progress=progress, decode=decode, known=known)
    fatal = [problem for problem in problems if problem.fatal]
    if fatal:
        raise FolderError(folder, fatal)
    if notice is not None:
        for problem in problems:
            notice(problem)
    return pairs


def read_folder(
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    decode: bool = True,
    known: KnownImages | None = None,
) -> tuple[list[PreferencePair], list[Problem]]:
    """Read a preference folder, decoding every image once to see that it is sound.

    Args:
        folder: holds chosen/ and rejected/; hidden files, Thumbs.db and their like are ignored, folders that
            a system made for itself with a note.
        progress: called with the number of images checked and the total.
        decode: whether to; without it only names and prompts are looked at, which takes no time.
        known: images that need no decoding, for they were sound before; those that are found sound are added.

    Returns:
        The pairs that nothing fatal is wrong with, sorted by id, and all problems, sorted by file name.
    """
    misplaced = layout_problem(folder)
    if misplaced is not None:
        return [], [misplaced]
    problems: list[Problem] = []
    chosen, rejected = (list_side(folder / role, problems) for role in ("chosen", "rejected"))
    if any(problem.fatal for problem in problems):
        # What lies in a folder that cannot be read would be reported as missing, file by file.
        return [], problems
    stems = sorted(chosen.images.keys() | rejected.images.keys())
    if not stems:
        problems.append(Problem(folder, f"chosen/ and rejected/ hold no images. {LAYOUT}"))
    images = [*chosen.images.values(), *rejected.images.values()]
    infos = _inspected([file for files in images for file in files], known, progress) if decode else {}
    problems += [Problem(file, info.what) for file, info in infos.items() if isinstance(info, ImageError)]
    for file, info in infos.items():
        if isinstance(info, ImageInfo) and info.frames > 1:
            count = f"{info.frames} or more" if info.frames >= MANY else info.frames
            what = f"this file has {count} frames; the first one is used."
            problems.append(Problem(file, what, fatal=False))
    problems += _left_out(chosen, rejected)
    weights = read_weights(folder, problems)
    pairs = []
    reduced: list[tuple[Path, str]] = []
    for stem in stems:
        prompt = _prompt(stem, chosen, rejected, problems, reduced)
        files = _twins(stem, chosen, rejected, problems)
        # Report every problem of a pair, also where its prompt is missing.
        if files and (not decode or _usable(files, infos, folder, problems)) and prompt:
            safe, mask = safe_prompt_of(folder, stem, problems, reduced), mask_of(folder, stem)
            weight = weights.get(stem, 1.0)
            pairs.append(PreferencePair(stem, prompt, *files, category_of(stem), safe, mask, weight))
    if unknown := sorted(weights.keys() - set(stems)):
        what = f"{len(unknown)} of its lines name no pair of this folder, such as '{unknown[0]}'."
        problems.append(Problem(folder / WEIGHTS, what, fatal=False))
    problems += _changed(folder, stems, pairs, chosen, rejected)
    problems += _reduced(reduced)
    return pairs, sorted(problems, key=lambda problem: (name_in(problem.path, folder), problem.what))


def _inspected(
    files: Sequence[Path], verified: KnownImages | None, progress: Callable[[int, int], None] | None
) -> dict[Path, ImageInfo | ImageError]:
    """Return what each image is, or why it cannot be used; only those that are not known are decoded."""
    verified = verified or KnownImages()
    infos: dict[Path, ImageInfo | ImageError] = {}

    def passed(count: int, _: int = 0) -> None:
        # `progress` may raise to stop, also where nothing needs to be decoded.
        if progress is not None:
            progress(count, len(files))

    for file in files:
        if (remembered := verified.get(file)) is not None:
            infos[file] = remembered
            passed(len(infos))
    done = len(infos)
    decoded = inspect_images(
        [file for file in files if file not in infos], lambda count, of: passed(done + count, of)
    )
    for file, info in decoded.items():
        if isinstance(info, ImageInfo):
            verified.put(file, info)
    return infos | decoded


def safe_prompt_of(folder: Path, stem: str, problems: list[Problem], reduced: list[tuple[Path, str]]) -> str:
    """Return a pair's safe prompt from safe_prompts/; '' where there is none.

    What is left out of it is added to `reduced`.
    """
    file = folder / SAFE_PROMPTS / f"{stem}.txt"
    # Where the name is too long for the file system, pathlib raises.
    if not os.path.isfile(file):
        return ""
    text = _read_prompt(file, reduced)
    if isinstance(text, Problem):
        problems.append(text)
        return ""
    return text


def category_of(stem: str) -> str:
    """Return the category of a pair from its path below chosen/ without its ending."""
    if "/" not in stem:
        return ""
    name = without_repeats(stem.split("/")[0])
    return reserved(name) or name


def _changed(
    folder: Path, stems: Sequence[str], pairs: Sequence[PreferencePair], chosen: Side, rejected: Side
) -> Iterator[Problem]:
    """Yield a note for each way in which what is read differs from the folder's files."""
    without_text = [
        pair for pair in pairs if not (chosen.prompts.get(pair.id) or rejected.prompts.get(pair.id))
    ]
    if without_text:
        what = f"{len(without_text)} pairs have no .txt file: the prompts in their images' metadata are used."
        yield Problem(folder, what, fatal=False)
    note = repeats_note(folder, (stem.split("/")[0] for stem in stems if "/" in stem))
    if note is not None:
        yield note


def _left_out(chosen: Side, rejected: Side) -> Iterator[Problem]:
    for side, other in ((chosen, rejected), (rejected, chosen)):
        for file in side.others:
            what = (
                "this is neither an image (.png, .jpg, .webp, ...) nor a prompt (.txt, .caption), and is "
                "ignored."
            )
            yield Problem(file, what, fatal=False)
        for file in side.unread:
            what = "the prompt is read from the .txt file beside it, and this one is ignored."
            yield Problem(file, what, fatal=False)
        for stem, files in side.prompts.items():
            if stem not in side.images and stem not in other.images:
                what = "there is no image of this name beside it, and is ignored."
                yield from (Problem(file, what, fatal=False) for file in files)


def _twins(stem: str, chosen: Side, rejected: Side, problems: list[Problem]) -> tuple[Path, Path] | None:
    """Return the chosen and the rejected image, if there is exactly one of each."""
    for side, other in ((chosen, rejected), (rejected, chosen)):
        files = side.images.get(stem, [])
        for extra in files[1:]:
            what = f"{files[0].name} beside it has the same name. Keep one of the two."
            problems.append(Problem(extra, what))
        if files and stem not in other.images:
            root = f"{other.root.name}/"
            near = other.in_other_case(stem)
            hint = f" There is {root}{near}: capitals have to agree." if near else ""
            what = f"there is no image of this name in {root}. Add it there, or take this one away.{hint}"
            problems.append(Problem(files[0], what))
    if len(chosen.images.get(stem, [])) == len(rejected.images.get(stem, [])) == 1:
        return chosen.images[stem][0], rejected.images[stem][0]
    return None


def _usable(
    files: tuple[Path, Path],
    infos: Mapping[Path, ImageInfo | ImageError],
    folder: Path,
    problems: list[Problem],
) -> bool:
    """Return whether both images are sound and not the same one."""
    good, bad = infos[files[0]], infos[files[1]]
    if isinstance(good, ImageError) or isinstance(bad, ImageError):
        return False
    other = name_in(files[1], folder)
    if good == bad:
        what = f"{other} is the same image. Put the right one in the place of one of them."
        problems.append(Problem(files[0], what))
        return False
    (width, height), (other_width, other_height) = good.size, bad.size
    # Rounding to whole pixels alone changes the shape of small images by about a hundredth.
    if abs(width * other_height - other_width * height) > 0.01 * width * other_height:
        what = (
            f"this is {width} x {height} pixels and {other} is {other_width} x {other_height}: both are cut "
            "to the same shape round their middles, and then no longer show the same section."
        )
        problems.append(Problem(files[0], what, fatal=False))
    return True


def _reduced(reduced: Sequence[tuple[Path, str]]) -> Iterator[Problem]:
    """Yield one note for all prompts that held more than words."""
    if reduced:
        file, words = reduced[0]
        others = {0: "", 1: " The same holds for 1 other prompt."}.get(
            len(reduced) - 1, f" The same holds for {len(reduced) - 1} other prompts."
        )
        example = words if len(words) <= _SHOWN else f"{words[:_SHOWN]}..."
        what = (
            "its weights, network tags or generation settings, which no text encoder reads as words, are "
            f"left out; what is trained on is '{example}'.{others}"
        )
        yield Problem(file, what, fatal=False)


def _prompt(
    stem: str, chosen: Side, rejected: Side, problems: list[Problem], reduced: list[tuple[Path, str]]
) -> str | None:
    """Return the prompt of a pair, if there is one and no doubt about it.

    What was left out of it is added to `reduced`.
    """
    files = chosen.prompts.get(stem, []) + rejected.prompts.get(stem, [])
    if not files:
        prompt = _prompt_in_metadata(stem, chosen, rejected)
        if prompt:
            return prompt
        image = (chosen.images.get(stem) or rejected.images[stem])[0]
        what = f"it has no prompt. Write the text that it was made for into {image.stem}.txt beside it."
        problems.append(Problem(image, what))
        return None
    read = [_read_prompt(file, reduced) for file in files]
    wrong = [text for text in read if isinstance(text, Problem)]
    if not wrong and len(set(read)) > 1:
        other = name_in(files[0], chosen.root.parent)
        what = f"this differs from {other}. Keep the right one, or make them equal."
        wrong = [Problem(files[-1], what)]
    problems += wrong
    first = read[0]
    return None if wrong or isinstance(first, Problem) else first


def _prompt_in_metadata(stem: str, chosen: Side, rejected: Side) -> str:
    """Return the prompt in the metadata of a pair's images, the chosen one's first; '' if neither has one."""
    for file in (*chosen.images.get(stem, []), *rejected.images.get(stem, [])):
        if file.is_file():
            prompt = prompt_of(file)
            if prompt:
                return prompt
    return ""


def _read_prompt(file: Path, reduced: list[tuple[Path, str]]) -> str | Problem:
    try:
        # Opening a pipe would wait for ever.
        if not file.is_file():
            return Problem(file, "this is not a file. Put a text file with the prompt in its place.")
        with file.open("rb") as stream:
            content = stream.read(_MAX_PROMPT_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        what = f"the prompt cannot be read ({error.strerror}). Give your user permission to read it."
        return Problem(file, what)
    except UnicodeDecodeError:
        text = "\0"
    if len(content) > _MAX_PROMPT_BYTES:
        return Problem(file, "this is over 64 KB of text, no prompt. Write only the prompt into it.")
    if "\0" in text:
        return Problem(file, "this is not UTF-8 text. Save it as UTF-8 (in Notepad: Save as, Encoding).")
    written, prompt = " ".join(text.split()), prompt_in(text)
    if not prompt:
        return Problem(file, "the prompt is empty. Write the text the images were made for into it.")
    # Where a comma alone went, nothing is worth saying.
    if prompt.replace(",", "").split() != written.replace(",", "").split():
        reduced.append((file, prompt))
    return prompt
