"""The tab's desk in a host: folders, models, and the card that is lent and given back."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scdpo_core.types import ScdpoError
from tests.test_lora_publish import finished_run
from tests.webui_stub import Host, installed


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    (tmp_path / "outputs").mkdir()
    with installed(tmp_path) as host:
        yield host


@pytest.fixture
def workshop(host: Host) -> Any:
    return importlib.import_module("a1111_extension.workshop")


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
    assert workshop.allowed(" /anywhere ") == Path("/anywhere")
    for flag in ("listen", "share", "ngrok", "server_name", "hide_ui_dir_config"):
        setattr(host.shared.cmd_opts, flag, True)
        with pytest.raises(ScdpoError, match="open to the network"):
            workshop.allowed("/etc")
        with pytest.raises(ScdpoError, match="open to the network"):
            workshop.allowed(str(tmp_path / "outputs" / ".." / ".."))
        (tmp_path / "outputs" / flag).symlink_to("/etc")
        with pytest.raises(ScdpoError, match="open to the network"):
            workshop.allowed(str(tmp_path / "outputs" / flag))
        inside = tmp_path / "safety_lora" / "preferences"
        assert workshop.allowed(str(inside)) == inside
        setattr(host.shared.cmd_opts, flag, None)


def test_what_was_finished_while_the_host_was_closed_is_put_on_its_shelf(
    workshop: Any, host: Host, tmp_path: Path
) -> None:
    from scdpo_core.training.events import Done, EventLog

    run = finished_run(workshop.folder() / "runs")
    (run / "job.toml").write_text("", "utf-8")
    EventLog(run / "events.jsonl")(Done("finished", 700, "calm.safetensors", 1.0))
    workshop.desk().jobs.wake()
    shelf = tmp_path / "models" / "Lora"
    assert {path.name for path in shelf.iterdir()} == {"calm.safetensors", "calm.json", "calm.png"}


def test_a_host_that_never_trained_gets_no_folders(workshop: Any, tmp_path: Path) -> None:
    workshop.desk().jobs.wake()
    assert not workshop.folder().exists()
