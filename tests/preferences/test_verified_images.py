"""Images found sound are not decoded again; one that changed is, and nothing strange is believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scdpo_core.io.images import ImageInfo, inspect_images
from scdpo_core.preferences import folder as folders
from scdpo_core.preferences.folder import check_folder, read_folder
from scdpo_core.preferences.verified_images import KnownImages


def _folder(root: Path) -> Path:
    for index, role in enumerate(("chosen", "rejected")):
        (root / role).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8 + number, 9), (40 * number, 90 * index, 7)).save(
                root / role / f"{number}.png"
            )
    for number in range(3):
        (root / "chosen" / f"{number}.txt").write_text("a cat", "utf-8")
    return root


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are decoded from now on, as role/name."""
    seen: list[str] = []

    def counted(paths: list[Path], progress: Any = None) -> Any:
        seen.extend(f"{path.parent.name}/{path.name}" for path in paths)
        return inspect_images(paths, progress)

    monkeypatch.setattr(folders, "inspect_images", counted)
    return seen


def test_a_second_start_decodes_nothing_and_says_the_same(tmp_path: Path, decoded: list[str]) -> None:
    root, file = _folder(tmp_path / "pairs"), tmp_path / "cache" / "images.json"
    known = KnownImages(file)
    first = check_folder(root, known=known)
    known.write()
    assert len(decoded) == 6
    ticks: list[tuple[int, int]] = []
    again = check_folder(root, known=KnownImages(file), progress=lambda done, of: ticks.append((done, of)))
    assert again == first and len(decoded) == 6
    assert ticks == [(done, 6) for done in range(1, 7)]  # a stop must be heard all the same


def test_only_what_changed_is_decoded(tmp_path: Path, decoded: list[str]) -> None:
    root, known = _folder(tmp_path), KnownImages()
    check_folder(root, known=known)
    decoded.clear()
    Image.new("RGB", (20, 20), "blue").save(root / "chosen" / "1.png")
    touched = root / "rejected" / "2.png"
    os.utime(touched, ns=(1, touched.stat().st_mtime_ns + 1))
    ticks: list[tuple[int, int]] = []
    check_folder(root, known=known, progress=lambda done, of: ticks.append((done, of)))
    assert sorted(decoded) == ["chosen/1.png", "rejected/2.png"]
    assert ticks == [(done, 6) for done in range(1, 7)]
    assert known.get(root / "chosen" / "1.png") == inspect_images([root / "chosen" / "1.png"]).popitem()[1]


def test_a_damaged_image_is_looked_at_each_time(tmp_path: Path, decoded: list[str]) -> None:
    root, file = _folder(tmp_path / "pairs"), tmp_path / "images.json"
    (root / "chosen" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    known = KnownImages(file)
    before = read_folder(root, known=known)[1]
    known.write()
    decoded.clear()
    assert read_folder(root, known=KnownImages(file))[1] == before
    assert decoded == ["chosen/0.png"] and any(problem.fatal for problem in before)


@pytest.mark.parametrize(
    "changed",
    [
        {"width": 0},
        {"height": 1 << 40},
        {"width": "8"},
        {"frames": 0},
        {"digest": "no"},
        {"digest": 3},
        {"mtime_ns": None},
    ],
)
def test_what_somebody_wrote_into_the_file_is_not_believed(
    tmp_path: Path, changed: dict[str, object]
) -> None:
    image, file = tmp_path / "a.png", tmp_path / "images.json"
    Image.new("RGB", (8, 8)).save(image)
    known = KnownImages(file)
    known.put(image, ImageInfo((8, 8), b"\x01" * 16))
    known.write()
    assert KnownImages(file).get(image) == ImageInfo((8, 8), b"\x01" * 16)
    content = json.loads(file.read_text("utf-8"))
    content["images"][str(image)] |= changed
    file.write_text(json.dumps(content), "utf-8")
    assert KnownImages(file).get(image) is None


def test_a_missing_image_and_a_missing_file_know_nothing(tmp_path: Path) -> None:
    known = KnownImages(tmp_path / "images.json")
    known.put(tmp_path / "gone.png", ImageInfo((8, 8), b""))
    known.write()
    assert known.get(tmp_path / "gone.png") is None and not (tmp_path / "images.json").exists()
