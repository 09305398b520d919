"""Fréchet distances by hand, CLIP scores of a tiny random model, likeness to the base's images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scdpo_core.cost.clip_encoders import EncoderError
from scdpo_core.suite.folder import EvalFolder, Table
from scdpo_core.suite.measuring import (
    LIKENESS_TABLE,
    ClipModel,
    Gaussian,
    Likeness,
    frechet_distance,
    gaussian_of,
    measure_likeness,
)
from tests.support.suite_helpers import plan_of, prompt_set
from tests.support.tiny import tiny_tokenizer_files


def gaussian(mean: Sequence[float], spread: Sequence[float]) -> Gaussian:
    return Gaussian(np.array(mean, float), np.diag(np.array(spread, float) ** 2), 10)


def test_frechet_distance_by_hand() -> None:
    # In one dimension it is (m1 - m2)^2 + (s1 - s2)^2.
    assert frechet_distance(gaussian([1], [2]), gaussian([4], [6])) == pytest.approx(9 + 16)
    # Diagonal ones add up.
    assert frechet_distance(gaussian([0, 1], [1, 2]), gaussian([2, 1], [4, 2])) == pytest.approx(4 + 9)
    same = gaussian([3, 1], [0, 2])  # singular: fewer images than features
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_matrices_that_do_not_commute() -> None:
    # C1 = I, C2 = [[5, 4], [4, 5]] with eigenvalues 9 and 1: tr(C1 + C2) - 2 tr C2^(1/2) = 12 - 2 (3 + 1).
    other = Gaussian(np.zeros(2), np.array([[5.0, 4.0], [4.0, 5.0]]), 10)
    assert frechet_distance(gaussian([0, 0], [1, 1]), other) == pytest.approx(4)


@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6), st.lists(st.floats(-3, 3), min_size=6, max_size=6))
def test_frechet_distance_is_symmetric_and_not_negative(one: list[float], other: list[float]) -> None:
    def random(numbers: list[float]) -> Gaussian:
        root = np.array(numbers[:4]).reshape(2, 2)
        return Gaussian(np.array(numbers[4:]), root @ root.T, 10)

    first, second = random(one), random(other)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), abs=1e-6)
    assert frechet_distance(first, second) >= 0


class _Corner:
    """Embeds an image as the red and green of its corner."""

    id, hash, size, dim = "corner", "0", 1, 2

    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        rows = [image.getpixel((0, 0))[:2] for image in images]  # type: ignore[index]
        return torch.tensor(rows, dtype=torch.float32)


def test_mean_and_covariance_of_a_folder_with_a_broken_file(tmp_path: Path) -> None:
    files = []
    for number, colour in enumerate([(0, 10, 0), (2, 10, 0), (4, 13, 0)]):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (4, 4), colour).save(files[-1])
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = gaussian_of(_Corner(), [*files, tmp_path / "broken.png"])  # type: ignore[arg-type]
    assert found.count == 3 and found.mean == pytest.approx([2, 11])
    # Deviations (-2, -1), (0, -1), (2, 2): sums 8, 6 and 6, over n - 1 = 2.
    assert found.covariance == pytest.approx(np.array([[4, 3], [3, 3]]))
    with pytest.raises(EncoderError, match="at least two images"):
        gaussian_of(_Corner(), files[:1])  # type: ignore[arg-type]


def tiny_clip(folder: Path) -> Any:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    tiny_tokenizer_files(folder)
    words = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPModel(
        CLIPConfig(
            text_config={
                **shape,
                "vocab_size": len(words),
                "max_position_embeddings": 16,
                "bos_token_id": words.bos_token_id,
                "eos_token_id": words.eos_token_id,
            },
            vision_config={**shape, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    ).eval()
    model.save_pretrained(folder, safe_serialization=True)
    return model, words


def test_a_clip_score_is_the_cosine_of_image_and_prompt(tmp_path: Path) -> None:
    model, words = tiny_clip(tmp_path / "clip")
    images = [Image.new("RGB", (20, 12), colour) for colour in ("red", "blue", "white")]
    prompts = ["a cat", "a dog on a mat, and far more words than the sixteen that it reads", "x"]
    clip = ClipModel(tmp_path / "clip", "cpu")
    found = clip.scores(images, prompts)
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        tokens = words([prompt], truncation=True, max_length=16, return_tensors="pt")
        pixels = torch.from_numpy(np.array(image.resize((16, 16)), np.float32) / 255)
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        pixels = ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None]
        with torch.no_grad():
            said = model(**tokens, pixel_values=pixels)
        # What CLIP itself says is the cosine, scaled by its temperature.
        cosine = float(said.logits_per_image[0, 0] / model.logit_scale.exp())
        expected.append(100 * max(0.0, cosine))
    assert found == pytest.approx(expected, abs=1e-3)
    assert clip.id.startswith("clip@") and ClipModel(tmp_path / "clip", "cpu").id == clip.id


def test_a_folder_that_is_no_clip_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="could not be loaded as a CLIP model"):
        ClipModel(tmp_path, "cpu")


def test_images_are_compared_once(tmp_path: Path) -> None:
    folder, plan = EvalFolder(tmp_path), plan_of(prompt_set("coco", "benign", 2))
    for item, colours in zip(plan.items, (("gray", "gray"), ("black", "white")), strict=True):
        for version, colour in zip(("base", "calm@1"), colours, strict=True):
            folder.write_image(version, item.name, Image.new("RGB", (16, 16), colour))
    told: list[tuple[int, int]] = []
    pairs = [("calm@1", item) for item in plan.items]
    measure_likeness(pairs, folder, "all", lambda done, total: told.append((done, total)))
    rows = Table(folder, LIKENESS_TABLE, Likeness, "x").rows
    same, other = (rows[f"calm@1/{item.name}"] for item in plan.items)
    assert (same.ssim, same.difference) == (1.0, 0.0) and other.difference == 1.0 and other.ssim < 0.01
    assert told == [(1, 2), (2, 2)]
    folder.image("base", plan.items[0].name).unlink()  # would raise if it were compared again
    measure_likeness(pairs, folder, "all", lambda done, total: None)
