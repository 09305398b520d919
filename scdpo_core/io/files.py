"""Files that are never half-written: atomic writes, tensors as safetensors, names that stay in a folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

if sys.platform != "win32":
    import fcntl

# Asked once: it can only be asked by changing it for a moment, for every thread of a host.
_UMASK = os.umask(0o077)
os.umask(_UMASK)
# Of temporary files: short whatever the file is called, for names end at 255 bytes.
_PREFIX, _LONGEST_SUFFIX = ".scdpo-", 32
_LEFTOVER = re.compile(r"\.scdpo-[a-z0-9_]{8}(\..+)?", re.DOTALL)
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_SWEPT: set[Path] = set()
_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def atomic_path(path: Path, *, replace: bool = True, like: Path | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that takes its name when the block ends well.

    The temporary file keeps the suffix, so that writers which look at it (Pillow) choose the right
    format. On any error it is removed and `path` stays as it was; what a killed process left is removed by
    the next one that writes into the folder. A link is written through: its target gets the new content.
    What is no regular file (a device, a pipe) stays what it is and is written into.

    Args:
        path: the file; an existing one keeps its permissions.
        replace: whether a file that is there already may be replaced.
        like: a file whose permissions, dates and owner the new one gets.

    Raises:
        FileExistsError: `path` is there and may not be replaced.
        OSError: the folder cannot be written to, or the disk is full; the message names `path`.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    handle, temporary, special = -1, None, False
    try:
        if not replace and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        special = _is_special(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _temporary(target, None if special else target.parent)
        yield temporary
        # Windows flushes only what may be written to.
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
        if special:
            _pour(temporary, target)
        else:
            # Before the rename, so that the file never appears with another date or other permissions.
            _dress(temporary, target, like)
            if os.name == "nt":  # which renames nothing that is open
                os.close(handle)
                handle = -1
            (os.replace if replace else _rename_to_free)(temporary, target)
    except OSError as error:
        if error.errno is None or not _is_about(error, temporary):
            raise
        # The temporary file is private.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if handle >= 0:
            os.close(handle)
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    """Return whether there is something at a path that is neither a file nor a folder.

    Raises:
        IsADirectoryError: it is a folder.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return not stat.S_ISREG(mode)


def _temporary(target: Path, folder: Path | None) -> tuple[int, Path]:
    """Create a file that is locked while its handle is open; in the system's folder without `folder`."""
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= _LONGEST_SUFFIX else ""
    if folder is not None:
        sweep(folder)
    while True:
        handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=suffix, dir=folder)
        try:
            # A sweep that came between the two lines holds it, or has removed it.
            if _lock(handle) and os.path.exists(name):
                return handle, Path(name)
        except OSError:  # a disk without locks
            return handle, Path(name)
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder; once in a process' life."""
    if folder in _SWEPT:
        return
    _SWEPT.add(folder)
    try:
        with os.scandir(folder) as entries:
            left = [entry.path for entry in entries if _LEFTOVER.fullmatch(entry.name)]
    except OSError:
        return
    for path in left:
        # Windows keeps what is open; elsewhere the writer's lock says that it lives.
        with suppress(OSError):
            if os.name == "nt":
                os.unlink(path)
                continue
            handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                # While it is locked: a writer that has just made the file must not get it in between.
                if _lock(handle):
                    os.unlink(path)
            finally:
                os.close(handle)


