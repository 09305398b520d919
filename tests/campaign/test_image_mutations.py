"""Thousands of damaged images, metadata and prompts through every reader: a result, a problem or a sentence.

    python -m pytest -m slow tests/campaign/test_image_mutations.py

Each part is decided by its seed, and runs in a process of its own, so that a crash of a decoder, a hang or a
flood of memory is seen from outside.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

MOST_SECONDS = 5.0
MOST_MEGABYTES = 2500
COUNT = 1000
"""Inputs of each part."""
_ODD = (
    "(",
    ")",
    "[",
    "]",
    ":",
    ",",
    "|",
    "\\",
    "<lora:",
    ">",
    "BREAK",
    " AND ",
    "{",
    "}",
    "\0",
    "\ud800",
    "\ufeff",
)
_TEXT = (
    "a cat, (red:1.2) hat <lora:x:1>\nNegative prompt: bad\nSteps: 20, Sampler: Euler a, Seed: 1",
    '{"prompt": "a cat", "uc": "bad"}',
    '{"sui_image_params": {"prompt": "a cat"}}',
    "女の子 BREAK [cat:dog:0.5]",
)


def mutated_text(rng: random.Random) -> str:
    """A prompt or infotext with parts cut out, doubled many times, or odd signs put in."""
    text = rng.choice(_TEXT)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(text) + 1)
        how = rng.randrange(4)
        piece = text[at : at + rng.randint(1, 20)] or ","
        if how == 0:
            text = text[:at] + text[at + rng.randint(1, 20) :]
        elif how == 1:
            text = text[:at] + piece * min(rng.choice((2, 50, 20_000)), 400_000 // len(piece)) + text[at:]
        else:
            text = text[:at] + rng.choice(_ODD) * rng.choice((1, 1, 3, 10_000)) + text[at:]
        text = text[:500_000]
    return text


def mutated_graph(rng: random.Random) -> str:
    """A graph of ComfyUI with links at random, circles among them, and values of wrong kinds."""
    kinds = (
        "KSampler",
        "CLIPTextEncode",
        "Text Concatenate",
        "ConditioningCombine",
        "SaveImage",
        "BasicGuider",
        "",
    )
    inputs = (
        "positive",
        "negative",
        "text",
        "text_a",
        "text_b",
        "conditioning_1",
        "samples",
        "guider",
        "any_01",
    )
    count = rng.choice((1, 5, 30, 200))

    def value() -> object:
        odd = (None, [], {}, "a cat", 3, True, [[]], {"__value__": "a"}, ["x"], float("nan"), "," * 1000)
        return [str(rng.randrange(count)), rng.randrange(3)] if rng.random() < 0.8 else rng.choice(odd)

    graph: dict[str, object] = {}
    for number in range(count):
        given = {name: value() for name in rng.sample(inputs, rng.randint(1, len(inputs)))}
        node = {"class_type": rng.choice((*kinds, None, 3)), "inputs": given}
        graph[str(number)] = node if rng.random() < 0.95 else value()
    text = json.dumps(graph)
    return text if rng.random() < 0.9 else text[: rng.randrange(len(text))]


def with_metadata(rng: random.Random, path: Path) -> None:
    """Write an image with texts that were tampered with, in a container of any kind, damaged now and then."""
    from PIL import Image, PngImagePlugin

    from tests.support.scoring_helpers import noisy

    image = noisy(16, 16, rng.randrange(100))
    text = mutated_graph(rng) if rng.random() < 0.5 else mutated_text(rng)
    raw = text.encode("utf-8", "surrogatepass")
    kind = rng.choice(("PNG", "PNG", "JPEG", "WEBP"))
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        name = rng.choice((b"parameters", b"prompt", b"invokeai_metadata", b"Comment"))
        head = {b"tEXt": b"", b"zTXt": b"\0", b"iTXt": b"\0\0\0\0", b"comf": b""}
        chunk = rng.choice([*head])
        info.add(chunk, name + b"\0" + head[chunk] + raw[:2_000_000])
        image.save(path, "PNG", pnginfo=info)
    else:
        exif = Image.Exif()
        encoded = rng.choice((raw, text.encode("utf-16-le", "replace"), text.encode("utf-16-be", "replace")))
        code = rng.choice((b"UNICODE\0", b"ASCII\0\0\0", bytes(8), b"JIS\0\0\0\0\0", b""))
        exif.get_ifd(0x8769)[0x9286] = (code + encoded)[:60_000]
        image.save(path, kind, exif=exif)
    if rng.random() < 0.3:
        data = bytearray(path.read_bytes())
        for _ in range(rng.choice((1, 4, 16))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randint(1, len(data))] if rng.random() < 0.2 else data)


def read_metadata(rng: random.Random, folder: Path) -> None:
    from scdpo_core.io.image_metadata import prompt_of
    from scdpo_core.io.infotext import MAX_PROMPT

    path = folder / "a.png"
    with_metadata(rng, path)
    prompt = prompt_of(path)
    assert len(prompt) <= MAX_PROMPT and "\n" not in prompt


def read_image(rng: random.Random, folder: Path) -> None:
    from scdpo_core.io.image_metadata import prompt_of
    from scdpo_core.io.images import ImageError, ImageInfo, inspect_images, upright_size
    from scdpo_core.scoring.run import FolderRun
    from tests.support.scoring_fuzz import mutated
    from tests.support.scoring_helpers import Redness

    path = folder / rng.choice(("a.png", "a", "a.tif"))
    path.write_bytes(mutated(rng))
    looks = inspect_images([path])
    assert isinstance(looks[path], ImageInfo | ImageError)
    (row,) = FolderRun(Redness(), every=rng.choice((0, 1, 7))).rows([path])
    assert (row.cost is None) != (row.error is None)
    prompt_of(path)
    with suppress(ImageError):
        upright_size(path)


def read_folder_of_prompts(rng: random.Random, folder: Path) -> None:
    from scdpo_core.preferences.folder import read_folder
    from scdpo_core.preferences.labelling_session import images_in, propose
    from scdpo_core.preferences.summary import survey
    from tests.support.scoring_helpers import noisy

    root = folder / "pairs"
    stem = rng.choice(("a", os.fsdecode(b"caf\xe9"), "n" * 240, "a\nb", "..b"))
    for number, half in enumerate(("chosen", "rejected")):
        (root / half).mkdir(parents=True)
        noisy(8, 8, number).save(root / half / f"{stem}.png", "PNG")
        name = rng.choice((f"{stem}.txt", f"{stem}.caption", f"{stem}.png.txt", f"{stem}.json"))
        content = rng.choice((mutated_text(rng)[:100_000], mutated_graph(rng)[:100_000]))
        raw = content.encode(rng.choice(("utf-8", "utf-8-sig", "utf-16", "latin-1")), "replace")
        (root / half / name).write_bytes(raw if rng.random() < 0.8 else rng.randbytes(200))
    pairs, problems = read_folder(root)
    assert pairs or problems
    assert survey(root).report()
    propose(images_in(root), root)


PARTS: dict[str, Callable[[random.Random, Path], None]] = {
    "metadata": read_metadata,
    "images": read_image,
    "prompts": read_folder_of_prompts,
}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_input_ends_in_a_result_or_a_sentence(part: str, seed: int, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, __file__, part, str(seed), str(COUNT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout)
    assert found["inputs"] == COUNT
    assert found["slowest"] < MOST_SECONDS
    assert found["megabytes"] < MOST_MEGABYTES


def main() -> None:
    import shutil

    from tests.support.scoring_fuzz import most_megabytes

    part, seed, count, place = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    warnings.simplefilter("ignore")
    slowest = 0.0
    for number in range(count):
        folder = place / str(number)
        folder.mkdir()
        rng = random.Random(f"{part} {seed} {number}")
        began = time.process_time()
        try:
            PARTS[part](rng, folder)
        except BaseException:
            print(f"{part}, seed {seed}, input {number}, kept in {folder}", file=sys.stderr)
            raise
        slowest = max(slowest, time.process_time() - began)
        shutil.rmtree(folder)
    print(json.dumps({"inputs": count, "slowest": round(slowest, 2), "megabytes": most_megabytes()}))


if __name__ == "__main__":
    main()
