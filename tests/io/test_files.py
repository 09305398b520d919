"""Files that are never half-written, and names that lead nowhere but into their folder."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scdpo_core.io import files
from scdpo_core.io.files import atomic_path, copy_file, inside, sweep, write_tensors, write_text

posix = pytest.mark.skipif(os.name == "nt", reason="pipes, devices and permissions of POSIX")


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_new_file_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole" and temporaries(tmp_path) == []


@posix
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "private.json"
    path.write_text("old")
    path.chmod(0o600)
    write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_text(tmp_path / "fresh.json", "new")
    assert stat.S_IMODE((tmp_path / "fresh.json").stat().st_mode) == 0o666 & ~files._UMASK


@posix
def test_a_link_stays_a_link_and_its_target_gets_the_content(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "far" / "real.txt")
    write_text(link, "through")
    write_text(link, "again")
    assert link.is_symlink() and (tmp_path / "far" / "real.txt").read_text() == "again"
    assert temporaries(tmp_path) == temporaries(tmp_path / "far") == []


@posix
def test_a_pipe_stays_a_pipe_and_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "through the pipe")
    reader.join(10)
    assert read == ["through the pipe"] and stat.S_ISFIFO(pipe.stat().st_mode)
    assert temporaries(tmp_path) == []


@posix
def test_a_device_stays_a_device(tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to(os.devnull)
    before = os.stat(os.devnull)
    write_text(link, "into nothing")
    write_tensors(Path(os.devnull), {}, {"a": "b"})
    after = os.stat(os.devnull)
    assert stat.S_ISCHR(after.st_mode) and (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert link.is_symlink()


def test_a_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError, match="a'"):
        write_text(tmp_path / "a", "x")


def test_a_file_that_may_not_be_replaced_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(FileExistsError) as caught, atomic_path(path, replace=False) as temporary:
        temporary.write_text("mine")
        path.write_text("came meanwhile")
    assert caught.value.filename == str(path) and path.read_text() == "came meanwhile"
    with pytest.raises(FileExistsError), atomic_path(path, replace=False):
        pytest.fail("it was there from the beginning")
    assert temporaries(tmp_path) == []


def test_without_hard_links_nothing_is_replaced_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.txt"
    with atomic_path(path, replace=False) as temporary:
        temporary.write_text("mine")
    assert path.read_text() == "mine"
    path.unlink()
    with pytest.raises(FileExistsError), atomic_path(path, replace=False):
        path.write_text("came meanwhile")
    assert path.read_text() == "came meanwhile" and temporaries(tmp_path) == []


def test_permissions_and_date_are_there_before_the_name_is(tmp_path: Path) -> None:
    source = tmp_path / "old.png"
    source.write_text("old")
    source.chmod(0o640)
    os.utime(source, ns=(10**18, 10**18))
    with atomic_path(tmp_path / "new.png", like=source) as temporary:
        temporary.write_text("new")
    facts = (tmp_path / "new.png").stat()
    assert facts.st_mtime_ns == 10**18
    assert os.name == "nt" or stat.S_IMODE(facts.st_mode) == 0o640


@pytest.mark.parametrize("name", ["a" * 240 + ".safetensors", "ü" * 125 + ".png", "a." + "b" * 250])
def test_long_names_have_short_temporaries(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "long")
    assert (tmp_path / name).read_text() == "long"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_names_the_file_and_not_the_temporary(tmp_path: Path, number: int) -> None:
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "a.png") as temporary:
        raise OSError(number, os.strerror(number), str(temporary))
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "a.png"))
    source = tmp_path / "source.png"
    source.write_text("x")
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "a.png") as temporary:
        # As shutil says it.
        raise OSError(number, os.strerror(number), str(source), None, str(temporary))
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "a.png"), None)
    assert temporaries(tmp_path) == []


def test_a_full_disk_without_any_name_gets_one(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "a.png"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.png")


KILLED = """
import os, signal, sys
from pathlib import Path
from scdpo_core.io.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("half", flush=True)
    sys.stdin.read()
"""


@posix
def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a.txt")]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    dead, living = both
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == b"half\n"
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    (tmp_path / ".mine-abcdefgh.txt").write_text("somebody else's")
    assert len(temporaries(tmp_path)) == 3
    write_text(tmp_path / "b.txt", "the next one")
    assert len(temporaries(tmp_path)) == 2
    living.communicate(b"")
    assert (tmp_path / "a.txt").read_text() == "half"
    assert temporaries(tmp_path) == [".mine-abcdefgh.txt"]


def test_a_folder_is_looked_through_once(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "a")
    (tmp_path / ".scdpo-abcdefgh.txt").write_text("another's")
    sweep(tmp_path)
    assert temporaries(tmp_path) == [".scdpo-abcdefgh.txt"]


@pytest.mark.parametrize("name", ["a.png", "chosen/a.png", "chosen/weapon/a b.png", "..a/b..png", "./a.png"])
def test_names_below_a_folder_are_inside(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "a/../../b",
        "/etc/passwd",
        "C:\\a",
        "C:a",
        "\\\\host\\share",
        "a\\..\\..\\b",
        "a\0b",
    ],
)
def test_names_that_lead_out_are_not(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) is None


@posix
def test_links_that_lead_out_are_not_inside(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "out").symlink_to(tmp_path)
    (tmp_path / "folder" / "here").symlink_to(tmp_path / "folder")
    assert inside(tmp_path / "folder", "out/a.txt") is None
    assert inside(tmp_path / "folder", "here/a.txt") is not None


def test_copies_are_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 100)
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps what is open")
def test_a_file_that_a_sweep_holds_is_given_up_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    held: list[int] = []
    real = files.tempfile.mkstemp

    def made(**options: object) -> tuple[int, str]:
        handle, name = real(**options)  # type: ignore[call-overload]
        if not held:
            # Another process' sweep comes first, and removes what it could lock.
            held.append(os.open(name, os.O_RDWR))
            fcntl.flock(held[0], fcntl.LOCK_EX)
        return handle, name

    monkeypatch.setattr(files.tempfile, "mkstemp", made)
    with atomic_path(tmp_path / "a.txt") as temporary:
        assert not os.path.samestat(os.fstat(held[0]), temporary.stat())
        temporary.write_text("whole")
    os.close(held[0])
    assert (tmp_path / "a.txt").read_text() == "whole"


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps what is open")
def test_a_sweep_removes_a_file_while_it_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    left = tmp_path / ".scdpo-abcdefgh.txt"
    left.touch()
    real, seen = os.unlink, []

    def unlink(path: str) -> None:
        handle = os.open(path, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
        seen.append(path)
        real(path)

    monkeypatch.setattr(files.os, "unlink", unlink)
    sweep(tmp_path)
    assert seen == [str(left)] and not left.exists()
