"""Ways past the filter in a real A1111 or Forge: other extensions that come later, and other web pages.

WEBUI_DIR=/path/to/webui python -m pytest -m "" tests/hosts/webui
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.hosts.webui.running import WebUi, cost_in
from tests.hosts.webui.test_webui_host import HIDE_ALL, is_black, parameters

pytestmark = pytest.mark.slow


@pytest.fixture
def later(webui: WebUi) -> Iterator[WebUi]:
    yield webui
    webui.later.unlink(missing_ok=True)


def hidden(image: Image.Image) -> bool:
    """Black, or the card that stands for what cannot be judged."""
    return image.getextrema() == ((0, 0),) * 3 or (image.size == (256, 256) and not reddish(image))


def reddish(image: Image.Image) -> bool:
    return any(red > 2 * max(green, blue, 20) for _, (red, green, blue) in image.getcolors(1 << 20) or [])


def test_the_other_extension_does_what_it_is_told(later: WebUi) -> None:
    """Else the tests below see nothing."""
    later.later.write_text("exchange")
    assert reddish(later.draw(False).images[0])


@pytest.mark.parametrize("what", ["exchange", "paint"])
def test_a_script_that_comes_later_does_not_bring_an_image_past(later: WebUi, what: str) -> None:
    later.later.write_text(what)
    before = later.saved()
    answer = later.draw(*HIDE_ALL, batch_size=2)
    assert len(answer.images) == 3 and all(map(hidden, answer.images))
    assert all(map(is_black, later.saved(before)))
    assert cost_in(answer.infotexts[1]) is not None and "Safety band: unsafe" in answer.infotexts[1]


def test_what_a_script_adds_later_is_judged_or_replaced(later: WebUi) -> None:
    later.later.write_text("append")
    answer = later.draw(*HIDE_ALL)
    assert len(answer.images) == 6 and all(map(hidden, answer.images))
    sizes = [image.size for image in answer.images]
    # An image without pixels, a path and floating-point numbers cannot be judged.
    assert sizes == [(64, 64), (128, 128), (256, 256), (128, 128), (256, 256), (256, 256)]


def test_a_callback_that_comes_later_does_not_bring_an_image_into_a_file(later: WebUi) -> None:
    later.later.write_text("save")
    before = later.saved()
    later.draw(*HIDE_ALL, batch_size=2)
    new = later.saved(before)
    assert len(new) == 3 and all(map(is_black, new))


def test_a_grid_of_what_passes_passes_as_it_is(webui: WebUi) -> None:
    before = webui.saved()
    values = (True, "my own number", 30.0, "black", "black")
    plain = webui.draw(False, batch_size=2)
    judged = webui.draw(*values, batch_size=2)
    assert [p.tobytes() for p in judged.images] == [p.tobytes() for p in plain.images]
    grids = [file for file in webui.saved(before) if "grid" in file.name]
    assert len(grids) == 2 and all(cost_in(parameters(file)) is None for file in grids)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/scdpo/v1/loras", {"Origin": "https://example.org"}, 403),
        ("/scdpo/v1/jobs/calm/stop", {"Origin": "https://example.org"}, 403),
        ("/scdpo/v1/jobs/calm/stop", {"Content-Type": "text/plain"}, 415),
        ("/scdpo/v1/jobs", {"Content-Type": ""}, 415),
        ("/scdpo/v1/score", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("/scdpo/v1/score", {"Content-Type": "application/json"}, 401),
    ],
)
def test_other_web_pages_are_refused(webui: WebUi, path: str, headers: dict[str, str], status: int) -> None:
    body = None if path.endswith("loras") else b"{}"
    request = urllib.request.Request(f"http://127.0.0.1:{webui.port}{path}", body, headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == status and json.load(refused.value)["detail"].endswith(".")
