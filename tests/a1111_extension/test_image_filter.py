"""No way past the guard: what was not judged is replaced, whatever fails and whoever comes later."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.a1111_extension.test_webui_script import BLUE, RED, colours, striped
from tests.support.scoring_helpers import Redness
from tests.support.webui_stub import Host, Processing, draw, infotext, installed

BLACK = {(0, 0, 0)}
HIDE = (True, "normal", 0, "nothing", "black")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with installed(tmp_path) as host:
        yield host


@pytest.fixture
def script(host: Host, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module("a1111_extension.script")
    importlib.import_module("a1111_extension.register").register()
    importlib.import_module("a1111_extension.settings").register()
    monkeypatch.setattr(module.SCORER_CACHE, "get", lambda spec, device: Redness())
    return module.SafetyScript()


def callbacks() -> Any:
    return sys.modules["modules.script_callbacks"]


def saved(p: Any, image: Image.Image) -> Any:
    """What the host would write when it saves an image."""
    params = SimpleNamespace(p=p, image=image, pnginfo={"parameters": "a cat"})
    callbacks().before_image_saved_callback(params)
    return params.image


def judged_again(p: Any, image: Image.Image) -> bool:
    """Whether an image that is saved gets a score of its own."""
    params = SimpleNamespace(p=p, image=image, pnginfo={"parameters": "a cat"})
    callbacks().before_image_saved_callback(params)
    return "Safety cost" in params.pnginfo["parameters"]


def gridded(
    images: list[Image.Image], columns: int, rows: int, colour: str = "black", mode: str = "RGB"
) -> Image.Image:
    """A grid as `modules.images.image_grid` of the hosts makes it: RGB in A1111, RGBA in Forge."""
    params = SimpleNamespace(imgs=images, cols=columns, rows=rows)
    callbacks().image_grid_callback(params)
    width, height = (max(sides) for sides in zip(*(image.size for image in images), strict=True))
    grid = Image.new(mode, (columns * width, rows * height), colour)
    for number, part in enumerate(params.imgs):
        left, top = (width - part.width) // 2, (height - part.height) // 2
        grid.paste(part, (number % columns * width + left, number // columns * height + top))
    return grid


def no_memory(*_: object) -> Any:
    raise MemoryError


@pytest.mark.parametrize("broken", ["text_card", "digest", "covered", "all"])
def test_short_of_memory_nothing_passes(
    script: Any, host: Host, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    image_filter = sys.modules["a1111_extension.image_filter"]
    original = image_filter.text_card

    def pil_image(number: int) -> Image.Image:
        for name in ("text_card", "digest", "covered"):
            if broken in (name, "all"):
                monkeypatch.setattr(image_filter, name, no_memory)
        if broken == "all":
            monkeypatch.setattr(sys.modules["modules.errors"], "report", no_memory)
        return striped(RED)

    for action in ("black", "blur", "quarantine"):
        p = Processing()
        processed = draw(script, p, pil_image, True, "normal", 0, "nothing", action)
        assert processed.images and not any(RED in colours(image) for image in processed.images)
        assert RED not in colours(saved(p, striped(RED)))
        monkeypatch.setattr(image_filter, "text_card", original)  # the next generation begins with memory


def test_no_size_lets_nothing_pass(script: Any) -> None:
    p = Processing()
    empty = Image.new("RGB", (0, 0))
    processed = draw(script, p, lambda number: striped(BLUE), *HIDE, later=(Appends(empty, striped(RED)),))
    blue, placeholder, black = processed.images
    assert BLUE in colours(blue) and placeholder.size == (256, 256) and colours(black) == BLACK


class Appends:
    """Another extension's script, which hands out more."""

    def __init__(self, *more: Any) -> None:
        self.more = more

    def postprocess(self, p: Any, processed: Any) -> None:
        processed.images = [*processed.images, *self.more]


class Exchanges:
    """One that shows another image instead."""

    def postprocess_image_after_composite(self, p: Any, pp: Any) -> None:
        pp.image = striped(RED)


class Paints:
    """One that paints on the image that there is."""

    def postprocess_image_after_composite(self, p: Any, pp: Any) -> None:
        pp.image.paste(striped(RED))


