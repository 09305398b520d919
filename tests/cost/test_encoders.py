from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scdpo_core.cost.encoders import EncoderError, TowerEncoder, encoder_advice, load_encoder
from scdpo_core.cost.model import CostFacts, CostModel, save_cost
from scdpo_core.cost.trained_scorer import TrainedScorer
from scdpo_core.micro.model import IMAGE_ENCODER
from tests.support.cost_helpers import DIM, normalisation, tiny_tower


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tower(tmp_path_factory.mktemp("towers") / "tiny-clip")


def noise(side: int = 28, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return Image.fromarray(values)


def test_embeddings_are_of_length_one(tower: Path) -> None:
    encoder = TowerEncoder(tower)
    embeddings = encoder.encode([noise(seed=n) for n in range(40)])  # more than one batch
    assert (encoder.id, encoder.size, encoder.dim) == ("tiny-clip", 28, DIM)
    assert embeddings.shape == (40, DIM)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(40))
    assert encoder.encode([]).shape == (0, DIM)


def test_preprocessing_is_clips(tower: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    image = noise()
    model = CLIPVisionModelWithProjection.from_pretrained(tower).eval()
    pixels = torch.from_numpy(np.asarray(image).copy()).float() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    with torch.no_grad():
        seen = model(pixel_values=((pixels - mean) / std).permute(2, 0, 1)[None]).image_embeds
    torch.testing.assert_close(TowerEncoder(tower).encode([image]), seen / seen.norm())


def test_own_normalisation_is_read_and_part_of_the_hash(tower: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tower, tmp_path / "other"))
    normalisation(other, [0.5, 0.5, 0.5])
    plain, own = TowerEncoder(tower), TowerEncoder(other)
    assert plain.hash != own.hash
    assert not torch.allclose(plain.encode([noise()]), own.encode([noise()]))


def test_a_whole_clip_model_gives_the_same_encoder(tower: Path, tmp_path: Path) -> None:
    whole = TowerEncoder(tiny_tower(tmp_path / "whole", whole=True))
    assert whole.hash == TowerEncoder(tower).hash
    torch.testing.assert_close(whole.encode([noise()]), TowerEncoder(tower).encode([noise()]))


def test_other_weights_have_another_hash(tower: Path, tmp_path: Path) -> None:
    assert TowerEncoder(tiny_tower(tmp_path / "other", seed=1)).hash != TowerEncoder(tower).hash


