"""Language models as text encoders: templates, hidden layers, lengths, masks, and where the files lie."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scdpo_core.families.component_layout import ChatPrompt, TextEncoderSpec
from scdpo_core.families.language_models import LanguageEncoder, text_settings
from scdpo_core.families.text_encoders import text_home, text_outside, tokenizer_home
from scdpo_core.preferences.cache import PairCache
from scdpo_core.types import CachedPair, Conditioning, EncodedPrompt, ScdpoError
from tests.support.tiny_language import chat_tokenizer, language_config, language_model, save_language_model

KINDS = ("Qwen3Model", "Qwen2_5_VLTextModel", "MistralModel")
CHAT = ChatPrompt("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", tokens=64, layers=(-2,))
# 'user' and a line's end after the start token; end token, line's end, start token, 'assistant', line's end.
BEFORE, AFTER = 1 + 5, 1 + 1 + 1 + 10


def encoder(kind: str = "Qwen3Model", chat: ChatPrompt = CHAT) -> LanguageEncoder:
    return LanguageEncoder(chat_tokenizer(), language_model(kind), chat)


def spec(kind: str = "Qwen3Model") -> TextEncoderSpec:
    return TextEncoderSpec(
        "text_encoder",
        "tokenizer",
        kind,
        "transformers",
        "",
        "qwen_3_4b",
        own_tokenizer=False,
        chat=CHAT,  # type: ignore[arg-type]
    )


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_says_the_same_alone_and_beside_a_longer_one(kind: str) -> None:
    text = encoder(kind)
    both = text.states(["a cat", "a much longer prompt"])
    alone = text.states(["a cat"])
    length = BEFORE + len("a cat") + AFTER
    assert alone.words.shape == (1, length, 32) and alone.mask is not None and bool(alone.mask.all())
    assert both.mask is not None and both.mask.sum(1).tolist() == [length, length + 15]
    torch.testing.assert_close(both.words[:1, :length], alone.words)
    assert not both.words[0, length:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_hidden_states_are_those_that_the_template_and_layers_ask_for(kind: str) -> None:
    text = encoder(kind, ChatPrompt(CHAT.template, 64, layers=(1, -2, -1)))
    ids = text.tokenizer(
        "<|im_start|>user\na {cat}<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt"
    ).input_ids
    hidden = text.model(input_ids=ids, output_hidden_states=True)
    expected = torch.cat([hidden.hidden_states[1], hidden.hidden_states[2], hidden.last_hidden_state], dim=-1)
    torch.testing.assert_close(text.states(["a {cat}"]).words, expected)


def test_the_start_can_be_dropped_and_the_padding_read() -> None:
    whole = encoder().states(["a cat"]).words
    dropped = encoder(chat=ChatPrompt(CHAT.template, 64, (-2,), drops_start=True)).states(["a cat", "a cats"])
    torch.testing.assert_close(dropped.words[:1, : len("a cat") + AFTER], whole[:, BEFORE:])
    padded = encoder(chat=ChatPrompt(CHAT.template, 64, (-2,), reads_padding=True)).states(["a cat"])
    assert padded.mask is None and padded.words.shape[1] == 64
    torch.testing.assert_close(padded.words[:, : whole.shape[1]], whole)
    assert padded.words[:, whole.shape[1] :].any()


def test_a_long_prompt_is_cut_and_the_template_stays_whole() -> None:
    text = encoder()
    room = 64 - BEFORE - AFTER
    prompt = "x" * room + "yz"
    assert text.unread("x" * room) == "" and text.unread(prompt) == "yz"
    torch.testing.assert_close(text.states([prompt]).words, text.states(["x" * room]).words)


@pytest.mark.parametrize(
    "prefix", ["", "model.", "language_model.", "language_model.model.", "model.language_model."]
)
def test_files_of_whole_chat_models_are_read(tmp_path: Path, prefix: str) -> None:
    home = tmp_path / "texts"
    model = save_language_model("Qwen3Model", home / "text_encoder", prefix=prefix)
    read = text_outside(home, spec(), tmp_path, torch.float32, 0)
    assert isinstance(read, LanguageEncoder)
    expected = LanguageEncoder(chat_tokenizer(), model, CHAT).states(["a cat"]).words
    torch.testing.assert_close(read.states(["a cat"]).words, expected)
    assert read.tokenizer("<|im_end|>").input_ids == chat_tokenizer()("<|im_end|>").input_ids


def test_where_a_model_and_its_tokenizer_may_lie(tmp_path: Path) -> None:
    save_language_model("Qwen3Model", tmp_path / "as downloaded")
    assert text_home(tmp_path / "as downloaded", spec()) == tmp_path / "as downloaded"
    assert tokenizer_home(tmp_path / "as downloaded", spec()) == tmp_path / "as downloaded"
    # A single file as ComfyUI has it, and ComfyUI's own folder of the tokenizer beside it.
    flat, configs = tmp_path / "flat", tmp_path / "configs"
    flat.mkdir()
    shutil.copy(tmp_path / "as downloaded" / "model.safetensors", flat / "qwen_3_4b_bf16.safetensors")
    assert (
        tokenizer_home(flat, spec()) is None and text_outside(flat, spec(), configs, torch.float32, 0) is None
    )
    chat_tokenizer().save_pretrained(flat / "qwen25_tokenizer")
    (configs / "text_encoder").mkdir(parents=True)
    shutil.copy(tmp_path / "as downloaded" / "config.json", configs / "text_encoder")
    read = text_outside(flat, spec(), configs, torch.bfloat16, 0)
    assert read is not None and read.model.dtype == torch.bfloat16


def test_sizes_are_those_of_the_weights_and_missing_ones_are_named(tmp_path: Path) -> None:
    home = tmp_path / "text_encoder"
    model = save_language_model("Qwen3Model", home)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    other = language_config("Qwen3Model", 64, layers=7) | {"layer_types": ["full_attention"] * 7}
    assert text_settings({"text_config": other, "vision_config": {}}, shapes) == language_config(
        "Qwen3Model", 32
    )
    with pytest.raises(ScdpoError, match="no language model"):
        text_settings(other, {"encoder.block.0.weight": (1,)})
    from safetensors.torch import load_file, save_file

    tensors = load_file(home / "model.safetensors")
    del tensors["layers.1.mlp.up_proj.weight"]
    save_file(tensors, home / "model.safetensors")
    with pytest.raises(ScdpoError, match=r"qwen_3_4b lacks layers\.1\.mlp\.up_proj\.weight"):
        text_outside(tmp_path, spec(), tmp_path, torch.float32, 0)


def prompt(length: int) -> EncodedPrompt:
    return EncodedPrompt(torch.ones(length, 2), attention_mask=torch.ones(length, dtype=torch.bool))


def test_masks_pad_trim_and_travel(tmp_path: Path) -> None:
    padded = prompt(2).padded(5)
    assert padded.embeddings.sum(1).tolist() == [2, 2, 0, 0, 0]
    assert padded.attention_mask is not None
    assert padded.attention_mask.tolist() == [True, True, False, False, False]
    assert len(padded.trimmed().embeddings) == 2
    with pytest.raises(ValueError, match="cannot be padded"):
        prompt(6).padded(5)
    parts = [
        Conditioning(own.embeddings[None], attention_mask=own.attention_mask[None])  # type: ignore[index]
        for own in (prompt(2), prompt(3))
    ]
    joined = Conditioning.concat(parts)
    assert joined.attention_mask is not None and joined.attention_mask.sum(1).tolist() == [2, 3]
    assert joined.embeddings.shape == (2, 3, 2)
    cache = PairCache(tmp_path)
    cache.put(CachedPair.of(torch.zeros(2, 1, 2, 2), prompt(3), "key"))
    found = cache.get("key")
    assert found is not None and found.attention_mask is not None and found.attention_mask.dtype == torch.bool
