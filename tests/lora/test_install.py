from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from scdpo_core.lora.file import save_lora
from scdpo_core.lora.install import publish, published
from scdpo_core.types import ScdpoError

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v"


def finished_run(root: Path, name: str = "calm", value: float = 0.5, samples: int = 4) -> Path:
    run = root / name
    state = {
        f"{MODULE}.down": torch.full((2, 320), value),
        f"{MODULE}.up": torch.full((320, 2), value),
        f"{MODULE}.alpha": torch.tensor(2.0),
    }
    (run / "samples").mkdir(parents=True)
    facts = {"train_pairs": 12, "train_steps": 700}
    save_lora(run / f"{name}.safetensors", state, family="sd1", rank=2, alpha=2.0, facts=facts)
    for step in (0, 700):
        for number in range(samples):
            colour = (step // 3, 50 * number, 0)
            Image.new("RGB", (64, 64), colour).save(run / "samples" / f"step-{step:06d}-{number}.png")
    return run


def test_a_lora_comes_with_card_and_preview(tmp_path: Path) -> None:
    run, shelf = finished_run(tmp_path), tmp_path / "Lora"
    target = publish(run, shelf)
    assert target == shelf / "calm.safetensors" and published(run) == target
    assert target.read_bytes() == (run / "calm.safetensors").read_bytes()
    card = json.loads((shelf / "calm.json").read_text("utf-8"))
    assert card["sd version"] == "SD1" and card["preferred weight"] == 1.0
    assert "12 preference pairs in 700 steps" in card["notes"]
    preview = Image.open(shelf / "calm.png")
    # Two by two of the last drawing, each enlarged from 64 to 256 pixels.
    assert preview.size == (512, 512)
    assert [preview.getpixel(at) for at in ((9, 9), (300, 9), (9, 300))] == [
        (233, 0, 0),
        (233, 50, 0),
        (233, 100, 0),
    ]


def test_the_same_lora_is_put_there_once_and_the_artists_card_stays(tmp_path: Path) -> None:
    run, shelf = finished_run(tmp_path), tmp_path / "Lora"
    publish(run, shelf)
    (shelf / "calm.json").write_text('{"preferred weight": 0.7}', "utf-8")
    assert publish(run, shelf) == shelf / "calm.safetensors"
    assert (shelf / "calm.json").read_text("utf-8") == '{"preferred weight": 0.7}'
    assert sorted(path.name for path in shelf.iterdir()) == ["calm.json", "calm.png", "calm.safetensors"]


def test_another_lora_of_that_name_is_not_touched(tmp_path: Path) -> None:
    shelf = tmp_path / "Lora"
    publish(finished_run(tmp_path / "one", value=0.1), shelf)
    before = (shelf / "calm.safetensors").read_bytes()
    assert publish(finished_run(tmp_path / "two", value=0.2), shelf) == shelf / "calm-2.safetensors"
    assert (shelf / "calm.safetensors").read_bytes() == before


def test_a_card_names_the_base_as_its_host_does(tmp_path: Path) -> None:
    for number, (versions, name) in enumerate(
        (
            ([], "SD1"),  # nobody was asked
            (["Unknown", "SD1", "SD2", "SDXL"], "SD1"),  # A1111, Forge
            (["Unknown", "sd", "xl", "flux", "zit"], "sd"),  # Forge Neo
            (["Unknown", "zit"], "Unknown"),
        )
    ):
        run, shelf = finished_run(tmp_path / f"runs{number}"), tmp_path / f"Lora{number}"
        publish(run, shelf, versions=versions)
        assert json.loads((shelf / "calm.json").read_text("utf-8"))["sd version"] == name


def test_other_folders_of_the_host_are_looked_into(tmp_path: Path) -> None:
    shelf, more = tmp_path / "Lora", tmp_path / "more"
    more.mkdir()
    # The artist moved it there: it stays, and is not put beside it again.
    run = finished_run(tmp_path / "one", value=0.1)
    (more / "calm.safetensors").write_bytes((run / "calm.safetensors").read_bytes())
    assert publish(run, shelf, others=[more]) == more / "calm.safetensors"
    assert not (shelf / "calm.safetensors").exists()
    # Another one of that name there would be taken for ours by the host, which knows names alone.
    other = finished_run(tmp_path / "two", value=0.2)
    assert publish(other, shelf, others=[more]) == shelf / "calm-2.safetensors"


def test_a_run_without_samples_has_no_preview(tmp_path: Path) -> None:
    publish(finished_run(tmp_path, samples=0), tmp_path / "Lora")
    assert not (tmp_path / "Lora" / "calm.png").exists()


def test_a_run_without_a_lora_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScdpoError, match=r"empty\.safetensors"):
        publish(tmp_path / "empty", tmp_path / "Lora")
    assert published(tmp_path / "empty") is None
