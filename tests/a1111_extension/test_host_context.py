"""The tab's context in a host: folders, models, and the card that is lent and given back."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scdpo_core.types import ScdpoError
from tests.runs.test_install_result import finished_run
from tests.support.scoring_helpers import plain
from tests.support.webui_stub import Host, installed


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    (tmp_path / "outputs").mkdir()
    with installed(tmp_path) as host:
        yield host


@pytest.fixture
def workshop(host: Host) -> Any:
    return importlib.import_module("a1111_extension.host_context")


@pytest.fixture
def models(host: Host) -> Any:
    return sys.modules["modules.sd_models"]


def test_the_hosts_model_leaves_the_card_and_comes_back_even_after_an_error(
    workshop: Any, host: Host, models: Any
) -> None:
    models.model_data.sd_model = "model"
    queue = sys.modules["modules.call_queue"].queue_lock
    with pytest.raises(ZeroDivisionError), workshop.lend("calm"):
        assert queue.locked() and host.shared.state.job == "safety LoRA 'calm'"
        assert host.log == ["model away"]
        raise ZeroDivisionError
    assert host.log == ["model away", "model back"]
    assert not queue.locked() and host.shared.state.job == ""


def test_an_example_has_a_model_and_a_scorer_in_every_host(workshop: Any) -> None:
    context = workshop.ui_context()
    assert context.bases()[context.embedded_base()] == "micro"
    assert "micro" in context.cost_models()


def test_a_host_that_has_loaded_nothing_is_not_made_to(workshop: Any, host: Host) -> None:
    with workshop.lend("calm"):
        pass
    assert host.log == []


def test_forge_unloads_and_loads_by_itself(workshop: Any, host: Host, models: Any) -> None:
    models.model_data = SimpleNamespace(sd_model="fake")
    with workshop.lend("calm"):
        assert host.log == ["all away"]
    assert host.log == ["all away"]


def test_checkpoints_can_be_trained_for_unless_they_are_pickles(
    workshop: Any, host: Host, models: Any
) -> None:
    for title in ("a.safetensors [12]", "b.ckpt", "c.safetensors"):
        name = title.split()[0]
        models.checkpoints_list[title] = SimpleNamespace(name=name, filename=f"/models/{name}")
    assert workshop.bases() == {
        "a.safetensors": "/models/a.safetensors",
        "c.safetensors": "/models/c.safetensors",
        workshop.EMBEDDED: "micro",
    }
    for title, proposed in (("c.safetensors", "c.safetensors"), ("b.ckpt", "a.safetensors")):
        host.shared.opts.sd_model_checkpoint = title
        assert workshop.base() == proposed


def test_by_network_only_the_hosts_own_folders(workshop: Any, host: Host, tmp_path: Path) -> None:
    allowed = workshop.ui_context().reach.folder
    assert allowed(" /anywhere ") == Path("/anywhere")
    for flag in ("listen", "share", "ngrok", "server_name", "hide_ui_dir_config"):
        setattr(host.shared.cmd_opts, flag, True)
        with pytest.raises(ScdpoError, match="open to the network"):
            allowed("/etc")
        with pytest.raises(ScdpoError, match="open to the network"):
            allowed(str(tmp_path / "outputs" / ".." / ".."))
        (tmp_path / "outputs" / flag).symlink_to("/etc")
        with pytest.raises(ScdpoError, match="open to the network"):
            allowed(str(tmp_path / "outputs" / flag))
        inside = tmp_path / "safety_lora" / "preferences"
        assert allowed(str(inside)) == inside
        setattr(host.shared.cmd_opts, flag, None)


@pytest.fixture
def reach(workshop: Any, host: Host) -> Any:
    """What may be named in a host that is open to the network."""
    host.shared.cmd_opts.listen = True
    return workshop.ui_context().reach


def test_links_that_lead_out_are_not_followed_from_afar(reach: Any, tmp_path: Path) -> None:
    outside, inside = plain(tmp_path / "outside" / "a.png"), tmp_path / "outputs" / "pairs" / "chosen"
    mine = plain(inside / "b.png")
    assert reach.folder(str(inside.parent)) == inside.parent
    (inside / "a.png").symlink_to(outside)
    (inside / "c.png").symlink_to(mine)
    with pytest.raises(ScdpoError, match="is a link to another folder"):
        reach.folder(str(inside.parent))
    found = reach.readable(sorted(inside.iterdir()))
    assert found == [mine, mine], "the link within, by the real name"


def test_dropped_files_are_those_that_the_browser_sent(
    reach: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "sent"))
    sent = plain(tmp_path / "sent" / "x" / "a.png")
    assert reach.dropped([sent]) == [sent]
    for other in (Path("/etc/passwd"), tmp_path / "sent" / ".." / "secret.png"):
        with pytest.raises(ScdpoError, match="may be read"):
            reach.dropped([sent, other])


def test_models_and_settings_from_afar_are_those_of_the_lists(reach: Any, workshop: Any, host: Host) -> None:
    bases = {"a": "/models/a.safetensors"}
    assert reach.base("a", bases) == reach.base("/models/a.safetensors", bases) == "/models/a.safetensors"
    for other in ("/models/b.safetensors", "owner/name", ""):
        with pytest.raises(ScdpoError, match="There is no model"):
            reach.base(other, bases)
    assert reach.settings("[optim]\nlr = 1e-4") == "[optim]\nlr = 1e-4"
    for text in (
        '[data]\ncache = "/elsewhere"',
        '[data]\npairs = "/elsewhere"',
        '[data]\ncost_model = "/elsewhere"',
        '[model]\nbase = "/elsewhere"',
        '[model]\nvae = "/elsewhere"',
        '[model]\ntext_encoders = "/elsewhere"',
        '[output]\noutput = "/elsewhere"',
        '[output]\ntrack = ["wandb"]',
        "[validation]\nvalidation = 0.1",
    ):
        with pytest.raises(ScdpoError, match="cannot be set by remote users"):
            reach.settings(text)
        host.shared.cmd_opts.listen = False
        assert reach.settings(text) == text and reach.base("/b", bases) == "/b"
        host.shared.cmd_opts.listen = True


def test_no_setting_that_names_a_file_can_be_set_from_afar(reach: Any) -> None:
    """Also not one that is added later."""
    from scdpo_core.config.settings import TrainSettings

    module = sys.modules["a1111_extension.path_policy"]
    for section in dataclasses.fields(TrainSettings):
        allowed = module._MAY_SET.get(section.name, frozenset())
        hints = typing.get_type_hints(type(getattr(TrainSettings(), section.name)))
        for name, kind in hints.items():
            if "Path" in str(kind):
                assert allowed is not None and name not in allowed, f"{section.name}.{name}"


def test_the_quarantine_is_not_looked_into_from_afar(reach: Any, workshop: Any, tmp_path: Path) -> None:
    importlib.import_module("a1111_extension.settings").register()
    outputs = tmp_path / "outputs"
    hidden, shown = plain(outputs / "quarantine" / "a.png"), plain(outputs / "b.png")
    assert reach.readable([hidden, shown]) == [shown]
    for call in (reach.existing, reach.folder):
        with pytest.raises(ScdpoError, match="quarantine"):
            call(str(outputs / "quarantine"))
    with pytest.raises(ScdpoError, match="Choose another folder"):
        reach.folder(str(outputs))
    hidden.unlink()
    assert reach.folder(str(outputs)) == outputs


def test_the_panes_ask_what_may_be_named() -> None:
    """No pane makes a path of what somebody wrote but through the reach."""
    for file in (Path(__file__).parents[2] / "a1111_extension" / "panes").glob("*.py"):
        text = file.read_text("utf-8")
        made = re.findall(r"Path\((?!tempfile|str\(getattr|row\.path)[^)]*\)", text)
        assert made == [], file.name


def test_what_was_finished_while_the_host_was_closed_is_put_on_its_shelf(
    workshop: Any, host: Host, tmp_path: Path
) -> None:
    from scdpo_core.run_store.events import Done, EventLog

    run = finished_run(workshop.folder() / "runs")
    (run / "job.toml").write_text("", "utf-8")
    EventLog(run / "events.jsonl")(Done("finished", 700, "calm.safetensors", 1.0))
    workshop.ui_context().jobs.wake()
    shelf = tmp_path / "models" / "Lora"
    assert {path.name for path in shelf.iterdir()} == {"calm.safetensors", "calm.json", "calm.png"}


def test_a_host_that_never_trained_gets_no_folders(workshop: Any, tmp_path: Path) -> None:
    workshop.ui_context().jobs.wake()
    assert not workshop.folder().exists()
