"""Settings: defaults, TOML in and out, and what is said of a wrong key."""

from __future__ import annotations

import dataclasses
import inspect
import string
import typing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scdpo_core.config import settings as config
from scdpo_core.config import terms
from scdpo_core.config.convert import from_dict, to_dict
from scdpo_core.config.settings import TrainSettings, changes, config_hash, identity, load_toml, to_toml
from scdpo_core.objectives import OBJECTIVES
from scdpo_core.training.setting_checks import invalid
from scdpo_core.types import ScdpoError

PRESETS = Path(__file__).resolve().parents[2] / "trainer" / "configs"


def _values(kind: object) -> st.SearchStrategy[object]:
    options = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(options)
    if typing.get_origin(kind) is tuple:
        return st.lists(st.text(max_size=5), max_size=3).map(tuple)
    if options:
        return st.one_of([st.none() if option is type(None) else _values(option) for option in options])
    return {
        # Texts with control characters are refused: a Windows path in the wrong quotes holds them.
        str: st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), max_size=8),
        int: st.integers(-(2**40), 2**40),
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
        Path: st.text(string.ascii_letters + "/ äö", min_size=1).map(Path),
    }[kind]  # type: ignore[index]


def _sections() -> st.SearchStrategy[TrainSettings]:
    parts = {}
    for section in dataclasses.fields(TrainSettings):
        kind = type(getattr(TrainSettings(), section.name))
        hints = typing.get_type_hints(kind)
        parts[section.name] = st.builds(kind, **{name: _values(hint) for name, hint in hints.items()})
    return st.builds(TrainSettings, **parts)


@hypothesis_settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
@given(_sections())
def test_any_settings_survive_toml(tmp_path: Path, settings: TrainSettings) -> None:
    path = tmp_path / "job.toml"
    path.write_text(to_toml(settings), encoding="utf-8")
    assert load_toml(path) == settings


def test_a_file_changes_only_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[optim]\nlr = 1\n[data]\npairs = 'a/b'\n", encoding="utf-8")
    settings = load_toml(path)
    assert settings.optim.lr == 1.0
    assert isinstance(settings.optim.lr, float)
    assert settings.data.pairs == Path("a/b")
    assert (
        dataclasses.replace(settings, optim=TrainSettings().optim, data=TrainSettings().data)
        == TrainSettings()
    )
    above = load_toml(path, TrainSettings(lora=config.LoraSettings(rank=3)))
    assert above.lora.rank == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[optim]\nlearning_rate = 1.0",
            "there is no setting 'optim.learning_rate'. Choose one of: max_train",
        ),
        ("[optim]\nsedd = 1", "there is no setting 'optim.sedd'. Did you mean 'optim.seed'?"),
        ("[optim]\nrnak = 1", "there is no setting 'optim.rnak'. Did you mean 'lora.rank'?"),
        ("[optimizer]\nlr = 1.0", r"there is no setting 'optimizer'. Did you mean '\[optim\]'?"),
        (
            "max_train_steps = 5",
            "there is no setting 'max_train_steps'. Did you mean 'optim.max_train_steps'?",
        ),
        ("model = 5", r"'model' is a section: write it as \[model\]"),
        ("[optim]\nseed = 1.5", "'optim.seed' must be a whole number, not 1.5"),
        ("[optim]\nseed = true", "'optim.seed' must be a whole number, not True"),
        ("[optim]\nlr = 'fast'", "'optim.lr' must be a number, not 'fast'"),
        ("[objective]\ndfm_by_time = 1", "'objective.dfm_by_time' must be true or false, not 1"),
        ("[objective]\nobjective = 'dpo'", "must be one of 'redirect_keep', 'distil', 'sc_dpo'"),
        ("[sampling]\nsample_prompts = 'cat'", "must be a list of texts"),
        ("[data]\nsoft_tau = 'x'", "'data.soft_tau' must be a number"),
        ("[data\n", "not valid TOML"),
        ('[data]\npairs = "C:\\Users\\me"', "Write the path with /, or in 'single quotes'"),
        ('[data]\npairs = "C:\\new\\table"', "Write the path with /, or in 'single quotes'"),
        ('[model]\nbase = "C:\\bases\\test"', "Write the path with /, or in 'single quotes'"),
        ("a = " + "[" * 5000 + "]" * 5000, "not valid TOML|nests its values"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScdpoError, match=sentence.replace("?", r"\?")) as caught:
        load_toml(path)
    assert "own.toml" in str(caught.value)