def test_what_no_scorer_can_look_at_is_replaced(script: Any, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    striped(RED).save(path)
    tensor = torch.ones(3, 8, 8)
    odd = [
        str(path),
        path,
        tensor,
        np.ones((8, 8, 3)),
        (str(path), "a red one"),
        {"image": striped(RED)},
        None,
    ]
    processed = draw(script, Processing(), lambda number: striped(BLUE), *HIDE, later=(Appends(*odd),))
    blue, *rest = processed.images
    assert BLUE in colours(blue) and len(rest) == len(odd)
    for value in rest:
        image = value[0] if isinstance(value, tuple) else value
        assert image.size == (256, 256) and RED not in colours(image)


def test_images_with_captions_and_arrays_are_judged(script: Any) -> None:
    more = [(striped(RED), "red"), (striped(BLUE), "blue"), np.array(striped(RED)), np.array(striped(BLUE))]
    processed = draw(script, Processing(), lambda number: striped(BLUE), *HIDE, later=(Appends(*more),))
    _, red, blue, red_array, blue_array = processed.images
    assert colours(red[0]) == BLACK and red[1] == "red"
    assert BLUE in colours(blue[0]) and blue[1] == "blue"
    assert colours(red_array) == BLACK and BLUE in colours(blue_array)


def test_where_nothing_is_hidden_others_pass_as_they_are(script: Any) -> None:
    odd = ["a text", np.ones((8, 8, 3)), (striped(RED), "red")]
    values = (True, "normal", 0, "nothing", "nothing")
    processed = draw(script, Processing(), lambda number: striped(BLUE), *values, later=(Appends(*odd),))
    assert all(a is b for a, b in zip(processed.images[1:], odd, strict=True))


@pytest.mark.parametrize("later", [Exchanges, Paints])
def test_scripts_that_come_later_are_judged_too(script: Any, later: type) -> None:
    p = Processing()
    processed = draw(script, p, lambda number: striped(BLUE), *HIDE, later=(later(),))
    assert colours(processed.images[0]) == BLACK
    # The first look was at a blue one; what is said is the worse of both.
    assert processed.infotexts[0]["Safety band"] == "unsafe"


def test_a_hidden_image_stays_unsafe_whatever_is_painted_on_it(script: Any) -> None:
    class Signs:
        def postprocess_image_after_composite(self, p: Any, pp: Any) -> None:
            pp.image.paste((0, 0, 255), (0, 0, 8, 8))

    processed = draw(script, Processing(), lambda number: striped(RED), *HIDE, later=(Signs(),))
    assert processed.infotexts[0]["Safety cost"] == "+4.76"
    assert processed.infotexts[0]["Safety band"] == "unsafe"


def test_callbacks_that_come_later_are_judged_too(script: Any, host: Host) -> None:
    def exchange(params: Any) -> None:
        params.image = striped(RED)

    def exchange_all(params: Any) -> None:
        params.imgs = [striped(RED) for _ in params.imgs]

    host.callbacks["on_before_image_saved"].append(exchange)
    host.callbacks["on_image_grid"].append(exchange_all)
    p = Processing()
    script.process(p, *HIDE)
    p.prompts, p.seeds = p.all_prompts, [1]
    passed = SimpleNamespace(image=striped(BLUE))
    p.scripts.scripts = [script]
    p.scripts.postprocess_image_after_composite(p, passed)
    assert colours(saved(p, passed.image)) == BLACK
    # Nothing of it was judged, so it is judged as any other image.
    assert colours(saved(p, gridded([passed.image] * 2, 2, 1))) == BLACK


def test_what_is_saved_for_nobody_while_drawing_is_judged(script: Any) -> None:
    seen = []

    def pil_image(number: int) -> Image.Image:
        seen.extend(saved(p, striped(RED)) for p in (None, SimpleNamespace()))
        return striped(BLUE)

    draw(script, Processing(), pil_image, *HIDE)
    assert [colours(image) for image in seen] == [BLACK, BLACK]
    # Afterwards nobody draws: the extras tab saves as it likes.
    assert RED in colours(saved(None, striped(RED)))


def marked(image: Image.Image) -> Image.Image:
    """An image as Forge saves it, with a text in the lowest bits of its alpha."""
    alpha = Image.effect_noise(image.size, 90).point(lambda value: 254 + value % 2)
    image = image.convert("RGBA")
    image.putalpha(alpha)
    return image


def test_a_text_that_forge_hides_in_alpha_makes_no_other_image(script: Any) -> None:
    p = Processing(batch_size=2)
    script.process(p, *HIDE)
    p.prompts, p.seeds = p.all_prompts, [1, 2]
    p.scripts.scripts = [script]
    images = []
    for index in range(2):
        p.batch_index = index
        passed = SimpleNamespace(image=striped(BLUE))
        p.scripts.postprocess_image_after_composite(p, passed)
        images.append(passed.image)
    for image in (*images, gridded(images, 2, 1, mode="RGBA")):
        assert not judged_again(p, marked(image))
    # Another image is judged, marked or not, and so is one with an alpha that hides something.
    assert judged_again(p, marked(striped(RED)))
    clear = images[0].convert("RGBA")
    clear.putalpha(253)
    assert judged_again(p, clear)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_only_what_shows_the_judged_images_is_their_grid(script: Any, mode: str) -> None:
    p = Processing(batch_size=4)
    script.process(p, *HIDE)
    p.prompts, p.seeds = p.all_prompts, [1, 2, 3, 4]
    p.scripts.scripts = [script]
    images = []
    for index in range(3):
        p.batch_index = index
        passed = SimpleNamespace(image=striped(BLUE))
        p.scripts.postprocess_image_after_composite(p, passed)
        images.append(passed.image)
    for colour in ("black", "white"):
        grid = gridded(images, 2, 2, colour, mode)
        processed = SimpleNamespace(images=[grid, *images])
        p.scripts.postprocess(p, processed)
        assert processed.images == [grid, *images]
        # The free place is no place to hide something in.
        assert not judged_again(p, grid)
        grid.paste(striped(RED, (32, 32)), (64, 64))
        assert judged_again(p, grid)
        # Nor is a place of an image, opaque or beneath full transparency.
        for alpha in (255, 0):
            other = gridded(images, 2, 2, colour, mode)
            other.paste((255 - alpha // 2, 0, 0, alpha)[: len(mode)], (0, 0, 9, 9))
            assert judged_again(p, other)
    # As large as the grid, and no grid.
    assert colours(saved(p, striped(RED, (128, 128)))) == BLACK


def test_a_generation_within_a_generation_does_not_end_the_watch(script: Any) -> None:
    class Inner:
        """Draws once more for each image, with a runner that lacks our script."""

        def postprocess_image_after_composite(self, p: Any, pp: Any) -> None:
            inner = Processing()
            inner.scripts = type(p.scripts)()
            held = SimpleNamespace(image=striped(RED))
            inner.scripts.postprocess_image_after_composite(inner, held)
            processed = SimpleNamespace(images=[held.image])
            inner.scripts.postprocess(inner, processed)
            # It is a step on the way and not shown; what comes of it is.
            assert processed.images[0] is held.image
            pp.image = held.image

    processed = draw(script, Processing(), lambda number: striped(BLUE), *HIDE, later=(Inner(),))
    assert colours(processed.images[0]) == BLACK


def test_the_hosts_functions_are_its_own_again(script: Any) -> None:
    runner = sys.modules["modules.scripts"].ScriptRunner
    names = ("before_image_saved_callback", "image_grid_callback")
    before = [vars(callbacks())[name] for name in names]
    draw(script, Processing(), lambda number: striped(BLUE), *HIDE)
    assert vars(runner).keys().isdisjoint({"postprocess", "postprocess_image_after_composite"})
    assert [vars(callbacks())[name] for name in names] == before
    # One that failed on the way is over when the next one begins.
    script.process(Processing(), *HIDE)
    draw(script, Processing(), lambda number: striped(RED), False)
    assert RED in colours(saved(None, striped(RED)))


def test_colour_hidden_under_alpha_is_judged(script: Any) -> None:
    for clear in (Image.new("RGBA", (64, 64), (*RED, 0)), Image.new("RGBA", (64, 64), (0, 0, 255, 0))):
        p = Processing()
        shown = draw(script, p, lambda number, clear=clear: clear, *HIDE).images[0]
        assert (shown is clear) == (clear.getpixel((0, 0))[:3] == BLUE)
        assert infotext(p, 0, p.prompts) == {} or "Safety cost" not in infotext(p, 0, p.prompts)
