"""Heatmaps: on a scorer whose reasons are known, and on the embedded world's two-subject images."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scdpo_core.cost.attribution import Method, explain, gradients, occlusion
from scdpo_core.cost.encoders import TowerEncoder, load_encoder
from scdpo_core.cost.features import compute_features
from scdpo_core.cost.model import CostFacts, CostModel, save_cost
from scdpo_core.cost.protocol import ScorerError
from scdpo_core.cost.scorers import TrainedScorer
from scdpo_core.cost.training import train_cost
from scdpo_core.cost.training_images import check, list_folders
from scdpo_core.types import CostScore
from tests.support.cost_helpers import ColourEncoder, tiny_tower

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "cost_pictures"


class RedCorner:
    """Costs as many log-odds as a hundredth of the image is red; 'green' the same for green."""

    id, hash, categories = "red", "0" * 12, ("green", "unknown")

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def score_prepared(self, prepared: Sequence[Image.Image]) -> list[CostScore]:
        return [self._one(np.asarray(image, np.float64)) for image in prepared]

    score = score_prepared

    def _one(self, pixels: np.ndarray) -> CostScore:
        red, green, _ = (pixels[..., k] - pixels.mean(-1) for k in range(3))
        amounts = [float(np.maximum(colour, 0).mean()) for colour in (red, green)]
        return CostScore(amounts[0], {"green": amounts[1], "unknown": None}, self.id, self.hash)


def two_spots() -> Image.Image:
    """Red at the top left, green at the bottom right, on grey."""
    image = Image.new("RGB", (120, 80), (128, 128, 128))
    image.paste((230, 30, 30), (10, 10, 40, 30))
    image.paste((30, 230, 30), (80, 50, 110, 70))
    return image


def test_heat_lies_where_the_cost_comes_from() -> None:
    found = occlusion(RedCorner(), two_spots())
    assert found.heat.shape == (80, 120) and found.size == (120, 80) and found.method == "occlusion"
    left = torch.zeros(80, 120, dtype=torch.bool)
    left[:40, :60] = True
    assert found.share(left) > 0.9
    assert explain(RedCorner(), two_spots(), category="green").share(left) < 0.1
    assert found.cost == RedCorner().score([two_spots()])[0].value


def test_the_mask_covers_the_spot_and_little_else() -> None:
    mask = np.asarray(occlusion(RedCorner(), two_spots()).mask(0.5)) > 0
    spot = np.zeros((80, 120), bool)
    spot[10:30, 10:40] = True
    assert mask.shape == (80, 120)
    assert (mask & spot).sum() / spot.sum() > 0.6
    assert (mask & spot).sum() / mask.sum() > 0.4
    assert set(np.unique(mask)) == {False, True}


def test_the_overlay_is_red_there_and_grey_elsewhere() -> None:
    shown = np.asarray(occlusion(RedCorner(), two_spots()).overlay(two_spots()), np.int32)
    assert shown.shape == (80, 120, 3)
    redness = shown[..., 0] - shown[..., 1]
    assert redness[20, 25] > 60 and abs(redness[60, 95]) <= 3


def test_a_image_without_heat_has_an_empty_mask() -> None:
    found = occlusion(RedCorner(), Image.new("RGB", (30, 20), "blue"))
    assert found.mask().getextrema() == (0, 0) and math.isnan(found.share(found.heat >= 0))
    assert found.overlay(Image.new("RGB", (30, 20), "blue")).size == (30, 20)


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (3000, 7)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    found = occlusion(RedCorner(), Image.new("RGB", size, "red"))
    assert found.size == size and found.mask().size == size
    assert bool(torch.isfinite(found.heat).all())


def test_an_unknown_category_is_refused() -> None:
    with pytest.raises(ScorerError, match="no cost for 'unknown'"):
        explain(RedCorner(), two_spots(), category="unknown")


@pytest.fixture
def trained(tmp_path: Path) -> TrainedScorer:
    encoder = TowerEncoder(tiny_tower(tmp_path / "tower"))
    torch.manual_seed(3)
    model = CostModel(encoder.dim, ("weapon",))
    file = tmp_path / "c.safetensors"
    save_cost(file, model, CostFacts("c", encoder.id, encoder.hash))
    return TrainedScorer(file, encoder=encoder)


def test_gradients_add_up_to_the_difference_in_cost(
    trained: TrainedScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Completeness of integrated gradients: all parts together are C(image) - C(plain).
    parts: list[torch.Tensor] = []
    pool = torch.nn.functional.avg_pool2d
    monkeypatch.setattr(
        "scdpo_core.cost.gradients.F.avg_pool2d", lambda x, *a, **k: (parts.append(x), pool(x, *a, **k))[1]
    )
    image = two_spots()
    found = gradients(trained, image, "weapon")
    pixels = trained.encoder.prepare(image)[None]
    plain = pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)
    with torch.no_grad():
        costs = trained.model(trained.encoder.encode_prepared(torch.cat([pixels, plain])))[:, 1]
    assert float(parts[0].sum()) == pytest.approx(float(costs[0] - costs[1]), rel=0.02, abs=1e-4)
    assert found.method == "gradients" and found.heat.shape == (28, 28)
    assert found.mask().size == image.size


def test_gradients_in_a_hosts_inference_mode(trained: TrainedScorer) -> None:
    with torch.inference_mode():
        assert explain(trained, two_spots(), method="gradients").heat.shape == (28, 28)


def test_tokens_by_hand(trained: TrainedScorer) -> None:
    # Class token and 2 x 2 patches, two layers: row 0 of (1 + A2)(1 + A1) - 1, times the class token's slope;
    # the mean over images at a sixteenth, three sixteenths, ... of the way from the mean colour.
    image = two_spots()
    found = explain(trained, image, category="weapon", method="tokens")
    assert isinstance(trained.encoder, TowerEncoder)
    pixels = trained.encoder.prepare(image)[None]
    plain = pixels.mean(dim=(2, 3), keepdim=True)
    heat = torch.zeros(4)
    for way in range(1, 16, 2):
        between = (plain + way / 16 * (pixels - plain)).requires_grad_()
        embedding, (one, two), last = trained.encoder.attend(between)
        cost = trained.model(embedding)[0, 1]
        slope_one, slope_two, slope = torch.autograd.grad(cost, [one, two, last])
        first = (one * slope_one).clamp(min=0).mean(1)[0].detach()
        second = (two * slope_two).clamp(min=0).mean(1)[0].detach()
        heat += (first + second + second @ first)[0, 1:] * slope[0, 0].norm() / 8
    torch.testing.assert_close(found.heat, heat.reshape(2, 2))
    assert found.size == image.size and found.method == "tokens" and found.mask().size == image.size
    with torch.inference_mode():
        assert torch.equal(explain(trained, image, category="weapon", method="tokens").heat, found.heat)
    with pytest.raises(ScorerError, match="no cost for 'drug'"):
        explain(trained, image, category="drug", method="tokens")


def test_looking_at_attention_changes_nothing_afterwards(trained: TrainedScorer) -> None:
    before = trained.score([two_spots()])
    explain(trained, two_spots(), method="tokens")
    assert trained.score([two_spots()]) == before


@pytest.mark.parametrize("method", ["gradients", "tokens"])
def test_scorers_without_slopes_say_so(tmp_path: Path, method: Method) -> None:
    encoder = ColourEncoder()
    save_cost(tmp_path / "c.safetensors", CostModel(encoder.dim), CostFacts("c", encoder.id, encoder.hash))
    for scorer in (RedCorner(), TrainedScorer(tmp_path / "c.safetensors", encoder=encoder)):
        with pytest.raises(ScorerError, match=f"no {method}"):
            explain(scorer, two_spots(), method=method)


def test_a_residual_network_has_gradients_but_no_tokens(tmp_path: Path) -> None:
    encoder = load_encoder("micro")
    save_cost(tmp_path / "c.safetensors", CostModel(encoder.dim), CostFacts("c", encoder.id, encoder.hash))
    scorer = TrainedScorer(tmp_path / "c.safetensors", encoder=encoder)
    assert explain(scorer, two_spots(), method="gradients").heat.shape == (encoder.size, encoder.size)
    with pytest.raises(ScorerError, match="no tokens"):
        explain(scorer, two_spots(), method="tokens")


RED, SIDE = torch.tensor([0.9, 0.1, 0.1]), 4


def patchwork(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels [N, 3, 4, 4] of dull patches, every other image with a red one; its place or -1."""
    generator = torch.Generator().manual_seed(seed)
    pixels = 0.3 + 0.4 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
    place = torch.randint(SIDE * SIDE, (count,), generator=generator)
    place[::2] = -1
    for number in range(1, count, 2):
        pixels[number, :, place[number] // SIDE, place[number] % SIDE] = RED
    return pixels, place


def sees_red(folder: Path, kind: str) -> TrainedScorer:
    """A small vision transformer that was trained, tower and all, to tell whether there is a red patch."""
    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = f"{kind}Vision" if kind in ("CLIP", "Siglip") else kind
    more = {"projection_dim": 32} if kind == "CLIP" else {}
    config = getattr(transformers, f"{vision}Config")(image_size=4 * SIDE, patch_size=4, **shape, **more)
    model = f"{vision}Model{'WithProjection' if kind == 'CLIP' else ''}"
    getattr(transformers, model)(config).save_pretrained(folder / kind)
    encoder = TowerEncoder(folder / kind)
    cost = CostModel(encoder.dim, ("red",), bottleneck=16, dropout=0.0)
    learned = [*encoder._tower.parameters(), *cost.parameters()]
    optimizer = torch.optim.AdamW([one.requires_grad_() for one in learned], 3e-3)
    for step in range(250):
        pixels, place = patchwork(64, step)
        large = torch.nn.functional.interpolate((pixels - 0.45) / 0.27, scale_factor=4)
        costs = cost.raw(encoder.embed(large))[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(costs, (place >= 0).float())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    for one in learned:
        one.requires_grad_(False)
    file = folder / f"{kind}.safetensors"
    save_cost(file, cost, CostFacts("red", encoder.id, encoder.hash))
    return TrainedScorer(file, encoder=encoder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CLIP", "Siglip", "ViT"])
def test_tokens_point_at_the_patch_that_decides(tmp_path: Path, kind: str) -> None:
    scorer = sees_red(tmp_path, kind)
    pixels, place = patchwork(60, 1000)
    hits = []
    for number in range(1, 60, 2):
        small = (pixels[number].permute(1, 2, 0) * 255).byte().numpy()
        image = Image.fromarray(small).resize((40, 40), Image.Resampling.NEAREST)
        found = explain(scorer, image, method="tokens")
        assert found.heat.shape == (SIDE, SIDE) and found.size == (40, 40) and found.method == "tokens"
        hits.append(int(found.heat.argmax()) == int(place[number]))
    assert sum(hits) / len(hits) >= 0.8


def cut_out(path: Path) -> Image.Image:
    """The subject of an example image as RGBA, told from the plain background by the corners' colour."""
    image = Image.open(path).convert("RGB")
    pixels = np.asarray(image, np.int32)
    background = np.median(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)
    alpha = (np.abs(pixels - background).max(-1) > 14).astype(np.uint8) * 255
    image.putalpha(Image.fromarray(alpha))
    return image


def two_subjects(count: int, seed: int) -> Iterator[tuple[Image.Image, bool]]:
    """64 x 64 images with two subjects on the diagonal, as the world draws them; does the first harm?"""
    rng = random.Random(seed)
    harmful = sorted((EXAMPLES / "unsafe").rglob("*.png"))
    harmless = sorted((EXAMPLES / "safe").rglob("*.png"))
    for number in range(count):
        first_harms = number % 2 == 0
        pair = [rng.choice(harmful), rng.choice(harmless)]
        image = Image.new("RGB", (64, 64), rng.choice([(250, 250, 250), (128, 186, 240), (142, 206, 138)]))
        for path, centre in zip(pair if first_harms else pair[::-1], (19, 45), strict=True):
            subject = cut_out(path).resize((40, 40), Image.Resampling.LANCZOS)
            image.paste(subject, (centre - 20, centre - 20), subject)
        yield image, first_harms


@pytest.fixture(scope="module")
def embedded_world(tmp_path_factory: pytest.TempPathFactory) -> TrainedScorer:
    """A cost model on the embedded image tower, trained on the shipped images."""
    encoder = load_encoder("micro")
    listed = check(list_folders(EXAMPLES / "unsafe", EXAMPLES / "safe"))
    data = compute_features(listed.examples, encoder)
    file = tmp_path_factory.mktemp("world") / "c.safetensors"
    save_cost(file, train_cost(data).model, CostFacts("c", encoder.id, encoder.hash))
    return TrainedScorer(file, encoder=encoder)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["occlusion", "gradients"])
def test_the_heat_lies_on_the_harmful_drawing(embedded_world: TrainedScorer, method: Method) -> None:
    hits = []
    for image, first_harms in two_subjects(60, seed=1):
        found = explain(embedded_world, image, method=method)
        side = len(found.heat)
        share = found.share(torch.arange(side)[:, None] + torch.arange(side) < side)
        hits.append((share if first_harms else 1 - share) > 0.5)
    assert sum(hits) / len(hits) >= 0.8
