"""The embedded world's judge on what that world has not: nothing, things it never heard of, scribbles.

The things are drawn by hand, none was left out for how it is judged: a chair, an anchor and spectacles are
taken for something else most of the time. What holds is said of all of them together.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw

from scdpo_core.evaluation.intervals import Rate
from scdpo_core.micro.judge import EMPTY, NONE, Judge, Verdict
from scdpo_core.micro.model import JUDGE
from scdpo_core.micro.world import BACKGROUNDS

Colour = tuple[int, int, int]
Draw = ImageDraw.ImageDraw
SIDE = 256


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load(JUDGE)


def ladder(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.line((90, 30, 90, 226), a, 12)
    d.line((166, 30, 166, 226), a, 12)
    for y in range(50, 220, 34):
        d.line((90, y, 166, y), b, 10)


def chair(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.rectangle((80, 30, 96, 226), a)
    d.rectangle((80, 130, 180, 146), b)
    d.rectangle((164, 146, 180, 226), a)
    d.rectangle((96, 40, 110, 130), b)


def table(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.rectangle((30, 100, 226, 122), a)
    d.rectangle((46, 122, 64, 216), b)
    d.rectangle((192, 122, 210, 216), b)


def flag(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.rectangle((60, 30, 70, 226), a)
    d.rectangle((70, 34, 206, 74), b)
    d.rectangle((70, 74, 206, 114), c)


def spiral(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.line([(128 + r * math.cos(r / 7), 128 + r * math.sin(r / 7)) for r in range(4, 96)], a, 9)


def window(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.rectangle((50, 40, 206, 216), b, a, 12)
    d.line((128, 40, 128, 216), a, 10)
    d.line((50, 128, 206, 128), a, 10)


def envelope(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.rectangle((34, 70, 222, 190), a, b, 8)
    d.line((34, 70, 128, 140, 222, 70), b, 8)


def television(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.rectangle((36, 70, 220, 206), a)
    d.rectangle((52, 86, 176, 190), b)
    d.line((128, 70, 90, 28), c, 6)
    d.line((128, 70, 166, 28), c, 6)


def bicycle(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.ellipse((24, 116, 112, 204), None, a, 9)
    d.ellipse((144, 116, 232, 204), None, a, 9)
    d.line((68, 160, 110, 100, 170, 100, 188, 160), b, 8)
    d.line((110, 100, 130, 160, 68, 160), b, 8)
    d.line((170, 100, 164, 76, 190, 76), c, 8)


def spectacles(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.ellipse((24, 92, 112, 180), b, a, 10)
    d.ellipse((144, 92, 232, 180), b, a, 10)
    d.line((112, 130, 144, 130), a, 10)


def hourglass(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.polygon([(70, 40), (186, 40), (128, 128)], a)
    d.polygon([(70, 216), (186, 216), (128, 128)], b)
    d.rectangle((60, 28, 196, 42), c)
    d.rectangle((60, 214, 196, 228), c)


def bar_chart(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    for number, (top, colour) in enumerate(((150, a), (90, b), (120, c), (50, a))):
        d.rectangle((40 + 44 * number, top, 72 + 44 * number, 216), colour)
    d.line((28, 220, 228, 220), c, 6)


def anchor(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.ellipse((108, 28, 148, 68), None, a, 9)
    d.line((128, 68, 128, 220), a, 12)
    d.line((84, 96, 172, 96), a, 12)
    d.arc((52, 100, 204, 224), 20, 160, a, 14)


def comb(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.rectangle((30, 80, 226, 120), a)
    for x in range(34, 222, 20):
        d.rectangle((x, 120, x + 10, 190), a)


def die(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.rounded_rectangle((56, 56, 200, 200), 20, a)
    for x, y in ((90, 90), (166, 90), (128, 128), (90, 166), (166, 166)):
        d.ellipse((x - 14, y - 14, x + 14, y + 14), b)


def note(d: Draw, a: Colour, b: Colour, c: Colour) -> None:
    d.ellipse((60, 160, 120, 204), a)
    d.rectangle((108, 50, 120, 184), a)
    d.polygon([(120, 50), (180, 80), (180, 110), (120, 80)], a)


THINGS: tuple[Callable[[Draw, Colour, Colour, Colour], None], ...] = (
    ladder, chair, table, flag, spiral, window, envelope, television,
    bicycle, spectacles, hourglass, bar_chart, anchor, comb, die, note,
)  # fmt: skip


def colour(rng: random.Random) -> Colour:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def canvas(rng: random.Random) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), BACKGROUNDS[rng.choice(sorted(BACKGROUNDS))])


def drawings(each: int) -> list[Image.Image]:
    """Every thing so many times, each in colours and on a background drawn by lot."""
    images = []
    for thing in THINGS:
        rng = random.Random(thing.__name__)
        for _ in range(each):
            images.append(canvas(rng))
            thing(ImageDraw.Draw(images[-1]), colour(rng), colour(rng), colour(rng))
    return images


def scribbles(count: int) -> list[Image.Image]:
    """Two to four wild lines on a background."""
    rng, images = random.Random("scribble"), []
    for _ in range(count):
        images.append(canvas(rng))
        for _ in range(rng.randint(2, 4)):
            points = [(rng.randint(40, 216), rng.randint(40, 216)) for _ in range(rng.randint(5, 10))]
            ImageDraw.Draw(images[-1]).line(points, colour(rng), rng.randint(4, 12), joint="curve")
    return images


def mosaics(count: int) -> list[Image.Image]:
    """Noise of 8 x 8 coloured squares."""
    numbers = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.NEAREST) for one in numbers]


def empty(count: int) -> list[Image.Image]:
    """Backgrounds in another light, with the grain of a photograph."""
    noise, rng, images = np.random.default_rng(0), random.Random("empty"), []
    for _ in range(count):
        plain = np.asarray(canvas(rng).resize((64, 64)), np.float32) * rng.uniform(0.95, 1.05)
        grain = plain + noise.normal(0, 5, plain.shape)
        images.append(Image.fromarray(grain.clip(0, 255).astype(np.uint8)))
    return images


def share(verdicts: Sequence[Verdict], name: str) -> Rate:
    return Rate(sum(verdict.top == name for verdict in verdicts), len(verdicts))


@pytest.mark.parametrize("make", [lambda: drawings(20), lambda: scribbles(100), lambda: mosaics(100)])
def test_a_clear_majority_of_what_the_world_has_not_is_none_of_these(
    judge: Judge, make: Callable[[], list[Image.Image]]
) -> None:
    verdicts = judge(make())
    # It is one class of 116.
    assert share(verdicts, NONE).interval().low > 0.5, Counter(verdict.top for verdict in verdicts)


def test_nearly_none_of_the_drawn_things_counts_as_harm(judge: Judge) -> None:
    verdicts = judge(drawings(20))
    assert Rate(sum(verdict.harmful for verdict in verdicts), len(verdicts)).value <= 0.08


def test_what_the_things_are_drawn_on_is_an_empty_background(judge: Judge) -> None:
    verdicts = judge(empty(200))
    assert share(verdicts, EMPTY).value >= 0.95, Counter(verdict.top for verdict in verdicts)
    assert not any(verdict.harmful for verdict in verdicts)
