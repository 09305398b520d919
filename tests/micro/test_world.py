"""The embedded world's contents: concepts, captions, and that training and evaluation never share one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from scdpo_core.micro import captions, world
from scdpo_core.micro.world import Scene, concept
from tools.micro_model import image_tower
from tools.micro_model.art import Art
from tools.micro_model.augment import scatter
from tools.micro_model.render import paint_over
from tools.micro_model.scene_cache import Bank
from tools.micro_model.style_augment import redraw


def test_there_are_enough_concepts_and_every_harmful_one_has_a_benign_near_miss() -> None:
    harmful = [thing for thing in world.concepts() if thing.harmful]
    assert len(world.concepts()) >= 64
    assert len(harmful) >= 16
    assert {thing.group for thing in harmful} == set(world.CATEGORIES)
    assert len({thing.name for thing in world.concepts()}) == len(world.concepts())
    for thing in harmful:
        assert thing.near_miss is not None
        assert not concept(thing.near_miss).harmful


def test_held_out_concepts_cover_every_category_but_leave_some_of_each() -> None:
    held_out = Counter(concept(name).group for name in world.HELD_OUT_CONCEPTS)
    trained = Counter(thing.group for thing in captions.harmful_trained())
    assert set(held_out) == set(trained) == set(world.CATEGORIES)


def test_an_unknown_concept_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(KeyError, match="kitchen knife"):
        concept("trebuchet")


def test_captions_read_as_people_write_them() -> None:
    assert world.caption(Scene((concept("kitchen knife"),), "blue")) == "a kitchen knife on a blue background"
    two = Scene((concept("elephant"), concept("axe")), "orange")
    assert world.caption(two) == "an elephant and an axe on an orange background"
    assert world.caption(Scene((), "pink")) == "an empty pink background"


def test_painting_over_one_of_two_leaves_the_other() -> None:
    image = Image.new("RGB", (64, 64), "gray")
    for box, colour in (((4, 4, 34, 34), "red"), ((30, 30, 60, 60), "blue")):
        ImageDraw.Draw(image).ellipse(box, fill=colour)
    background = Image.new("RGB", (1, 1), "gray").getpixel((0, 0))
    assert isinstance(background, tuple)
    for gone, stays in ((0, (45, 45)), (1, (19, 19))):
        twin = paint_over(image, gone, background[:3])
        assert twin.getpixel((64 - stays[0], 64 - stays[1])) == background
        assert twin.getpixel(stays) == image.getpixel(stays)
    assert image.getpixel((19, 19)) != background  # the image itself is as it was


def test_scattered_images_keep_their_place_in_the_batch_and_their_seed() -> None:
    colours = torch.tensor([[-0.8, -0.8, -0.8], [0.8, 0.8, 0.8]])
    pixels = colours[:, :, None, None].expand(2, 3, 64, 64).repeat(8, 1, 1, 1)
    one, again = (scatter(pixels, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, again)
    assert one.shape == pixels.shape
    # Plain images stay plain in whatever way they are bent, and dark ones stay darker than light ones.
    assert float(one[0::2].mean(dim=(1, 2, 3)).max()) < float(one[1::2].mean(dim=(1, 2, 3)).min())
    assert float(one.std(dim=(2, 3)).max()) < 0.1


def test_a_scene_is_harmful_when_any_subject_is() -> None:
    scene = Scene((concept("cat"), concept("skull")), "gray")
    assert scene.harmful
    assert scene.category == "death"
    assert Scene((concept("cat"),), "gray").category == "benign"


def test_training_tuning_and_evaluation_share_no_caption() -> None:
    pairs = [*captions.harmful_training_captions(), *captions.benign_training_captions()]
    every = [entry.text for entry in (*pairs, *captions.tuning_captions(), *captions.evaluation_captions())]
    assert len(set(every)) == len(every)


def test_no_training_caption_shows_or_names_a_held_out_concept() -> None:
    held_out = captions.harmful_held_out()
    words = {word for thing in held_out for word in (thing.name, *thing.synonyms)}
    for entry in (*captions.harmful_training_captions(), *captions.benign_training_captions()):
        assert not set(entry.scene.subjects) & set(held_out)
        assert not any(f" {word} " in f" {entry.text} " for word in words), entry.text


@pytest.mark.parametrize("made", [captions.evaluation_captions, captions.tuning_captions])
def test_every_group_has_captions(made: Callable[[], list[captions.Caption]]) -> None:
    found = Counter(entry.group for entry in made())
    assert set(found) == set(captions.GROUPS)
    assert min(found.values()) >= 20


def test_random_scenes_are_decided_by_their_seed_and_hold_the_shares() -> None:
    scenes = [world.random_scene(random.Random(seed), two=0.3, empty=0.1) for seed in range(2000)]
    assert scenes == [world.random_scene(random.Random(seed), two=0.3, empty=0.1) for seed in range(2000)]
    counts = Counter(len(scene.subjects) for scene in scenes)
    # 2000 draws: 200 empty, 600 with two; four standard deviations are 54 and 82.
    assert abs(counts[0] - 200) < 54
    assert abs(counts[2] - 600) < 82


def test_a_redrawn_sprite_keeps_its_place_and_about_its_shape() -> None:
    sprite = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(sprite).ellipse((12, 20, 52, 44), fill=(200, 30, 40, 255), outline=(90, 0, 10, 255))
    seen = set()
    for number in range(30):
        drawn = redraw(sprite, random.Random(number))
        assert (drawn.mode, drawn.size) == ("RGBA", (64, 64))
        left, top, right, bottom = drawn.getchannel("A").getbbox() or (0, 0, 0, 0)
        # A filter of three pixels moves an edge by one.
        for edge, before in zip((left, top, right, bottom), (12, 20, 53, 45), strict=True):
            assert abs(edge - before) <= 1
        red, green, blue, alpha = drawn.getpixel((32, 32))
        assert alpha == 255
        assert red > 1.2 * max(green, blue)
        seen.add(drawn.tobytes())
    assert len(seen) > 10
    assert redraw(sprite, random.Random(3)).tobytes() == redraw(sprite, random.Random(3)).tobytes()


def test_what_is_drawn_in_ink_alone_is_coloured_in_and_keeps_its_lines() -> None:
    sprite = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(sprite).ellipse((10, 10, 54, 54), outline=(0, 0, 0, 255), width=6)
    filled = [redraw(sprite, random.Random(number)).getpixel((32, 32))[3] == 255 for number in range(40)]
    assert 20 <= sum(filled) <= 39  # three in four; the others stay rings
    for number in range(40):
        drawn = redraw(sprite, random.Random(number))
        assert drawn.getpixel((2, 2))[3] == 0
        assert max(drawn.getpixel((13, 32))[:3]) < 100, number


def bank_of(*colours: tuple[int, int, int]) -> Bank:
    """One square of each colour, in one style, in two versions of which the second is half transparent."""
    sprites = torch.zeros(len(colours), 2, 4, 64, 64, dtype=torch.uint8)
    for place, colour in enumerate(colours):
        for version, alpha in enumerate((255, 128)):
            premultiplied = torch.tensor([*(value * alpha // 255 for value in colour), alpha])
            sprites[place, version] = premultiplied.to(torch.uint8)[:, None, None]
    return Bank(sprites, torch.arange(len(colours))[:, None])


def test_scenes_drawn_at_once_show_their_subjects_where_they_belong() -> None:
    bank = bank_of((255, 0, 0), (0, 255, 0))
    subjects = torch.tensor([[0, -1], [0, 1], [1, 0], [-1, -1]]).repeat(40, 1)
    pixels = bank.draw(subjects, torch.Generator().manual_seed(1))
    assert pixels.shape == (160, 3, 64, 64)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    red, green = 0, 1

    def more_of(colour: int, rows: torch.Tensor, at: int) -> bool:
        there = rows[:, :, at, at]
        return bool((there[:, colour] > there[:, 1 - colour]).all())

    assert more_of(red, pixels[0::4], 32)
    assert more_of(red, pixels[1::4], 19)
    assert more_of(green, pixels[1::4], 45)
    assert more_of(green, pixels[2::4], 19)
    assert more_of(red, pixels[2::4], 45)
    empty = pixels[3::4]
    assert float(empty.std(dim=(2, 3)).max()) < 1e-5
    known = torch.tensor(list(world.BACKGROUNDS.values())) / 127.5 - 1
    nearest = (empty.mean(dim=(2, 3))[:, None] - known).abs().amax(dim=2).amin(dim=1)
    assert float(nearest.max()) < 6 / 127.5
    assert torch.equal(pixels, bank.draw(subjects, torch.Generator().manual_seed(1)))


@pytest.mark.slow
def test_a_bank_holds_every_drawing_that_a_style_has(tmp_path: Path) -> None:
    assets = tmp_path / "fluent-3d" / "package" / "assets"
    assets.mkdir(parents=True)
    cat, dog = concept("cat"), concept("dog")
    Image.new("RGBA", (96, 96), (10, 200, 30, 255)).save(assets / f"{cat.code}.webp", lossless=True)
    bank = Bank.fill(Art(tmp_path), [dog, cat], ("fluent-3d",), 3, torch.device("cpu"))
    assert bank.rows.tolist() == [[-1], [0]]
    assert bank.sprites.shape == (1, 4, 4, 64, 64)
    assert bank.sprites[0, 0, :, 32, 32].tolist() == [10, 200, 30, 255]


def test_scenes_for_the_image_tower_hold_their_shares_and_favour_harm_and_its_near_misses() -> None:
    count = len(world.concepts()) + 50
    generator = torch.Generator().manual_seed(0)
    scenes = torch.cat([image_tower._scenes(512, count, generator) for _ in range(40)])
    one = scenes[(scenes[:, 0] >= 0) & (scenes[:, 1] < 0)][:, 0]
    two = scenes[(scenes >= 0).all(dim=1)]
    assert abs(len(two) / len(scenes) - 0.55) < 0.015
    assert abs(float((scenes < 0).all(dim=1).float().mean()) - 0.02) < 0.005
    assert not bool((two[:, 0] == two[:, 1]).any())
    assert abs(float((one >= len(world.concepts())).float().mean()) - 0.3) < 0.02
    known = one[one < len(world.concepts())]
    dangerous = torch.tensor([thing.harmful for thing in world.concepts()])[known].float().mean()
    # A quarter is a harmful thing or its near-miss, half of these harmful; of the rest 27 in 114.
    assert abs(float(dangerous) - (0.125 + 0.75 * 27 / 114)) < 0.02


def test_a_prompt_tells_its_subjects() -> None:
    found = [thing.name for thing in world.subjects_in("A House Key beside a canine, a dog and a doghouse")]
    assert found == ["key", "dog"]  # not the house, and the dog once
    assert world.subjects_in("a photo of nothing known") == ()
    for entry in captions.evaluation_captions():
        assert world.subjects_in(entry.text) == entry.scene.subjects
