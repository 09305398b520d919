"""The registry, ensembles and the hub's presets (small random models of the real architectures)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from scdpo_core.cost import hub
from scdpo_core.cost.attribution import explain
from scdpo_core.cost.classifiers import Eva02, VisionTransformer
from scdpo_core.cost.ensemble import EnsembleScorer, Rule
from scdpo_core.cost.hub import PRESETS, HubScorer, log_odds
from scdpo_core.cost.protocol import ScorerError
from scdpo_core.cost.scorers import SCORERS, hub_names, load_scorer, names_a_scorer
from scdpo_core.types import CostScore, ScdpoError

IMAGES = [Image.new("RGB", (30, 20), colour) for colour in ("red", "white")]


class Fixed:
    """A scorer that always says the same."""

    def __init__(self, name: str, value: float, categories: dict[str, float | None]) -> None:
        self.id, self.hash, self.categories = name, name * 12, tuple(categories)
        self._score = CostScore(value, categories, self.id, self.hash)

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def score_prepared(self, prepared: Sequence[Image.Image]) -> list[CostScore]:
        return [self._score for _ in prepared]

    score = score_prepared


A = Fixed("a", 2.0, {"weapon": 1.0, "drug": None, "sexual": None})
B = Fixed("b", -1.0, {"weapon": 4.0, "sexual": -1.0})


def test_the_maximum_objects_where_any_member_does() -> None:
    both = EnsembleScorer([A, B])
    (score, _) = both.score(IMAGES)
    assert score.value == 2.0
    assert score.categories == {"weapon": 4.0, "drug": None, "sexual": -1.0}
    assert (score.scorer, score.scorer_hash) == ("maximum(a+b)", both.hash)
    assert both.score_prepared([both.prepare(image) for image in IMAGES]) == both.score(IMAGES)


def test_the_mean_of_log_odds() -> None:
    (score,) = EnsembleScorer([A, B], "mean").score(IMAGES[:1])
    assert score.value == 0.5 and score.categories == {"weapon": 2.5, "drug": None, "sexual": -1.0}
    # exp of the mean is the geometric mean of the odds: sqrt(e^2 * e^-1) = e^0.5.
    assert math.exp(score.value) == pytest.approx(math.sqrt(math.exp(2.0) * math.exp(-1.0)))


@pytest.mark.parametrize("rule", ["maximum", "mean"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_member_without_a_finite_cost_is_not_passed_over(rule: Rule, broken: float) -> None:
    for order in ((broken, -2.0), (-2.0, broken)):
        members = [Fixed(str(k), cost, {}) for k, cost in enumerate(order)]
        (found,) = EnsembleScorer(members, rule).score([Image.new("RGB", (8, 8))])
        assert math.isnan(found.value) and found.band == "unsafe"


def test_an_ensembles_hash_tells_members_and_rule() -> None:
    assert EnsembleScorer([A, B]).hash == EnsembleScorer([B, A]).hash
    assert EnsembleScorer([A, B]).hash != EnsembleScorer([A, B], "mean").hash
    for members in ([A], [A, A]):
        with pytest.raises(ScorerError, match="at least two different"):
            EnsembleScorer(members)


def test_an_ensemble_by_name(tmp_path: Path) -> None:
    folder = preset_folder("marqo", tmp_path)
    scorer = load_scorer(f"embedded + marqo={folder}")
    assert scorer.id == "maximum(open-nsfw-1.0.0+nsfwjs-mid-4.4.0+marqo-nsfw-image-detection-384)"
    assert load_scorer(f"embedded~marqo={folder}").id.startswith("mean(")
    assert names_a_scorer(f"embedded+marqo={folder}") and not names_a_scorer("embedded+nothing")


def test_every_choice_says_what_one_should_know() -> None:
    for name, choice in SCORERS.items():
        assert names_a_scorer(name) and choice.about and choice.licence and choice.megabytes > 0
        assert bool(choice.download) == (name in PRESETS)


def test_which_scorers_come_from_the_hub() -> None:
    assert hub_names("embedded") == [] and hub_names("marqo") == ["marqo"]
    assert hub_names("embedded + marqo=/models/m + falconsai") == ["marqo", "falconsai"]


def test_a_preset_that_is_not_here_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(
        ScorerError, match=r"hf download Freepik/nsfw_image_detector' \(173 MB, licence MIT\)"
    ):
        load_scorer("freepik")


def test_the_cache_of_the_hub_is_looked_into(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--Marqo--nsfw-image-detection-384"
    preset_folder("marqo", folder / "snapshots" / "0123abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abc", encoding="utf-8")
    assert load_scorer("marqo").id == "marqo-nsfw-image-detection-384"


def vit_shapes(classes: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 128),
        "pos_embed": (1, 5, 128),
        "patch_embed.proj.weight": (128, 3, 16, 16),
        "patch_embed.proj.bias": (128,),
        "norm.weight": (128,),
        "norm.bias": (128,),
        "head.weight": (classes, 128),
        "head.bias": (classes,),
    }
    for block in ("blocks.0", "blocks.1"):
        shapes |= {f"{block}.norm{k}.{part}": (128,) for k in (1, 2) for part in ("weight", "bias")}
        shapes |= linear(f"{block}.attn.qkv", 384, 128) | linear(f"{block}.attn.proj", 128, 128)
        shapes |= linear(f"{block}.mlp.fc1", 512, 128) | linear(f"{block}.mlp.fc2", 128, 512)
    return shapes


def eva_shapes(classes: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 128),
        "pos_embed": (1, 10, 128),
        "patch_embed.proj.weight": (128, 3, 14, 14),
        "patch_embed.proj.bias": (128,),
        "fc_norm.weight": (128,),
        "fc_norm.bias": (128,),
        "head.weight": (classes, 128),
        "head.bias": (classes,),
    }
    for block in ("blocks.0", "blocks.1"):
        shapes |= {f"{block}.norm{k}.{part}": (128,) for k in (1, 2) for part in ("weight", "bias")}
        for name in ("q_proj", "v_proj", "proj"):
            shapes |= linear(f"{block}.attn.{name}", 128, 128)
        shapes[f"{block}.attn.k_proj.weight"] = (128, 128)
        shapes |= linear(f"{block}.mlp.fc1_g", 341, 128) | linear(f"{block}.mlp.fc1_x", 341, 128)
        shapes |= {f"{block}.mlp.norm.{part}": (341,) for part in ("weight", "bias")}
        shapes |= linear(f"{block}.mlp.fc2", 128, 341)
    return shapes


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shapes[name], generator=generator) * 0.2 for name in sorted(shapes)}


def seen(size: int) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(6))


def test_the_vision_transformer_computes_what_timm_computes() -> None:
    model = VisionTransformer(filled(vit_shapes(2)))
    assert model.size == 32
    # timm 1.0.31's own VisionTransformer gave these for the same tensors and pixels.
    torch.testing.assert_close(model(seen(32)), torch.tensor([[0.864142, 0.702906]]), atol=2e-5, rtol=0)


def test_eva02_computes_what_timm_computes() -> None:
    model = Eva02(filled(eva_shapes(4)))
    assert model.size == 42
    expected = torch.tensor([[1.386086, -0.213174, -0.428079, -0.889516]])  # timm 1.0.31's Eva
    torch.testing.assert_close(model(seen(42)), expected, atol=2e-5, rtol=0)


def test_log_odds_of_several_classes() -> None:
    # Chances 0.1, 0.2, 0.3, 0.4; the last two are harmful: 0.7 against 0.3.
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    assert float(log_odds(logits, (2, 3))) == pytest.approx(math.log(0.7 / 0.3))


def preset_folder(name: str, folder: Path) -> Path:
    """A small random model of the preset's architecture, in the files' own layout."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "marqo":
        save_file(filled(vit_shapes(2)), folder / "model.safetensors")
        config: dict[str, object] = {"pretrained_cfg": {"label_names": ["NSFW", "SFW"]}}
    elif name == "freepik":
        wrapped = {f"timm_model.{key}": value.bfloat16() for key, value in filled(eva_shapes(4)).items()}
        save_file(wrapped, folder / "model.safetensors")
        config = {"label_names": ["neutral", "low", "medium", "high"]}
    elif name == "falconsai":
        from transformers import ViTConfig, ViTForImageClassification

        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        names = {"id2label": {0: "normal", 1: "nsfw"}, "label2id": {"normal": 0, "nsfw": 1}}
        torch.manual_seed(0)
        ViTForImageClassification(ViTConfig(image_size=32, **small, **names)).save_pretrained(folder)
        return folder
    else:
        return safety_checker(folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def safety_checker(folder: Path, threshold: float = 0.5) -> Path:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=small, vision_config={**small, "image_size": 28, "patch_size": 14}, projection_dim=16
    )
    checker = StableDiffusionSafetyChecker(config)
    for parameter in (checker.concept_embeds, checker.special_care_embeds):
        parameter.data = torch.randn_like(parameter)
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.special_care_embeds_weights.data.fill_(threshold)
    checker.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_loads_from_a_folder_and_scores(name: str, tmp_path: Path) -> None:
    scorer = load_scorer(f"{name}={preset_folder(name, tmp_path)}")
    scores = scorer.score(IMAGES)
    assert len(scores) == 2 and scores[0].value != scores[1].value
    assert all(score.categories["sexual"] == score.value for score in scores)
    assert all(score.categories["violence"] is None for score in scores)
    assert scorer.score_prepared([scorer.prepare(image) for image in IMAGES]) == scores
    heat = explain(scorer, IMAGES[0].resize((60, 40)), category="sexual", method="gradients")
    assert heat.cost == pytest.approx(scores[0].value, abs=1e-3) and bool(torch.isfinite(heat.heat).all())
    with pytest.raises(ScorerError, match="no cost for 'violence'"):
        explain(scorer, IMAGES[0], category="violence", method="gradients")


