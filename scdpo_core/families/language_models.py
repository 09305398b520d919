"""Language models as text encoders: a prompt is read as a turn of a chat, and hidden states are its words.

One mechanism for the Qwen and Mistral kinds. Only the layers that read text are loaded: the vision tower and
the head that names the next word are left where they are. Prompts keep their own length; in a batch the
shorter ones are padded on the right, and a mask says where they end. Causal attention makes a state depend on
what stands before it alone, so that padding changes none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..devices import sent
from ..io.safetensors_header import Shapes, block_count, read_header
from ..types import ScdpoError
from .chunks import TextStates
from .component_layout import ChatPrompt, TextEncoderSpec
from .detect import read_config
from .weight_formats import read_tensors

# All hidden states of a few prompts fit beside the weights; those of 32 would not.
_PROMPTS_AT_ONCE = 4
# Files of a whole chat model or of one that sees have the text layers further down.
_TEXT_LAYERS = re.compile(
    r"(?:model\.)?(?:language_model\.)?(?:model\.)?(?P<name>(?:embed_tokens|layers|norm)\..+)"
)


@dataclass(frozen=True)
class LanguageEncoder:
    """A language model in memory.

    Attributes:
        tokenizer: its tokenizer.
        model: the network, frozen.
        chat: how it reads a prompt.
    """

    tokenizer: Any
    model: Any
    chat: ChatPrompt

    @property
    def tokens(self) -> int:
        """How many tokens are read at most, the template's among them."""
        return self.chat.tokens

    def states(self, prompts: Sequence[str]) -> TextStates:
        """Encode N prompts: [N, T, layers * D], T that of the longest, with a mask of their lengths."""
        rows = [self._ids(prompt)[0] for prompt in prompts]
        length = self.tokens if self.chat.reads_padding else max(map(len, rows))
        padding = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [padding] * (length - len(row)) for row in rows])
        mask = torch.tensor([[place < len(row) for place in range(length)] for row in rows])
        ids, mask = sent(ids, self.model.device), sent(mask, self.model.device)
        first = self._start if self.chat.drops_start else 0
        words = torch.cat(
            [
                self._hidden(some, read)
                for some, read in zip(ids.split(_PROMPTS_AT_ONCE), mask.split(_PROMPTS_AT_ONCE), strict=True)
            ]
        )[:, first:]
        if self.chat.reads_padding:
            return TextStates(words)
        mask = mask[:, first:]
        return TextStates(words * mask[..., None], mask=mask)

    def unread(self, prompt: str) -> str:
        """Return the end of a prompt that is cut off, because the whole chat exceeds `tokens` tokens."""
        return str(self.tokenizer.decode(self._ids(prompt)[1])).strip()

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        answer = self.model(
            input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False
        )
        return torch.cat([answer.hidden_states[layer] for layer in self.chat.layers], dim=-1)

    def _ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """The tokens of a prompt's chat, and those of the prompt that were cut out to make it fit."""
        ids = self._tokenized(self.chat.template.replace("{}", prompt))
        end = len(ids) - self._end
        kept = min(end, self.tokens - self._end)
        return ids[:kept] + ids[end:], ids[kept:end]

    def _tokenized(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    @cached_property
    def _start(self) -> int:
        return len(self._tokenized(self.chat.template.partition("{}")[0]))

    @cached_property
    def _end(self) -> int:
        return len(self._tokenized(self.chat.template.partition("{}")[2]))


def read_language_encoder(
    part: TextEncoderSpec, files: Sequence[Path], prefix: str, config: Path, words: Path, dtype: torch.dtype
) -> LanguageEncoder:
    """Read a language model offline.

    Args:
        part: which one.
        files: its weights, in one file or in several.
        prefix: how the names of its tensors begin there.
        config: folder with its config.json; sizes are those of the weights.
        words: folder with its tokenizer.
        dtype: of its weights.

    Raises:
        ScdpoError: weights are missing; names one.
    """
    assert part.chat is not None  # it is a language model
    weights: dict[str, Tensor] = {}
    for file in files:
        names = [name.removeprefix(prefix) for name in read_header(file).shapes if name.startswith(prefix)]
        known = {name: match["name"] for name in names if (match := _TEXT_LAYERS.fullmatch(name))}
        tensors = read_tensors(file, prefix, dtype, only=known)
        weights |= {known[name]: tensor for name, tensor in tensors.items()}
    model = build_language_model(part, read_config(config / "config.json"), weights)
    return LanguageEncoder(language_tokenizer(words), model, part.chat)


def build_language_model(
    part: TextEncoderSpec, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> Any:
    """Build a language model of transformers with these weights, frozen.

    Args:
        part: which one.
        config: its settings, or those of a model that sees, whose text settings lie inside.
        weights: its tensors, by their names in the class of the text layers.

    Raises:
        ScdpoError: weights are missing; names one.
    """
    import transformers
    from accelerate import init_empty_weights

    cls = getattr(transformers, part.model)
    settings = cls.config_class.from_dict(
        text_settings(config, {n: tuple(w.shape) for n, w in weights.items()})
    )
    with init_empty_weights(include_buffers=False):
        model = cls(settings)
    missing, _ = model.load_state_dict(weights, strict=False, assign=True)
    if missing:
        raise ScdpoError(f"the text encoder {part.stem} lacks {missing[0]}")
    return model.requires_grad_(False).eval()


def text_settings(config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Return the settings of the text layers, with the sizes that a file's shapes tell.

    Raises:
        ScdpoError: the weights are those of no language model.
    """
    own = {**config, **config.get("text_config", {})}
    own = {
        key: value for key, value in own.items() if key not in ("text_config", "vision_config", "layer_types")
    }
    first = "layers.0."
    try:
        vocabulary, width = shapes["embed_tokens.weight"]
        queries = shapes[f"{first}self_attn.q_proj.weight"][0]
        keys = shapes[f"{first}self_attn.k_proj.weight"][0]
        inner = shapes[f"{first}mlp.gate_proj.weight"][0]
    except (KeyError, ValueError) as error:
        raise ScdpoError(
            f"the text encoder lacks {error}: it is no language model of the Qwen or Mistral kind"
        ) from error
    head = own.get("head_dim") or own["hidden_size"] // own["num_attention_heads"]
    return own | {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": block_count(shapes, "layers."),
        "num_attention_heads": queries // head,
        "num_key_value_heads": keys // head,
    }


def language_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a language model or of T5, which is too large to ship."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
