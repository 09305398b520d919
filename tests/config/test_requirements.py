"""Settings that are given and have no effect: what each needs, which are refused and which passed over."""

from __future__ import annotations

import dataclasses
import importlib.util
import shlex
import sys
import typing
from pathlib import Path
from types import ModuleType

import pytest

from scdpo_core.config.bounds import needs_of
from scdpo_core.config.convert import from_dict
from scdpo_core.config.resolve import unasked
from scdpo_core.config.settings import ObjectiveName, TrainSettings, load_toml, to_toml
from scdpo_core.families import FAMILIES
from scdpo_core.runs.jobs import LoraJob, problems
from scdpo_core.training.setting_checks import invalid

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "trainer" / "train_lora.py"
PRESETS = PROGRAM.with_name("configs")
OBJECTIVES = typing.get_args(ObjectiveName)

NEEDS = "has no effect here, for it needs"
# Flags, the family of the base model, and what is said of them: a setting and what it needs, or a sentence.
ODD = [
    # The base model's family.
    ("--prediction v_prediction", "flux", "model.prediction", "SD 1, SD 2 or SDXL"),
    ("--zero-snr on", "sd3", "model.zero_snr", "SD 1, SD 2 or SDXL"),
    ("--t5-tokens 77", "sd1", "model.t5_tokens", "a base model of SD 3, FLUX.1 or Chroma"),
    ("--t5-tokens 77", "sdxl", "model.t5_tokens", "a base model of SD 3, FLUX.1 or Chroma"),
    ("--prompt-chunks 2", "flux", "model.prompt_chunks", "SD 1, SD 2, SDXL or SD 3"),
    ("--guidance-embedding 3.5", "sd1", "model.guidance_embedding", "a base model of FLUX.1"),
    ("--channels-last on", "sd3", "model.channels_last", "a base model of SD 1, SD 2 or SDXL"),
    ("--guidance-embedding 3.5", "chroma", "model.guidance_embedding", "a base model of FLUX.1"),
    ("--train-text", "chroma", "lora.train_text", "a base model of SD 1, SD 2, SDXL, SD 3 or FLUX.1"),
    ("--real-sizes", "sd1", "data.real_sizes", "a base model of SDXL"),
    ("--timestep-mean 1", "sd1", "objective.timestep_mean", "--timesteps logit_normal or a flow model"),
    ("--timestep-std 2", "sdxl", "objective.timestep_std", "--timesteps logit_normal or a flow model"),
    (
        "--timestep-mean 1 --timesteps uniform",
        "flux",
        "objective.timestep_mean",
        "--timesteps logit_normal or a flow model",
    ),
    ("--train-text", "z_image", "lora.train_text", "a base model of SD 1, SD 2, SDXL, SD 3 or FLUX.1"),
    ("--targets self-attention", "sd3", "lora.targets 'self-attention'", "take 'attention'"),
    # Costs.
    ("--objective safedpo", "sd1", "'safedpo' is plain DPO without costs", "--objective diffusion_dpo"),
    ("--objective sc_dpo --margin 1", "sd1", "objective.margin", "--cost-model"),
    ("--safety-weight 2", "sd1", "data.safety_weight", "--cost-model"),
    ("--tie 0.3", "sd1", "data.tie", "--cost-model"),
    ("--both-unsafe drop", "sd1", "data.both_unsafe", "--cost-model"),
    ("--objective sc_dpo --soft-tau 1", "sd1", "data.soft_tau", "--cost-model"),
    ("--objective duo --soft-tau 1 --cost-model micro", "sd1", "data.soft_tau", "--objective sc_dpo"),
    ("--objective duo --margin 1 --cost-model micro", "sd1", "objective.margin", "--objective sc_dpo"),
    # What an objective reads.
    ("--beta 100", "sd1", "objective.beta", "an objective over pairs, such as --objective sc_dpo"),
    ("--objective esd --beta 100", "sd1", "objective.beta", "an objective over pairs"),
    ("--objective mapo --beta-scale 2", "sd1", "objective.beta_scale", "--objective sc_dpo, winner_only"),
    ("--objective sc_dpo --beta 9 --beta-scale 2", "sd1", "objective.beta_scale", "no --beta beside it"),
    ("--winner 0.05", "sd1", "objective.winner", "--objective sc_dpo or winner_only"),
    ("--objective mapo --winner 0.05", "sd1", "objective.winner", "--objective sc_dpo or winner_only"),
    ("--objective duo --dfm-gamma 2", "sd1", "objective.dfm_gamma", "--objective sc_dpo"),
    ("--objective duo --no-dfm-by-time", "sd1", "objective.dfm_by_time", "--objective sc_dpo"),
    ("--objective duo --dfm-warmup 0.2", "sd1", "objective.dfm_warmup", "--objective sc_dpo"),
    ("--objective sc_dpo --dfm-gamma 0 --dfm-warmup 0.2", "sd1", "objective.dfm_warmup", "--dfm-gamma 1"),
    ("--objective sc_dpo --dfm-gamma 0 --no-dfm-by-time", "sd1", "objective.dfm_by_time", "--dfm-gamma 1"),
    ("--objective safetydpo --focal-gamma 1", "sd1", "objective.focal_gamma", "--objective sc_dpo"),
    ("--objective duo --loser-mu 0.9", "sd1", "objective.loser_mu", "--objective sc_dpo"),
    ("--objective sc_dpo --prior-weight 1", "sd1", "objective.prior_weight", "--objective duo"),
    ("--weighting exact", "sd1", "objective.weighting", "an objective over pairs"),
    (
        "--objective sc_dpo --min-snr-gamma 1",
        "sd1",
        "objective.min_snr_gamma",
        "--weighting min_snr or --redirect-weighting min_snr",
    ),
    ("--reference-draws 32", "sd1", "objective.reference_draws", "an objective over pairs"),
    ("--objective gem --reference-draws 32", "sd1", "objective.reference_draws", "an objective over pairs"),
    ("--objective winner_only --winner 0", "sd1", "leaves nothing to learn to winner_only", "above 0"),
    # Terms.
    ("--redirect 0", "sd1", "terms.redirect 0 leaves nothing to learn", "above 0"),
    ("--objective sc_dpo --redirect-pure 0.5", "sd1", "terms.redirect_pure", "--redirect 1"),
    ("--objective sc_dpo --redirect-mix-a 2", "sd1", "terms.redirect_mix_a", "--redirect 1"),
    ("--redirect-pure 1 --redirect-mix-b 2", "sd1", "terms.redirect_mix_b", "--redirect-pure below 1"),
    ("--objective esd --redirect-weighting min_snr", "sd1", "terms.redirect_weighting", "--redirect 1"),
    ("--keep-empty 0 --keep-empty-share 0.5", "sd1", "terms.keep_empty_share", "--keep-empty 1"),
    ("--keep-text 0 --keep-text-share 0.5", "sd1", "terms.keep_text_share", "--keep-text 5"),
    ("--keep-text 0 --keep-prompts everyday", "sd1", "terms.keep_prompts", "--keep-text 5"),
    ("--objective duo --keep-images 64", "sd1", "terms.keep_images", "--keep-text 5"),
    ("--eta 2", "sd1", "terms.eta", "--objective esd or gem"),
    # How it is minimised, and the LoRA.
    ("--schedule-power 3", "sd1", "optim.schedule_power", "--schedule polynomial"),
    ("--schedule-cycles 2", "sd1", "optim.schedule_cycles", "--schedule restarts"),
    ("--text-lr 1e-5", "sd1", "optim.text_lr", "--train-text"),
    ("--optimizer adafactor --beta1 0.8", "sd1", "optim.beta1", "--optimizer adamw, adamw8bit or prodigy"),
    ("--optimizer adafactor --beta2 0.9", "sd1", "optim.beta2", "--optimizer adamw, adamw8bit or prodigy"),
    ("--kind lokr --dropout 0.1", "sd1", "lora.dropout", "--kind lora or dora"),
    ("--init-lora a.safetensors --kind dora", "sd1", "lora.kind", "a new LoRA, so no --init-lora"),
    ("--init-lora a.safetensors --rank 9", "sd1", "lora.rank", "a new LoRA, so no --init-lora"),
    ("--init-lora a.safetensors --alpha 9", "sd1", "lora.alpha", "a new LoRA, so no --init-lora"),
    ("--init-lora a.safetensors --targets conv", "sd1", "lora.targets", "a new LoRA, so no --init-lora"),
    ("--init-lora a.safetensors --block-ranks mid_block=4", "sd1", "lora.block_ranks", "a new LoRA"),
    ("--init-rank 8", "sd1", "lora.init_rank", "--init-lora FILE"),
    # Held-out pairs, samples, data.
    ("--validation-every 10", "sd1", "validation.validation_every", "--validation 0.1"),
    ("--validation-draws 8", "sd1", "validation.validation_draws", "--validation 0.1"),
    ("--patience 3", "sd1", "validation.patience", "--validation 0.1"),
    ("--result best", "sd1", "validation.result", "--validation 0.1"),
    ("--samples 0 --sample-every 10", "sd1", "sampling.sample_every", "--samples 1"),
    ("--samples 0 --sample-prompts cat", "sd1", "sampling.sample_prompts", "--samples 1"),
    (
        "--samples 0 --objective duo --sample-steps 9",
        "sd1",
        "sampling.sample_steps",
        "--samples 1, --keep-text 5 or --prompts FILE",
    ),
    (
        "--samples 0 --objective duo --guidance 2",
        "sd1",
        "sampling.guidance",
        "--samples 1, --keep-text 5 or --prompts FILE",
    ),
    ("--more-pairs x", "sd1", "data.more_pairs", "--pairs FOLDER"),
    ("--bucket-step 32", "sd1", "data.bucket_step", "--buckets"),
    ("--cache-in ram --objective duo --cache x", "sd1", "data.cache", "--cache-in disk"),
    ("--caption-dropout 0.1", "sd1", "data.caption_dropout", "an objective over pairs"),
    (
        "--objective duo --caption-dropout 0.1 --reference-draws 8",
        "sd1",
        "data.caption_dropout",
        "--reference-draws 0",
    ),
    ("--objective duo --flip --reference-draws 8", "sd1", "data.flip", "--reference-draws 0"),
]
# The same settings where they do something.
SOUND = [
    ("--t5-tokens 77 --timestep-mean 1", "sd3"),
    ("--t5-tokens 77", "chroma"),
    ("--t5-tokens 77 --guidance-embedding 3.5 --timestep-std 2", "flux"),
    ("--prediction v_prediction --zero-snr on --channels-last on --real-sizes --prompt-chunks 2", "sdxl"),
    ("--timesteps logit_normal --timestep-mean 1 --timestep-std 2", "sd1"),
    ("--objective sc_dpo --cost-model micro --margin 1 --soft-tau 1 --tie 0.3 --both-unsafe drop", "sd1"),
    ("--objective sc_dpo --winner 0 --dfm-gamma 2 --no-dfm-by-time --dfm-warmup 0 --focal-gamma 1", "sd1"),
    ("--objective sc_dpo --loser-mu 0.9 --reference-draws 32 --beta-scale 2", "sd1"),
    ("--objective safedpo --cost-model micro --safety-weight 2", "sd1"),
    ("--objective duo --prior-weight 1 --beta 9 --weighting min_snr --min-snr-gamma 1", "sd1"),
    ("--objective duo --caption-dropout 0.1 --flip --targets self-attention", "sd1"),
    ("--objective winner_only --winner 0 --redirect 1 --keep-empty 1 --keep-empty-share 0.5", "sd1"),
    ("--redirect-pure 0.5 --redirect-mix-a 2 --redirect-mix-b 2 --redirect-weighting min_snr", "sd1"),
    ("--redirect-weighting min_snr --min-snr-gamma 1 --flip --keep-benign 0 --keep-empty 0", "sd1"),
    ("--keep-images 64 --keep-text-share 0.5 --keep-prompts everyday --samples 0 --guidance 2", "sd1"),
    ("--objective gem --eta 2 --redirect-pure 1 --keep-images 64", "sd1"),
    ("--weighting exact --validation 0.1 --patience 3 --validation-every 9 --validation-draws 2", "sd1"),
    ("--validation 0.1 --result best --samples 0 --cache-in ram --cache x", "sd1"),
    ("--schedule polynomial --schedule-power 3 --train-text --text-lr 1e-5 --beta1 0.8 --beta2 0.9", "sd1"),
    ("--schedule restarts --schedule-cycles 2 --kind dora --dropout 0.1 --buckets --bucket-step 32", "sd1"),
    ("--init-lora a.safetensors --init-rank 8 --pairs x --more-pairs y --dropout 0.1", "sd1"),
    ("--kind lokr --rank 9 --alpha 9 --targets conv --block-ranks mid_block=4", "sd1"),
    ("--schedule constant --warmup 0.25 --optimizer adafactor --samples 1 --sample-every 9", "sd1"),
]