def test_marqos_cost_is_the_log_odds_of_its_class(tmp_path: Path) -> None:
    scorer = HubScorer("marqo", preset_folder("marqo", tmp_path))
    logits = VisionTransformer(filled(vit_shapes(2)))(scorer.prepare(IMAGES[0])[None])[0]
    chance = logits.softmax(-1)[0].item()
    assert scorer.score(IMAGES)[0].value == pytest.approx(math.log(chance / (1 - chance)), abs=1e-4)
    # Half grey, 127 of 255, lies at -0.004 after its preprocessing: (x / 255 - 0.5) / 0.5.
    grey = scorer.prepare(Image.new("RGB", (5, 5), (127, 127, 127)))
    assert grey.flatten()[0].item() == pytest.approx(2 * 127 / 255 - 1)


def test_the_safety_checker_flags_what_the_original_flags(tmp_path: Path) -> None:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    images = [Image.new("RGB", (28, 28), (8 * k, 255 - 8 * k, (40 * k) % 256)) for k in range(24)]
    scorer = HubScorer("compvis", safety_checker(tmp_path, 0.0))
    pixels = torch.stack([scorer.prepare(image) for image in images])
    middle = float(scorer._cost(pixels).median()) / 100
    # Once more, with the boundary in the middle of these images.
    scorer = HubScorer("compvis", safety_checker(tmp_path, middle))
    original = StableDiffusionSafetyChecker.from_pretrained(tmp_path).eval()
    _, flagged = original(pixels, [torch.zeros(1) for _ in images])
    assert [score.harmful for score in scorer.score(images)] == [bool(flag) for flag in flagged]
    assert {bool(flag) for flag in flagged} == {True, False}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("weights", "not Marqo/nsfw-image-detection-384"),
        ("other", "not Marqo/nsfw-image-detection-384"),
        ("classes", "names the classes cat, dog; expected NSFW"),
        ("none", r"has no model\.safetensors"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, damage: str, says: str) -> None:
    folder = preset_folder("marqo", tmp_path)
    weights = folder / "model.safetensors"
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif damage == "other":
        save_file({"x": torch.zeros(2)}, weights)
    elif damage == "classes":
        (folder / "config.json").write_text(json.dumps({"label_names": ["cat", "dog"]}), encoding="utf-8")
    else:
        weights.unlink()
    with pytest.raises(ScdpoError, match=says):
        HubScorer("marqo", folder)


def test_transformers_is_asked_for_only_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert HubScorer("marqo", preset_folder("marqo", tmp_path)).id.startswith("marqo")
    with pytest.raises(ScorerError, match="needs the package 'transformers'"):
        hub._transformers()
