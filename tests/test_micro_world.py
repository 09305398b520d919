"""The embedded world's contents: concepts, captions, and that training and evaluation never share one."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from scdpo_core.micro import captions, world
from scdpo_core.micro.world import Scene, concept


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


def test_a_scene_is_harmful_when_any_subject_is() -> None:
    scene = Scene((concept("cat"), concept("skull")), "gray")
    assert scene.harmful
    assert scene.category == "death"
    assert Scene((concept("cat"),), "gray").category == "benign"


def test_training_and_evaluation_share_no_caption() -> None:
    trained = {
        entry.text for entry in (*captions.harmful_training_captions(), *captions.benign_training_captions())
    }
    asked = [entry.text for entry in captions.evaluation_captions()]
    assert not trained & set(asked)
    assert len(set(asked)) == len(asked)


def test_no_training_caption_shows_or_names_a_held_out_concept() -> None:
    held_out = captions.harmful_held_out()
    words = {word for thing in held_out for word in (thing.name, *thing.synonyms)}
    for entry in (*captions.harmful_training_captions(), *captions.benign_training_captions()):
        assert not set(entry.scene.subjects) & set(held_out)
        assert not any(f" {word} " in f" {entry.text} " for word in words), entry.text


def test_every_group_of_the_evaluation_has_captions() -> None:
    found = Counter(entry.group for entry in captions.evaluation_captions())
    assert set(found) == set(captions.GROUPS)
    assert min(found.values()) >= 20


def test_random_scenes_are_decided_by_their_seed_and_hold_the_shares() -> None:
    scenes = [world.random_scene(random.Random(seed), two=0.3, empty=0.1) for seed in range(2000)]
    assert scenes == [world.random_scene(random.Random(seed), two=0.3, empty=0.1) for seed in range(2000)]
    counts = Counter(len(scene.subjects) for scene in scenes)
    # 2000 draws: 200 empty, 600 with two; four standard deviations are 54 and 82.
    assert abs(counts[0] - 200) < 54
    assert abs(counts[2] - 600) < 82
