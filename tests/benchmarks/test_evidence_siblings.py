"""Siblings of the embedded model that predict the noise or a flow: their algebra, and the trainer on them."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.evidence import siblings
from benchmarks.evidence.flow_unet import FLOW_UNET, cosine_timestep, flow_unet, to_diffusion
from benchmarks.evidence.siblings import KINDS, fine_tune, load_sibling, shipped_answer, write_folder
from scdpo_core.families import FAMILIES, family_of
from scdpo_core.families.detect import detect
from scdpo_core.lora.file import read_lora_info
from scdpo_core.training.job import run_job
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_pairs, tiny_settings
from tools.micro_model.unet import Dataset, scheduler

QUIET = lambda _: None  # noqa: E731


class KnowsV(nn.Module):
    """A perfect network on the shipped schedule: knows the latents and the noise behind its input."""

    def __init__(self, latents: Tensor, noise: Tensor) -> None:
        super().__init__()
        self.latents, self.noise = latents, noise

    def forward(self, x: Tensor, timesteps: Tensor, states: Tensor) -> Any:
        # alpha_bar between two timesteps, as the cosine has it.
        clean = math.cos(0.008 / 1.008 * math.pi / 2)
        a = torch.cos(((timesteps + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) / clean
        a = a.view(-1, 1, 1, 1)
        s = (1 - a.square()).sqrt()
        assert torch.allclose(x, a * self.latents + s * self.noise, atol=1e-3)
        return SimpleNamespace(sample=a * self.noise - s * self.latents)


@pytest.fixture(name="data", scope="module")
def _data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 16, 8, 8, generator=generator).half()
    states = torch.randn(5, 24, 128, generator=generator).half()
    return Dataset(latents, torch.randint(5, (8, 3), generator=generator), states)


def test_timesteps_of_equal_noise_are_those_of_the_shipped_schedule() -> None:
    alphas = scheduler().alphas_cumprod.double()
    asked = torch.tensor([0, 1, 10, 100, 500, 900, 990, 998])
    found = cosine_timestep(torch.acos(alphas[asked].sqrt()))
    assert torch.allclose(found, asked.double(), atol=0.02)
    assert cosine_timestep(torch.tensor([0.0, math.pi / 2])).tolist() == [0.0, 999.0]


def test_a_flow_half_way_is_as_noisy_as_alpha_bar_one_half() -> None:
    # t = 1/2: (x_0 + eps) / 2 = sqrt(1/2) (x_0 + eps) / sqrt(2); sqrt(1/4 + 1/4) = sqrt(1/2).
    noisy, level = torch.full((1, 1, 1, 1), 3.0), torch.tensor([0.5])
    scaled, angle = to_diffusion(noisy, level)
    assert scaled.item() == pytest.approx(3.0 * math.sqrt(2))
    assert angle.item() == pytest.approx(math.pi / 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_shipped_network_gives_the_siblings_true_target(kind: str) -> None:
    sibling, generator = KINDS[kind](), torch.Generator().manual_seed(1)
    latents, noise = torch.randn(2, 6, 3, 2, 2, generator=generator)
    timesteps = torch.tensor([8, 100, 400, 700, 950, 999])
    level = sibling.level(timesteps)
    shaped = level.view(-1, 1, 1, 1)
    noisy = sibling.parameterisation.noisy(latents, noise, shaped)
    answer = shipped_answer(KnowsV(latents, noise), sibling, noisy, level, torch.zeros(6, 1, 1))
    assert torch.allclose(answer, sibling.parameterisation.target(latents, noise, shaped), atol=2e-3)


def test_the_schedule_of_the_noise_ends_with_some_image_left() -> None:
    # Stable Diffusion 1's: the product of 1 - beta from 0.00085 to 0.012, evenly in their roots.
    assert KINDS["eps"]().level(torch.tensor(999)).item() == pytest.approx(0.0047, abs=1e-4)


@pytest.mark.parametrize(("kind", "prediction"), [("eps", "epsilon"), ("flow", "flow")])
def test_the_trainer_takes_a_sibling_as_its_base(
    kind: str, prediction: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siblings, "BATCH", 2)
    network = fine_tune(kind, data, tmp_path / "work", QUIET, steps=2)
    base = tmp_path / kind
    write_folder(kind, network, base)
    model = load_sibling(base)
    assert (model.prediction, model.zero_snr, model.family) == (prediction, False, "sd1")
    (image,) = model.sample(["a cat on a blue background"], [0], 2, 3.0)
    assert image.size == (64, 64)
    with flow_unet():
        pairs = tiny_pairs(tmp_path / "pairs", 2)
        result = run_job(tiny_settings(base, pairs, tmp_path / "lora", max_train_steps=2))
    assert result.lora is not None
    assert read_lora_info(result.lora.path).metadata["scdpo_prediction"] == prediction


def test_a_stopped_fine_tuning_goes_on_to_the_same_weights(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siblings, "BATCH", 2)
    once = fine_tune("flow", data, tmp_path / "work", QUIET, steps=2)
    again = fine_tune("flow", data, tmp_path / "work", QUIET, steps=2)  # nothing is left to do
    other = fine_tune("flow", data, tmp_path / "elsewhere", QUIET, steps=2)
    for name, weight in once.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        assert torch.equal(weight, other.state_dict()[name])


def test_without_its_family_a_flow_is_refused_by_name(data: Dataset, tmp_path: Path) -> None:
    write_folder("flow", siblings.shipped_unet(), tmp_path / "flow")
    before = dict(FAMILIES)
    with flow_unet():
        assert family_of("auto", tmp_path / "flow") is FLOW_UNET
        assert detect(tmp_path / "flow").title == f"a {FLOW_UNET.title} model"
        with pytest.raises(ValueError, match="unet_flow"), flow_unet():
            pass
    assert dict(FAMILIES) == before
    with pytest.raises(ScdpoError, match="StableDiffusionFlowPipeline, which cannot be trained"):
        family_of("auto", tmp_path / "flow")
