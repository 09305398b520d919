"""HEIC and AVIF, with Pillow's own reader and with the plug-ins, where those are installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, features

from scdpo_core.io import image_types
from scdpo_core.scoring.run import FolderRun
from tests.support.scoring_helpers import Redness, plain

ROOT = Path(__file__).resolve().parents[2]
_HEIC = [name for name in ("pillow_heif", "pi_heif") if importlib.util.find_spec(name)]

needs_avif = pytest.mark.skipif(
    not features.check("avif") and importlib.util.find_spec("pillow_avif") is None,
    reason="neither this Pillow nor pillow-avif-plugin reads AVIF",
)
needs_heic = pytest.mark.skipif(
    importlib.util.find_spec("pillow_heif") is None, reason="needs pillow-heif, to write the image"
)


@needs_avif
def test_avif(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.avif", (250, 10, 10), size=32, quality=95)
    (row,) = FolderRun(Redness()).rows([path])
    assert row.error is None and row.cost == pytest.approx(240 / 51, abs=0.3)
    path.write_bytes(path.read_bytes()[:-40])
    (row,) = FolderRun(Redness()).rows([path])
    assert row.cost is None and "damaged" in (row.error or "")


@needs_avif
def test_frames_of_a_moving_avif(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("blue", "red", "lime")]
    frames[0].save(path, save_all=True, append_images=frames[1:], quality=95)
    (first,), (worst,) = (FolderRun(Redness(), every=every).rows([path]) for every in (0, 1))
    assert (first.frame, worst.frame) == (0, 1) and worst.cost == pytest.approx(5.0, abs=0.3)


@needs_heic
@pytest.mark.parametrize("reader", _HEIC)
def test_heic(tmp_path: Path, reader: str) -> None:
    """In a process of its own, because a plug-in that is registered stays; turned by its own EXIF."""
    import pillow_heif

    image = Image.new("RGB", (64, 48), (250, 10, 10))
    pillow_heif.from_pillow(image).save(tmp_path / "a.heic", quality=90)
    (tmp_path / "b.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:-60])
    code = (
        "import sys, pathlib\n"
        "from scdpo_core.io import image_types\n"
        f"image_types._HEIC_PLUGINS = ({reader!r},)\n"
        "from scdpo_core.scoring.run import FolderRun\n"
        "from tests.support.scoring_helpers import Redness\n"
        "rows = FolderRun(Redness()).rows(list(pathlib.Path(sys.argv[1]).iterdir()))\n"
        "for row in sorted(rows, key=lambda row: row.path):\n"
        "    print(row.cost, row.error)\n"
    )
    path = os.pathsep.join([str(ROOT), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    sound, cut = run.stdout.splitlines()
    assert float(sound.split()[0]) == pytest.approx(240 / 51, abs=0.3) and sound.endswith("None")
    assert cut.startswith("None the image is damaged")


@pytest.mark.parametrize(("brand", "package"), [(b"heic", "pi-heif"), (b"avif", "pillow-avif-plugin")])
def test_without_a_plugin_the_reason_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brand: bytes, package: str
) -> None:
    kinds = tuple(kind for kind in image_types.formats() if kind not in ("HEIF", "AVIF"))
    monkeypatch.setattr(image_types, "formats", lambda: kinds)
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(200))
    (row,) = FolderRun(Redness()).rows([path])
    assert row.cost is None and f"needs the package '{package}'" in (row.error or "")