def test_a_missing_or_unreadable_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ScdpoError, match="no settings file"):
        load_toml(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(ScdpoError, match="cannot be read"):
        load_toml(tmp_path / "latin.toml")
    with pytest.raises(ScdpoError, match="cannot be read"):
        load_toml(tmp_path)


def test_windows_editors_marks_are_no_error(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(b"\xef\xbb\xbf[optim]\r\nseed = 4\r\n")
    assert load_toml(path).optim.seed == 4


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_preset_loads_and_makes_sense(path: Path) -> None:
    preset = load_toml(path)
    assert invalid(preset, unasked=[TrainSettings(), preset]) == []


def test_flags_are_flat_so_no_two_settings_share_a_name() -> None:
    names = [key for section in to_dict(TrainSettings()).values() for key in section]
    assert len(names) == len(set(names))


def test_objectives_and_their_betas_are_those_of_the_objectives_package() -> None:
    names = set(typing.get_args(config.ObjectiveName))
    assert names == set(OBJECTIVES) | terms.TERM_OBJECTIVES
    assert set(OBJECTIVES) == set(config.DEFAULT_BETAS)
    for name, function in OBJECTIVES.items():
        theirs = inspect.signature(function).parameters["beta"].default
        if name not in ("sc_dpo", "winner_only"):
            assert config.DEFAULT_BETAS[name] == theirs  # type: ignore[index]
    own = config.ObjectiveSettings(objective="duo")
    assert own.effective_beta == 500.0
    assert dataclasses.replace(own, beta=7.0).effective_beta == 7.0


def test_what_makes_no_sense_is_named() -> None:
    assert invalid(TrainSettings()) == []
    wrong = from_dict(
        TrainSettings(),
        {"optim": {"lr": 0.0, "warmup": 1.0}, "data": {"width": 512}, "lora": {"rank": 0}},
        "test",
    )
    assert len(invalid(wrong)) == 4
    assert any("optim.lr" in sentence for sentence in invalid(wrong))


def test_only_what_is_learnt_is_part_of_a_runs_identity() -> None:
    base = TrainSettings()

    def with_(section: str, key: str, value: object) -> TrainSettings:
        return from_dict(base, {section: {key: value}}, "test")

    for section, key, value in (
        ("output", "keep", 9),
        ("sampling", "samples", 0),
        ("model", "device", "cpu"),
        ("data", "pairs", "elsewhere"),
        ("optim", "max_train_steps", 9),
        ("model", "base", "/moved/model.safetensors"),
        ("model", "vae", "/moved/vae"),
        ("model", "text_encoders", "/moved/encoders"),
        ("validation", "validation_every", 7),
        ("validation", "patience", 3),
        ("lora", "save_dtype", "fp32"),
    ):
        assert config_hash(with_(section, key, value)) == config_hash(base), key
    other = with_("optim", "lr", 0.5)
    assert config_hash(other) != config_hash(base)
    assert changes(identity(base), identity(other)) == ["optim.lr: 0.0001 -> 0.5"]
    # An older version knew settings that count no longer, and not yet all that there are.
    older = {**identity(base), "model.base": "elsewhere", "lora.save_dtype": "bf16"}
    del older["data.real_sizes"]
    assert changes(older, identity(base)) == []
    assert changes(older, identity(with_("data", "real_sizes", True))) == ["data.real_sizes: False -> True"]
    assert changes(identity(base), identity(with_("objective", "beta", 3.0))) == [
        "objective.beta: not set -> 3.0"
    ]
