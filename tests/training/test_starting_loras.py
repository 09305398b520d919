"""Runs that continue a LoRA, and runs whose base a LoRA is part of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scdpo_core.config.settings import TrainSettings
from scdpo_core.evaluation.load_model import load_for_drawing
from scdpo_core.families import FAMILIES, LoadOptions
from scdpo_core.lora.adapter import attach, attach_file
from scdpo_core.lora.edit import Target, convert_file, merge_files
from scdpo_core.lora.file import load_lora, save_lora
from scdpo_core.lora.summary import as_text, describe
from scdpo_core.lora.weights import by_module, delta
from scdpo_core.run_store.folder import checkpoint_steps
from scdpo_core.training.checkpoint import OtherRunError
from scdpo_core.training.job import run_job
from scdpo_core.training.saving import JobResult
from scdpo_core.training.starting_loras import ReferenceMerge, content_hash
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_pairs, tiny_settings
from tests.support.tiny_families import tiny_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "pairs", 4)


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("sd1", tmp_path_factory.mktemp("base") / "tiny")


def settings_of(base: Path, pairs: Path, output: Path, **changes: Any) -> TrainSettings:
    own: dict[str, Any] = {"max_train_steps": 2, "lr": 0.01, "save_dtype": "fp32", "checkpoint_every": 2}
    return tiny_settings(base, pairs, output, **(own | changes))


def written(folder: Path, base: Path, family: str = "sd1", kind: Any = "lora") -> Path:
    """A LoRA file with weights as if it had been trained."""
    denoiser = FAMILIES[family].load(base, CPU, torch.float32, LoadOptions()).denoiser
    adapter = attach(denoiser, rank=4, alpha=2.0, targets="attention", seed=1, kind=kind)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in adapter.parameters():
            # Of few digits, so that neither float16 nor a dialect that has no alpha loses any.
            changed = weight + 0.1 * torch.randn(weight.shape, generator=generator)
            weight.copy_((256 * changed).round() / 256)
    path = folder / f"{kind}.safetensors"
    save_lora(path, adapter.state(), family=family, rank=adapter.rank, alpha=2.0, facts={})
    return path


def changes_of(path: Path) -> dict[str, Tensor]:
    return {module: delta(parts) for module, parts in by_module(load_lora(path)[0]).items()}


def has_checkpoint(output: Path) -> bool:
    return bool(checkpoint_steps(output / "checkpoints"))


def lora_of(result: JobResult) -> Path:
    assert result.lora is not None
    return result.lora.path


def untrained(settings: TrainSettings) -> TrainSettings:
    """The same run at a rate at which float32 weights stay what they are, but for zeros."""
    optim = dataclasses.replace(settings.optim, lr=1e-30, weight_decay=0.0)
    return dataclasses.replace(settings, optim=optim)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_a_run_begins_with_the_lora_that_it_continues(
    kind: str, base: Path, pairs: Path, tmp_path: Path
) -> None:
    start = written(tmp_path, base, kind=kind)
    settings = settings_of(base, pairs, tmp_path / "run" / "lora", init_lora=start)
    still = lora_of(run_job(untrained(settings)))
    before, after = load_lora(start)[0], load_lora(still)[0]
    assert before.keys() == after.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name].float(), weight.float(), rtol=0, atol=1e-20)
    moved = lora_of(run_job(settings_of(base, pairs, tmp_path / "more" / "lora", init_lora=start)))
    assert any(not torch.equal(weight, after[name]) for name, weight in load_lora(moved)[0].items())
    metadata = load_lora(moved)[1].metadata
    assert metadata["scdpo_init_lora"] == start.name and metadata["scdpo_kind"] == kind
    assert metadata["scdpo_init_lora_hash"] == content_hash(start)
    # A LoKr of full factors has no rank that an alpha could count against.
    assert kind == "lokr" or metadata["ss_network_alpha"] == "2.0"


def test_any_dialect_is_continued_to_the_same_bytes(base: Path, pairs: Path, tmp_path: Path) -> None:
    start = written(tmp_path, base)
    results = []
    for dialect in ("kohya", "peft", "comfyui"):
        path = tmp_path / dialect / "lora.safetensors"
        convert_file(start, Target(path, dialect, "sd1"))  # type: ignore[arg-type]
        results.append(lora_of(run_job(settings_of(base, pairs, tmp_path / dialect / "run", init_lora=path))))
        assert content_hash(path) == content_hash(start)
    states = [load_lora(path)[0] for path in results]
    for state in states[1:]:
        assert all(torch.equal(weight, states[0][name]) for name, weight in state.items())


@pytest.mark.parametrize("rank", [2, 4, 7])
@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_the_rank_changes_where_it_is_asked_for(
    kind: str, rank: int, base: Path, pairs: Path, tmp_path: Path
) -> None:
    start = written(tmp_path, base, kind=kind)
    settings = settings_of(base, pairs, tmp_path / "run" / "lora", init_lora=start, init_rank=rank)
    state, file = load_lora(lora_of(run_job(untrained(settings))))
    assert file.rank == rank
    assert {weight.shape[0] for name, weight in state.items() if name.endswith(".down")} == {rank}
    before, after = changes_of(start), changes_of(file.path)
    for module, change in before.items():
        kept = after[module].flatten(1)
        # The nearest change of a rank is what its largest singular values make (Eckart and Young).
        u, s, vh = torch.linalg.svd(change.double().flatten(1), full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(kept.double(), best, rtol=1e-4, atol=1e-5)


def test_a_continued_run_resumes_to_the_same_bytes_and_knows_its_start(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    start, steps = written(tmp_path, base), {"max_train_steps": 4}
    whole = lora_of(run_job(settings_of(base, pairs, tmp_path / "whole" / "lora", init_lora=start, **steps)))
    output = tmp_path / "parts" / "lora"
    settings = settings_of(base, pairs, output, init_lora=start, **steps)
    run_job(settings, should_stop=lambda: has_checkpoint(output))
    # Where the file lies does not count, what it holds does.
    moved = start.rename(tmp_path / "elsewhere.safetensors")
    other = written(tmp_path, base, kind="loha")
    for path, refusal in (
        (other, "content of --init-lora: [0-9a-f]{12} -> [0-9a-f]{12}"),
        (start, "no file"),
    ):
        changed = dataclasses.replace(settings, lora=dataclasses.replace(settings.lora, init_lora=path))
        with pytest.raises(ScdpoError, match=refusal):
            run_job(changed, resume=True)
    again = dataclasses.replace(settings, lora=dataclasses.replace(settings.lora, init_lora=moved))
    resumed, expected = load_lora(lora_of(run_job(again, resume=True)))[0], load_lora(whole)[0]
    assert all(torch.equal(weight, expected[name]) for name, weight in resumed.items())


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
@pytest.mark.parametrize("family", ["sd1", "sd3", "flux"])
def test_a_reference_lora_is_part_of_the_base(family: str, kind: str, tmp_path: Path) -> None:
    base = tiny_folder(family, tmp_path / "base")
    path = written(tmp_path, base, family, kind)
    options = LoadOptions(on_read=ReferenceMerge(path), t5_tokens=8 if family in ("sd3", "flux") else 0)
    merged = FAMILIES[family].load(base, CPU, torch.float32, options)
    plain = FAMILIES[family].load(base, CPU, torch.float32, dataclasses.replace(options, on_read=None))
    latents, noise = torch.randn((2, 1, *plain.latent_shape()), generator=torch.Generator().manual_seed(0))
    words, times = plain.encode_prompts(["a"]), torch.tensor([500])
    with torch.no_grad():
        without = plain.predict(plain.add_noise(latents, noise, times), times, words)
        attach_file(plain.denoiser, path)
        attached = plain.predict(plain.add_noise(latents, noise, times), times, words)
        answer = merged.predict(merged.add_noise(latents, noise, times), times, words)
    torch.testing.assert_close(answer, attached, rtol=1e-4, atol=1e-4)
    assert (answer - without).abs().max() > 1e-3


def test_text_encoders_take_their_part_of_a_reference_lora(base: Path, pairs: Path, tmp_path: Path) -> None:
    both = lora_of(run_job(settings_of(base, pairs, tmp_path / "first", train_text=True, lr=0.1)))
    plain = FAMILIES["sd1"].load(base, CPU, torch.float32, LoadOptions())
    merged: Any = FAMILIES["sd1"].load(base, CPU, torch.float32, LoadOptions(on_read=ReferenceMerge(both)))
    first = merged.encode_prompts(["a thing"]).embeddings
    assert not torch.equal(first, plain.encode_prompts(["a thing"]).embeddings)
    assert merged.encoder_id != plain.encoder_id
    merged.release_encoders()
    assert torch.equal(merged.encode_prompts(["a thing"]).embeddings, first)


def test_training_on_top_of_a_lora_is_training_on_the_merged_model(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    """The result, its metadata, resuming, and what both files together make."""
    first = written(tmp_path, base)
    output = tmp_path / "run" / "second"
    settings = settings_of(base, pairs, output, reference_lora=first, max_train_steps=4)
    run_job(settings, should_stop=lambda: has_checkpoint(output))
    other = written(tmp_path, base, kind="loha")
    changed = dataclasses.replace(settings, model=dataclasses.replace(settings.model, reference_lora=other))
    with pytest.raises(OtherRunError, match="content of --reference-lora"):
        run_job(changed, resume=True)
    left_out = dataclasses.replace(settings, model=dataclasses.replace(settings.model, reference_lora=None))
    with pytest.raises(OtherRunError, match=r"content of --reference-lora: [0-9a-f]{12} -> not set"):
        run_job(left_out, resume=True)
    second = lora_of(run_job(settings, resume=True))
    elsewhere = dataclasses.replace(settings.output, output=tmp_path / "whole" / "second")
    whole = lora_of(run_job(dataclasses.replace(settings, output=elsewhere)))
    assert whole.read_bytes() == second.read_bytes()
    text = as_text(describe(*load_lora(second)))
    assert "scdpo_reference_lora" in text and first.name in text
    card = second.with_suffix(".json").read_text("utf-8")
    assert f"made on top of {first.name}: use both, or merge them" in card

    # Drawing takes the base as the run had it; merged into one file it is the same model again.
    drawn = load_for_drawing(str(base), second, CPU)
    attach_file(drawn.denoiser, second)
    one = tmp_path / "one.safetensors"
    merge_files([first, second], Target(one, family="sd1"))
    plain = FAMILIES["sd1"].load(base, CPU, torch.float32, LoadOptions())
    attach_file(plain.denoiser, one)
    latents, noise = torch.randn((2, 1, *plain.latent_shape()), generator=torch.Generator().manual_seed(0))
    words, times = plain.encode_prompts(["a"]), torch.tensor([500])
    with torch.no_grad():
        answers = [model.residuals(latents, noise, times, words, "native") for model in (drawn, plain)]
    torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-3)


def test_both_at_once_and_blocks_in_main_memory(base: Path, pairs: Path, tmp_path: Path) -> None:
    reference, start = written(tmp_path, base, kind="loha"), written(tmp_path, base)
    runs = [
        run_job(
            settings_of(
                base,
                pairs,
                tmp_path / str(count) / "lora",
                reference_lora=reference,
                init_lora=start,
                offload_blocks=count,
            )
        )
        for count in (0, 3)
    ]
    assert lora_of(runs[0]).read_bytes() == lora_of(runs[1]).read_bytes()


REFUSED: dict[str, tuple[Callable[[Path, Path], dict[str, Any]], str]] = {
    "another family": (
        lambda folder, base: {"init_lora": written(folder, tiny_folder("sd3", folder / "sd3"), "sd3")},
        "is a LoRA for Stable Diffusion 3, and the base model is Stable Diffusion 1.x",
    ),
    "another family as reference": (
        lambda folder, base: {"reference_lora": written(folder, tiny_folder("sd3", folder / "sd3"), "sd3")},
        "--reference-lora .* is a LoRA for Stable Diffusion 3",
    ),
    "no file": (
        lambda folder, base: {"init_lora": folder / "gone.safetensors"},
        "--init-lora: There is no file",
    ),
    "a DoRA on coded matrices": (
        lambda folder, base: {"init_lora": written(folder, base, kind="dora"), "quantize": "int8"},
        "is a DoRA, which looks at the base's own matrices",
    ),
    "a LoHa with dropout": (
        lambda folder, base: {"init_lora": written(folder, base, kind="loha"), "dropout": 0.1},
        "is a LoHa, which drops no inputs",
    ),
    "text encoders that it lacks": (
        lambda folder, base: {"init_lora": written(folder, base), "train_text": True},
        "adapts no text encoder: leave --train-text out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_a_model_is_loaded(
    case: str, base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, sentence = REFUSED[case]
    changes = made(tmp_path, base)
    monkeypatch.setattr("scdpo_core.training.job.load_base", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ScdpoError, match=sentence):
        run_job(settings_of(base, pairs, tmp_path / "run" / "lora", **changes))
    assert not (tmp_path / "run" / "lora").exists()


def test_a_continued_lora_brings_its_own_shape(base: Path, pairs: Path, tmp_path: Path) -> None:
    settings = settings_of(base, pairs, tmp_path / "lora", init_lora=written(tmp_path, base), rank=8)
    with pytest.raises(ScdpoError, match=r"lora\.rank has no effect here, for it needs a new LoRA"):
        run_job(settings, unasked=[TrainSettings(), settings_of(base, pairs, tmp_path / "lora", rank=2)])