@pytest.fixture(scope="module", name="door")
def _door() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_lora_needs_under_test", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def chosen(flags: str) -> dict[str, dict[str, object]]:
    """Settings by section, of flags as the command line takes them; tyro itself takes half a second."""
    words, found = shlex.split(flags), dict[str, dict[str, object]]()
    while words:
        word = words.pop(0)
        key = word.removeprefix("--").removeprefix("no-").replace("-", "_")
        for section, values in (
            (s.name, getattr(TrainSettings(), s.name)) for s in dataclasses.fields(TrainSettings)
        ):
            if hasattr(values, key):
                found.setdefault(section, {})[key] = _value(getattr(values, key), word, words)
    return found


def _value(default: object, word: str, words: list[str]) -> object:
    if isinstance(default, bool):
        return not word.startswith("--no-")
    text = words.pop(0)
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return [text] if isinstance(default, tuple) else text


def said(
    door: ModuleType, flags: str, family: str, config: Path | None = None, resume: bool = False
) -> list[str]:
    """What the checks say of a command line, whose base model is of this family."""
    early = ["--family", family, "--base", "model.safetensors"]
    early += [] if config is None else ["--config", str(config)]
    settings = from_dict(door.settings_before_flags(early), chosen(flags), "flags")
    settings = dataclasses.replace(
        settings, model=dataclasses.replace(settings.model, family=family, base="model.safetensors")
    )
    return invalid(settings, family, unasked(PRESETS, config, resume, settings))


