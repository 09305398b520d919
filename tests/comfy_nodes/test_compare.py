"""Compare Before/After with LoRAs that adapt text encoders, without ComfyUI (see `comfy_contract`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scdpo_core.lora.file import save_lora
from tests.support.comfy_contract import RECORDED, Door, open_door

WORDS = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
IMAGES = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """The pack as the newest recorded ComfyUI would have it, opened once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield open_door(sorted(RECORDED)[-1], tmp_path_factory.mktemp("comfyui"), monkeypatch)


def written(folder: Path, *modules: str) -> Path:
    path = folder / "words.safetensors"
    state = {}
    for module in modules:
        state |= {f"{module}.down": torch.ones(2, 8), f"{module}.up": torch.ones(8, 2)}
        state[f"{module}.alpha"] = torch.tensor(2.0)
    save_lora(path, state, family="sd1", rank=2, alpha=2.0, facts={})
    return path


def executed(door: Door, **changes: Any) -> Any:
    inputs = {
        "model": None, "lora_name": "words.safetensors", "strengths": "0, 1", "positive": [], "negative": [],
        "vae": None, "cost_model": None, "seed": 0, "seeds": 1,
    }  # fmt: skip
    return door.nodes["SCDPO_CompareBeforeAfter"].execute(**{**inputs, **changes})


def test_words_alone_need_the_text_encoders_and_the_prompt(door: Door) -> None:
    written(door.folder / "models" / "loras", WORDS)
    with pytest.raises(
        Exception, match=r"only the text encoders, so every row would be the same.*connect clip"
    ):
        executed(door)
    with pytest.raises(Exception, match="write it into positive_text"):
        executed(door, clip=object(), positive_text=" ")


@pytest.mark.parametrize(
    ("modules", "adapts"),
    [((WORDS,), (True, False)), ((IMAGES,), (False, True)), ((WORDS, IMAGES), (True, True))],
)
def test_what_a_file_adapts(
    door: Door, modules: tuple[str, ...], adapts: tuple[bool, bool], tmp_path: Path
) -> None:
    lora = door.module("comfy_nodes.lora_apply").read(written(tmp_path, *modules))
    assert (lora.adapts_words, lora.adapts_denoiser) == adapts


def test_a_prompt_that_is_encoded_anew_keeps_what_hangs_on_the_old_one(door: Door) -> None:
    clip = SimpleNamespace(
        tokenize=str.split,
        encode_from_tokens_scheduled=lambda tokens: [[tokens, {"pooled_output": len(tokens)}]],
    )
    encoded = door.module("comfy_nodes.compare")._encoded
    given = [["old", {"pooled_output": 9, "guidance": 3.5}]]
    assert encoded(clip, "a cat", given) == [[["a", "cat"], {"pooled_output": 2, "guidance": 3.5}]]
    assert encoded(clip, "a cat", []) == [[["a", "cat"], {"pooled_output": 2}]]
