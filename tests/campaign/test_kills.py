"""Every command killed at random moments: nothing is lost, nothing is half, and the same command goes on.

One command, seeded: `python -m pytest -m slow tests/campaign/test_kills.py`. SCDPO_KILLS=n multiplies the
kills. Half of them come after a random time, half right before a random change of the disk.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from scdpo_core.io.files import read_tensors
from scdpo_core.preferences.folder import read_folder
from scdpo_core.scoring.table import RowFile
from tests.campaign.killing import ROOT, TRAINER, Case, Warm, campaign

EXAMPLES = ROOT / "examples" / "preferences"
IMAGES = 24

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="forks and kills as POSIX does")]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    warm = Warm(tmp_path_factory.mktemp("warm") / "screen.txt")
    yield warm
    warm.close()


def images(folder: Path) -> Path:
    """Two dozen images, half of them redder than the other, with a date and permissions of their own."""
    folder.mkdir(parents=True)
    for number in range(IMAGES):
        path = folder / ("sub" if number % 2 else ".") / f"{number:02}.{('png', 'jpg', 'webp')[number % 3]}"
        path.parent.mkdir(exist_ok=True)
        image = Image.radial_gradient("L").resize((96, 96)).convert("RGB")
        image.paste((255, 10 * number, 0), (number, 0, 60, 40))
        image.save(path)
        path.chmod(0o640)
        os.utime(path, (10**9, 10**9))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every visible file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def score(kind: str) -> Case:
    """Scoring that copies, moves or writes back."""
    originals: dict[str, bytes] = {}
    words: list[object] = ["--scorer", "embedded", "--over", "-99"]

    def make(folder: Path) -> list[object]:
        originals.update(contents(images(folder / "in")))
        options = {
            "copy": ["--copy-over", folder / "out"],
            "move": ["--move-over", folder / "out"],
            "file": ["--write-back", "file"],
            "sidecar": ["--write-back", "sidecar"],
        }[kind]
        return [folder / "in", "--jsonl", folder / "s.jsonl", "--html", folder / "g.html", *words, *options]

    def always(folder: Path) -> None:
        there, away = contents(folder / "in"), contents(folder / "out")
        for name, content in originals.items():
            if kind == "file":
                path = folder / "in" / name
                facts = path.stat()
                assert (facts.st_mode & 0o777, int(facts.st_mtime)) == (0o640, 10**9)
                with Image.open(path) as image:
                    image.load()
            elif kind == "move":
                assert content in (there.get(name), away.get(name)), f"{name} is lost"
            else:
                assert there[name] == content
        if kind != "file":
            assert all(originals[name] == content for name, content in away.items()), "a half file"
        for name, content in there.items():
            if name not in originals:
                assert name.endswith(".score.json") and "cost" in json.loads(content)

    def done(folder: Path) -> None:
        rows = RowFile.read(folder / "s.jsonl")
        assert (folder / "g.html").is_file()
        there, away = contents(folder / "in"), contents(folder / "out")
        if kind in ("copy", "move"):
            assert away == originals
        if kind == "move":
            assert there == {} and {Path(path).parent for path in rows} <= {
                folder / "out",
                folder / "out" / "sub",
            }
        if kind == "file":
            assert all(there[name] != content for name, content in originals.items())
        if kind == "sidecar":
            assert len(there) == 2 * len(originals)
        assert len(rows) == IMAGES and all(Path(path).is_file() for path in rows)

    return Case("score.py", make, always, done)


def pairs(folder: Path, count: int) -> Path:
    """Some of the example pairs, of two categories."""
    for category in ("benign", "weapon"):
        for path in sorted((EXAMPLES / "chosen" / category).glob("*.txt"))[: count // 2]:
            for side in ("chosen", "rejected"):
                (folder / side / category).mkdir(parents=True, exist_ok=True)
                for file in (EXAMPLES / side / category).glob(f"{path.stem}.*"):
                    shutil.copy(file, folder / side / category)
    return folder


def train_lora() -> Case:
    """A training that ends with the same bytes, however often it is killed."""
    result: list[bytes] = []

    def make(folder: Path) -> list[object]:
        if not (source := folder.parent / "pairs").exists():
            pairs(source, 16)
        settings = (
            "--base micro --max-train-steps 5 --batch-size 4 --checkpoint-every 1 --samples 1 "
            "--keep-images 6 --sample-steps 4"
        )
        return [*settings.split(), "--pairs", source, "--output", folder / "lora"]

    def always(folder: Path) -> None:
        for path in (folder / "lora").rglob("*.safetensors"):
            if not path.name.startswith("."):
                read_tensors(path)

    def done(folder: Path) -> None:
        content = (folder / "lora" / "lora.safetensors").read_bytes()
        result.append(content)
        assert content == result[0], "other bytes than without a kill"

    def again(folder: Path, words: list[object]) -> list[object]:
        return [*words, "--resume"] if (folder / "lora" / "job.toml").exists() else words

    return Case("train_lora.py", make, always, done, again)


def train_cost() -> Case:
    """A cost model, which begins again but keeps its embeddings."""

    def make(folder: Path) -> list[object]:
        if not (source := folder.parent / "pairs").exists():
            pairs(source, 48)
        # The scores of a first attempt that ended well must not be in the way of the next.
        settings = "--views 1 --encoder micro --steps 200 --overwrite"
        return [*settings.split(), "--pairs", source, "--output", folder / "c.safetensors"]

    def always(folder: Path) -> None:
        for path in folder.rglob("*.safetensors"):
            if not path.name.startswith("."):
                read_tensors(path)

    def done(folder: Path) -> None:
        tensors, _ = read_tensors(folder / "c.safetensors")
        expected, _ = read_tensors(folder.parent / "reference" / "c.safetensors")
        assert all(tensors[name].equal(expected[name]) for name in expected)

    return Case("train_cost.py", make, always, done)


def labelling() -> Case:
    """Answers and undone answers."""

    def make(folder: Path) -> list[object]:
        for number in range(16):
            image = Image.new("RGB", (32, 32), (number * 15, 0, 0))
            (folder / "in").mkdir(exist_ok=True)
            image.save(folder / "in" / f"{number:02}.png")
            (folder / "in" / f"{number:02}.txt").write_text(f"prompt {number // 2}", "utf-8")
        return [folder / "in", folder / "pairs"]

    def state(folder: Path) -> dict[str, list[dict[str, object]]]:
        path = folder / "pairs" / "labelling.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else {"answers": []}

    def always(folder: Path) -> None:
        if (folder / "pairs" / "chosen").is_dir():
            for path in (folder / "pairs").rglob("*.png"):
                if not path.name.startswith("."):
                    assert path.read_bytes() in contents(folder / "in").values(), "a half image"
        answers = [str(answer["id"]) for answer in state(folder)["answers"]]
        assert len(set(answers)) == len(answers), "asked twice"
        for answer in state(folder)["answers"]:
            for name in answer["files"]:  # type: ignore[attr-defined]
                assert (folder / "pairs" / name).is_file(), "an answer without its files"

    def done(folder: Path) -> None:
        found, problems = read_folder(folder / "pairs")
        assert problems == []
        answers = state(folder)["answers"]
        noted = {name for answer in answers for name in answer["files"]}  # type: ignore[attr-defined]
        assert noted == set(contents(folder / "pairs")) - {"labelling.json"}, "not noted, so not undoable"
        assert len(found) == sum(answer["choice"] != "skip" for answer in answers)
        assert len(answers) == 8 and "half" not in state(folder)

    return Case("label", make, always, done)


def convert(source: Path) -> Case:
    """A LoRA written in another dialect, over an earlier file."""
    result: list[dict[str, bytes]] = []

    def make(folder: Path) -> list[object]:
        output = folder / "out" / "converted.safetensors"
        output.parent.mkdir()
        output.write_bytes(b"the earlier one")
        return ["convert", source, "--output", output, "--overwrite", "--to", "peft"]

    def always(folder: Path) -> None:
        if (folder / "out").exists():
            for name, content in contents(folder / "out").items():
                whole = {b"the earlier one", *(found[name] for found in result[:1] if name in found)}
                assert content in whole, "a half file"

    def done(folder: Path) -> None:
        result.append(contents(folder / "out"))
        assert result[-1] and result[-1] == result[0]

    return Case("lora.py", make, always, done)


@pytest.mark.parametrize(("kind", "kills"), [("copy", 16), ("move", 14), ("file", 16), ("sidecar", 8)])
def test_scoring(warm: Warm, tmp_path: Path, kind: str, kills: int) -> None:
    campaign(warm, score(kind), tmp_path, kills)


def test_labelling(warm: Warm, tmp_path: Path) -> None:
    campaign(warm, labelling(), tmp_path, 30)


def test_training_a_lora(warm: Warm, tmp_path: Path) -> None:
    campaign(warm, train_lora(), tmp_path, 16)


def test_training_a_cost_model(warm: Warm, tmp_path: Path) -> None:
    campaign(warm, train_cost(), tmp_path, 8)


def test_converting_a_lora(warm: Warm, tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    folder.mkdir()
    case = train_lora()
    assert warm.run(str(TRAINER / case.script), case.make(folder)) == 0
    campaign(warm, convert(folder / "lora" / "lora.safetensors"), tmp_path, 10)
