"""Parts of a model on a card that may be too small for their sum; the card is made of numbers."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scdpo_core.families import FAMILIES, LoadOptions
from scdpo_core.families.offload import DENOISER, LIVE, TEXTS, VAE, OffloadManager
from scdpo_core.preferences import cache as caches
from scdpo_core.preferences.cache import MemoryCache, build_cache, pair_key
from scdpo_core.types import Conditioning
from tests.preferences.test_cache import FakeModel
from tests.preferences.test_cache import _pairs as make_pairs
from tests.support.tiny_families import tiny_folder

GIB = 2**30
CARD = torch.device("cuda")


class Card:
    """A card of some bytes, and what lies on it."""

    def __init__(self, size: int) -> None:
        self.size, self.on = size, list[str]()
        self.moves = 0
        self.parts: dict[str, Part] = {}

    def free(self, _: torch.device) -> int:
        return self.size - sum(self.parts[name].bytes for name in self.on)


class Part(nn.Module):
    """So many bytes, which know where they are."""

    def __init__(self, card: Card, name: str, size: int) -> None:
        super().__init__()
        self.bytes, self._card, self._name = size, card, name
        # No memory behind it, but as many elements as it says.
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.int8, device="meta"), requires_grad=False)
        card.parts[name] = self

    def to(self, device: torch.device) -> Part:  # type: ignore[override]
        self._card.moves += 1
        if device.type == "cpu":
            self._card.on.remove(self._name)
        else:
            self._card.on.append(self._name)
        return self


def places(card: Card, denoiser: int, texts: int, vae: int) -> OffloadManager:
    made = OffloadManager(CARD, card.free)
    for name, size in ((DENOISER, denoiser), (TEXTS, texts), (VAE, vae)):
        made.register(name, [Part(card, name, size * GIB)])
    return made


def test_on_a_large_card_everything_comes_once_and_stays() -> None:
    card = Card(80 * GIB)
    manager = places(card, 6, 10, 1)
    for _ in range(3):
        for name in (DENOISER, TEXTS, VAE):
            manager.load(name)
    assert card.on == [DENOISER, TEXTS, VAE] and card.moves == 3


def test_a_small_card_holds_the_largest_part_and_not_the_sum() -> None:
    card = Card(14 * GIB)
    manager = places(card, 6, 10, 1)
    manager.load(DENOISER)
    manager.load(TEXTS)
    assert card.on == [TEXTS]
    manager.load(VAE)
    # 14 - 10 leaves 4: one for the VAE, three to work with.
    assert card.on == [TEXTS, VAE]
    manager.load(DENOISER)
    # The text encoders worked longest ago; with them gone there is room.
    assert card.on == [VAE, DENOISER]


def test_what_is_fixed_never_leaves_and_what_is_dropped_is_forgotten() -> None:
    card = Card(14 * GIB)
    manager = places(card, 6, 10, 1)
    manager.load(TEXTS)
    manager.pin(TEXTS)
    manager.load(DENOISER)
    assert card.on == [TEXTS, DENOISER]
    manager.drop(TEXTS)
    manager.load(VAE)
    assert TEXTS in card.on  # nobody here moves what is no longer ours
    with pytest.raises(KeyError):
        OffloadManager(CARD, card.free).load(VAE)


def test_where_blocks_wait_every_part_has_the_card_to_itself() -> None:
    card = Card(80 * GIB)
    manager = OffloadManager(CARD, card.free, one_at_a_time=True)
    for name in (DENOISER, TEXTS, VAE):
        manager.register(name, [Part(card, name, GIB)])
    held = []
    for name in (DENOISER, TEXTS, VAE, DENOISER, TEXTS):
        manager.load(name)
        held.append(list(card.on))
    assert held == [[DENOISER], [TEXTS], [VAE], [DENOISER], [TEXTS]]


def test_when_memory_runs_out_at_work_the_others_leave_and_it_is_done_again() -> None:
    card = Card(80 * GIB)
    manager = places(card, 6, 10, 1)
    manager.load(DENOISER)
    manager.load(TEXTS)
    seen: list[list[str]] = []

    def decode() -> int:
        seen.append(list(card.on))
        if len(card.on) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB")
        return 7

    assert manager.run(VAE, decode) == 7
    assert seen == [[DENOISER, TEXTS, VAE], [VAE]]


def test_alone_on_the_card_running_out_is_an_error_and_other_errors_are_not_tried_again() -> None:
    card = Card(80 * GIB)
    manager = places(card, 6, 10, 1)
    manager.load(TEXTS)
    tries = 0

    def never() -> None:
        nonlocal tries
        tries += 1
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        manager.run(VAE, never)
    assert tries == 2

    def broken() -> None:
        raise RuntimeError("shapes do not match")

    manager.load(TEXTS)
    with pytest.raises(RuntimeError, match="shapes"):
        manager.run(VAE, broken)
    assert card.on == [VAE, TEXTS]


def test_a_part_that_finds_no_room_on_its_way_comes_once_the_others_have_left() -> None:
    card = Card(80 * GIB)
    manager = places(card, 6, 10, 1)
    manager.load(DENOISER)
    real, tries = card.parts[TEXTS].to, list[int]()

    def to(device: torch.device) -> Part:
        tries.append(len(card.on))
        if card.on:
            raise RuntimeError("MPS backend out of memory")
        return real(device)

    card.parts[TEXTS].to = to  # type: ignore[method-assign,assignment]
    assert manager.run(TEXTS, lambda: 7) == 7
    assert (tries, card.on) == ([1, 0], [TEXTS])


def test_what_several_processes_share_is_alone_from_the_start_and_tried_once() -> None:
    card = Card(80 * GIB)
    manager = places(card, 6, 10, 1)
    manager.pin(DENOISER)
    manager.load(TEXTS)
    manager.load(VAE)
    tries: list[list[str]] = []

    def out() -> None:
        tries.append(list(card.on))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        manager.run(DENOISER, out)
    assert tries == [[]]


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_a_model_calls_for_its_parts_in_turn(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    load = OffloadManager.load

    def noted(self: OffloadManager, name: str) -> None:
        if calls[-1:] != [name]:
            calls.append(name)
        load(self, name)

    monkeypatch.setattr(OffloadManager, "load", noted)
    base = tiny_folder(family, tmp_path / "base")
    model = FAMILIES[family].load(base, torch.device("cpu"), torch.float32, LoadOptions(t5_tokens=8))
    assert calls == [DENOISER]
    model.sample(["a"], [0], 2, 3.0)
    assert calls == [DENOISER, TEXTS, DENOISER, VAE]
    model.release_encoders()
    assert calls[-1] == DENOISER
    model.train_texts()
    assert calls[-1] == LIVE
    known, before = model.encode_prompts(["a"]), len(calls)
    found = model.live_prompts(["a"], known)
    assert len(calls) == before
    assert torch.equal(found.embeddings, known.embeddings)


def test_each_part_has_one_turn_however_many_images_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scdpo_core.families.sampling.AT_ONCE", 1)
    base = tiny_folder("sd1", tmp_path / "base")
    model = FAMILIES["sd1"].load(base, torch.device("cpu"), torch.float32)
    turns: list[str] = []
    run = OffloadManager.run

    def noted(self: OffloadManager, name: str, compute: Any) -> Any:
        turns.append(name)
        return run(self, name, compute)

    monkeypatch.setattr(OffloadManager, "run", noted)
    images = model.sample(["a", "b", "c"], [0, 1, 2], 2, 3.0)
    assert [name for name, _ in groupby(turns)] == [TEXTS, DENOISER, VAE]
    assert len({image.tobytes() for image in images}) == 3


def test_prompts_of_many_pairs_come_before_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_TURN", 3)
    calls: list[str] = []

    class Model(FakeModel):
        def encode_prompts(self, prompts: list[str]) -> Conditioning:
            calls.append("prompts")
            return super().encode_prompts(prompts)

        def encode_images(self, images: torch.Tensor) -> torch.Tensor:
            calls.append("images")
            return super().encode_images(images)

    pairs = make_pairs(tmp_path, 5, prompts=[f"prompt {number}" for number in range(5)])
    found = build_cache(pairs, Model(), (16, 16), MemoryCache(), lambda done, total: None)  # type: ignore[arg-type]
    assert calls == ["prompts", "images", "prompts", "images"]
    assert [pair.key for pair in found] == [pair_key(each.pair, "fake", "fake-1", (16, 16)) for each in pairs]
