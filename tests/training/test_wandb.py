"""A real run into the real wandb, offline: what a run's file there holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scdpo_core.run_store.events import Event, Progress, Warned
from scdpo_core.training.job import run_job
from tests.support.tiny import tiny_pairs, tiny_sd_folder, tiny_settings

# 75 MB with what it needs, for one test: it is no part of the `test` extra.
pytest.importorskip("wandb", reason="wandb is not installed: pip install -c constraints.txt -e '.[wandb]'")

_HEAD, _BLOCK = 7, 32768
_FULL, _LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """What a .wandb file holds: wandb's messages in LevelDB's log format.

    After seven bytes of its own come pieces in blocks of 32 KiB: checksum (4 bytes), length (2), kind, data.
    """
    from wandb.proto import wandb_internal_pb2

    raw, place, message = path.read_bytes(), _HEAD, b""
    while place < len(raw):
        left = _BLOCK - place % _BLOCK
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
        message += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            yield record
            message = b""


def test_an_offline_run_holds_every_figure_and_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    base, pairs, folder = (
        tiny_sd_folder(tmp_path / "base"),
        tiny_pairs(tmp_path / "pairs", 4),
        tmp_path / "calm",
    )
    heard: list[Event] = []
    settings = tiny_settings(base, pairs, folder, track=("wandb",), samples=1, max_train_steps=4, log_every=1)
    run_job(settings, listen=heard.append)
    assert not any(isinstance(event, Warned) for event in heard)

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    kept = list(records(file))
    assert [record.run.display_name for record in kept if record.HasField("run")] == ["calm"]
    rows = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in kept
        if record.HasField("history")
    ]
    told = [event for event in heard if isinstance(event, Progress) and event.phase == "train"]
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == [
        (event.step, event.metrics["loss"]) for event in told
    ]
    drawn = {row["step"]: row["samples/0.path"] for row in rows if "samples/0.path" in row}
    assert list(drawn) == [0, 4]
    assert all((file.parent / "files" / path).is_file() for path in drawn.values())