def test_half_precision_weights_run_in_single_precision(tower: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    CLIPVisionModelWithProjection.from_pretrained(tower).half().save_pretrained(tmp_path / "half")
    assert TowerEncoder(tmp_path / "half").encode([noise()]).dtype == torch.float32


def test_harm_at_the_edge_of_a_wide_image_is_seen(tower: Path) -> None:
    plain = Image.new("RGB", (120, 28), "white")
    marked = plain.copy()
    marked.paste(noise(), (0, 0))  # outside of the middle square
    encoder = TowerEncoder(tower)
    assert not torch.allclose(encoder.encode([plain]), encoder.encode([marked]), atol=1e-3)


def test_a_tagger_is_read_by_its_tags_at_the_surest_place(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=5
    )
    config.problem_type = "multi_label_classification"
    model = ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    encoder = TowerEncoder(tmp_path)
    assert (encoder.size, encoder.dim) == (32, 6)
    pixels = torch.from_numpy(np.array(noise(32), np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    weight, bias = model.classifier[1].weight, model.classifier[1].bias
    with torch.no_grad():
        maps = model.resnet(pixels).last_hidden_state[0]
        places = [weight @ maps[:, y, x] + bias for y in range(maps.shape[1]) for x in range(maps.shape[2])]
        odds = torch.stack(places).max(dim=0).values
    assert len(places) > 1
    seen = torch.cat([1 / (1 + torch.exp(-(odds / 2 + 1))), torch.tensor([0.5])])
    torch.testing.assert_close(encoder.encode([noise(32)])[0], seen / seen.norm())


def test_a_resnet_is_an_encoder_too(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    model = ResNetModel(config)
    model(torch.randn(4, 3, 32, 32))  # in training: moves the running means of its norms
    model.eval().half().save_pretrained(tmp_path / "one")
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 32}}
    (tmp_path / "one" / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    encoder = TowerEncoder(tmp_path / "one")
    assert (encoder.size, encoder.dim) == (32, 12)
    pixels = torch.from_numpy(np.array(noise(32), np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        seen = model.float()(pixels).pooler_output.flatten(1)
    torch.testing.assert_close(encoder.encode([noise(32)]), seen / seen.norm())
    # Its running means are part of what it is.
    model.embedder.embedder.normalization.running_mean.add_(1.0)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    model.half().save_pretrained(tmp_path / "two")
    assert TowerEncoder(tmp_path / "two").hash != encoder.hash


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_images_of_any_mode(tower: Path, mode: str) -> None:
    assert TowerEncoder(tower).encode([noise().convert(mode)]).shape == (1, DIM)


def test_a_snapshot_is_named_after_its_model(tower: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--someone--clip-large" / "snapshots" / "0123abcd"
    shutil.copytree(tower, snapshot)
    assert TowerEncoder(snapshot).id == "someone/clip-large"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "no config.json"),
        ("config", "config.json is damaged"),
        ("other kind", "type 'bert'"),
        ("pickle", "no .safetensors weights"),
        ("cut off", "could not be loaded"),
        ("parts", "are incomplete"),
        ("normalisation", "preprocessor_config.json is damaged"),
    ],
)
def test_bad_folders_are_refused_in_a_sentence(tower: Path, tmp_path: Path, kind: str, says: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "bad"
    if kind != "missing":
        shutil.copytree(tower, folder)
    weights = folder / "model.safetensors"
    if kind == "config":
        (folder / "config.json").write_text("{", encoding="utf-8")
    elif kind == "other kind":
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    elif kind == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif kind == "cut off":
        weights.write_bytes(weights.read_bytes()[:-64])
    elif kind == "parts":
        tensors = load_file(weights)
        save_file(dict(list(tensors.items())[:-3]), weights, metadata={"format": "pt"})
    elif kind == "normalisation":
        normalisation(folder, [0.5, 0.0])
    with pytest.raises(EncoderError) as caught:
        TowerEncoder(folder)
    assert says in str(caught.value) and str(folder) in str(caught.value)


def test_loading_says_nothing(tower: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TowerEncoder(tower)
    assert capfd.readouterr() == ("", "")


def test_a_host_can_import_scorers_without_transformers() -> None:
    code = "import sys; import scdpo_core.cost.scorers; sys.exit('transformers' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.skipif(not IMAGE_ENCODER.is_dir(), reason="the embedded image tower is not built yet")
def test_the_embedded_encoder_loads() -> None:
    encoder = load_encoder("micro")
    assert (encoder.id, encoder.size) == ("micro", 128)
    assert encoder.encode([noise(64)]).shape == (1, encoder.dim)


_VIT = {
    "patch_size": 14,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
_SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 7, "patch_size": 2}


@pytest.mark.parametrize(
    ("kind", "small"),
    [
        *((kind, _VIT) for kind in ("Siglip", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT", "ViT", "Beit")),
        ("Swin", _SWIN),
        ("ConvNext", _CONVNEXT),
        ("ConvNextV2", _CONVNEXT),
    ],
)
def test_other_kinds_of_tower(tmp_path: Path, kind: str, small: dict[str, Any]) -> None:
    import transformers

    name = f"{kind}Vision" if kind == "Siglip" else kind
    config = getattr(transformers, f"{name}Config")(image_size=28, **small)
    torch.manual_seed(0)
    getattr(transformers, f"{name}Model")(config).save_pretrained(tmp_path / kind)
    encoder = TowerEncoder(tmp_path / kind)
    assert (encoder.size, encoder.dim) == (28, 16)
    first, second = encoder.encode([noise(), Image.new("RGB", (9, 9), "red")])
    assert float(first @ second) < 0.9999
    assert encoder.grid == (2 if small is _VIT else 0)
    if encoder.grid:
        embedding, attentions, tokens = encoder.attend(encoder.prepare(noise())[None])
        torch.testing.assert_close(embedding[0].detach(), first, atol=1e-5, rtol=1e-4)
        assert len(attentions) == 1 and attentions[0].shape[-1] == tokens.shape[1] >= 4


def test_a_name_on_the_hub_means_its_cache(
    tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match="hf download openai/clip-vit-large-patch14"):
        load_encoder("openai/clip-vit-large-patch14")
    folder = tmp_path / "models--openai--clip-vit-large-patch14"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abc", encoding="utf-8")
    shutil.copytree(tower, folder / "snapshots" / "0123abc")
    encoder = load_encoder("openai/clip-vit-large-patch14")
    assert (encoder.id, encoder.hash) == ("openai/clip-vit-large-patch14", TowerEncoder(tower).hash)
    # A cost model finds it there again.
    file = tmp_path / "c.safetensors"
    facts = CostFacts("c", encoder.id, encoder.hash, encoder_source="openai/clip-vit-large-patch14")
    save_cost(file, CostModel(encoder.dim), facts)
    assert TrainedScorer(file).encoder.id == encoder.id
    with pytest.raises(EncoderError, match="There is no image encoder"):
        load_encoder("nowhere")


def test_the_embedded_scorers_feature_is_an_encoder() -> None:
    encoder = load_encoder("embedded")
    assert (encoder.id, encoder.dim) == ("open-nsfw-1.0.0", 1024)
    assert encoder.encode([noise()]).shape == (1, 1024)


def test_an_embedding_has_a_gradient_where_the_pixels_have_one(tower: Path) -> None:
    encoder = TowerEncoder(tower)
    pixels = encoder.prepare(noise())[None].requires_grad_()
    torch.autograd.backward(encoder.embed(pixels).sum())
    assert pixels.grad is not None and bool((pixels.grad != 0).any())


def test_advice_names_the_encoder_and_what_to_take_instead() -> None:
    assert "'micro'" in encoder_advice("micro") and "photographs, use 'embedded'" in encoder_advice("micro")
    assert "'embedded'" in encoder_advice("embedded") and "CLIP" in encoder_advice("embedded")
    assert "'clip-vit'" in encoder_advice("clip-vit")
