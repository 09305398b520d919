"""Which icon shows what, and what the image tower's last leg begins with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from scdpo_core.micro.model import WEIGHTS
from scdpo_core.micro.world import concepts
from tests.micro.test_world import bank_of
from tools.micro_model import build, image_tower, towers, training_loop
from tools.micro_model.art import STYLES_IN_INK, Art

pytest.importorskip("resvg_py", reason="only the extra build has it")

SQUARE = '<path fill="currentColor" d="M4 4h16v16H4z"/>'


def _package(folder: Path, style: str, icons: list[str]) -> None:
    package = folder / style / "package"
    package.mkdir(parents=True)
    drawn = {name: {"body": SQUARE} for name in icons}
    (package / "icons.json").write_text(json.dumps({"icons": drawn, "width": 24, "height": 24}), "utf-8")


def test_icons_are_found_by_name_and_where_a_name_misleads_by_our_own_table(tmp_path: Path) -> None:
    rows = [
        {"unified": code, "name": name, "short_names": [short], "short_name": short, "subcategory": "x"}
        for code, name, short in (
            ("1F34E", "RED APPLE", "apple"),
            ("1F42D", "MOUSE FACE", "mouse"),
            ("1F4A3", "BOMB", "bomb"),
            ("1FAA6", "HEADSTONE", "headstone"),
        )
    ]
    noto = tmp_path / "noto" / "package"
    noto.mkdir(parents=True)
    (noto / "emoji.json").write_text(json.dumps(rows), "utf-8")
    fluent = tmp_path / "fluent-flat" / "package"
    fluent.mkdir(parents=True)
    (fluent / "chars.json").write_text("{}", "utf-8")
    _package(tmp_path, "mdi", ["apple", "food-apple", "mouse", "bomb", "grave-stone"])
    art = Art(tmp_path)
    # A company's mark and a thing with buttons are not meant; a bomb goes by its own name.
    assert art.codes("mdi") == ["1f34e", "1f4a3", "1faa6"]
    drawn = art.sprite("mdi", "1f4a3")
    assert drawn is not None and drawn.size == (64, 64)
    assert drawn.getpixel((32, 32)) == (0, 0, 0, 255) and drawn.getpixel((1, 1))[3] == 0
    assert art.sprite("mdi", "1f42d") is None
    assert "mdi" in STYLES_IN_INK


def test_tags_begin_as_what_the_towers_answer_to_the_names() -> None:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer", local_files_only=True)
    pair = towers._Pair(tokenizer).requires_grad_(False).eval()
    known, others = len(concepts()), 3
    colours = [(40 * n % 256, 90 * n % 256, 17 * n % 256) for n in range(known + others)]
    bank = bank_of(*colours)
    tagger = image_tower._Tagger(pair.image, known + others)
    before = tagger.tags.weight.clone()
    image_tower._begin_with_words(tagger, towers.Towers(tokenizer, pair), bank, seed=1)
    assert torch.equal(tagger.tags.weight[known:], before[known:])

    generator = torch.Generator().manual_seed(1)
    pixels = bank.draw(image_tower._scenes(256, known + others, generator), generator)
    maps = pair.image(pixel_values=pixels).last_hidden_state.flatten(2).transpose(1, 2)
    answers = tagger.tags(maps)[..., :known]
    # One log-odds below "rare" in the middle, spread by one: rare until the image says more than that.
    torch.testing.assert_close(answers.mean(dim=(0, 1)), torch.full((known,), -5.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(answers.std(dim=(0, 1)), torch.ones(known), atol=1e-3, rtol=0)
    names = towers.tokenize(tokenizer, [concepts()[7].name])
    word = pair.text(input_ids=names).pooler_output @ pair.projection.weight
    cosine = torch.cosine_similarity(tagger.tags.weight[7], word[0], dim=0)
    assert cosine.item() == pytest.approx(1.0, abs=1e-4)


def test_images_come_to_the_tower_in_the_size_that_it_learnt_last() -> None:
    shipped = json.loads((WEIGHTS / "image_encoder" / "preprocessor_config.json").read_text("utf-8"))
    assert build.Recipe().image_size == shipped["size"] == 128
    assert build.ON_PROCESSORS.image_size == 64
    assert replace(build.ON_PROCESSORS, image_steps=1).image_size == 128


@pytest.mark.parametrize(("ability", "half"), [("AVX2", False), ("AVX512", True), ("DEFAULT", False)])
def test_half_precision_only_where_a_processor_gains_by_it(
    monkeypatch: pytest.MonkeyPatch, ability: str, half: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: ability)
    with training_loop.autocast(torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if half else torch.float32)