@pytest.mark.parametrize(("flags", "family", "setting", "needs"), ODD)
def test_what_is_given_and_has_no_effect_is_refused(
    door: ModuleType, flags: str, family: str, setting: str, needs: str
) -> None:
    (sentence,) = said(door, flags, family)
    assert sentence.startswith((f"{setting} {NEEDS}", setting)) or setting in sentence
    assert needs in sentence


@pytest.mark.parametrize(("flags", "family"), SOUND)
def test_what_has_an_effect_passes(door: ModuleType, flags: str, family: str) -> None:
    assert said(door, flags, family) == []


def test_every_setting_that_needs_something_is_tried_both_ways() -> None:
    odd = {setting for _, _, setting, _ in ODD}
    sound = {word.removeprefix("--no-").removeprefix("--") for flags, _ in SOUND for word in flags.split()}
    for section in dataclasses.fields(TrainSettings):
        for field in dataclasses.fields(getattr(TrainSettings(), section.name)):
            if needs_of(field):
                assert f"{section.name}.{field.name}" in odd
                if field.name not in ("sample_prompts", "sample_steps"):
                    assert field.name.replace("_", "-") in sound


# What a preset gives to one objective alone, and would leave another without anything to learn.
DEAD = {("preference-only", "winner_only")}


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.toml")))
def test_every_preset_goes_with_every_objective(door: ModuleType, preset: str) -> None:
    families = [preset] if preset in FAMILIES else ["sd1", "sdxl"]
    config = None if preset in (*FAMILIES, "micro") else PRESETS / f"{preset}.toml"
    for objective in OBJECTIVES:
        flags = f"--objective {objective} --cost-model micro"
        for family in families:
            sentences = said(door, flags, family, config)
            assert bool(sentences) == ((preset, objective) in DEAD), sentences
        if preset == "micro":
            settings = from_dict(door.settings_before_flags(["--base", "micro"]), chosen(flags), "flags")
            assert settings.objective.beta_scale == 0.1
            assert invalid(settings, "sd1", unasked(PRESETS, None, False, settings)) == []


