"""Folders that repeat, through a whole run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from scdpo_core.config.settings import TrainSettings
from scdpo_core.families import FAMILIES
from scdpo_core.preferences.relabel import unscored
from scdpo_core.preferences.several_folders import check_folders, pair_folders
from scdpo_core.training.checkpoint import OtherRunError
from scdpo_core.training.dataset import encode
from scdpo_core.training.distributed import SingleProcess
from scdpo_core.training.job import run_job
from tests.support.tiny import tiny_pairs, tiny_sd_folder, tiny_settings


def test_pairs_of_a_repeated_folder_come_so_often_and_count_for_resuming(tmp_path: Path) -> None:
    base = tiny_sd_folder(tmp_path / "base")
    first, more = tiny_pairs(tmp_path / "first", 2), tiny_pairs(tmp_path / "more", 2)

    def settings(output: str, *folders: str, **changes: Any) -> TrainSettings:
        return tiny_settings(base, first, tmp_path / output, more_pairs=folders, **changes)

    model = FAMILIES["sd1"].load(base, torch.device("cpu"), torch.float32)
    datasets = []
    for folders in ((), (str(more),), (f"{more}:3",)):
        own = settings("unused", *folders)
        pairs = check_folders(
            pair_folders(first, folders),
            notice=lambda _: None,
            progress=lambda *_: None,
            decode=False,
            known=None,
        )
        datasets.append(
            encode(unscored(pairs), model, own, tmp_path / "cache", SingleProcess(), lambda *_: None)
        )
    plain, once, thrice = datasets
    assert (len(plain.trained), len(once.trained), len(thrice.trained)) == (2, 4, 2 + 3 * 2)
    assert thrice.categories == once.categories == {"benign": 2, "weapon": 2}
    assert len({plain.hash, once.hash, thrice.hash}) == 3
    # Eight places in an epoch of four batches: each pair of the second folder comes three times.
    stream = thrice.stream(settings("unused"), torch.device("cpu"), SingleProcess())
    dealt = Counter(thrice.trained[place] for step in range(4) for place in stream.indices(step))
    assert dealt == {0: 1, 1: 1, 2: 3, 3: 3}

    run_job(settings("run", f"{more}:3", max_train_steps=2))
    with pytest.raises(OtherRunError, match="the preference pairs have changed"):
        run_job(settings("run", f"{more}:2", max_train_steps=4), resume=True)
    result = run_job(settings("run", f"{more}:3", max_train_steps=4), resume=True)
    assert result.lora is not None and result.lora.metadata["scdpo_train_pairs"] == "4"
