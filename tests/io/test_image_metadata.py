"""The prompt in an image's metadata and beside it, as many programs write it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from scdpo_core.io.image_metadata import plain, prompt_of
from scdpo_core.io.image_texts import decode_comment
from scdpo_core.io.infotext import MAX_PROMPT

SETTINGS = "\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
SMALL = Image.new("RGB", (16, 16))
USER_COMMENT = 0x9286


def png(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        (info.add_text if text.isascii() else info.add_itxt)(name, text)
    SMALL.save(path, pnginfo=info)
    return path


def exif(path: Path, tags: dict[int, str] | None = None, comment: bytes = b"") -> Path:
    block = Image.Exif()
    for tag, value in (tags or {}).items():
        block[tag] = value
    if comment:
        block.get_ifd(0x8769)[USER_COMMENT] = comment
    SMALL.save(path, exif=block)
    return path


WORDS = (
    "a cat",
    "一个女孩，红色连衣裙",  # noqa: RUF001 - as people write it
    "穿红裙的女孩",
    "上海夜景",
    "女の子、赤い服",
    "一人の少女",
    "девушка в красном",
    "빨간 드레스 소녀",
    "🍎 on a table",
    "—a cat",
    "“a cat”",
    "ā cat",
    "Ābols",
    "แมวสีแดง",
    "☀ sun",
)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le", "utf-8"])
def test_the_byte_order_of_a_user_comment_is_found(tmp_path: Path, words: str, encoding: str) -> None:
    comment = b"UNICODE\0" + (words + SETTINGS).encode(encoding)
    assert prompt_of(exif(tmp_path / "a.jpg", comment=comment)) == words
    assert prompt_of(exif(tmp_path / "a.webp", comment=comment)) == words


@pytest.mark.parametrize("words", [word for word in WORDS if len(word) > 4])
def test_even_without_settings_the_byte_order_is_mostly_found(words: str) -> None:
    assert decode_comment(b"UNICODE\0" + words.encode("utf-16-be")) == words
    assert decode_comment(b"UNICODE\0" + words.encode("utf-16-le")) == words


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0\xfe\xff" + "a cat".encode("utf-16-be"),
        b"UNICODE\0\xff\xfe" + "a cat".encode("utf-16-le"),
        b"\xef\xbb\xbfa cat",
        b"ASCII\0\0\0a cat",
        bytes(8) + b"a cat\0\0",
        b"a cat" + SETTINGS.encode(),
        b"JIS\0\0\0\0\0a cat",
    ],
)
def test_marks_and_names_of_encodings_are_honoured(comment: bytes) -> None:
    assert plain(decode_comment(comment).split("\n")[0]) == "a cat"


def encode(text: Any, **more: Any) -> dict[str, Any]:
    return {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["4", 1], **more}}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


CAT, BAD = encode("a cat"), encode("bad")
PLAIN = {"3": node("KSampler", positive=["6", 0], negative=["7", 0]), "6": CAT, "7": BAD}
SAMPLER = node("KSampler", positive=["6", 0])
GRAPHS: dict[str, dict[str, Any]] = {
    "sampler": PLAIN,
    "basic guider": {
        "6": CAT,
        "22": node("BasicGuider", conditioning=["26", 0]),
        "26": node("FluxGuidance", guidance=3.5, conditioning=["6", 0]),
        "13": node("SamplerCustomAdvanced", guider=["22", 0], latent_image=["27", 0]),
    },
    "cfg guider": {
        "7": BAD,
        "6": CAT,
        "22": node("CFGGuider", negative=["7", 0], positive=["6", 0]),
        "13": node("SamplerCustomAdvanced", guider=["22", 0]),
    },
    "concatenate": {
        "3": SAMPLER,
        "6": encode(["9", 0]),
        "9": node("StringConcatenate", string_a="a", string_b="cat", delimiter=" "),
    },
    "concatenate many": {
        "3": SAMPLER,
        "6": encode(["9", 0]),
        "9": node("Text Concatenate", delimiter=" ", text_a=["10", 0], text_b="cat", clean_whitespace="true"),
        "10": node("Text Multiline", text="a"),
    },
    "show text": {
        "3": SAMPLER,
        "6": encode(["9", 0]),
        "9": node("ShowText|pysssss", text=["10", 0], text_0="a cat"),
        "10": node("LanguageModel", seed=1),
    },
    "wildcard": {
        "3": node("KSampler", positive=["6", 2]),
        "6": node("ImpactWildcardEncode", wildcard_text="a __animal__", populated_text="a cat"),
    },
    "styler": {
        "3": SAMPLER,
        "6": encode(["9", 0]),
        "9": node("SDXLPromptStyler", text_positive="a cat", text_negative="bad", style="x"),
    },
    "detailer listed first": {
        "1": node("FaceDetailer", image=["8", 0], positive=["5", 0], negative=["7", 0]),
        "3": PLAIN["3"],
        "5": encode("detailed face"),
        "6": CAT,
        "7": BAD,
        "8": node("VAEDecode", samples=["3", 0]),
        "9": node("SaveImage", images=["1", 0]),
    },
    "detailer apart": {
        "1": node("FaceDetailer", positive=["5", 0]),
        "3": SAMPLER,
        "5": encode("detailed face"),
        "6": CAT,
    },
    "second pass": {
        "2": node("KSampler", positive=["5", 0], latent_image=["3", 0]),
        "3": SAMPLER,
        "5": encode("sharp"),
        "6": CAT,
        "9": node("SaveImage", images=["2", 0]),
    },
    "area": {
        "3": SAMPLER,
        "6": node("ConditioningCombine", conditioning_1=["7", 0], conditioning_2=["8", 0]),
        "7": node("ConditioningSetArea", conditioning=["9", 0]),
        "8": CAT,
        "9": encode("a red sky"),
    },
    "text box": {
        "3": SAMPLER,
        "6": node("GLIGENTextBoxApply", text="a sun", conditioning_to=["8", 0], clip=["4", 1]),
        "8": CAT,
    },
    "instructions first": {
        "3": SAMPLER,
        "6": encode("You are an assistant. <Prompt Start> a cat"),
    },
    "embedding": {"3": SAMPLER, "6": encode("a cat, embedding:easy.pt")},
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_followed_back_to_its_words(tmp_path: Path, name: str) -> None:
    assert prompt_of(png(tmp_path / "a.png", prompt=json.dumps(GRAPHS[name]), workflow="{}")) == "a cat"


def test_a_wildcard_that_the_graph_does_not_decide_is_no_prompt(tmp_path: Path) -> None:
    graph = {"3": SAMPLER, "6": encode("a {red|blue} cat")}
    assert prompt_of(png(tmp_path / "a.png", prompt=json.dumps(graph))) == ""
    graph = {"3": SAMPLER, "6": encode(""), "7": BAD}
    assert prompt_of(png(tmp_path / "b.png", prompt=json.dumps(graph))) == ""


def test_comfyui_writes_graphs_into_webp_jpeg_and_animations(tmp_path: Path) -> None:
    graph = json.dumps(PLAIN)
    assert prompt_of(exif(tmp_path / "a.webp", {0x0110: f"prompt:{graph}", 0x010F: "workflow:{}"})) == "a cat"
    assert prompt_of(exif(tmp_path / "a.jpg", {0x010F: f"Prompt: {graph}"})) == "a cat"
    info = PngImagePlugin.PngInfo()
    info.add(b"comf", b"prompt\0" + graph.encode(), after_idat=True)
    SMALL.save(
        tmp_path / "a.png", pnginfo=info, save_all=True, append_images=[Image.new("RGB", (16, 16), "red")]
    )
    assert prompt_of(tmp_path / "a.png") == "a cat"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a cat, <lora:x:1>, (red:1.2) hat" + SETTINGS, "a cat, red hat"),
        ("a cat\nSteps: 20, Sampler: x", "a cat"),
        ("a cat\non a mat" + SETTINGS, "a cat on a mat"),
        ("Negative prompt: bad\nSteps: 20", ""),
        ("saber \\(fate\\), ((best)), [old]" + SETTINGS, "saber (fate), best, old"),
        ("a cat, :), (:, ;)" + SETTINGS, "a cat, :), (:, ;)"),
        ("a cat (in a hat), x:1.2" + SETTINGS, "a cat in a hat, x:1.2"),
        ("Steps: a staircase, cat" + SETTINGS, "Steps: a staircase, cat"),
        ("(((a cat:1.3):1.1))" + SETTINGS, "a cat"),
        ("(a cat:-1.2), (b: .5), (c:1.)" + SETTINGS, "a cat, b, c"),
        ("((a cat, [b" + SETTINGS, "a cat, b"),
        ("a clock at (12:00)" + SETTINGS, "a clock at 12:00"),
        ("a [dog:cat:0.5], [hat::0.3], [old|new]" + SETTINGS, "a cat, hat, old new"),
        ("a cat BREAK a hat AND a sun :0.5" + SETTINGS, "a cat, a hat, a sun"),
        ("a cat\r\nNegative prompt: bad\r\nSteps: 20, x", "a cat"),
        ("a cat" + SETTINGS + "\nTemplate: a {cat|dog}", "a cat"),
        ("long_hair, <3, ^_^, >:)" + SETTINGS, "long_hair, <3, ^_^, >:)"),
        ("1,000 cats,, , red,", "1,000 cats, red"),
    ],
)
def test_weights_tags_and_settings_are_no_words(tmp_path: Path, text: str, words: str) -> None:
    assert prompt_of(png(tmp_path / "a.png", parameters=text)) == words
    SMALL.save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text(text, encoding="utf-8")
    assert prompt_of(tmp_path / "b.png") == words


@pytest.mark.parametrize(
    "texts",
    [
        {"parameters": json.dumps({"prompt": "a cat", "negative_prompt": "bad", "steps": 30})},
        {"parameters": json.dumps({"sui_image_params": {"prompt": "a cat<segment:face> eyes", "x": 1}})},
        {"invokeai_metadata": json.dumps({"positive_prompt": "(a cat)1.2", "negative_prompt": "bad"})},
        {"sd-metadata": json.dumps({"image": {"prompt": [{"prompt": "a cat", "weight": 1}]}})},
        {
            "Description": "x",
            "Comment": json.dumps({"prompt": "{{a cat}}", "uc": "bad"}),
            "Software": "NovelAI",
        },
        {"prompt": "a cat", "negative_prompt": "bad"},
        {"parameters": "a cat" + SETTINGS, "prompt": json.dumps({"3": SAMPLER, "6": BAD})},
    ],
)
def test_other_programs_are_read(tmp_path: Path, texts: dict[str, str]) -> None:
    assert prompt_of(png(tmp_path / "a.png", **texts)) == "a cat"


def test_text_files_of_every_name_stand_beside(tmp_path: Path) -> None:
    for number, name in enumerate(("{}.txt", "{}.caption", "{}.png.txt", "{}.png.caption")):
        SMALL.save(tmp_path / f"{number}.png")
        (tmp_path / name.format(number)).write_text("\ufeffa cat, <lora:x:1>", encoding="utf-8")
        assert prompt_of(tmp_path / f"{number}.png") == "a cat"


def doubling(levels: int) -> dict[str, Any]:
    graph = {"0": node("Text Multiline", text="a cat " * 20)}
    for level in range(1, levels):
        link = [str(level - 1), 0]
        graph[str(level)] = node("Text Concatenate", text_a=link, text_b=link, text_c=link)
    return graph | {"s": node("KSampler", positive=[str(levels - 1), 0])}


CROWD = {
    **{str(n): node("Switch", **{f"any_{m}": [str(m), 0] for m in range(30)}) for n in range(30)},
    "s": node("KSampler", positive=["0", 0], latent_image=["1", 0]),
}

ENDS = {
    **{str(n): node("Upscale", image=[str(n + 1), 0]) for n in range(2400)},
    **{f"e{n}": node("SaveImage", images=["0", 0]) for n in range(2400)},
}


@pytest.mark.parametrize(
    "text",
    [
        "," * 1_000_000,
        " " * 1_000_000,
        " ," * 500_000,
        "(" * 1_000_000,
        "(a" * 400_000 + ")" * 200_000,
        "([" * 300_000 + "])" * 200_000,
        "<a:" * 300_000,
        ":" * 1_000_000,
        "(:1" * 300_000,
        "\\" * 1_000_000,
        "embedding:" * 100_000,
        "\nSteps: 1" * 100_000,
        "{" * 1_000_000,
        '{"a":' * 200_000,
        '{"prompt": ' + "1" * 900_000 + "}",
        "AND :1" * 100_000,
        "a++" * 300_000,
    ],
)
def test_no_text_takes_long(tmp_path: Path, text: str) -> None:
    began = time.process_time()
    for name in ("parameters", "prompt", "invokeai_metadata", "Comment"):
        assert len(prompt_of(png(tmp_path / "a.png", **{name: text}))) <= MAX_PROMPT
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    "graph", [doubling(100), CROWD, doubling(3000), ENDS, {str(n): CAT for n in range(30000)}]
)
def test_no_graph_takes_long(tmp_path: Path, graph: dict[str, Any]) -> None:
    began = time.process_time()
    prompt_of(png(tmp_path / "a.png", prompt=json.dumps(graph)))
    assert time.process_time() - began < 5
