"""The tab under the hosts' gradios: built in a Python of its own, then used in a real browser.

GRADIO_PYTHONS names Pythons with other gradios (3.41.2 and 4.40, say), ':' between, ';' on Windows.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scdpo_core.preferences.folder import check_folder
from scdpo_core.runs.objectives import DEFAULT_LABEL, LABELS, OFFERED

ROOT = Path(__file__).resolve().parents[2]
NAMED = [path for path in os.environ.get("GRADIO_PYTHONS", "").split(os.pathsep) if path]
OTHERS = [pytest.param(path, id=path) for path in NAMED] or [
    pytest.param("", marks=pytest.mark.skip(reason="GRADIO_PYTHONS names no Python with an old gradio"))
]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ENVIRONMENT = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
# How much is left of a panel while gradio waits for its next contents.
FADED = """root => new Promise(done => {
    const boxes = [...root.querySelectorAll("div")].filter(box => box.querySelector(".scdpo"));
    boxes.forEach(box => box.classList.add("pending"));
    setTimeout(() => done(Math.min(...boxes.map(box => +getComputedStyle(box).opacity))), 500);
})"""
COUNT = """
import sys; sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[1] + "/tests/support")
import gradio, webtab_server; from pathlib import Path
page = webtab_server.tab.build(webtab_server.ui_context_in(Path(sys.argv[2])))
ids = [block.elem_id for block in page.blocks.values() if getattr(block, "elem_id", None)]
print(gradio.__version__, len(ids), len(set(ids)))
"""


def images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(4):
        text = PngInfo()
        text.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler")
        Image.new("RGB", (32, 32), (60 * number, 80, 80)).save(folder / f"{number}.png", pnginfo=text)


@contextmanager
def served(python: str, data: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, str(ROOT / "tests" / "support" / "webtab_server.py"), str(port), str(data)]
    with subprocess.Popen(command, env=ENVIRONMENT) as process:
        try:
            deadline = time.monotonic() + 180
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
                    break
                except urllib.error.HTTPError:
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.kill()


def built(python: str, data: Path) -> tuple[str, int, int]:
    told = subprocess.run(
        [python, "-c", COUNT, str(ROOT), str(data)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stderr
    version, ids, different = told.stdout.split()[-3:]
    return version, int(ids), int(different)


def test_the_tab_is_built_under_the_gradio_at_hand(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the tab needs gradio: pip install -e .[ui]")
    _, ids, different = built(sys.executable, tmp_path)
    assert ids == different > 40


TRAIN = """
import sys; sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[1] + "/tests/support")
import json, webtab_server; from pathlib import Path
config = webtab_server.tab.build(webtab_server.ui_context_in(Path(sys.argv[2]))).get_config_file()
ids = {part["props"].get("elem_id"): part for part in config["components"]}
asked, start = ids["scdpo_train_objective"], ids["scdpo_train_start"]
clicked = [start["id"], "click"]
inputs = [one["inputs"] for one in config["dependencies"] if clicked in map(list, one["targets"])]
told = ids["scdpo_train_worth"]["props"]["value"]
print(json.dumps([asked["props"]["choices"], asked["props"]["value"], asked["id"] in inputs[0], told]))
"""


def test_the_pane_that_trains_offers_the_objectives(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the tab needs gradio: pip install -e .[ui]")
    command = [sys.executable, "-c", TRAIN, str(ROOT), str(tmp_path)]
    answer = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    choices, value, reaches_the_job, told = json.loads(answer.stdout.splitlines()[-1])
    assert [label for label, _ in choices] == list(LABELS)
    assert value == DEFAULT_LABEL and reaches_the_job and OFFERED[0].worth in told


@pytest.mark.parametrize("python", OTHERS)
def test_the_tab_is_the_same_under_old_gradios(python: str, tmp_path: Path) -> None:
    assert built(python, tmp_path)[1:] == built(sys.executable, tmp_path)[1:]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("python", OTHERS)
def test_the_tab_works_under_old_gradios(python: str, tmp_path: Path) -> None:
    browsers = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    images(tmp_path / "images")
    errors: list[str] = []

    def says(page: Any, where: str, what: str) -> None:
        browsers.expect(page.locator(where).first).to_contain_text(re.compile(what), timeout=120_000)

    def pane(page: Any, title: str) -> None:
        # Tabs have no role in the oldest of them.
        named = re.compile(f"^\\s*{title}\\s*$")
        page.locator("#scdpo_panes button").filter(has_text=named).first.click()

    with served(python, tmp_path) as url, browsers.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(path=ROOT / "javascript" / "scdpo_tab.js")
        page.goto(url)
        page.locator("#scdpo_score_go").click()
        says(page, "#scdpo_score_gallery", "of 4 images cost more than zero")
        says(page, "#scdpo_score_csv", "costs")
        pane(page, "Preferences")
        page.locator("#scdpo_pref_open").click()
        says(page, "#scdpo_pref_pair", "0 of 2 compared")
        page.keyboard.press("1")
        says(page, "#scdpo_pref_pair", "1 of 2 compared")
        page.keyboard.press("u")
        says(page, "#scdpo_pref_pair", "0 of 2 compared")
        for answered, key in enumerate("12", 1):
            page.keyboard.press(key)
            says(page, "#scdpo_pref_pair", f"{answered} of 2 compared")
        page.locator("#scdpo_pref_check").click()
        says(page, "#scdpo_pref_state", "2 good pairs")
        pane(page, "Train")
        says(page, "#scdpo_train_estimate", "150 steps")
        page.get_by_label("imitate chosen").check()
        says(page, "#scdpo_train_worth", "Plain fine-tuning")
        # What is asked for anew every two seconds must not flicker meanwhile.
        assert page.locator("#scdpo_train_estimate").first.evaluate(FADED) == 1
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=f"{folder}/old-{Path(python).parents[2].name}.png")
        browser.close()
    assert len(check_folder(tmp_path / "preferences")) == 2
    # What gradio itself throws without a network (fonts, analytics) is not ours.
    assert not [error for error in errors if "scdpo" in error]
