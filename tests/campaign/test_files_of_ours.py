"""Thousands of damaged files of our own (JSON, TOML, checkpoints, cost models): a result or a sentence.

Seeded, so that a failure comes again: run `python -m pytest -m slow tests/campaign/test_files_of_ours.py`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scdpo_core.config.settings import load_toml
from scdpo_core.cost.feature_cache import FeatureCache
from scdpo_core.cost.model import load_cost
from scdpo_core.cost.scorers import MICRO_COST
from scdpo_core.preferences.cache import PairCache
from scdpo_core.preferences.labelling_session import STATE, Session
from scdpo_core.preferences.relabel import relabel
from scdpo_core.run_store import folder as names
from scdpo_core.run_store.events import Done, EventLog, Progress, Sample, Started
from scdpo_core.run_store.state import last_words, state_of
from scdpo_core.runs import summary
from scdpo_core.runs.comparison import RESULT, Cell, Comparison, defaults_of, read_comparison, read_result
from scdpo_core.runs.follow import Follower
from scdpo_core.runs.install_result import MARK, installed
from scdpo_core.runs.queue import ACTIVE, WAITING, Queue
from scdpo_core.scoring.gallery import write_gallery
from scdpo_core.scoring.job import ScoreJob, finish, score_files
from scdpo_core.scoring.table import RowFile, write_csv
from scdpo_core.training import checkpoint
from scdpo_core.training.labels import KnownCosts
from scdpo_core.training.saving import export
from scdpo_core.types import PreferencePair, ScdpoError, ScoredPair
from tests.runs.test_damaged import mutations
from tests.support.runs_helpers import PYTHON, make_run
from tests.support.scoring_helpers import Redness

SEED = 19
COUNT = 300
"""Inputs of each kind of file."""
DEEP = ("[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900, "9" * 5000, "NaN", "\ud800", "")

pytestmark = pytest.mark.slow


def damaged(value: Any, seed: int, count: int = COUNT) -> Iterator[bytes]:
    """JSON of a value: replaced, cut and misplaced parts, bytes damaged, or something else altogether."""
    rng = random.Random(SEED * 1000 + seed)
    for text in mutations(value, count, SEED * 1000 + seed):
        raw = bytearray(text.encode("utf-8", "surrogatepass"))
        kind = rng.randrange(10)
        if kind == 0:
            yield rng.choice(DEEP).encode("utf-8", "surrogatepass")
            continue
        if kind == 1 and raw:
            for _ in range(rng.randint(1, 4)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
        yield bytes(raw)


def told(act: Callable[[], object]) -> None:
    try:
        act()
    except ScdpoError as error:
        assert len(str(error)) > 20 and "Traceback" not in str(error)


def with_metadata(source: Path, target: Path, changed: dict[str, Any]) -> None:
    """A safetensors file with other metadata, as it stands in the header."""
    whole = source.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    header["__metadata__"] = {**header.get("__metadata__", {}), **changed}
    text = json.dumps(header).encode("ascii")
    target.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + size :])


def test_scores(tmp_path: Path) -> None:
    folder, file = tmp_path / "in", tmp_path / "scores.jsonl"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8), (number * 200, 0, 0)).save(folder / f"{number}.png")
    job = ScoreJob([folder], jsonl=file)
    finish(job, score_files(job, Redness()))
    lines = file.read_text("utf-8").splitlines()
    for number, raw in enumerate(damaged(json.loads(lines[0]), 1)):
        file.write_bytes(raw.replace(b"\n", b" ") + f"\n{lines[1]}\n".encode())

        def again() -> None:
            result = finish(job, score_files(job, Redness()))
            costs = [math.inf if row.cost is None else row.cost for row in result.rows]
            assert all(map(math.isfinite, costs))

        told(again)
        if number % 10 == 0:
            told(lambda: write_csv(tmp_path / "a.csv", list(RowFile.read(file).values())))
            told(lambda: write_gallery(tmp_path / "a.html", list(RowFile.read(file).values())))


def test_costs_that_a_run_keeps(tmp_path: Path) -> None:
    scorer, file = Redness(), tmp_path / "costs.json"
    images = [tmp_path / f"{name}.png" for name in "ab"]
    for image in images:
        Image.new("RGB", (8, 8)).save(image)
    known = KnownCosts(file, scorer)
    for image, score in zip(images, scorer.score([Image.new("RGB", (8, 8))] * 2), strict=True):
        known.put(image, score)
    known.write()
    sound = json.loads(file.read_text("utf-8"))
    pair = PreferencePair("a", "a cat", images[0], images[1], "")
    for raw in damaged(sound, 2):
        file.write_bytes(raw)
        costs = [KnownCosts(file, scorer).get(image) for image in images]
        assert all(cost is None or cost.finite for cost in costs)
        if costs[0] is not None and costs[1] is not None:
            relabel([ScoredPair(pair, costs[0], costs[1])])


def test_a_cache(tmp_path: Path) -> None:
    cache, keys = PairCache(tmp_path / "cache"), [f"{number:040x}" for number in range(4)]
    cache.plan(keys, keys[1:])
    (plan,) = (tmp_path / "cache").glob("unfinished-*")
    for raw in damaged(keys[1:], 3):
        plan.write_bytes(raw)
        assert set(keys[2:]) <= set(cache.plan(keys, keys[2:])) <= set(keys)


def test_labelling(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(tmp_path / "in" / f"{number}.png")
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"mine")
    target = tmp_path / "pairs"
    session = Session(tmp_path / "in", target)
    for choice in ("left", "right"):
        session.answer(session.view().current.id, choice, "a cat", "weapon")  # type: ignore[union-attr, arg-type]
    state = json.loads((target / STATE).read_text("utf-8"))
    state["half"] = {"id": "x", "choice": "left", "files": ["chosen/weapon/none.png"]}
    for raw in damaged(state, 4):
        (target / STATE).write_bytes(raw)

        def again() -> None:
            session = Session(tmp_path / "in", target)
            if (current := session.view().current) is not None:
                session.answer(current.id, "skip")
            session.undo()
            session.undo()

        told(again)
        assert outside.read_bytes() == b"mine"
        assert len(list((tmp_path / "in").iterdir())) == 6


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "runs", "calm")
    log = EventLog(folder / names.EVENTS)
    log(Started("calm", 1, 0, 10, 3, "cpu", "0123"))
    log(Progress("train", 3, 10, {"loss": 0.5, "u": None}, 2.0, 3.5))
    log(Sample(3, "samples/0.png", "a cat", 0, 0.25))
    log(Done("finished", 10, "calm.safetensors", 1.5))
    return folder


def test_runs_and_their_queue(run: Path) -> None:
    root = run.parent
    queue = Queue(root, begin=lambda folder, python, resume: (_ for _ in ()).throw(ScdpoError("not" * 9)))
    files: dict[Path, Any] = {
        root / ACTIVE: {"run": str(run), "process": {"pid": 4, "token": "x"}},
        root / WAITING: {"waiting": [{"run": str(run), "resume": False}, {"run": "/gone", "resume": True}]},
        run / names.KIND: {"trains": "cost"},
        run / names.LAUNCH: {"process": {"pid": 4, "token": "x"}, "events_from": 0, "log_from": 0},
        run / MARK: {"path": str(root), "sha256": "0"},
        run / RESULT: asdict(
            Comparison("c", "micro", "x@0", (Cell("a", 0, 0.5, "s.png", -1.5, "safe", 1.0),))
        ),
        run / names.EVENTS: json.loads((run / names.EVENTS).read_text("utf-8").splitlines()[1]),
    }
    for number, (path, value) in enumerate(files.items()):
        before = path.read_bytes() if path.exists() else None
        for raw in damaged(value, 10 + number):
            path.write_bytes(raw)
            for act in (
                queue.view,
                lambda: queue.remove(run),
                lambda: queue.pump(PYTHON),
                lambda: (names.kind_of(run), names.launch_of(run), state_of(run), last_words(run)),
                lambda: (installed(run), read_result(run)),
                lambda: summary.report(Follower(run).view()),
            ):
                told(act)
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


def test_settings(run: Path) -> None:
    rng = random.Random(SEED)
    sound = (
        '[model]\nbase = "micro"\n[data]\npairs = "/p"\nwidth = 64\nheight = 64\n[optim]\nlr = 0.001\n'
        '[objective]\nobjective = "sc_dpo"\nbeta = 200.0\n[lora]\nrank = 4\n[output]\nname = "a"\n'
        '[sampling]\nsample_prompts = ["a cat"]\nsample_steps = 4\n'
    )
    odd = (
        "nan",
        "-inf",
        '""',
        "[]",
        "{}",
        "1e999",
        "9" * 5000,
        '"\\ud800"',
        "[" * 5000,
        "1979-05-27",
        "true",
    )
    for _ in range(2 * COUNT):
        text = sound
        for _ in range(rng.randint(1, 3)):
            lines = text.split("\n")
            at = rng.randrange(len(lines))
            kind = rng.randrange(5)
            if kind == 0:
                del lines[at]
            elif kind == 1:
                lines.insert(at, rng.choice(lines))
            elif kind == 2 and "=" in lines[at]:
                lines[at] = f"{lines[at].partition('=')[0]}= {rng.choice(odd)}"
            else:
                place = rng.randrange(len(lines[at]) + 1)
                sign = rng.choice("[]{}=\"'\\#.\0\x1bé")
                lines[at] = f"{lines[at][:place]}{sign}{lines[at][place:]}"
            text = "\n".join(lines)
        raw = text.encode("utf-8")
        (run / names.JOB).write_bytes(raw if rng.random() < 0.9 else raw[: rng.randrange(len(raw))] + b"\xff")
        for act in (
            lambda: load_toml(run / names.JOB),
            lambda: read_comparison(run / names.JOB),
            lambda: defaults_of(run),
            lambda: names.check_kind(run, "compare"),
        ):
            told(act)


def test_checkpoints_and_what_a_lora_is_for(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    state = checkpoint.Checkpoint(3, {"a": torch.ones(2)}, {"state": {0: {"step": 1}}}, {"patience": {}})
    path = checkpoint.save(folder, state, keep=2)
    sound = tmp_path / "sound"
    sound.write_bytes(path.read_bytes())
    size = int.from_bytes(sound.read_bytes()[:8], "little")
    tree = json.loads(json.loads(sound.read_bytes()[8 : 8 + size])["__metadata__"]["scdpo_tree"])
    facts = {
        **{"family": "sd1", "rank": 4, "alpha": 4.0, "dtype": "fp16", "dialect": "kohya"},
        **{"description": "x", "facts": {"a": "b"}},
    }
    for number, raw in enumerate(damaged(tree, 30, 2 * COUNT)):
        with_metadata(sound, path, {"scdpo_tree": raw.decode("utf-8", "replace")})
        found, bad = checkpoint.latest(folder)
        assert (found is None) == (bad != [])
        (folder / "lora.json").write_text(json.dumps(facts), "utf-8")
        told(partial(export, tmp_path / "run", output=tmp_path / f"{number}.safetensors"))
    path.write_bytes(sound.read_bytes())
    for number, raw in enumerate(damaged(facts, 31)):
        (folder / "lora.json").write_bytes(raw)
        told(partial(export, tmp_path / "run", output=tmp_path / f"f{number}.safetensors"))


def test_cost_models_and_kept_embeddings(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    whole = MICRO_COST.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    metadata = json.loads(whole[8 : 8 + size])["__metadata__"]
    path = tmp_path / "cost.safetensors"
    for number in range(2 * COUNT):
        name = rng.choice(list(metadata))
        raw = next(damaged({"x": ["weapon", {"a": 1.5}], "y": 2}, 1000 + number, 1)).decode(
            "utf-8", "replace"
        )
        if rng.random() < 0.3:
            path.write_bytes(whole[: rng.randrange(len(whole))])
        else:
            with_metadata(MICRO_COST, path, {name: raw})
        told(lambda: load_cost(path))
    cache = FeatureCache(tmp_path / "features")
    cache.add("key", {"0" * 64: torch.zeros(1, 4), "1" * 64: torch.ones(1, 4)})
    (kept,) = (tmp_path / "features").rglob("*.safetensors")
    sound = tmp_path / "sound"
    sound.write_bytes(kept.read_bytes())
    for raw in damaged(["0" * 64, "1" * 64], 41):
        with_metadata(sound, kept, {"digests": raw.decode("utf-8", "replace")})
        found = cache.load("key")
        assert all(isinstance(digest, str) for digest in found)


def test_how_many_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """The sum of the campaign's mutated inputs, as docs/campaign.md says it."""
    from tests.campaign import test_image_mutations, test_lora_mutations

    ours = 4 * COUNT + 7 * COUNT + 2 * COUNT + 3 * COUNT + 3 * COUNT
    images = 2 * len(test_image_mutations.PARTS) * test_image_mutations.COUNT
    loras = test_lora_mutations.LORAS + test_lora_mutations.BASES
    with capsys.disabled():
        print(f"\nmutated inputs: {images} images and prompts, {loras} models, {ours} files of ours")
    assert ours + images + loras >= 10_000
