"""Finished files put into a host's folder, with card and preview; nothing there is replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from scdpo_core.lora.file import save_lora
from scdpo_core.runs.install_result import install, installed, name_taken
from scdpo_core.types import ScdpoError

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v"


def finished_run(root: Path, name: str = "calm", value: float = 0.5, preview: bool = True) -> Path:
    run = root / name
    state = {
        f"{MODULE}.down": torch.full((2, 320), value),
        f"{MODULE}.up": torch.full((320, 2), value),
        f"{MODULE}.alpha": torch.tensor(2.0),
    }
    run.mkdir(parents=True)
    save_lora(
        run / f"{name}.safetensors",
        state,
        family="sd1",
        rank=2,
        alpha=2.0,
        facts={},
        notes="Trained on 12 pairs.",
        preview=Image.new("RGB", (64, 64), (233, 0, 0)) if preview else None,
    )
    return run


def test_a_lora_comes_with_card_and_preview(tmp_path: Path) -> None:
    run, folder = finished_run(tmp_path), tmp_path / "Lora"
    target = install(run, folder)
    assert target == folder / "calm.safetensors" and installed(run) == target
    assert target.read_bytes() == (run / "calm.safetensors").read_bytes()
    card = json.loads((folder / "calm.json").read_text("utf-8"))
    assert card["sd version"] == "SD1" and card["preferred weight"] == 1.0
    assert card["notes"] == "Trained on 12 pairs."
    assert Image.open(folder / "calm.png").getpixel((9, 9)) == (233, 0, 0)


def test_the_same_file_is_put_there_once_and_the_artists_card_stays(tmp_path: Path) -> None:
    run, folder = finished_run(tmp_path), tmp_path / "Lora"
    assert name_taken(run, folder) == ""
    target = install(run, folder)
    written = target.stat().st_mtime_ns
    (folder / "calm.json").write_text('{"preferred weight": 0.7}', "utf-8")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "calm.png")
    assert name_taken(run, folder) == ""
    assert install(run, folder) == target and target.stat().st_mtime_ns == written
    assert (folder / "calm.json").read_text("utf-8") == '{"preferred weight": 0.7}'
    assert Image.open(folder / "calm.png").size == (8, 8)
    assert sorted(path.name for path in folder.iterdir()) == ["calm.json", "calm.png", "calm.safetensors"]


def test_another_file_of_that_name_is_not_touched(tmp_path: Path) -> None:
    folder, other = tmp_path / "Lora", finished_run(tmp_path / "two", value=0.2)
    install(finished_run(tmp_path / "one", value=0.1), folder)
    before = (folder / "calm.safetensors").read_bytes()
    assert "Choose another output name" in name_taken(other, folder)
    assert "Choose another output name" in name_taken(tmp_path / "new" / "calm", folder)
    assert install(other, folder) == folder / "calm-2.safetensors"
    assert (folder / "calm.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("versions", "name"),
    [
        ([], "SD1"),  # nobody was asked
        (["Unknown", "SD1", "SD2", "SDXL"], "SD1"),  # A1111, Forge
        (["Unknown", "sd", "xl", "flux", "zit"], "sd"),  # Forge Neo
        (["Unknown", "zit"], "Unknown"),
    ],
)
def test_a_card_names_the_base_as_its_host_does(tmp_path: Path, versions: list[str], name: str) -> None:
    install(finished_run(tmp_path), tmp_path / "Lora", versions=versions)
    assert json.loads((tmp_path / "Lora" / "calm.json").read_text("utf-8"))["sd version"] == name


def test_other_folders_of_the_host_are_looked_into(tmp_path: Path) -> None:
    folder, more = tmp_path / "Lora", tmp_path / "more"
    more.mkdir()
    # The artist moved it there: it stays, and is not put beside it again.
    run = finished_run(tmp_path / "one", value=0.1)
    (more / "calm.safetensors").write_bytes((run / "calm.safetensors").read_bytes())
    assert install(run, folder, others=[more]) == more / "calm.safetensors"
    assert not (folder / "calm.safetensors").exists()
    # Another one of that name there would be taken for ours by the host, which knows names alone.
    other = finished_run(tmp_path / "two", value=0.2)
    assert install(other, folder, others=[more]) == folder / "calm-2.safetensors"


def test_what_has_no_card_and_no_preview_goes_alone(tmp_path: Path) -> None:
    install(finished_run(tmp_path, preview=False), tmp_path / "Lora")
    assert not (tmp_path / "Lora" / "calm.png").exists()
    cost = tmp_path / "cost"
    cost.mkdir()
    (cost / "cost.safetensors").write_bytes(b"weights")
    install(cost, tmp_path / "models")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["cost.safetensors"]


def test_a_folder_that_cannot_be_written_and_a_missing_result_say_so(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ScdpoError, match="Copy it there yourself"):
        install(run, tmp_path / "file" / "loras")
    (run / "calm.safetensors").unlink()
    with pytest.raises(ScdpoError, match="cannot be copied"):
        install(run, tmp_path / "Lora")


def test_a_damaged_card_is_named(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    (run / "calm.json").write_text("{", "utf-8")
    with pytest.raises(ScdpoError, match=r"calm.json is damaged"):
        install(run, tmp_path / "Lora")


def test_what_was_put_away_or_noted_wrongly_is_not_installed(tmp_path: Path) -> None:
    run, folder = finished_run(tmp_path), tmp_path / "Lora"
    assert installed(run) is None
    install(run, folder).unlink()
    assert installed(run) is None
    (run / "published.json").write_text('{"path": 3}', "utf-8")
    assert installed(run) is None