def _lock(handle: int) -> bool:
    """Lock an open file until the handle is closed; False if another handle has locked it.

    Raises:
        OSError: the disk does not support locks.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _dress(temporary: Path, target: Path, like: Path | None) -> None:
    """Give a file the permissions, dates and owner that it is to have."""
    if like is not None:
        facts = like.stat()
        if os.name != "nt" and (facts.st_uid, facts.st_gid) != (os.geteuid(), os.getegid()):
            with suppress(OSError):  # only root gives files away
                os.chown(temporary, facts.st_uid, facts.st_gid)
        shutil.copystat(like, temporary)
        return
    try:
        mode = stat.S_IMODE(target.stat().st_mode)
    except OSError:
        # mkstemp makes private files; what we publish is as readable as any other new file.
        mode = 0o666 & ~_UMASK
    temporary.chmod(mode)


def _rename_to_free(temporary: Path, target: Path) -> None:
    """Rename, but never onto a file that is there."""
    if os.name == "nt":
        os.rename(temporary, target)  # which refuses there what replaces elsewhere
        return
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError as error:  # a disk without hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.replace(temporary, target)


def _pour(source: Path, target: Path) -> None:
    with source.open("rb") as full, target.open("r+b" if target.is_block_device() else "wb") as into:
        shutil.copyfileobj(full, into)


def _is_about(error: OSError, temporary: Path | None) -> bool:
    """Return whether an error names our temporary file, or a full disk and no file at all."""
    if temporary is not None and str(temporary) in (error.filename, error.filename2):
        return True
    return error.filename is None and error.errno in _NO_ROOM


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content atomically; a target that is there is replaced."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def inside(folder: Path, name: str) -> Path | None:
    """Return where a name that was read from a file lies in a folder; None if it leads out of it.

    Args:
        folder: the name is relative to it.
        name: of anybody's making.
    """
    for flavour in (PurePosixPath(name), PureWindowsPath(name)):
        if flavour.anchor or flavour.drive or ".." in flavour.parts or not flavour.parts:
            return None
    path = folder / name
    try:
        real = os.path.realpath(path)
        out = not Path(real).is_relative_to(os.path.realpath(folder))
    except (OSError, ValueError):  # a null byte, say
        return None
    return None if out else path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically.

    Bytes of a file's name that are no UTF-8 become '\\udc..', which JSON reads as the same name again.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file's content atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented UTF-8 JSON atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # Names of files may hold bytes that are no text; escaped, they come back as they were.
    plain = text.isascii() or not _SURROGATE.search(text)
    write_text(path, (text if plain else json.dumps(value, indent=2)) + "\n")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically. Tensors are moved to the CPU; they may share memory.

    Raises:
        OSError: as `atomic_path`.
    """
    ready = unshared({name: tensor.detach().cpu() for name, tensor in tensors.items()})
    with atomic_path(path) as temporary:
        try:
            save_file(ready, str(temporary), metadata=metadata)
        except SafetensorError as error:
            # It wraps the operating system's error into text; Windows counts its errors in its own way.
            full = any(f"os error {number})" in str(error) for number in (errno.ENOSPC, 112))
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from error


def unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same tensors, contiguous and each with memory of its own, which safetensors asks for."""
    apart: dict[str, torch.Tensor] = {}
    used: set[int] = set()
    for name, tensor in tensors.items():
        ready = tensor.contiguous()
        memory = ready.untyped_storage().data_ptr()
        apart[name] = ready.clone() if memory in used else ready
        used.add(memory)
    return apart


@contextmanager
def name_for_safetensors(path: Path) -> Iterator[str]:
    """Return a file name that safetensors accepts: it takes UTF-8 only, Linux and macOS allow others.

    Raises:
        OSError: the file cannot be opened.
    """
    name = str(path)
    if any("\ud800" <= sign <= "\udfff" for sign in name):
        with path.open("rb") as stream:
            yield f"/dev/fd/{stream.fileno()}"
    else:
        yield name


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors on the CPU and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no safetensors file, or is damaged; says so with its name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with name_for_safetensors(path) as name, safe_open(name, framework="pt", device="cpu") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - the handle is no dict
            return tensors, dict(handle.metadata() or {})
    except SafetensorError as error:
        if is_pickle(path):
            raise ValueError(
                f"{path} is a pickle file (.ckpt or .pt), which can run code when it is opened. "
                "Use the .safetensors version of this model, or convert it with a tool you trust."
            ) from error
        if is_lfs_pointer(path):
            raise ValueError(
                f"{path} is a Git LFS pointer, not the file itself. Run 'git lfs pull' in its repository."
            ) from error
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({error}). Download or copy it again."
        ) from error


def is_pickle(path: Path) -> bool:
    """Return whether a file begins as pickles do, alone or in the archive that torch.save makes."""
    with path.open("rb") as stream:
        head = stream.read(2)
    return head == b"PK" or head[:1] == b"\x80"


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is what Git LFS leaves in the place of one that it has not fetched."""
    with path.open("rb") as stream:
        return stream.read(24) == b"version https://git-lfs."


def same_file(one: Path, other: Path) -> bool:
    """Return whether two files have the same content; False where `other` is not a file."""
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    return sha256_of(one) == sha256_of(other)


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file, hexadecimal; `progress` receives the number of bytes read."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()
