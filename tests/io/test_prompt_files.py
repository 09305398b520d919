"""Prompt files as benchmarks publish them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scdpo_core.io.prompt_files import EvalPrompt, PromptFileError, check_prompts, read_prompts


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_the_plain_benchmark_header(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "i2p.csv",
        ",prompt,categories,hard,sd_seed,sd_guidance_scale\n"
        '0,"a fight, at night","violence, shocking",0,1403,7\n'
        '1,"he said ""no""\nand left",hate,1,2251799813685249001,7\n',
    )
    prompts, problems = read_prompts(path)
    assert problems == []
    assert prompts[0] == EvalPrompt("a fight, at night", 1403, ("violence", "shocking"))
    # A seed beyond 2^53 must not pass through a float.
    assert prompts[1] == EvalPrompt('he said "no"\nand left', 2251799813685249001, ("hate",))


@pytest.mark.parametrize(
    ("header", "prompt"),
    [
        ("prompt,evaluation_seed", "plain"),
        ("Sensitive Prompt,evaluation_seed", "plain"),
        ("sensitive prompt,sd_seed", "plain"),
        ("unsafe_prompt,evaluation_seed", "plain"),
        ("\ufeffadv_prompt,seed", "plain"),
        ("prompt,evaluation_seed,adv_prompt", "attack"),
        ("caption,evaluation_seed", "plain"),
        ("caption,evaluation_seed,prompt", "attack"),
    ],
)
def test_every_known_header(tmp_path: Path, header: str, prompt: str) -> None:
    path = write(tmp_path, "prompts.csv", f"{header}\nplain,7,attack\n")
    assert check_prompts(path) == [EvalPrompt(prompt, 7)]


def test_evaluation_seed_goes_before_sd_seed(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", "sd_seed,prompt,evaluation_seed\n1,x,2\n")
    assert check_prompts(path)[0].seed == 2


def test_other_separators_and_a_named_column(tmp_path: Path) -> None:
    assert check_prompts(write(tmp_path, "a.tsv", "prompt\tseed\na, b\t3\n")) == [EvalPrompt("a, b", 3)]
    assert check_prompts(write(tmp_path, "b.csv", "prompt;seed\na, b;3\n")) == [EvalPrompt("a, b", 3)]
    assert check_prompts(write(tmp_path, "c.csv", "text,prompt\nmine,theirs\n"), column="Text") == [
        EvalPrompt("mine")
    ]


def test_text_has_one_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "p.txt", "\ufeffa cat\r\n\r\n  a dog, running \n")
    assert check_prompts(path) == [EvalPrompt("a cat"), EvalPrompt("a dog, running")]


@pytest.mark.parametrize(
    ("cell", "seed", "word"),
    [
        ("42.0", 42, ""),
        ("nan", None, ""),
        ("", None, ""),
        ("4.5", None, "not a whole number"),
        ("inf", None, "not a whole number"),
        ("soon", None, "not a whole number"),
        ("-3", None, "out of range"),
        ("18446744073709551616", None, "out of range"),
        ("18446744073709551615", 2**64 - 1, ""),
    ],
)
def test_seeds(tmp_path: Path, cell: str, seed: int | None, word: str) -> None:
    prompts, problems = read_prompts(write(tmp_path, "p.csv", f"prompt,seed\nx,{cell}\n"))
    assert prompts == [EvalPrompt("x", seed)]
    assert len(problems) == bool(word)
    assert all(word in problem.what and "Line 2" in problem.what for problem in problems)
    assert not any(problem.fatal for problem in problems)


def test_rows_without_a_prompt_are_reported_and_left_out(tmp_path: Path) -> None:
    prompts, problems = read_prompts(write(tmp_path, "p.csv", "prompt,seed\na,1\n,2\n\n,\nb\n"))
    assert prompts == [EvalPrompt("a", 1), EvalPrompt("b")]
    assert [problem.what.split(" of ")[0] for problem in problems] == ["Line 3"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "text,label\na,1\n", ["adv_prompt or", "text, label", "Rename"]),
        ("p.csv", "", ["none"]),
        ("p.csv", "prompt,seed\n", ["holds no prompts"]),
        ("p.txt", "\n \n", ["holds no prompts"]),
        ("p.csv", b"prompt\ncaf\xe9\n", ["UTF-8", "byte 10"]),
        ("p.csv", "prompt\n" + "x" * 200_000 + "\n", ["breaks off"]),
    ],
)
def test_what_cannot_be_used_says_why(
    tmp_path: Path, name: str, content: str | bytes, words: list[str]
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(PromptFileError) as caught:
        check_prompts(path)
    assert all(word in str(caught.value) for word in [*words, str(path)])


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(PromptFileError, match="cannot be read"):
            check_prompts(path)
