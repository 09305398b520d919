"""Every shape of LoRA from the settings, and text encoders that train along."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import T5EncoderModel

from scdpo_core.config.settings import LoraSettings
from scdpo_core.families import FAMILIES, LoadOptions
from scdpo_core.lora.file import load_lora
from scdpo_core.run_store.events import Progress, Saved
from scdpo_core.training.adapters import attach_finished, attach_lora, encode_prompts_with_grad
from scdpo_core.training.job import run_job
from scdpo_core.types import PairBatch, ScdpoError
from tests.support.tiny import tiny_pairs, tiny_settings
from tests.support.tiny_families import WITH_CLIP, WITH_T5, tiny_folder
from tests.support.tiny_parts import T5_TOKENS

CPU = torch.device("cpu")
OPTIONS = LoadOptions(t5_tokens=T5_TOKENS)
TOWERS = {
    "sd1": ["text_encoder"],
    "sd2": ["text_encoder"],
    "sdxl": ["text_encoder", "text_encoder_2"],
    "sd3": ["text_encoder", "text_encoder_2"],
    "flux": ["text_encoder"],
}


def test_every_clip_trains() -> None:
    assert (*TOWERS,) == WITH_CLIP


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "pairs", 4)


@pytest.fixture(scope="module", name="folders")
def _folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tiny_folder(family, tmp_path_factory.mktemp(family) / "base") for family in FAMILIES}


def _batch(model: Any, prompts: tuple[str, ...]) -> PairBatch:
    """Two pairs of random images."""
    dice = torch.Generator().manual_seed(3)
    latents = torch.randn((len(prompts), 2, *model.latent_shape()), generator=dice)
    one = torch.ones(len(prompts))
    words = model.encode_prompts(list(prompts))
    return PairBatch(latents, words, one, one, torch.full((len(prompts), 2), float("nan")), prompts)


@pytest.mark.parametrize("family", TOWERS)
def test_text_encoders_train_along_and_the_reference_never_hears_of_it(
    family: str, folders: dict[str, Path]
) -> None:
    model = FAMILIES[family].load(folders[family], CPU, torch.float32, OPTIONS)
    batch = _batch(model, ("a thing", "another one"))
    settings = LoraSettings(rank=2, targets="attention+ff", train_text=True)
    adapter = attach_lora(model, settings, 0)
    texts = sorted({name.split(".")[0] for name in adapter.modules if name.startswith("text_encoder")})
    assert texts == TOWERS[family]

    encode = encode_prompts_with_grad(model, settings)
    assert encode is not None
    model.release_encoders()
    live = encode(batch.prompts, batch.conditioning)
    # Untrained, the LoRA changes no word.
    torch.testing.assert_close(live.embeddings, batch.conditioning.embeddings)
    weights = adapter.parameters()
    with torch.no_grad():
        for weight in weights:
            weight.normal_(0, 0.3)
    moved = encode(batch.prompts, batch.conditioning)
    changed = [moved.pooled] if family == "flux" else [moved.embeddings]
    known = [batch.conditioning.pooled] if family == "flux" else [batch.conditioning.embeddings]
    assert all(bool((a != b).any()) for a, b in zip(changed, known, strict=True) if a is not None)
    with adapter.disabled():
        again = encode(batch.prompts, batch.conditioning)
    torch.testing.assert_close(again.embeddings, batch.conditioning.embeddings)

    # Every weight that is trained has an effect on the denoiser's answer.
    noise, timesteps = batch.latents[:, 1], model.timesteps.last(torch.tensor([1, 1]))
    model.residuals(batch.latents[:, 0], noise, timesteps, moved, "native").square().sum().backward()
    names = [name for name in adapter.state() if not name.endswith(".alpha")]
    idle = [n for n, w in zip(names, weights, strict=True) if w.grad is None or not bool(w.grad.any())]
    # SD 3's last block throws its own words away, whoever trains.
    assert [name for name in idle if name.startswith("text_encoder")] == []


def test_words_drop_out_while_the_denoiser_trains_and_never_else(folders: dict[str, Path]) -> None:
    model = FAMILIES["sd1"].load(folders["sd1"], CPU, torch.float32, OPTIONS)
    batch = _batch(model, ("a thing", "another one"))
    settings = LoraSettings(rank=2, train_text=True, dropout=0.5)
    adapter = attach_lora(model, settings, 0)
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.normal_(0, 0.3)
    encode = encode_prompts_with_grad(model, settings)
    assert encode is not None

    def seen() -> list[torch.Tensor]:
        found = [encode(batch.prompts, batch.conditioning) for _ in range(2)]
        return [live.embeddings for live in found]

    model.denoiser.eval()
    assert torch.equal(*seen())
    model.denoiser.train()
    assert not torch.equal(*seen())


def test_t5_is_asked_once_and_never_while_others_train(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in WITH_T5:
        model = FAMILIES[family].load(folders[family], CPU, torch.float32, OPTIONS)
        settings = LoraSettings(rank=2, train_text=True)
        adapter = attach_lora(model, settings, 0)
        batch = _batch(model, ("a thing", "another one"))
        encode = encode_prompts_with_grad(model, settings)
        assert encode is not None and adapter.parameters()
        model.release_encoders()
        with monkeypatch.context() as patch:
            patch.setattr(T5EncoderModel, "forward", lambda *_, **__: pytest.fail("T5 was asked"))
            patch.setattr(type(model), "_read_encoders", lambda self: pytest.fail("read again"))
            encode(batch.prompts, batch.conditioning)
        assert len(model.encode_prompts(["a thing"]).embeddings) == 1


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
def test_every_kind_goes_through_a_whole_run_text_included(
    kind: str, folders: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    settings = tiny_settings(
        folders["sd1"], pairs, tmp_path / "run", kind=kind, targets="conv", train_text=True,
        max_train_steps=2, block_ranks=("mid_block=4", "down_blocks.0=0", "text_encoder=1"),
    )  # fmt: skip
    result = run_job(settings)
    assert result.lora is not None
    state, info = load_lora(result.lora.path)
    parts = {name.rpartition(".")[2] for name in state}
    assert {"dora": "dora_scale", "loha": "hada_w1_a", "lokr": "lokr_w1"}[kind] in parts
    assert any(name.startswith("text_encoder.") for name in state)
    assert not any(name.startswith("down_blocks.0.") for name in state)
    assert any(".resnets.0.conv1." in name for name in state)
    model = FAMILIES["sd1"].load(folders["sd1"], torch.device("cpu"), torch.float32)
    adapter, _ = attach_finished(model, result.lora.path)
    found = adapter.state()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], weight.float()) for name, weight in state.items())
    if kind == "dora":
        assert state["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.down"].shape[0] == 1
        assert state["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.down"].shape[0] == 4
        assert info.rank == 4


def test_with_and_without_the_cached_words_a_run_resumes_to_the_same_bytes(
    folders: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    def settings(name: str, **changes: Any) -> Any:
        return tiny_settings(
            folders["sdxl"], pairs, tmp_path / name / "lora", train_text=True, dropout=0.2, text_lr=5e-4,
            sample_every=2, samples=1, **{"max_train_steps": 4, **changes},
        )  # fmt: skip

    whole = run_job(settings("whole"))

    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.phase == "train":
            (tmp_path / "parts" / "lora" / "stop").touch()

    assert run_job(settings("parts"), listen=stop).outcome.reason == "stopped"
    resumed = run_job(settings("parts"), resume=True)
    assert whole.lora is not None and resumed.lora is not None
    assert resumed.lora.path.read_bytes() == whole.lora.path.read_bytes()
    frozen = dataclasses.replace(
        settings("frozen"), optim=dataclasses.replace(settings("x").optim, text_lr=None)
    )
    frozen = dataclasses.replace(frozen, lora=dataclasses.replace(frozen.lora, train_text=False))
    other = run_job(frozen)
    assert other.lora is not None
    assert not any(name.startswith("text_encoder") for name in load_lora(other.lora.path)[0])


def test_text_encoders_have_a_rate_of_their_own(folders: dict[str, Path]) -> None:
    from scdpo_core.config.settings import OptimSettings
    from scdpo_core.training.optimizers import build_optimizer, set_rate

    model = FAMILIES["sd1"].load(folders["sd1"], CPU, torch.float32)
    adapter = attach_lora(model, LoraSettings(rank=2, train_text=True), 0)
    optimizer = build_optimizer(adapter, OptimSettings(lr=1e-3, text_lr=1e-4), CPU)
    set_rate(optimizer, 5e-4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-4, 5e-5])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(adapter.parameters())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (LoraSettings(block_ranks=("text_encoder=4",)), "give --train-text"),
        (LoraSettings(block_ranks=("text_encoder_2=4",), train_text=True), "this model's are: text_encoder"),
        (LoraSettings(block_ranks=("mid=4",)), "Blocks: down_blocks.0"),
        (LoraSettings(block_ranks=("mid_block",)), "should read BLOCK=RANK"),
    ],
)
def test_a_rank_for_nothing_is_refused(
    settings: LoraSettings, sentence: str, folders: dict[str, Path]
) -> None:
    model = FAMILIES["sd1"].load(folders["sd1"], CPU, torch.float32)
    with pytest.raises(ScdpoError, match=sentence):
        attach_lora(model, settings, 0)


def test_the_image_changes_with_the_words(folders: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    # Nothing but the text encoder: whatever changes in the image comes from the words.
    settings = tiny_settings(
        folders["sd1"], pairs, tmp_path / "run", train_text=True, samples=1, max_train_steps=3, lr=0.2,
        block_ranks=("down_blocks=0", "up_blocks=0", "mid_block=1"),
    )  # fmt: skip
    heard: list[object] = []
    result = run_job(settings, listen=heard.append)
    assert Saved(3, "run.safetensors", "lora") in heard
    images = [np.asarray(path.read_bytes()) for path in sorted((result.folder / "samples").iterdir())]
    assert images[0].tobytes() != images[-1].tobytes()
