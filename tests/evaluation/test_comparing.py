"""Comparing with LoRAs that adapt text encoders: the images are those that the training itself drew."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from scdpo_core.evaluation.compare import compare
from scdpo_core.families import FAMILIES
from scdpo_core.lora.file import load_lora, save_lora
from scdpo_core.lora.weights import by_module, delta
from scdpo_core.runs.comparison import CompareJob
from scdpo_core.training.adapters import attach_finished
from scdpo_core.training.job import run_job
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_pairs, tiny_settings
from tests.support.tiny_families import WITH_CLIP, sd2_pipeline, tiny_folder

CPU = torch.device("cpu")
PROMPTS = ("a thing 0", "another one")
TEXT = ("text_encoder.", "text_encoder_2.")


@dataclass(frozen=True)
class Trained:
    family: str
    base: Path
    run: Path
    lora: Path


@pytest.fixture(scope="module", name="trained")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """A family's tiny model with a LoRA that adapts its text encoders too; each is trained once."""
    pairs = tiny_pairs(tmp_path_factory.mktemp("pairs") / "pairs", 4)

    @cache
    def train(family: str) -> Trained:
        home = tmp_path_factory.mktemp(family)
        base = tiny_folder(family, home / "base")
        # With weights in 32 bits in the file, it is bit for bit what the last samples were drawn with.
        settings = tiny_settings(
            base, pairs, home / "run", train_text=True, save_dtype="fp32", max_train_steps=3, lr=0.05,
            samples=2, sample_prompts=PROMPTS, sample_steps=3, guidance=3.0, cost_model="none",
        )  # fmt: skip
        result = run_job(settings)
        assert result.lora is not None
        return Trained(family, base, result.folder, result.lora.path)

    return train


def _only_words(whole: Path, path: Path, family: str) -> Path:
    """The part of a LoRA that is for text encoders, as a file of its own."""
    state, _ = load_lora(whole)
    words = {name: weight for name, weight in state.items() if name.startswith(TEXT)}
    save_lora(path, words, family=family, rank=2, alpha=2.0, facts={}, dtype=torch.float32)
    return path


def _drawn(lora: Path, base: Path | str, folder: Path, weights: tuple[float, ...]) -> list[list[bytes]]:
    """PNG files, weight by weight."""
    job = CompareJob(lora, str(base), folder, "compare", PROMPTS, weights, "embedded", 0, 3, 3.0)
    found = compare(job, folder, CPU, lambda *_: None)
    return [[(folder / cell.path).read_bytes() for cell in found.at(weight)] for weight in weights]


