"""Files that would take much time or memory: bounds, and what is said where one is reached."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scdpo_core.io import image_frames
from scdpo_core.io.decode_budget import DecodeBudget
from scdpo_core.io.images import MANY, inspect_images, open_image, upright_size
from scdpo_core.scoring.run import FolderRun
from scdpo_core.scoring.table import Row
from tests.support.scoring_helpers import Redness, noisy, plain


def run(*files: Path, **settings: object) -> dict[str, Row]:
    return {Path(row.path).name: row for row in FolderRun(Redness(), **settings).rows(files)}


def many_pages(path: Path, count: int) -> Path:
    """A TIFF of so many pages of one grey pixel."""
    fields = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1)]
    size = 2 + 12 * len(fields) + 4
    pages = []
    for number in range(count):
        start = 10 + size * number
        following = start + size if number < count - 1 else 0
        listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
        pages.append(struct.pack("<H", len(fields)) + listed + struct.pack("<I", following))
    path.write_bytes(b"II*\0" + struct.pack("<I", 10) + b"\x80\0" + b"".join(pages))
    return path


def noisy_png_with(path: Path, kind: str) -> Path:
    """A small PNG with a text or a profile beyond Pillow's bounds."""
    stream = io.BytesIO()
    noisy(8, 8).save(stream, "PNG")
    whole, large = stream.getvalue(), zlib.compress(bytes(3 << 20))

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    text = chunk(b"zTXt", b"workflow\0\0" + large)
    added = {
        "zTXt": text,
        "iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + large),
        "iCCP": chunk(b"iCCP", b"profile\0\0" + large),
        "late zTXt": text,
        "many": b"".join(chunk(b"tEXt", b"k%d\0" % k + b"a" * (1 << 20)) for k in range(66)),
    }[kind]
    place = whole.index(b"IEND") - 4 if kind == "late zTXt" else 33
    path.write_bytes(whole[:place] + added + whole[place:])
    return path


def test_long_animations_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("L", (4, 4), k) for k in range(100)]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    seen = []

    class Counting(Redness):
        def prepare(self, image: Image.Image) -> np.ndarray:
            seen.append(image)
            return super().prepare(image)

    list(FolderRun(Counting(), every=1).rows([path]))
    assert len(seen) == image_frames.MAX_FRAMES
    monkeypatch.setattr(image_frames, "MAX_ANIMATION_PIXELS", 10 * 16)
    assert "too long" in (run(path, every=1)["a.gif"].error or "")
    assert run(path)["a.gif"].cost is not None


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_frames, "BUDGET", DecodeBudget(200 * 200 * 16))
    together, most = 0, 0
    lock = threading.Lock()

    class Watching(Redness):
        def prepare(self, image: Image.Image) -> np.ndarray:
            nonlocal together, most
            with lock:
                together += 1
                most = max(most, together)
            view = super().prepare(image)
            with lock:
                together -= 1
            return view

    files = [plain(tmp_path / f"{k}.png", (k, 0, 0), size=200) for k in range(8)]
    assert len(list(FolderRun(Watching(), workers=4).rows(files))) == 8
    assert most == 1


def test_pages_without_number_take_no_time(tmp_path: Path) -> None:
    path = many_pages(tmp_path / "a.tif", 60_000)
    began = time.process_time()
    assert run(path, every=1)["a.tif"].cost is not None
    assert "too many pages" in (run(path, every=1000)["a.tif"].error or "")
    looks = inspect_images([path])
    assert looks[path].frames == MANY
    assert time.process_time() - began < 10


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP", "late zTXt", "many"])
def test_large_texts_and_profiles_do_not_spoil_an_image(tmp_path: Path, kind: str) -> None:
    path = noisy_png_with(tmp_path / "a.png", kind)
    with pytest.raises(ValueError, match="MAX_TEXT"), Image.open(path) as image:
        image.load()
    assert run(path)["a.png"].error is None
    assert open_image(path).tobytes() == noisy(8, 8).tobytes()
    assert upright_size(path) == (8, 8)


@pytest.mark.slow
def test_large_images_on_many_threads_stay_within_a_budget(tmp_path: Path) -> None:
    image = Image.new("RGBA", (10_000, 10_000), (200, 30, 30, 120))
    for number in range(4):
        image.putpixel((number, 0), (0, 0, 0, 255))
        image.save(tmp_path / f"{number}.png", compress_level=1)
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.support.scoring_fuzz import most_megabytes, Redness, FolderRun\n"
        "from scdpo_core.io.images import ImageInfo, inspect_images\n"
        "files = [Path(name) for name in sys.argv[1:]]\n"
        "rows = list(FolderRun(Redness(), workers=4).rows(files))\n"
        "assert all(row.error is None for row in rows), rows\n"
        "assert all(isinstance(info, ImageInfo) for info in inspect_images(files).values())\n"
        "print(most_megabytes())"
    )
    files = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *files],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    # One alone takes 1,470, of which 220 are Python and torch; four took 5,300 without a budget.
    assert int(ran.stdout) < 2400
