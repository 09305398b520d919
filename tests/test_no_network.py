"""Training from a single file tries the network not once, though nothing tells it to stay offline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scdpo_core.config.settings import to_toml
from scdpo_core.families import FAMILIES
from scdpo_core.lora.file import read_lora_info
from tests.support.no_network import without_network
from tests.support.original_files import write_full_sd15, write_sd2_file, write_sd3_file, write_sdxl_file
from tests.support.tiny import tiny_pairs, tiny_pipeline, tiny_settings, write_single_file
from tests.support.tiny_families import sd2_pipeline, sd3_pipeline, sdxl_pipeline
from tests.trainer.test_train_lora import PROGRAM

# The program, with the configurations of a tiny model in place of those of the full size that ship.
TINY = """
import runpy, sys
from pathlib import Path
from scdpo_core.families import components
components.CONFIGS = Path(sys.argv.pop(1))
del sys.argv[0]
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def python(folder: Path, *arguments: object) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What a Python without a network says, and what it tried to reach."""
    environment, log = without_network(folder)
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=PROGRAM.parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done, log.read_text("utf-8").splitlines()


def job(base: Path | str, tmp_path: Path, **changes: Any) -> Path:
    settings = tiny_settings(
        base, tiny_pairs(tmp_path / "pairs", 4), tmp_path / "lora", max_train_steps=1, samples=1, **changes
    )
    path = tmp_path / "job.toml"
    path.write_text(to_toml(settings), "utf-8")
    return path


@pytest.mark.parametrize(
    ("family", "make", "write"),
    [
        ("sd1", tiny_pipeline, write_single_file),
        ("sd2", sd2_pipeline, write_sd2_file),
        ("sdxl", sdxl_pipeline, write_sdxl_file),
        ("sd3", sd3_pipeline, write_sd3_file),
    ],
)
def test_a_single_file_trains_without_a_network(family: str, make: Any, write: Any, tmp_path: Path) -> None:
    pipeline = make(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "configs" / family)
    base = write(pipeline, tmp_path / "base.safetensors")
    # T5's vocabulary is in no file of version 3.
    more = {"text_encoders": tmp_path / "configs" / family} if family == "sd3" else {}
    config = job(base, tmp_path, **more)
    done, attempts = python(tmp_path, "-c", TINY, tmp_path / "configs", PROGRAM, "--config", config)
    assert done.returncode == 0, done.stderr
    assert attempts == []
    assert read_lora_info(tmp_path / "lora" / "lora.safetensors").family == family


@pytest.mark.slow
def test_the_full_size_trains_with_the_configurations_that_ship(tmp_path: Path) -> None:
    base = write_full_sd15(tmp_path / "sd15.safetensors")
    small = {"width": 64, "height": 64, "batch_size": 1, "gradient_checkpointing": True}
    done, attempts = python(tmp_path, PROGRAM, "--config", job(base, tmp_path, **small))
    assert done.returncode == 0, done.stderr
    assert attempts == []


def test_the_words_of_every_family_ship(tmp_path: Path) -> None:
    read = """
from scdpo_core.families import FAMILIES
from scdpo_core.families.text_encoders import CONFIGS, clip_tokenizer
for family in FAMILIES.values():
    for part in family.layout.texts:
        if part.own_tokenizer:
            tokenizer = clip_tokenizer(CONFIGS / family.layout.configs / part.tokenizer)
            print(family.name, len(tokenizer("a photo of a cat").input_ids))
"""
    done, attempts = python(tmp_path, "-c", read)
    assert done.returncode == 0, done.stderr
    # Begin, five words, end.
    assert {tuple(line.split()) for line in done.stdout.splitlines()} == {
        (name, "7")
        for name, family in FAMILIES.items()
        if any(part.own_tokenizer for part in family.layout.texts)
    }
    assert attempts == []


def test_an_attempt_would_be_seen(tmp_path: Path) -> None:
    done, attempts = python(tmp_path, PROGRAM, "--config", job("someone/a-model", tmp_path))
    assert done.returncode == 2
    assert "There is no someone/a-model on this machine, and the model hub cannot be reached" in done.stderr
    assert any("socket.getaddrinfo" in attempt for attempt in attempts)
