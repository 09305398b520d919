"""The shipped weights: their size, that plain diffusers loads them, and how well they draw."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageChops

from scdpo_core.evaluation import micro_requests
from scdpo_core.families import family
from scdpo_core.micro.judge import EMPTY, Judge, class_names
from scdpo_core.micro.model import IMAGE_ENCODER, JUDGE, WEIGHTS
from scdpo_core.micro.world import BACKGROUNDS, concepts


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load(JUDGE)


def test_the_weights_are_small_and_safetensors_only() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}


def test_plain_diffusers_loads_the_folder_and_draws() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a cat on a blue background", num_inference_steps=2).images[0]
    assert image.size == (64, 64)
    assert {component.dtype for component in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {
        torch.float32
    }


def test_every_word_of_the_world_is_one_token() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS, local_files_only=True)
    for entry in micro_requests.requests():
        words = entry.caption.split()
        assert len(pipeline.tokenizer.tokenize(entry.caption)) == len(words), entry.caption


def test_plain_transformers_loads_the_image_tower() -> None:
    from transformers import ResNetForImageClassification

    tower = ResNetForImageClassification.from_pretrained(IMAGE_ENCODER, local_files_only=True).float().eval()
    odds = tower(pixel_values=torch.zeros(2, 3, 64, 64)).logits
    assert odds.shape == (2, len(concepts()))
    assert torch.equal(odds[0], odds[1])
    assert tower.config.id2label == {number: thing.name for number, thing in enumerate(concepts())}


def test_the_judge_reports_its_own_accuracy(judge: Judge) -> None:
    assert float(judge.facts["held_out_accuracy"]) >= 0.97
    assert int(judge.facts["held_out_pictures"]) >= 1000
    assert len(class_names()) > 64


@pytest.mark.parametrize("colour", sorted(BACKGROUNDS))
def test_the_judge_knows_an_empty_background(judge: Judge, colour: str) -> None:
    (verdict,) = judge([Image.new("RGB", (64, 64), BACKGROUNDS[colour])])
    assert verdict.top == EMPTY
    assert not verdict.harmful


def test_a_judge_of_other_concepts_is_refused(judge: Judge, tmp_path: Path) -> None:
    from scdpo_core.io.files import read_tensors, write_tensors

    tensors, facts = read_tensors(JUDGE)
    write_tensors(tmp_path / "judge.safetensors", tensors, {**facts, "classes": "a|b"})
    with pytest.raises(ValueError, match="other concepts"):
        Judge.load(tmp_path / "judge.safetensors")


def test_two_models_side_by_side_draw_what_each_draws_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_requests, "STEPS", 2)
    monkeypatch.setattr(micro_requests, "BATCH", 2)  # the last part is shorter
    models = [family("sd1").load("micro", torch.device("cpu"), torch.float32) for _ in range(2)]
    with torch.no_grad():
        for weight in models[1].denoiser.parameters():
            weight.mul_(0.9)
    wanted, told, threads = micro_requests.requests()[:3], list[tuple[int, int]](), torch.get_num_threads()
    torch.set_num_threads(2)  # more than each model's share, wherever this runs
    both = micro_requests.draw_side_by_side(models, wanted, lambda done, total: told.append((done, total)))
    # A thread that begins now, as a scorer's do, takes the number that was set last by anyone.
    with ThreadPoolExecutor(1) as pool:
        kept = pool.submit(torch.get_num_threads).result()
    torch.set_num_threads(threads)
    assert kept == 2
    for model, drawn in zip(models, both, strict=True):
        for one, other in zip(drawn, micro_requests.draw(model, wanted), strict=True):
            # Other thread counts round otherwise.
            assert max(high for _, high in ImageChops.difference(one, other).getextrema()) <= 2
    assert all(one.tobytes() != other.tobytes() for one, other in zip(*both, strict=True))
    assert told == [(4, 6), (6, 6)]


@pytest.mark.slow
def test_the_judge_finds_what_was_asked_in_most_images(judge: Judge) -> None:
    model = family("sd1").load("micro", torch.device("cpu"), torch.float32)
    single = [entry for entry in micro_requests.requests() if len(entry.subjects) == 1]
    verdicts = micro_requests.judging(judge)(micro_requests.draw(model, single), single)
    found = sum(verdict.found is True for verdict in verdicts)
    assert found / len(single) >= 0.85
