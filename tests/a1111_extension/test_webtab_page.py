"""The page alone in a real browser: ten pairs by keyboard, a training, stop, reload, resume, compare.

SCREENSHOTS=FOLDER keeps images of it.
"""

from __future__ import annotations

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

from scdpo_core.preferences.folder import check_folder
from scdpo_core.runs.comparison import read_result

gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install -e .[ui]")
browsers = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(int(gradio.__version__.split(".")[0]) < 5, reason="the page needs gradio 5 or newer"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]
ROOT = Path(__file__).resolve().parents[2]
PAIRS = len(list((ROOT / "examples" / "preferences" / "chosen").rglob("*.png")))
PATIENCE = 900_000  # milliseconds; a busy machine trains a step a second
SETTINGS = (
    "[optim]\nmax_train_steps = 300\nbatch_size = 2\n"
    "[sampling]\nsamples = 2\nsample_steps = 4\n"
    "[output]\ncheckpoint_every = 20\nlog_every = 1\n"
)


OPEN, TOKEN = "?token=open-sesame", ("--token", "open-sesame")


@contextmanager
def served(data: Path, *flags: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "a1111_extension", "--port", str(port), "--data", str(data), *TOKEN, *flags],
        cwd=ROOT,
        env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"},
    )
    try:
        url = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            try:
                urllib.request.urlopen(url, timeout=5)
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsers.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def shoot(page: Any, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def pane(page: Any, title: str) -> None:
    tab = page.get_by_role("tab", name=title, exact=True)
    page.get_by_role("tab").first.wait_for()
    # Where the page is narrow, the last ones are in a menu.
    if page.locator(".overflow-menu > button").is_visible() and not tab.is_visible():
        page.locator(".overflow-menu > button").click()
        tab = page.locator(".overflow-dropdown button", has_text=title)
    tab.click()


def says(page: Any, where: str, what: str) -> None:
    browsers.expect(page.locator(where)).to_contain_text(re.compile(what), timeout=PATIENCE)


def test_images_are_scored(browser: Any, tmp_path: Path) -> None:
    with served(tmp_path) as url:
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.goto(url + OPEN)
        pane(page, "Score")
        page.get_by_label("Or a folder with images").fill(str(ROOT / "examples/preferences/rejected/drug"))
        page.get_by_role("button", name="Score", exact=True).click()
        says(page, "#scdpo_score_gallery", "images cost more than zero")
        first = page.locator("#scdpo_score_gallery .veil").first
        blurred = "element => getComputedStyle(element.querySelector('img')).filter"
        assert "blur" in first.evaluate(blurred)
        first.get_by_role("checkbox").press("Space")
        assert first.evaluate(blurred) == "none"
        costs = page.locator("#scdpo_score_gallery .cards .cost").all_inner_texts()
        numbers = [float(text.split()[0].replace("\N{MINUS SIGN}", "-")) for text in costs]
        assert len(numbers) > 10 and numbers == sorted(numbers, reverse=True)
        says(page, "#scdpo_score_csv", "costs")
        shoot(page, "score")
        knives = sorted((ROOT / "examples/preferences/rejected/weapon").glob("00[01]*.png"))
        page.locator("#scdpo_score_files input[type=file]").set_input_files(knives)
        says(page, "#scdpo_score_files", "kitchen-knife")
        page.get_by_label("Show what raises the cost").check()
        page.get_by_role("button", name="Score", exact=True).click()
        says(page, "#scdpo_score_message", r"\b2 images scored")
        assert page.locator("#scdpo_score_gallery details").count() == 2

        page.close()


def test_the_whole_loop_in_the_browser(browser: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    errors: list[str] = []
    with served(data) as url:
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url + OPEN)
        pane(page, "Preferences")
        page.get_by_role("button", name="Open", exact=True).click()
        says(page, "#scdpo_pref_pair", f"0 of {PAIRS} compared")
        shoot(page, "preferences")
        # Ten answers, with one that is taken back and one that is skipped on the way.
        answered = 0
        for key in ("1", "2", "1", "u", "2", "3", "1", "2", "1", "2", "1", "2", "1"):
            answered += -1 if key == "u" else 1
            page.keyboard.press(key)
            says(page, "#scdpo_pref_pair", f"{answered} of {PAIRS} compared")
        says(page, "#scdpo_pref_pair", "10 pairs kept")
        page.get_by_role("button", name="Check the preference folder").click()
        says(page, "#scdpo_pref_state", "10 good pairs")
        pairs = check_folder(data / "preferences")
        assert len(pairs) == 10 and pairs[0].prompt.startswith("a ")
        page.get_by_label("Prompt, instead of the images' own").fill("123")
        page.keyboard.press("1")
        time.sleep(1)
        says(page, "#scdpo_pref_pair", f"11 of {PAIRS} compared")

        pane(page, "Train")
        says(page, "#scdpo_train_estimate", "150 steps")
        page.get_by_label("fast", exact=True).check()
        says(page, "#scdpo_train_estimate", "75 steps")
        says(page, "#scdpo_train_worth", "Harmful prompts lead to your chosen images")
        page.get_by_label("preference (SC-DPO)", exact=True).check()
        says(page, "#scdpo_train_worth", "Chosen images are preferred")
        page.get_by_role("button", name="Advanced settings").click()
        page.get_by_label("Further settings").fill(SETTINGS)
        start = page.get_by_role("button", name="Start training")
        start.dblclick()
        says(page, "#scdpo_train_status", "Training: .* of 300")
        assert [path.name for path in (data / "runs").iterdir() if path.is_dir()] == ["my_safety_lora"]
        assert page.locator("#scdpo_train_status [role=progressbar]").count() == 1
        shoot(page, "train")
        assert 'objective = "sc_dpo"' in (data / "runs" / "my_safety_lora" / "job.toml").read_text("utf-8")
        page.get_by_role("button", name="Stop and save").click()
        says(page, "#scdpo_train_status", "was stopped")

        page.reload()
        pane(page, "Train")
        says(page, "#scdpo_train_status", "was stopped")
        before = int(re.search(r"([\d,]+) of 300 steps", page.inner_text("#scdpo_train_status"))[1])  # type: ignore[index]
        assert 0 < before < 300
        page.get_by_role("button", name="Resume").click()
        says(page, "#scdpo_train_status", "is finished")
        says(page, "#scdpo_train_samples", "after 300 steps")
        says(page, "#scdpo_train_curves", "What each term did.*Preference: its loss is")
        assert page.locator("#scdpo_train_samples .cost").count() >= 4
        page.locator("#scdpo_train_status").first.scroll_into_view_if_needed()
        shoot(page, "trained")

        pane(page, "Compare")
        says(page, "#scdpo_cmp_status", r"^\s*$")
        lora = page.get_by_label("LoRA", exact=True)
        lora.click()
        page.get_by_role("option", name="my_safety_lora").click()
        prompts = page.get_by_label("Prompts, one per line")
        browsers.expect(prompts).to_have_value(re.compile("a .*\n"), timeout=PATIENCE)
        prompts.fill("a knife on a blue background\na spoon on a gray background")
        page.get_by_role("button", name="Draw and compare").click()
        says(page, "#scdpo_cmp_result", "without the LoRA")
        page.locator("#scdpo_cmp_result").first.evaluate("element => element.scrollIntoView()")
        shoot(page, "compare")
        for name, size in {"compare-400": (400, 900)}.items():
            page.set_viewport_size({"width": size[0], "height": size[1]})
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
            shoot(page, name)
        page.set_viewport_size({"width": 1200, "height": 1000})
        judge(page, data)
        page.close()
    done = next((data / "runs").glob("compare-*"))
    result = read_result(done)
    assert result is not None and result.weights == (0.0, 0.5, 1.0) and len(result.cells) == 6
    assert all(cell.likeness == 1 for cell in result.at(0.0))
    assert all(cell.likeness < 1 for cell in result.at(1.0))
    assert "data:image" in (done / "report.html").read_text("utf-8")
    assert not errors


def judge(page: Any, data: Path) -> None:
    """Judge the trained LoRA on the example prompts, with a stop on the way."""
    pane(page, "Judge")
    says(page, "#scdpo_judge_status", r"^\s*$")
    page.locator("#scdpo_judge_lora input").first.click()
    page.get_by_role("option", name="my_safety_lora").click()
    page.locator("#scdpo_judge_example").click()
    browsers.expect(page.locator("#scdpo_judge_prompts textarea")).to_have_value(re.compile("harmful.csv"))
    page.locator("#scdpo_judge_start").click()
    says(page, "#scdpo_judge_status", r"[1-9]\d* of [\d,]+")
    page.locator("#scdpo_judge_stop").click()
    says(page, "#scdpo_judge_status", "was stopped")
    folder = next((data / "runs").glob("judge-*"))
    before = {path: path.stat().st_mtime_ns for path in (folder / "images").rglob("*.png")}
    assert before and not (folder / "report.html").exists()
    page.locator("#scdpo_judge_resume").click()
    says(page, "#scdpo_judge_status", "is finished")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    frame = page.frame_locator("#scdpo_judge_report iframe")
    browsers.expect(frame.locator("h1")).to_contain_text("Harmful images", timeout=PATIENCE)
    page.locator("#scdpo_judge_report").first.evaluate("element => element.scrollIntoView()")
    shoot(page, "judge")


def test_pairs_are_made_in_the_browser(browser: Any, tmp_path: Path) -> None:
    with served(tmp_path) as url:
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.goto(url + OPEN)
        pane(page, "Make")
        page.get_by_text("More settings").first.click()
        scorer = page.locator("#scdpo_make_model input").first
        scorer.click()
        page.get_by_role("option", name="open-nsfw", exact=True).click()
        page.locator("#scdpo_make_example").click()
        browsers.expect(scorer).to_have_value("micro")
        browsers.expect(page.locator("#scdpo_make_prompts textarea")).to_have_value(re.compile("harmful.csv"))
        page.locator("#scdpo_make_start").click()
        says(page, "#scdpo_make_status", r"[1-9]\d* of [\d,]+")
        page.locator("#scdpo_make_stop").click()
        says(page, "#scdpo_make_status", "was stopped")
        page.locator("#scdpo_make_resume").click()
        says(page, "#scdpo_make_status", "is finished")
        assert page.locator("#scdpo_make_sheet img").count() > 10
        shoot(page, "make")
        pane(page, "Train")
        page.locator("#scdpo_train_example").click()
        browsers.expect(page.locator("#scdpo_train_name textarea, #scdpo_train_name input")).to_have_value(
            "example"
        )
        says(page, "#scdpo_train_estimate", "75 steps")
        page.close()
    assert len(check_folder(tmp_path / "runs" / "my_pairs")) > 10


def test_every_control_has_a_name(browser: Any, tmp_path: Path) -> None:
    with served(tmp_path) as url:
        page = browser.new_page(viewport={"width": 400, "height": 900}, color_scheme="dark")
        page.goto(url + OPEN)
        page.get_by_role("button", name="Make pairs", exact=True).wait_for()
        for title in ("Make", "Score", "Preferences", "Train", "Compare", "Judge"):
            pane(page, title)
            time.sleep(0.5)
            nameless = page.evaluate(
                """() => [...document.querySelectorAll('#scdpo_panes :is(input, textarea, select, button)')]
                .filter(one => one.getClientRects().length && one.type !== 'file')
                .filter(one => !(one.labels?.length || one.ariaLabel || one.innerText.trim() || one.title
                    || one.getAttribute('aria-labelledby')))
                .map(one => one.outerHTML.slice(0, 160))"""
            )
            assert nameless == []
            assert page.evaluate("document.documentElement.scrollWidth") <= 400
            shoot(page, f"{title.lower()}-400-dark")


def test_a_page_wants_its_token_unless_it_has_none(tmp_path: Path) -> None:
    def status(url: str, **headers: str) -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    with served(tmp_path) as url:
        assert status(url) == 401
        assert status(f"{url}scdpo/v1/jobs") == 401
        assert status(f"{url}?token=wrong") == 401
        assert status(f"{url}scdpo/v1/jobs", Authorization="Bearer open-sesame") == 200
        assert status(url + OPEN) == 401, "the cookie opens it, not the address alone"
    with served(tmp_path, "--token", "") as url:
        assert status(f"{url}scdpo/v1/jobs") == 200
        # A name of somebody else's that was pointed at this machine, and another page in the same browser.
        assert status(f"{url}scdpo/v1/jobs", Host="evil.example") == 403
        assert status(f"{url}scdpo/v1/jobs", Origin="http://evil.example") == 403
