"""The always-on script, on a stub of the hosts' modules that fails on every name they do not have."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scdpo_core.types import CostScore, ScdpoError
from tests.support.scoring_helpers import Redness
from tests.support.webui_stub import Host, Processing, draw, infotext, installed

RED, GREY, BLUE = (255, 0, 0), (128, 128, 128), (0, 0, 255)  # costs of 5, 0 and -5, by `Redness`


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with installed(tmp_path) as host:
        (tmp_path / "models" / "Lora").mkdir(parents=True)
        yield host


@pytest.fixture
def script(host: Host, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module("a1111_extension.script")
    settings = importlib.import_module("a1111_extension.settings")
    settings.register()
    monkeypatch.setattr(module.SCORER_CACHE, "get", lambda spec, device: Redness())
    return module.SafetyScript()


def striped(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    """An image that no cover leaves as it is: fine stripes of a colour and a little lighter."""
    image = Image.new("RGB", size, colour)
    for column in range(0, size[0], 2):
        image.paste(tuple(max(0, part - 24) for part in colour), (column, 0, column + 1, size[1]))
    return image


def colours(image: Image.Image) -> set[Any]:
    """Every colour in an image."""
    return {colour for _, colour in image.getcolors(1 << 16)}


def images(*wanted: tuple[int, int, int]) -> Any:
    made = [striped(colour) for colour in wanted]
    return made, made.__getitem__


def test_off_by_default_and_then_nothing_happens(host: Host, script: Any) -> None:
    assert script.ui(False)[0].value is False
    made, image = images(RED)
    p = Processing()
    processed = draw(script, p, image, False)
    assert processed.images[0] is made[0]
    assert p.extra_generation_params == {} and p.comments == {} and p.all_prompts == ["a cat"]


def test_each_image_of_a_batch_has_its_own_cost(script: Any) -> None:
    made, image = images(RED, BLUE, GREY, RED)
    p = Processing(batch_size=2, n_iter=2)
    processed = draw(script, p, image, True, "normal", 0, "nothing", "pixelate")
    # Stripes lose half of 24: (255 - 12) / 51 = 4.76.
    costs = ["+4.76", "-4.76", "+0.00", "+4.76"]
    bands = ["unsafe", "safe", "review", "unsafe"]
    assert [text["Safety cost"] for text in processed.infotexts] == costs
    assert [text["Safety band"] for text in processed.infotexts] == bands
    assert processed.infotexts[0]["Safety scorer"] == "redness@0123456789ab"
    same = [shown is original for shown, original in zip(processed.images, made, strict=True)]
    assert same == [False, True, True, False]


def test_the_host_may_count_from_the_first_image(script: Any) -> None:
    p, texts = Processing(batch_size=2, n_iter=2), []

    def image(number: int) -> Image.Image:
        texts.extend(infotext(p, before, p.all_prompts).get("Safety cost") for before in range(number))
        return Image.new("RGB", (8, 8), (51 * number, 0, 0))

    draw(script, p, image, True)
    assert texts == ["+0.00", "+0.00", "+1.00", "+0.00", "+1.00", "+2.00"]


def test_programs_get_the_scores_by_the_images_place(script: Any) -> None:
    grid, mask = Image.new("RGB", (1, 1)), Image.new("RGB", (64, 64))
    p = Processing()
    script.process(p, True, "normal", 0, "nothing", "nothing")
    p.prompts, p.seeds = p.all_prompts, [1]
    passed = SimpleNamespace(image=striped(RED))
    script.postprocess_image_after_composite(p, passed)
    processed = SimpleNamespace(images=[grid, mask, passed.image], index_of_first_image=1)
    script.postprocess(p, processed)
    (score,) = processed.extra_generation_params["Safety scores"]["scores"]
    assert score == {"image": 2, "cost": pytest.approx(243 / 51), "band": "unsafe", "error": None}
    assert processed.extra_generation_params["Safety scores"]["of"] == 3
    # The text that an X/Y/Z plot writes afterwards is about many images.
    assert "Safety cost" not in infotext(p, 0, p.all_prompts)
    assert infotext(p, 0, p.all_prompts)["Safety on unsafe"] == "nothing"


def test_a_grid_has_no_cost(script: Any) -> None:
    _, image = images(RED, BLUE)
    p, grids = Processing(batch_size=2), []

    def second(number: int) -> Image.Image:
        grids.append(infotext(p, 0, p.prompts, main=True))
        return image(number)

    draw(script, p, second, True)
    assert "Safety cost" not in grids[1]
    assert grids[1]["Safety threshold"] == "normal (+0.00)"


@pytest.mark.parametrize(
    ("word", "number", "band"),
    [
        ("strict", 0, "unsafe"),
        ("normal", 0, "review"),
        ("lenient", 0, "review"),
        ("my own number", 3, "safe"),
        ("my own number", -3, "unsafe"),
    ],
)
def test_the_threshold_moves_the_bands(script: Any, word: str, number: float, band: str) -> None:
    # Cost 0: strict begins unsafe at -1.386 + 1.386 = 0, lenient begins review at 1.386 - 1.386 = 0.
    p = Processing()
    text = draw(script, p, lambda number: Image.new("RGB", (8, 8), GREY), True, word, number).infotexts[0]
    assert (text["Safety cost"], text["Safety band"]) == ("+0.00", band)


@pytest.mark.parametrize("action", ["blur", "pixelate", "black", "quarantine"])
def test_actions_hide_the_image(script: Any, host: Host, action: str) -> None:
    made, image = images(RED)
    p = Processing()
    shown = draw(script, p, image, True, "normal", 0, "nothing", action).images[0]
    assert shown.size == made[0].size and shown.mode == "RGB"
    # Stripes differ by 24; squares of five columns hold two or three dark ones: 24 / 5 at most.
    row = [shown.getpixel((column, 32))[0] for column in range(64)]
    assert max(abs(a - b) for a, b in itertools.pairwise(row)) <= 5 or action == "quarantine"
    kept = list((host.root / "outputs" / "quarantine").glob("*.png"))
    assert len(kept) == (action == "quarantine")
    for file in kept:
        with Image.open(file) as original:
            assert original.tobytes() == made[0].tobytes()
            assert original.text["Safety cost"] == "+4.7647" and original.text["Seed"] == "100"
        assert str(file) in "".join(p.comments)


def test_a_image_with_hidden_colours_is_judged_by_them(script: Any) -> None:
    clear = Image.new("RGBA", (64, 64), (*RED, 0))
    shown = draw(script, Processing(), lambda number: clear, True).images[0]
    assert shown is not clear and shown.mode == "RGB"


class Broken(Redness):
    def score(self, images: Any) -> list[CostScore]:
        raise RuntimeError("out of memory")


class Infinite(Redness):
    def score(self, images: Any) -> list[CostScore]:
        return [CostScore(float("nan"), {}, self.id, self.hash)]


@pytest.mark.parametrize(
    ("scorer", "reason"),
    [(Broken, "RuntimeError: out of memory"), (Infinite, "The scorer 'redness' gave nan")],
)
def test_a_scorer_that_fails_hides_the_image(
    script: Any, host: Host, monkeypatch: pytest.MonkeyPatch, scorer: type, reason: str
) -> None:
    monkeypatch.setattr(sys.modules["a1111_extension.script"].SCORER_CACHE, "get", lambda *_: scorer())
    p = Processing()
    processed = draw(script, p, lambda number: striped(BLUE), True, "normal", 0, "nothing", "nothing")
    assert BLUE not in colours(processed.images[0])
    assert reason in processed.infotexts[0]["Safety error"]
    assert "Safety cost" not in processed.infotexts[0]
    assert reason in "".join(p.comments) and reason in "".join(host.log)


def test_a_full_disk_hides_what_should_go_to_quarantine(script: Any, host: Host) -> None:
    (host.root / "outputs").mkdir()
    (host.root / "outputs" / "quarantine").write_text("a file")
    p = Processing()
    processed = draw(script, p, lambda number: striped(RED), True, "normal", 0, "nothing", "quarantine")
    assert "could not be kept" in processed.infotexts[0]["Safety error"]
    assert RED not in colours(processed.images[0])


def test_a_scorer_that_cannot_be_loaded_stops_before_anything_is_drawn(
    script: Any, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ScdpoError("There is no cost model there.")

    monkeypatch.setattr(sys.modules["a1111_extension.script"].SCORER_CACHE, "get", refuse)
    p = Processing()
    processed = draw(script, p, lambda number: striped(BLUE), True)
    assert processed.images == [] and host.shared.state.interrupted
    assert infotext(p, 0, p.all_prompts)["Safety error"] == "There is no cost model there."
    assert "There is no cost model there." in "".join(p.comments)
    # A host that went on all the same would still show nothing.
    passed = SimpleNamespace(image=striped(BLUE))
    script.postprocess_image_after_composite(p, passed)
    assert BLUE not in colours(passed.image)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (("yes",), "must be true or false"),
        ((True, "harsh"), "no threshold 'harsh'"),
        ((True, "my own number", "nan"), "is a number"),
        ((True, "normal", 0, "smear"), "no action 'smear'"),
        ((True, "normal", 0, "blur", "blur", "None", "much"), "weight is a number"),
        ((True,) * 8, "takes 7 values"),
    ],
)
def test_values_from_the_api_that_make_no_sense_stop(
    script: Any, host: Host, values: tuple[Any, ...], sentence: str
) -> None:
    p = Processing()
    assert draw(script, p, lambda number: striped(BLUE), *values).images == []
    assert sentence in infotext(p, 0, p.all_prompts)["Safety error"]


def test_previews_are_hidden_while_images_may_be(script: Any, host: Host) -> None:
    state = host.shared.state
    seen = []

    def image(number: int) -> Image.Image:
        state.assign_current_image(striped(RED))
        seen.append(state.current_image)
        return striped(BLUE)

    draw(script, Processing(), image, True)
    draw(script, Processing(), image, True, "normal", 0, "nothing", "nothing")
    draw(script, Processing(), image, False)
    assert [preview.tobytes() == striped(RED).tobytes() for preview in seen] == [False, True, True]
    assert "assign_current_image" not in vars(state), "the host's own method is back"


def test_what_is_saved_before_it_was_judged_is_judged(script: Any) -> None:
    module = sys.modules["a1111_extension.filter_hooks"]
    saved: list[Any] = []

    def image(number: int) -> Image.Image:
        params = SimpleNamespace(p=p, image=striped(RED), pnginfo={"parameters": "a cat\nSteps: 2"})
        module.before_saved(params)
        saved.append(params)
        return striped(RED)

    p = Processing()
    processed = draw(script, p, image, True, "normal", 0, "nothing", "black")
    assert colours(saved[0].image) == {(0, 0, 0)}
    assert saved[0].pnginfo["parameters"] == "a cat\nSteps: 2, Safety cost: +4.76, Safety band: unsafe"
    # The finished image passes as it is, its own infotext untouched.
    params = SimpleNamespace(p=p, image=processed.images[0], pnginfo={"parameters": "done"})
    module.before_saved(params)
    assert params.image is processed.images[0] and params.pnginfo == {"parameters": "done"}
    # And so does what other programs save.
    other = SimpleNamespace(p=Processing(), image=striped(RED), pnginfo={})
    module.before_saved(other)
    assert other.image.tobytes() == striped(RED).tobytes()


def test_masks_laid_over_images_are_judged_too(script: Any) -> None:
    composite = striped(RED)

    p = Processing()
    script.process(p, True, "normal", 0, "nothing", "black")
    p.prompts, p.seeds = p.all_prompts, [1]
    passed = SimpleNamespace(image=striped(BLUE))
    script.postprocess_image_after_composite(p, passed)
    grid = Image.new("RGB", (128, 64))
    processed = SimpleNamespace(
        images=[grid, passed.image, composite],
        index_of_first_image=1,
        extra_images=["a text", composite, np.array(composite), np.ones((4, 4, 7))],
    )
    script.postprocess(p, processed)
    assert processed.images[0] is grid and processed.images[1] is passed.image
    assert colours(processed.images[2]) == {(0, 0, 0)}
    text, *others, card = processed.extra_images
    assert all(colours(image) == {(0, 0, 0)} for image in others)
    assert text is card and card.size == (256, 256), "what cannot be judged is a card with a sentence"


def test_a_grid_is_made_of_judged_images_and_not_judged_again(script: Any) -> None:
    module = sys.modules["a1111_extension.filter_hooks"]
    p = Processing()
    script.process(p, True, "normal", 0, "nothing", "black")
    p.prompts, p.seeds = p.all_prompts, [1]
    passed = SimpleNamespace(image=striped(BLUE))
    script.postprocess_image_after_composite(p, passed)
    params = SimpleNamespace(imgs=[passed.image, striped(RED)], cols=2, rows=1)
    module.before_grid(params)
    assert params.imgs[0] is passed.image and colours(params.imgs[1]) == {(0, 0, 0)}
    drawn = Image.new("RGB", (128, 64))
    for number, part in enumerate(params.imgs):
        drawn.paste(part, (64 * number, 0))
    grid = SimpleNamespace(p=p, image=drawn, pnginfo={"parameters": "grid"})
    module.before_saved(grid)
    assert grid.image is drawn and grid.pnginfo == {"parameters": "grid"}
    # Another image of the same size is none.
    other = SimpleNamespace(p=p, image=striped(RED, (128, 64)), pnginfo={"parameters": "other"})
    module.before_saved(other)
    assert colours(other.image) == {(0, 0, 0)} and "Safety cost" in other.pnginfo["parameters"]
    # A grid of previews is left alone: no image in it was judged.
    previews = SimpleNamespace(imgs=[striped(RED)] * 2, cols=2, rows=1)
    module.before_grid(previews)
    assert previews.imgs[0].tobytes() == striped(RED).tobytes()


def test_a_second_generation_forgets_the_first(script: Any, host: Host) -> None:
    p = Processing()
    draw(script, p, lambda number: striped(RED), True)
    draw(script, p, lambda number: striped(RED), False)
    assert p.extra_generation_params == {}
    assert infotext(p, 0, p.prompts) == {}
