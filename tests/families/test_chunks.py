"""Prompts beyond CLIP's length: chunks of the tokenizer's length as hosts make them, in every family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scdpo_core.families import FAMILIES, LoadOptions
from scdpo_core.families.base import LoadedModel
from scdpo_core.families.chunks import TextEncoder, common, fill
from scdpo_core.families.text_encoders import CONFIGS, clip_tokenizer
from scdpo_core.io.files import read_tensors
from scdpo_core.preferences.cache import MemoryCache, build_cache
from scdpo_core.run_store.events import Event, Warned
from scdpo_core.training.dataset import level_prompts
from scdpo_core.training.job import run_job
from scdpo_core.types import Conditioning
from tests.support.tiny import TOKENS, tiny_pairs, tiny_settings
from tests.support.tiny_families import tiny_folder
from tests.support.tiny_parts import T5_TOKENS

BODY = TOKENS - 2
# The tiny tokenizer spells in bytes, and each letter that stands alone is a token.
LETTERS = "abcdefghijklmnopqrstuvwxyzabcdefghij"
LONG = " ".join(LETTERS)


def words(first: int, last: int) -> str:
    return " ".join(LETTERS[first:last])


CHUNKED = ("sd1", "sd2", "sdxl", "sd3")


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    root = tmp_path_factory.mktemp("bases")
    options = LoadOptions(t5_tokens=T5_TOKENS)
    return {
        name: FAMILIES[name].load(tiny_folder(name, root / name), torch.device("cpu"), torch.float32, options)
        for name in (*CHUNKED, "flux")
    }


def test_shorter_prompts_are_repeated_or_followed_by_nothing() -> None:
    assert fill([3, 4], 9, 4, repeat=True) == [3, 4, 3, 4]
    assert fill([3, 4], 9, 3, repeat=True) == [3, 4, 9]
    assert fill([3], 9, 3, repeat=False) == [3, 9, 9]
    assert common([1, 2, 3], repeat=True) == 6
    assert common([1, 2, 3], repeat=False) == 3
    # 5 * 7 * 8 chunks would be too much for what it brings.
    assert common([5, 7, 8], repeat=True) == 8


@pytest.mark.parametrize("name", CHUNKED)
def test_a_long_prompt_is_its_chunks_one_behind_the_other(models: dict[str, LoadedModel], name: str) -> None:
    model = models[name]
    assert [model.prompt_chunks(text) for text in ("", "a", words(0, BODY), words(0, BODY + 1), LONG)] == [
        *(1, 1, 1),
        *(2, 3),
    ]
    whole = model.encode_prompts([LONG])
    parts = model.encode_prompts([words(at, at + BODY) for at in range(0, len(LETTERS), BODY)])
    # T5 reads the whole prompt as far as it goes.
    assert whole.embeddings.shape[1] == 3 * TOKENS + (T5_TOKENS if name == "sd3" else 0)
    torch.testing.assert_close(
        whole.embeddings[0, : 3 * TOKENS], parts.embeddings[:, :TOKENS].flatten(0, 1), rtol=1e-4, atol=1e-5
    )
    if whole.pooled is not None:
        assert parts.pooled is not None
        torch.testing.assert_close(whole.pooled[0], parts.pooled[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_beside_a_long_prompt_a_short_one_means_the_same(models: dict[str, LoadedModel], name: str) -> None:
    model = models[name]
    both, alone = model.encode_prompts([LONG, "a"]), model.encode_prompts(["a"])
    assert both.embeddings.shape[1] == 3 * TOKENS

    def error(words: Conditioning) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        latents, noise = torch.randn((2, 1, *model.latent_shape()), generator=generator)
        return model.errors(latents, noise, torch.tensor([500]), words, "native")

    with torch.no_grad():
        own = both.map(lambda part: part[1:])
        torch.testing.assert_close(error(own), error(alone))
        assert not torch.allclose(error(both.map(lambda part: part[:1])), error(alone))


def test_sd3_fills_up_with_chunks_without_words(models: dict[str, LoadedModel]) -> None:
    model = models["sd3"]
    both, alone, empty = (model.encode_prompts(texts).embeddings for texts in ([LONG, "a"], ["a"], [""]))
    torch.testing.assert_close(both[1, :TOKENS], alone[0, :TOKENS])
    torch.testing.assert_close(both[1, TOKENS : 3 * TOKENS], empty[0, :TOKENS].repeat(2, 1))
    torch.testing.assert_close(both[1, 3 * TOKENS :], alone[0, TOKENS:])


@pytest.mark.parametrize("name", CHUNKED)
def test_embeddings_of_several_lengths_are_leveled_as_if_encoded_together(
    models: dict[str, LoadedModel], name: str
) -> None:
    model = models[name]
    texts = [LONG, "a", words(0, 2 * BODY)]
    together = model.encode_prompts(texts).embeddings
    leveled = model.level_prompts([model.encode_prompts([text]).prompt(0) for text in texts])
    torch.testing.assert_close(
        torch.stack([prompt.embeddings for prompt in leveled]), together, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", CHUNKED)
def test_trained_text_encoders_say_the_same_of_long_prompts(
    models: dict[str, LoadedModel], name: str
) -> None:
    model = models[name]
    texts = [LONG, "a", words(0, 2 * BODY)]
    known = model.encode_prompts(texts)
    model.train_texts()
    live = model.live_prompts(texts, known)
    torch.testing.assert_close(live.embeddings, known.embeddings, rtol=1e-4, atol=1e-5)
    alone = model.live_prompts(["a"], known.map(lambda part: part[1:2]))
    torch.testing.assert_close(alone.embeddings, known.embeddings[1:2], rtol=1e-4, atol=1e-5)


def test_what_is_not_read_is_named(models: dict[str, LoadedModel], tmp_path: Path) -> None:
    assert models["sd1"].unread(LONG) == {}
    (end,) = models["sd1"].unread(" ".join([LONG] * 10)).values()
    assert end.endswith("h i j") and len(end.split()) == 10 * len(LETTERS) - 8 * BODY
    assert set(models["flux"].unread("a" * 500)) == {f"T5 reads {T5_TOKENS} tokens"}
    options = LoadOptions(prompt_chunks=1)
    base = tiny_folder("sd1", tmp_path / "base")
    cut = FAMILIES["sd1"].load(base, torch.device("cpu"), torch.float32, options)
    assert list(cut.unread(LONG)) == [f"CLIP reads {BODY} tokens"]
    assert cut.encode_prompts([LONG]).embeddings.shape[1] == TOKENS
    torch.testing.assert_close(
        cut.encode_prompts([LONG]).embeddings, cut.encode_prompts([words(0, BODY)]).embeddings
    )


def test_pairs_of_several_lengths_are_cached_alone_and_share_a_batch(
    models: dict[str, LoadedModel], tmp_path: Path
) -> None:
    from scdpo_core.preferences.batches import BatchStream
    from scdpo_core.preferences.folder import check_folder
    from scdpo_core.preferences.relabel import unscored

    model = models["sd1"]
    pairs = check_folder(tiny_pairs(tmp_path / "pairs", 2))
    long = [replace(pairs[0], prompt=LONG), replace(pairs[1], prompt="a")]

    def cached(prompts: list[str]) -> list[str]:
        own = unscored([replace(pair, prompt=prompt) for pair, prompt in zip(pairs, prompts, strict=True)])
        return [pair.key for pair in build_cache(own, model, None, MemoryCache(), lambda done, total: None)]

    # A long prompt changes no other pair's key.
    assert cached([LONG, "a"])[1] == cached(["a", "a"])[1]
    ready = build_cache(unscored(long), model, None, MemoryCache(), lambda done, total: None)
    assert [len(pair.embeddings) for pair in ready] == [3 * TOKENS, TOKENS]
    leveled = level_prompts(ready, model)
    assert [len(pair.embeddings) for pair in leveled] == [3 * TOKENS] * 2
    assert leveled[0].key == ready[0].key and leveled[1].key != ready[1].key
    stream = BatchStream(leveled, unscored(long), 2, 0, torch.device("cpu"), torch.float32)
    assert stream.batch(0).conditioning.embeddings.shape[:2] == (2, 3 * TOKENS)


@pytest.mark.parametrize(
    "place", ["sd1/tokenizer", "sd2/tokenizer", "sdxl/tokenizer", "sdxl/tokenizer_2", "sd3/tokenizer_2"]
)
def test_one_chunk_is_what_the_tokenizer_itself_makes(place: str) -> None:
    tokenizer = clip_tokenizer(CONFIGS / place)
    text = TextEncoder(tokenizer, None, 77)
    for prompt in ("", "a knife", "ein Märchen, 一个女孩 :)", "word " * 75):
        expected = tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
        assert text._chunks(prompt) == [expected]
    assert text.count("word " * 75) == 1 and text.count("word " * 76) == 2


@pytest.mark.parametrize("family", ["sd1", "sd3"])
def test_a_run_trains_on_long_prompts_resumes_and_says_what_is_cut(tmp_path: Path, family: str) -> None:
    base = tiny_folder(family, tmp_path / "base")
    pairs = tiny_pairs(tmp_path / "pairs", 4)
    prompts = sorted((pairs / "chosen").rglob("*.txt"))
    prompts[0].write_text(" ".join([LONG] * 5), encoding="utf-8")
    prompts[1].write_text(LONG, encoding="utf-8")

    def run(name: str, steps: int, resume: bool = False) -> dict[str, Tensor]:
        options = {"t5_tokens": T5_TOKENS, "samples": 1, "train_text": True, "schedule": "constant"}
        settings = tiny_settings(base, pairs, tmp_path / name, max_train_steps=steps, **options)
        lora = run_job(settings, resume=resume, listen=said.append).lora
        assert lora is not None
        return read_tensors(lora.path)[0]

    said: list[Event] = []
    whole = run("one", 4)
    (cut,) = [event.message for event in said if isinstance(event, Warned) and "CLIP" in event.message]
    assert cut.startswith(f"CLIP reads {8 * BODY} tokens") and "1 prompt is longer" in cut
    run("two", 2)
    again = run("two", 4, resume=True)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
