"""Damage images at random. `python tests/support/scoring_fuzz.py COUNT SEED FOLDER` scores COUNT of them.

The command runs in a process of its own, so that a crash of a decoder or a hang is seen from outside.
"""

from __future__ import annotations

import io
import json
import random
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from PIL import Image, PngImagePlugin, features  # noqa: E402

from scdpo_core.scoring.run import FolderRun  # noqa: E402
from tests.support.scoring_helpers import Redness, noisy  # noqa: E402

INTERESTING = (b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80", b"\0\0\0\0")


@cache
def whole_files() -> tuple[bytes, ...]:
    """One sound file of each kind that matters, small."""

    def saved(image: Image.Image, kind: str, **options: object) -> bytes:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        return stream.getvalue()

    small, frames = noisy(24, 18), [noisy(12, 12, seed) for seed in range(3)]
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat, steps: 20", zip=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    moving = {"save_all": True, "append_images": frames}
    files = [
        saved(small, "PNG", pnginfo=info),
        saved(small.convert("RGBA"), "PNG", exif=exif),
        saved(small.quantize(16), "PNG", transparency=0),
        saved(small.convert("I;16"), "PNG"),
        saved(frames[0], "PNG", **moving),
        saved(small, "JPEG", exif=exif),
        saved(small, "JPEG", progressive=True),
        saved(small.convert("CMYK"), "JPEG"),
        saved(small, "GIF"),
        saved(frames[0], "GIF", **moving),
        saved(small, "BMP"),
        saved(small, "TIFF"),
        saved(small, "TIFF", compression="tiff_lzw"),
        saved(small, "TIFF", compression="tiff_deflate", **moving),
        saved(small, "PPM"),
        saved(small, "TGA"),
        saved(small, "ICO"),
        saved(small, "PCX"),
        saved(small, "SGI"),
        saved(small, "DDS"),
        saved(small, "ICNS"),
    ]
    if features.check("webp"):
        files += [saved(small, "WEBP"), saved(frames[0], "WEBP", **moving)]
    if features.check("jpg_2000"):
        files.append(saved(small, "JPEG2000"))
    if features.check("avif"):
        files.append(saved(small, "AVIF"))
    return tuple(files)


def mutated(rng: random.Random) -> bytes:
    """A sound file with a few bytes changed, cut out, doubled, moved in from another file, or cut off."""
    data = bytearray(rng.choice(whole_files()))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(6)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            value = rng.choice(INTERESTING)
            data[at : at + len(value)] = value
        elif how == 2:
            del data[at : at + rng.randint(1, 64)]
        elif how == 3:
            data[at:at] = data[at : at + rng.randint(1, 64)]
        elif how == 4:
            other = rng.choice(whole_files())
            start = rng.randrange(len(other))
            data[at:at] = other[start : start + rng.randint(1, 64)]
        elif at:
            del data[at:]
    return bytes(data)


def write(folder: Path, count: int, seed: int) -> list[Path]:
    """So many damaged files."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number}.png" for number in range(count)]
    for path in files:
        path.write_bytes(mutated(rng))
    return files


def score_in_parts(folder: Path, count: int, seed: int) -> Iterator[tuple[int, int]]:
    """Scored and refused files of every part of 500."""
    for start in range(0, count, 500):
        files = write(folder, min(500, count - start), seed + start)
        rows = list(FolderRun(Redness(), every=1).rows(files))
        assert len(rows) == len(files)
        assert all((row.cost is None) != (row.error is None) for row in rows)
        yield sum(row.cost is not None for row in rows), sum(row.error is not None for row in rows)


def most_megabytes() -> int:
    """Most memory that this process ever had."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's ru_maxrss begins with what the process that started this one has.
        return int(status.read_text("utf-8").split("VmHWM:")[1].split()[0]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    count, seed, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    warnings.simplefilter("ignore")
    began = time.monotonic()
    parts = list(score_in_parts(folder, count, seed))
    found = {
        "scored": sum(scored for scored, _ in parts),
        "refused": sum(refused for _, refused in parts),
        "seconds": round(time.monotonic() - began, 1),
        "megabytes": most_megabytes(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
