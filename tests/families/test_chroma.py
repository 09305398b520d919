"""Chroma1: hidden padding, the same with and without checkpointing, prompts of several lengths together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from scdpo_core.families import FAMILIES, LoadedModel, LoadOptions
from scdpo_core.families.chroma import with_first_padding
from scdpo_core.types import Conditioning
from tests.support.tiny_families import tiny_folder
from tests.support.tiny_parts import T5_TOKENS

CPU = torch.device("cpu")
PROMPTS = ["a", "a cat", "a much longer prompt"]


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("chroma", tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module", name="model")
def _model(folder: Path) -> LoadedModel:
    return FAMILIES["chroma"].load(folder, CPU, torch.float32, LoadOptions(t5_tokens=T5_TOKENS))


def _noisy(model: LoadedModel, count: int) -> Tensor:
    return torch.randn((count, *model.latent_shape()), generator=torch.Generator().manual_seed(1))


def _lengths(words: Conditioning) -> list[int]:
    assert words.attention_mask is not None
    lengths: list[int] = words.attention_mask.sum(1).tolist()
    return lengths


def test_one_token_of_padding_is_shown() -> None:
    own = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    shown = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    assert torch.equal(with_first_padding(own), shown)


def test_prompts_have_the_length_of_their_tokens(model: LoadedModel) -> None:
    # The tiny vocabulary has one token a letter and one where a word begins; an end and a padding follow.
    # The last prompt is cut off, so that nothing of its 12 tokens is padding.
    words = model.encode_prompts([*PROMPTS, ""])
    assert _lengths(words) == [2 + 2, 6 + 2, T5_TOKENS, 2]
    assert model.unread(PROMPTS[2])["T5 reads 12 tokens"].startswith("ger")


def test_prompts_of_several_lengths_are_answered_as_alone(model: LoadedModel) -> None:
    noisy, times = _noisy(model, 3), torch.tensor([100.0, 500.0, 900.0])
    with torch.no_grad():
        together = model.predict(noisy, times, model.encode_prompts(PROMPTS))
        for index, prompt in enumerate(PROMPTS):
            some = slice(index, index + 1)
            alone = model.predict(noisy[some], times[some], model.encode_prompts([prompt]))
            torch.testing.assert_close(together[some], alone, rtol=1e-4, atol=1e-5)


def test_what_the_mask_hides_changes_nothing(model: LoadedModel) -> None:
    noisy, times = _noisy(model, 3), torch.full((3,), 400.0)
    words = model.encode_prompts(PROMPTS)
    assert words.attention_mask is not None
    noise = 10 * torch.randn(words.embeddings.shape, generator=torch.Generator().manual_seed(2))
    other = torch.where(words.attention_mask[..., None], words.embeddings, noise)
    shown = words.embeddings + 0.5 * noise
    with torch.no_grad():
        answer, same, changed = (
            model.predict(noisy, times, Conditioning(states, attention_mask=words.attention_mask))
            for states in (words.embeddings, other, shown)
        )
    torch.testing.assert_close(same, answer, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(changed, answer, rtol=1e-2, atol=1e-3)


def test_checkpointing_changes_neither_answer_nor_gradient(folder: Path) -> None:
    model = FAMILIES["chroma"].load(folder, CPU, torch.float32, LoadOptions(t5_tokens=T5_TOKENS))
    words, noisy = model.encode_prompts(PROMPTS), _noisy(model, 3)
    others, times = model.encode_prompts(PROMPTS[::-1]), torch.full((3,), 400.0)
    weight = model.denoiser.get_parameter("single_transformer_blocks.1.attn.to_k.weight").requires_grad_()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.denoiser.train()
        answer = model.predict(noisy, times, words)
        # The reference's pass comes in between, and that of another batch may.
        with torch.no_grad():
            model.predict(noisy, times, others)
        (gradient,) = torch.autograd.grad(answer.square().mean(), [weight])
        found.append((answer.detach(), gradient))
    (plain, slope), (checkpointed, other_slope) = found
    torch.testing.assert_close(checkpointed, plain)
    torch.testing.assert_close(other_slope, slope)
