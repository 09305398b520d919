"""Every family through the real job: three steps, a LoRA, the LoRA loaded again, another image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scdpo_core.config.settings import to_toml
from scdpo_core.evaluation.compare import compare
from scdpo_core.families import FAMILIES, LoadOptions
from scdpo_core.lora.adapter import attach_file
from scdpo_core.lora.file import read_lora_info
from scdpo_core.run_store.folder import checkpoint_steps
from scdpo_core.runs.comparison import CompareJob
from scdpo_core.training.job import run_job
from scdpo_core.training.saving import JobResult
from scdpo_core.types import ScdpoError
from tests.support.original_files import flux_shapes, write_full_sd15, write_sdxl_file
from tests.support.tiny import tiny_pairs, tiny_pipeline, tiny_settings, write_single_file
from tests.support.tiny_families import FLOWS, flux_pipeline, sdxl_pipeline, tiny_folder
from tests.support.tiny_parts import T5_TOKENS
from tests.trainer.test_train_lora import run

CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="pairs")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "pairs", 4)


def _train(base: Path, pairs: Path, output: Path, **changes: Any) -> JobResult:
    settings = {"max_train_steps": 3, "lr": 0.05, "samples": 1, "save_dtype": "fp32", "t5_tokens": T5_TOKENS}
    return run_job(tiny_settings(base, pairs, output, **(settings | changes)))


def _changed(family: str, base: Path, result: JobResult, options: LoadOptions) -> bool:
    """Whether the finished file, loaded into a fresh model, draws another image."""
    assert result.lora is not None
    model = FAMILIES[family].load(base, CPU, torch.float32, options)
    (before,) = model.sample(["a thing 0"], [0], 3, 3.0)
    adapter, info = attach_file(model.denoiser, result.lora.path)
    assert info.family == family
    (after,) = model.sample(["a thing 0"], [0], 3, 3.0)
    with adapter.disabled():
        (again,) = model.sample(["a thing 0"], [0], 3, 3.0)
    assert again.tobytes() == before.tobytes()
    return bool((np.asarray(after, int) != np.asarray(before, int)).any())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_trains_and_its_lora_changes_the_image(family: str, pairs: Path, tmp_path: Path) -> None:
    base = tiny_folder(family, tmp_path / "base")
    # As the presets have it for the large ones.
    result = _train(base, pairs, tmp_path / "lora", gradient_checkpointing=family not in ("sd1", "sd2"))
    assert result.outcome.step == 3
    assert result.lora is not None
    metadata = read_lora_info(result.lora.path).metadata
    expected = "flow" if family in FLOWS else "epsilon" if family == "sdxl" else "v_prediction"
    assert metadata["scdpo_prediction"] == expected
    assert json.loads(metadata["scdpo_zero_snr"]) is False
    assert _changed(family, base, result, LoadOptions(t5_tokens=T5_TOKENS))


@pytest.mark.parametrize(
    ("family", "kind"),
    [("sd3", "loha"), ("flux", "lokr"), ("flux", "dora"), ("chroma", "lokr"), ("z_image", "loha")],
)
def test_every_kind_can_be_saved_for_the_transformers(
    family: str, kind: str, pairs: Path, tmp_path: Path
) -> None:
    # The original layout fuses queries, keys and values, which these kinds change apart from one another.
    base = tiny_folder(family, tmp_path / "base")
    result = _train(base, pairs, tmp_path / "lora", kind=kind)
    assert _changed(family, base, result, LoadOptions(t5_tokens=T5_TOKENS))


@pytest.mark.parametrize(
    ("family", "make", "write"),
    [("sd1", tiny_pipeline, write_single_file), ("sdxl", sdxl_pipeline, write_sdxl_file)],
)
def test_a_single_file_trains_and_its_lora_changes_the_image(
    family: str, make: Any, write: Any, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "configs" / family)
    marks = (("v_pred", "ztsnr"),) if family == "sdxl" else ()
    base = write(pipeline, tmp_path / "base.safetensors", *marks)
    # Configurations that ship are of the full size; this file is not.
    monkeypatch.setattr("scdpo_core.families.components.CONFIGS", tmp_path / "configs")
    result = _train(base, pairs, tmp_path / "lora")
    assert result.lora is not None
    assert json.loads(result.lora.metadata["scdpo_zero_snr"]) is bool(marks)
    assert _changed(family, base, result, LoadOptions())


def test_a_flow_resumes_to_the_same_bytes(pairs: Path, tmp_path: Path) -> None:
    base = tiny_folder("sd3", tmp_path / "base")
    changes: dict[str, Any] = {
        "samples": 0,
        "max_train_steps": 4,
        "checkpoint_every": 2,
        # The one objective that looks at pure noise as well.
        "objective": "duo",
        "timesteps": "uniform",
    }
    whole = _train(base, pairs, tmp_path / "whole" / "lora", **changes)

    def stop() -> bool:
        return bool(checkpoint_steps(tmp_path / "parts" / "lora" / "checkpoints"))

    options = {"lr": 0.05, "save_dtype": "fp32", "t5_tokens": T5_TOKENS, **changes}
    settings = tiny_settings(base, pairs, tmp_path / "parts" / "lora", **options)
    stopped = run_job(settings, should_stop=stop)
    assert (stopped.outcome.reason, stopped.outcome.step) == ("stopped", 3)
    resumed = run_job(settings, resume=True)
    assert whole.lora is not None and resumed.lora is not None
    assert resumed.lora.path.read_bytes() == whole.lora.path.read_bytes()


def test_the_command_line_finds_the_family_and_names_a_wrong_one(pairs: Path, tmp_path: Path) -> None:
    base = tiny_folder("sdxl", tmp_path / "base")
    settings = tiny_settings(base, pairs, tmp_path / "lora", max_train_steps=2)
    (tmp_path / "job.toml").write_text(to_toml(settings), "utf-8")
    code, _, err = run("--config", tmp_path / "job.toml", "--family", "sd1", cwd=tmp_path)
    assert code == 2
    assert "This is a Stable Diffusion XL model; a Stable Diffusion 1.x model was expected" in err
    assert not (tmp_path / "lora").exists()
    code, out, err = run("--config", tmp_path / "job.toml", cwd=tmp_path)
    assert code == 0, err
    assert str(tmp_path / "lora" / "lora.safetensors") in out


def test_a_flow_has_no_prediction_to_choose(pairs: Path, tmp_path: Path) -> None:
    base = tiny_folder("flux", tmp_path / "base")
    with pytest.raises(ScdpoError, match=r"predicts a flow.*must stay 'auto'"):
        _train(base, pairs, tmp_path / "lora", prediction="epsilon")


@pytest.mark.slow
def test_stable_diffusion_15_at_its_full_size_trains_two_steps(pairs: Path, tmp_path: Path) -> None:
    """Random weights in the original layout, the configurations that ship with us, images of 64x64."""
    base = write_full_sd15(tmp_path / "sd15.safetensors")
    result = _train(
        base,
        pairs,
        tmp_path / "lora",
        max_train_steps=2,
        width=64,
        height=64,
        batch_size=1,
        samples=0,
        rank=4,
        gradient_checkpointing=True,
        lr=1e-4,
    )
    assert result.outcome.step == 2
    assert result.lora is not None
    # 16 transformers with two attentions of four matrices each, three tensors a module.
    assert result.lora.keys == 16 * 8 * 3


@pytest.mark.slow
def test_a_flux_transformer_alone_trains_with_its_other_parts_from_elsewhere(
    pairs: Path, tmp_path: Path
) -> None:
    """Two blocks of the original width, in the original layout and 16 bits; tiny encoders and a tiny VAE."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (0.02 * torch.randn(shape, generator=generator)).bfloat16()
        for name, shape in flux_shapes(1, 1, guided=True).items()
    }
    base = tmp_path / "flux.safetensors"
    save_file(tensors, str(base))
    del tensors
    parts = flux_pipeline(tmp_path / "words", words=4096, pooled=768)
    parts.save_pretrained(tmp_path / "parts")
    result = _train(
        base,
        pairs,
        tmp_path / "lora",
        max_train_steps=2,
        vae=tmp_path / "parts",
        text_encoders=tmp_path / "parts",
        precision="bf16",
        batch_size=1,
        samples=0,
        lr=1e-3,
    )
    assert result.outcome.step == 2
    assert result.lora is not None
    assert result.lora.family == "flux"
    # The comparison finds the other parts by the run's own settings.
    job = CompareJob(result.lora.path, str(base), tmp_path, "compare", ("a thing",), (0.0, 1.0), steps=1)
    cells = compare(job, tmp_path / "compared", CPU, lambda *_: None).cells
    assert len(cells) == 2
