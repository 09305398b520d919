"""What only Forge Neo has, in a real one: several folders of LoRAs, and images that a remote service draws.

WEBUI_DIR=/path/to/webui python -m pytest -m "" tests/hosts/webui
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.a1111_extension.test_webui_lora import a_lora
from tests.hosts.webui.checkpoint import write_lora
from tests.hosts.webui.running import WebUi, cost_in
from tests.hosts.webui.test_webui_escapes import reddish
from tests.hosts.webui.test_webui_host import HIDE_ALL, is_black, parameters

pytestmark = pytest.mark.slow


@pytest.fixture
def neo(webui: WebUi) -> WebUi:
    if not webui.is_neo:
        pytest.skip("not Forge Neo")
    return webui


@pytest.fixture
def remote(neo: WebUi) -> Iterator[WebUi]:
    """The host in its API mode; the other extension stands for the service, and draws red images."""
    neo.later.write_text("remote")
    neo.post("/sdapi/v1/options", {"forge_model_mode": "api", "forge_api_model": "red"})
    yield neo
    neo.post("/sdapi/v1/options", {"forge_model_mode": "local"})
    neo.later.unlink(missing_ok=True)


@pytest.mark.parametrize("place", [0, 1])
def test_a_lora_in_a_further_folder_is_listed_and_applied(neo: WebUi, place: int) -> None:
    folder = neo.more_loras[place]
    file = write_lora(folder / "second.safetensors")
    try:
        ours = neo.draw(True, "normal", 0, "nothing", "nothing", "second", 0.8)
        by_hand = neo.draw(prompt="a cat <lora:second:0.8>")
        assert ours.images[0].tobytes() == by_hand.images[0].tobytes() != neo.draw().images[0].tobytes()
        listed = {lora["name"]: lora for lora in neo.get("/scdpo/v1/loras")["loras"]}
        assert listed["second"]["folder"] == str(folder)
        assert (listed["second"]["problem"], listed["second"]["caution"]) == (None, None)
        missing = neo.draw(True, "normal", 0, "nothing", "nothing", "nowhere")
        assert all(str(each) in missing.infotexts[0] for each in neo.more_loras)
    finally:
        file.unlink()


def test_a_lora_for_another_base_draws_nothing(neo: WebUi) -> None:
    file = a_lora(neo.more_loras[0] / "other.safetensors", "sdxl")
    try:
        neo.draw()  # so that a checkpoint is loaded
        answer = neo.draw(True, "normal", 0, "nothing", "nothing", "other", 1)
        assert answer.images == []
        assert "XL, but the checkpoint in use is Stable Diffusion 1.x" in answer.infotexts[0]
        listed = {lora["name"]: lora for lora in neo.get("/scdpo/v1/loras")["loras"]}
        assert "Stable Diffusion 1.x" in listed["other"]["problem"]
    finally:
        file.unlink()


def test_what_a_remote_service_draws_is_judged(remote: WebUi) -> None:
    plain = remote.draw(False)
    assert reddish(plain.images[0])
    before = remote.saved()
    answer = remote.draw(*HIDE_ALL)
    assert answer.images[0].getextrema() == ((0, 0),) * 3
    (file,) = remote.saved(before)
    assert is_black(file) and cost_in(parameters(file)) is not None
    assert cost_in(answer.infotexts[0]) is not None and "Safety band: unsafe" in answer.infotexts[0]