@pytest.mark.parametrize("family", WITH_CLIP)
def test_a_lora_with_text_encoders_draws_what_its_training_drew(
    family: str, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    made = trained(family)
    samples = made.run / "samples"
    before, after = ([(samples / f"step-{k:06d}-{n}.png").read_bytes() for n in (0, 1)] for k in (0, 3))
    assert before != after
    drawn = _drawn(made.lora, made.base, tmp_path / "compared", (1.0, 0.0, 0.5))
    assert drawn[:2] == [after, before]
    assert drawn[2] not in (after, before)

    # The words alone, too: nothing in the denoiser changes.
    words = _only_words(made.lora, tmp_path / "words.safetensors", family)
    told, untold = _drawn(words, made.base, tmp_path / "told", (1.0, 0.0))
    assert untold == before
    assert told not in (before, after)


def test_the_base_is_loaded_as_the_run_that_made_the_lora_loaded_it(tmp_path: Path) -> None:
    """Told that the model predicts v, and with another VAE, as no file of the base says."""
    base, other = tiny_folder("sd1", tmp_path / "base"), sd2_pipeline(tmp_path / "other", seed=7)
    other.vae.save_pretrained(tmp_path / "vae")
    settings = tiny_settings(
        base, tiny_pairs(tmp_path / "pairs", 4), tmp_path / "run", prediction="v_prediction",
        vae=tmp_path / "vae", save_dtype="fp32", max_train_steps=2, lr=0.05, samples=2,
        sample_prompts=PROMPTS, sample_steps=3, guidance=3.0, cost_model="none",
    )  # fmt: skip
    result = run_job(settings)
    assert result.lora is not None
    after = [(result.folder / "samples" / f"step-000002-{n}.png").read_bytes() for n in (0, 1)]
    assert _drawn(result.lora.path, base, tmp_path / "compared", (1.0,)) == [after]

    # Elsewhere, or with another base, only the files of the base are there to be asked.
    moved = Path(shutil.copy2(result.lora.path, tmp_path))
    assert _drawn(moved, base, tmp_path / "moved", (1.0,)) != [after]
    # Somebody else's file of that name is no reason to draw nothing.
    (tmp_path / "job.toml").write_text("[somebody]\nelse = 1\n", "utf-8")
    assert _drawn(moved, base, tmp_path / "again", (1.0,)) != [after]


def test_a_lora_of_the_embedded_model_is_drawn_with_it_alone(tmp_path: Path) -> None:
    pairs = tiny_pairs(tmp_path / "pairs", 4)
    # A model that only happens to have the same name.
    other = tiny_folder("sd1", tmp_path / "micro")
    made = {}
    for base in ("micro", str(other)):
        settings = tiny_settings(
            base, pairs, tmp_path / f"run-{len(made)}", max_train_steps=1, lr=0.05, save_dtype="fp32",
            samples=2, sample_prompts=PROMPTS, sample_steps=3, guidance=3.0, cost_model="none",
        )  # fmt: skip
        result = run_job(settings)
        assert result.lora is not None
        after = [(result.folder / "samples" / f"step-000001-{n}.png").read_bytes() for n in (0, 1)]
        made[base] = result.lora.path
        assert _drawn(made[base], base, result.folder / "compared", (1.0,)) == [after]
    for lora, base, words in (
        (made["micro"], str(other), r"for the embedded model, and .*micro is Stable Diffusion 1"),
        (made[str(other)], "micro", r"for Stable Diffusion 1\.x, and micro is the embedded model"),
    ):
        with pytest.raises(ScdpoError, match=words):
            _drawn(lora, base, tmp_path / "wrong", (1.0,))


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_words_at_a_strength_are_those_of_weights_that_were_merged(
    family: str, trained: Callable[[str], Trained]
) -> None:
    made = trained(family)
    model, merged = (FAMILIES[family].load(made.base, CPU, torch.float32) for _ in range(2))
    untouched = merged.encode_prompts(list(PROMPTS))
    towers = merged.train_texts()
    state, _ = load_lora(made.lora)
    changed = 0
    for module, parts in by_module(state).items():
        owner, _, name = module.partition(".")
        if owner not in towers:
            continue
        tower = towers[owner][0]
        known = dict(tower.named_modules())
        weight = known.get(name, known.get(name.removeprefix("text_model."))).weight  # type: ignore[union-attr]
        weight.data += 0.5 * delta(parts)
        changed += 1
    assert changed > 0
    expected = merged.encode_prompts(list(PROMPTS))
    adapter, _ = attach_finished(model, made.lora)
    with adapter.scale(0.5):
        found = model.encode_prompts(list(PROMPTS))
    with adapter.disabled():
        without = model.encode_prompts(list(PROMPTS))
    for name in ("embeddings", "pooled"):
        one, two, base = (getattr(words, name) for words in (found, expected, untouched))
        if one is None:
            continue
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        assert torch.equal(getattr(without, name), base)
    told, untold = (
        getattr(words, "pooled" if family == "flux" else "embeddings") for words in (found, untouched)
    )
    assert not torch.allclose(told, untold)


def test_a_lora_without_words_leaves_text_encoders_alone(
    trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    made = trained("sd1")
    state, _ = load_lora(made.lora)
    rest = {name: weight for name, weight in state.items() if not name.startswith(TEXT)}
    path = tmp_path / "rest.safetensors"
    save_lora(path, rest, family="sd1", rank=2, alpha=2.0, facts={})
    model = FAMILIES["sd1"].load(made.base, CPU, torch.float32)
    attach_finished(model, path)
    ((tower, _),) = model.train_texts().values()
    assert not any("lora" in name for name, _ in tower.named_modules())


def test_words_for_an_encoder_that_the_model_lacks_are_named(
    trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    words = _only_words(trained("sdxl").lora, tmp_path / "words.safetensors", "sdxl")
    model = FAMILIES["sd1"].load(trained("sd1").base, CPU, torch.float32)
    with pytest.raises(ScdpoError, match=r"words\.safetensors cannot be used: 'lora_te2_.*for another one"):
        attach_finished(model, words)
