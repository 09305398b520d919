"""Small sources in the layouts that tools and data sets publish, for the tests of the importers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scdpo_core.importers.job import ImportJob
from scdpo_core.importers.run import ImportOutcome, run_import
from scdpo_core.preferences.folder import check_folder
from scdpo_core.types import PreferencePair


def image_bytes(number: int, kind: str = "PNG", side: int = 16) -> bytes:
    """A file of an image that no other number has."""
    noise = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


def write_image(path: Path, number: int, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(number, kind))
    return path


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def write_parquet(
    path: Path, rows: Sequence[Mapping[str, Any]], row_group_size: int = 100, **more: Any
) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(list(rows))
    pyarrow.parquet.write_table(table, str(path), row_group_size=row_group_size, **more)
    return path


def pickapic_row(number: int, label: float, caption: str = "") -> dict[str, Any]:
    """A row of yuvalkirstain/pickapic_v2, whose images are JPEG bytes."""
    uids = [f"uid-{number}-0", f"uid-{number}-1"]
    best = "tie" if label == 0.5 else uids[0 if label == 1 else 1]
    return {
        "are_different": True,
        "best_image_uid": best,
        "caption": caption or f"a castle number {number}",
        "created_at": "2023-06-30",
        "has_label": True,
        "image_0_uid": uids[0],
        "image_0_url": "https://example.invalid/0.png",
        "image_1_uid": uids[1],
        "image_1_url": "https://example.invalid/1.png",
        "jpg_0": image_bytes(2 * number, "JPEG"),
        "jpg_1": image_bytes(2 * number + 1, "JPEG"),
        "label_0": label,
        "label_1": 1 - label,
        "model_0": "a",
        "model_1": "b",
        "ranking_id": number,
        "user_id": 1,
        "num_example_per_prompt": 2,
    }


def imported(source: Path | None, output: Path, **more: Any) -> ImportOutcome:
    return run_import(ImportJob(output, source, **more))


def pairs_in(output: Path) -> list[PreferencePair]:
    """The pairs of a folder that training takes as it is."""
    return check_folder(output)


def holds(pair: PreferencePair, chosen: bytes, rejected: bytes) -> bool:
    """Whether a pair's files are these, byte for byte."""
    return pair.chosen.read_bytes() == chosen and pair.rejected.read_bytes() == rejected