def test_a_presets_value_is_passed_over_and_the_same_from_a_file_of_ones_own_is_not(
    door: ModuleType, tmp_path: Path
) -> None:
    shipped, own = PRESETS / "preference-only.toml", tmp_path / "own.toml"
    assert said(door, "--objective duo", "sd1", shipped) == []
    own.write_bytes(shipped.read_bytes())
    (sentence,) = said(door, "--objective duo", "sd1", own)
    assert sentence.startswith(f"objective.winner {NEEDS} --objective sc_dpo or winner_only")
    # Drawings at the family's own guidance are switched off without a word about guidance.
    assert said(door, "--objective duo --samples 0", "flux") == []


def test_what_a_run_wrote_down_may_be_used_for_another_base_and_resumed(
    door: ModuleType, tmp_path: Path
) -> None:
    # job.toml holds every setting, those of the embedded model's preset among them.
    job = tmp_path / "run" / "job.toml"
    job.parent.mkdir()
    job.write_text(to_toml(load_toml(PRESETS / "micro.toml")), "utf-8")
    assert load_toml(job).objective.beta_scale == 0.1
    assert said(door, "", "sd1", job) == []
    # Whoever is resumed was accepted once, by a version that knew fewer rules perhaps.
    old = from_dict(load_toml(job), {"objective": {"winner": 0.3}, "validation": {"patience": 2}}, "old")
    job.write_text(to_toml(old), "utf-8")
    assert len(said(door, "", "sd1", job)) == 2
    output = f"--output {shlex.quote(str(job.parent))}"
    assert said(door, output, "sd1", job, resume=True) == []
    assert len(said(door, f"{output} --eta 2", "sd1", job, resume=True)) == 1


