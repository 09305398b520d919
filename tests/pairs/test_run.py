"""Building pairs with a stub for a model: what is drawn, what is kept and why, and what is drawn once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scdpo_core.config.settings import ModelSettings
from scdpo_core.pairs.job import BuildJob, Drawing, check
from scdpo_core.pairs.requests import PairSpec
from scdpo_core.pairs.run import Builder, groups_of, rows_of
from scdpo_core.pairs.store import Row, Store
from scdpo_core.pairs.strategies import STRENGTHS
from scdpo_core.preferences.folder import check_folder
from scdpo_core.preferences.masks import latent_mask
from scdpo_core.types import CostScore, ScdpoError

RED, GREEN = (255, 0, 0), (0, 255, 0)


class Painter:
    """Draws red squares for 'harm' and green images for all else, and remembers what it was asked for.

    Attributes:
        calls: prompts, seeds, steps, guidance and start of each call.
        stubborn: how many calls with a start image still draw harm.
    """

    def __init__(self, stubborn: int = 0) -> None:
        self.calls: list[tuple[list[str], list[int], int, float, Any]] = []
        self.stubborn = stubborn

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        size: Any = None,
        progress: Any = None,
        start: Any = None,
    ) -> list[Image.Image]:
        self.calls.append((list(prompts), list(seeds), steps, guidance, start))
        stubborn = start is not None and self.stubborn > 0
        self.stubborn -= stubborn
        images = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            image = Image.new("RGB", (32, 32), (0, 200 + seed % 50, steps))
            if "harm" in prompt or stubborn:
                image.paste(RED, (8, 8, 16, 16))
            images.append(image)
        return images


class Reds:
    """A scorer: the cost is the number of red pixels, less 4."""

    id, hash, categories = "reds", "0" * 12, ()

    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        reds = [(np.asarray(image) == RED).all(-1).sum() for image in images]
        return [CostScore(float(count) - 4, {}, self.id, self.hash) for count in reds]


def spec(number: int, prompt: str = "harm", safe: str = "calm", category: str = "") -> PairSpec:
    return PairSpec(number, prompt, safe, category, number)


def built(
    folder: Path,
    harmful: Sequence[PairSpec],
    benign: Sequence[PairSpec] = (),
    painter: Painter | None = None,
    **own: Any,
) -> tuple[list[Row], Painter]:
    painter = painter or Painter()
    job = BuildJob(folder, (Path("prompts.txt"),), drawing=Drawing(20, 5.0), batch=2, **own)
    store = Store(folder)
    groups = groups_of(job, harmful, benign)
    Builder(job, painter, Reds(), store).run(groups, lambda done, total: None)  # type: ignore[arg-type]
    rows = rows_of(store, groups)
    assert rows is not None
    return rows, painter


def test_only_the_harm_is_drawn_anew_and_the_mask_is_kept(tmp_path: Path) -> None:
    rows, painter = built(tmp_path, [spec(0), spec(1)])
    assert [(row.reason, row.tries, row.rejected_cost, row.chosen_cost) for row in rows] == [
        ("", 1, 60.0, -4.0)
    ] * 2
    # One call for the prompts, one for the safe prompts from a start under a mask.
    (first, second) = painter.calls
    assert first[0] == ["harm", "harm"] and first[4] is None
    assert second[0] == ["calm", "calm"] and second[4].strength == 1.0
    pair = check_folder(tmp_path)[0]
    assert pair.safe_prompt == "calm" and pair.mask is not None
    mask = latent_mask(pair.mask, (32, 32), (4, 16, 16))[0]
    assert mask[5:7, 5:7].min() == 1 and mask[:, 14:].max() == 0
    old, new = (np.asarray(Image.open(path)) for path in (pair.rejected, pair.chosen))
    assert (old[:, 28:] == new[:, 28:]).all() and not (new == RED).all(-1).any()


def test_a_mask_grows_until_the_harm_is_gone(tmp_path: Path) -> None:
    rows, painter = built(tmp_path, [spec(0)], painter=Painter(stubborn=2))
    assert rows[0].tries == 3 and not rows[0].reason
    areas = [float(call[4].mask.sum()) for call in painter.calls[1:]]
    assert areas[0] < areas[1] < areas[2]
    assert len({call[1][0] for call in painter.calls}) == 4  # another seed every time


def test_after_the_last_try_the_pair_is_dropped_with_its_costs(tmp_path: Path) -> None:
    rows, painter = built(tmp_path, [spec(0)], painter=Painter(stubborn=9), attempts=2)
    assert len(painter.calls) == 3 and rows[0].tries == 2 and not rows[0].pair
    assert rows[0].reason == "not a harmless and a harmful image: costs +60.00 and +60.00"
    assert not (tmp_path / "chosen").exists()


def test_a_prompt_whose_image_is_harmless_costs_nothing_more(tmp_path: Path) -> None:
    rows, painter = built(tmp_path, [spec(0, "a lake")])
    assert rows[0].reason == "the image of its prompt is harmless" and rows[0].rejected_cost == -4
    assert len(painter.calls) == 1


def test_the_same_seed_needs_a_safe_prompt(tmp_path: Path) -> None:
    rows, painter = built(tmp_path, [spec(0), spec(1, safe="")], way="same-seed")
    assert [row.reason for row in rows] == ["", "it has no safe prompt, which this way needs"]
    assert [(call[0], call[1], call[4]) for call in painter.calls] == [
        (["harm"], [0], None),
        (["calm"], [0], None),
    ]


def test_editing_takes_more_noise_every_time(tmp_path: Path) -> None:
    rows, painter = built(tmp_path, [spec(0)], painter=Painter(stubborn=2), way="edit", attempts=3)
    assert rows[0].tries == 3 and not rows[0].mask
    strengths = [call[4].strength for call in painter.calls[1:]]
    assert strengths == pytest.approx([STRENGTHS[0], sum(STRENGTHS) / 2, STRENGTHS[1]])
    assert painter.calls[1][4].mask is None


def test_the_best_of_several_images_of_the_prompt(tmp_path: Path) -> None:
    class Fickle(Painter):
        def sample(self, prompts: Sequence[str], seeds: Sequence[int], *more: Any, **other: Any) -> Any:
            # Only the third image of the prompt is harmless.
            calm = len(self.calls) == 2
            return super().sample(["calm" if calm else prompt for prompt in prompts], seeds, *more, **other)

    rows, painter = built(tmp_path, [spec(0, safe="")], painter=Fickle(), way="best-of", attempts=4)
    assert len(painter.calls) == 4 and rows[0].tries == 3
    assert (rows[0].chosen_cost, rows[0].rejected_cost) == (-4.0, 60.0)


def test_benign_prompts_become_good_against_hasty(tmp_path: Path) -> None:
    rows, painter = built(tmp_path, [], [spec(0, "a lake", "", "benign"), spec(1, "harm", "", "benign")])
    assert [row.reason for row in rows] == ["", "an image of a harmless prompt is harmful"]
    assert [(call[2], call[3]) for call in painter.calls] == [(20, 5.0), (3, 1.0)]
    (pair,) = check_folder(tmp_path)
    assert pair.is_benign and pair.mask is None and Image.open(pair.rejected).getpixel((0, 0))[2] == 3  # type: ignore[index]


def test_nothing_leaves_the_folder_whatever_a_prompt_says(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    prompts = [
        "harm ../../../etc/passwd",
        "harm \u202e<script>",
        "harm " + "x" * 5000,
        "harm\ud7ff",
        "harm con nul",
    ]
    rows, _ = built(folder, [spec(number, prompt) for number, prompt in enumerate(prompts)])
    assert all(row.pair for row in rows) and len(check_folder(folder)) == len(prompts)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_a_finished_job_draws_nothing_again_and_a_killed_one_the_rest(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    class Dying(Painter):
        def sample(self, *given: Any, **more: Any) -> Any:
            if len(self.calls) == 3:
                raise KilledError
            return super().sample(*given, **more)

    asked = [spec(number) for number in range(5)]
    whole, painter = built(tmp_path / "whole", asked)
    dying = Dying()
    with pytest.raises(KilledError):
        built(tmp_path / "cut", asked, painter=dying)
    rows, rest = built(tmp_path / "cut", asked)
    assert rows == whole
    asked_for = [[(call[0], call[1]) for call in one.calls] for one in (dying, rest, painter)]
    assert asked_for[0] + asked_for[1] == asked_for[2]
    assert built(tmp_path / "cut", asked)[1].calls == []


def test_processes_share_the_groups(tmp_path: Path) -> None:
    asked = [spec(number) for number in range(6)]
    job = BuildJob(tmp_path, (Path("p"),), batch=2, processes=2)
    store, groups = Store(tmp_path), groups_of(job, asked, ())
    painters = Painter(), Painter()
    for rank in (1, 0):
        assert rows_of(store, groups) is None
        part = replace(job, rank=rank)
        Builder(part, painters[rank], Reds(), store).run(groups, lambda done, total: None)  # type: ignore[arg-type]
    seeds = [sorted(seed for call in one.calls[::2] for seed in call[1]) for one in painters]
    assert seeds == [[0, 1, 4, 5], [2, 3]]
    assert [row.number for row in rows_of(store, groups) or ()] == list(range(6))


def test_a_group_that_another_process_has_is_left_to_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.working_on(0) as first, store.working_on(0) as second, store.working_on(1) as other:
        assert (first, second, other) == (True, False, True)


def test_other_settings_do_not_go_on_with_a_folder(tmp_path: Path) -> None:
    Store(tmp_path).begin({"way": "inpaint", "model": "a"})
    Store(tmp_path).begin({"way": "inpaint", "model": "a"})
    with pytest.raises(ScdpoError, match=r"started with other settings \(way: inpaint -> edit"):
        Store(tmp_path).begin({"way": "edit", "model": "a"})
    (tmp_path / "building" / "job.json").write_text("[", "utf-8")
    with pytest.raises(ScdpoError, match="is damaged"):
        Store(tmp_path).begin({"way": "edit", "model": "a"})


def test_everything_wrong_with_a_job_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    job = BuildJob(
        tmp_path / "file", (), ModelSettings(base=str(tmp_path / "none.safetensors")), scorer="nobody",
        way="best-of", attempts=1, category="a/b", rule="as prompted", rank=4, processes=2,
    )  # fmt: skip
    with pytest.raises(ScdpoError) as caught:
        check(job)
    text = str(caught.value)
    for part in (
        "Give prompts",
        "--attempts 2",
        "--shard",
        "is a file",
        "'nobody'",
        "'a/b'",
        "none.safetensors",
    ):
        assert part in text, part
