"""The ways out for an image that only Forge Neo has: videos, and images that a remote service draws."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scdpo_core.types import ScdpoError
from tests.a1111_extension.test_webui_lora import a_lora
from tests.support.scoring_helpers import Redness
from tests.support.webui_stub import Host, Processing, draw, installed

RED, BLUE = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (64, 48), "blue")  # costs of 5 and -5
HIDE = (True, "normal", 0, "nothing", "black")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with installed(tmp_path) as host:
        (tmp_path / "models" / "Lora").mkdir(parents=True)
        yield host


@pytest.fixture
def script(host: Host, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module("a1111_extension.script")
    monkeypatch.setattr(module.SCORER_CACHE, "get", lambda spec, device: Redness())
    return module.SafetyScript()


def video(script: Any, frames: list[Any], *values: Any) -> list[Any]:
    """The frames of the video that Neo writes after it has drawn them."""
    written: list[Any] = []
    images = sys.modules["modules.images"]
    images.save_video = lambda p, frames, fps=16, *, info="": written.extend(frames) or "video.mp4"

    class Last:
        def postprocess_image_after_composite(self, p: Any, pp: Any) -> None:
            if p.batch_index == len(frames) - 1:
                assert images.save_video(p, frames, info="a cat") == "video.mp4"

    shown = [Image.fromarray(frame) for frame in frames]
    draw(script, Processing(batch_size=len(frames)), shown.__getitem__, *values, later=(Last(),))
    return written


def test_a_video_holds_no_frame_that_may_not_be_shown(script: Any) -> None:
    frames = [np.asarray(BLUE), np.asarray(RED), np.asarray(BLUE)]
    written = video(script, frames, *HIDE)
    assert [frame.shape for frame in written] == [(48, 64, 3)] * 3
    assert (written[0] == frames[0]).all() and (written[2] == frames[2]).all()
    assert written[1].max() == 0


def test_a_frame_that_cannot_be_judged_is_hidden_at_its_own_size(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("a1111_extension.script")

    class Broken(Redness):
        def score(self, images: Any) -> Any:
            raise RuntimeError("no")

    monkeypatch.setattr(module.SCORER_CACHE, "get", lambda spec, device: Broken())
    (frame,) = video(script, [np.asarray(RED)], *HIDE)
    assert frame.shape == (48, 64, 3) and not (frame == np.asarray(RED)).all()


def test_a_video_is_as_it_was_drawn_where_nothing_is_hidden_or_the_script_is_off(script: Any) -> None:
    frames = [np.asarray(RED)]
    for values in ((False,), (True, "normal", 0, "nothing", "nothing")):
        (frame,) = video(script, frames, *values)
        assert frame is frames[0]


def test_frames_go_into_quarantine_once(script: Any, host: Host) -> None:
    video(script, [np.asarray(RED)] * 2, True, "normal", 0, "nothing", "quarantine")
    assert len([*(host.root / "outputs" / "quarantine").rglob("*.png")]) == 2


def remote(script: Any, *values: Any, fails: bool = False) -> Any:
    """What Neo hands out after a remote service has drawn a red and a blue image."""
    saved: list[Image.Image] = []

    def draw_remotely(p: Any) -> Any:
        if fails:
            raise RuntimeError("API Key is not configured.")
        images = [RED.copy(), BLUE.copy()]
        for image in images:
            params = SimpleNamespace(p=p, image=image, pnginfo={"parameters": "remote"})
            sys.modules["modules.script_callbacks"].before_image_saved_callback(params)
            saved.append(params.image)
        return SimpleNamespace(images=images, infotexts=["remote"] * 2, index_of_first_image=0)

    processing = sys.modules["modules.processing"]
    processing._process_images_via_api = draw_remotely
    importlib.import_module("a1111_extension.register").register()
    p = Processing()
    p.seeds = p.prompts = None  # type: ignore[assignment]
    p.scripts.alwayson_scripts = [script]
    script.args_from, script.args_to = 1, 1 + len(values)
    p.script_args = (0, *values)
    processed = processing._process_images_via_api(p)
    return processed, saved


def colour(image: Image.Image) -> Any:
    return image.getpixel((5, 5))


def test_what_a_remote_service_draws_is_judged(script: Any) -> None:
    processed, saved = remote(script, *HIDE)
    assert [colour(image) for image in processed.images] == [(0, 0, 0), (0, 0, 255)]
    assert [colour(image) for image in saved] == [(0, 0, 0), (0, 0, 255)]
    assert processed.infotexts == [
        "remote, Safety cost: +5.00, Safety band: unsafe",
        "remote, Safety cost: -5.00, Safety band: safe",
    ]
    scores = processed.extra_generation_params["Safety scores"]["scores"]
    assert [score["cost"] for score in scores] == [5.0, -5.0]


def test_a_remote_image_goes_into_quarantine(script: Any, host: Host) -> None:
    processed, _ = remote(script, True, "normal", 0, "nothing", "quarantine")
    assert colour(processed.images[0]) != (255, 0, 0)
    kept = [*(host.root / "outputs" / "quarantine").rglob("*.png")]
    assert kept and all(colour(Image.open(file).convert("RGB")) == (255, 0, 0) for file in kept)


def test_a_remote_image_is_left_alone_where_the_script_is_off(script: Any) -> None:
    processed, saved = remote(script, False)
    assert [colour(image) for image in processed.images] == [(255, 0, 0), (0, 0, 255)]
    assert colour(saved[0]) == (255, 0, 0) and processed.infotexts == ["remote", "remote"]


def test_a_remote_service_that_cannot_apply_the_lora_is_not_asked(script: Any, host: Host) -> None:
    host.add_lora(a_lora(host.root / "models" / "Lora" / "calm.safetensors"))
    with pytest.raises(ScdpoError, match="no safety LoRA can be applied there"):
        remote(script, *HIDE, "calm", 1)


def test_values_that_make_no_sense_ask_no_remote_service(script: Any) -> None:
    with pytest.raises(ScdpoError, match="true or false"):
        remote(script, "please")


def test_a_remote_error_leaves_nothing_watched(script: Any, host: Host) -> None:
    with pytest.raises(RuntimeError, match="API Key"):
        remote(script, *HIDE, fails=True)
    params = SimpleNamespace(p=None, image=RED, pnginfo={})
    sys.modules["modules.script_callbacks"].before_image_saved_callback(params)
    assert params.image is RED


def test_registering_again_wraps_once(script: Any) -> None:
    processing = sys.modules["modules.processing"]
    processing._process_images_via_api = original = lambda p: p
    for _ in range(2):  # the host does so whenever it reloads its page
        importlib.import_module("a1111_extension.register").register()
    assert processing._process_images_via_api is not original
    importlib.import_module("a1111_extension.remote")._undo()
    assert processing._process_images_via_api is original