def test_the_command_line_says_it_in_the_first_second(
    door: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = ROOT / "examples" / "preferences"
    flags = ["--pairs", str(pairs), "--output", str(tmp_path / "run"), "--winner", "0.05", "--t5-tokens", "9"]
    assert door.main(flags) == 2
    told = capsys.readouterr().err
    assert (
        f"objective.winner {NEEDS} --objective sc_dpo or winner_only: change that, or leave it out." in told
    )
    assert f"model.t5_tokens {NEEDS} a base model of SD 3, FLUX.1 or Chroma" in told
    assert not (tmp_path / "run").exists()


def test_a_door_hears_it_before_it_starts_a_trainer(tmp_path: Path) -> None:
    def job(cost_model: str, overrides: str) -> LoraJob:
        return LoraJob(
            ROOT / "examples" / "preferences", "micro", tmp_path, "calm", "normal", cost_model, overrides
        )

    (sentence,) = problems(job("", "[data]\ntie = 0.3"))
    assert sentence.startswith(f"data.tie {NEEDS} --cost-model")
    assert problems(job("micro", "[data]\ntie = 0.3")) == []


def test_needs_stand_in_the_help() -> None:
    text = type(TrainSettings().terms).__doc__ or ""
    assert "and of the margin in 'gem' (at least 0; needs --objective esd or gem)." in text
    text = type(TrainSettings().data).__doc__ or ""
    assert "training size (needs a base model of SDXL)." in text
