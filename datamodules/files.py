"""Files that are whole or absent: write to a temporary name, then rename; and hashes of content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodules.errors import InputError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that becomes ``target`` if the block succeeds.

    The temporary name keeps the target's suffixes, because NIfTI writers choose a format by them.
    A failure leaves the old ``target`` (or none) and no temporary file.

    Args:
        target: The file to write. Its parent folders are made.

    Yields:
        A path in the same folder, and so on the same file system, to write to.

    Raises:
        InputError: The folder cannot be written to or the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".writing-", suffix="".join(target.suffixes[-2:]), dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror}); choose a folder with space that you may write to"
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; a cohort is usually shared by a group
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror or error}); free space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: indented, keys in the order given, NaN refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file that a user named.

    Args:
        path: The file.
        what: What it should be, for the error ("a split file").

    Raises:
        InputError: It is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {what} is expected there") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as {what} ({error}); make it anew") from error


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        InputError: The file is missing or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path in the cohort table") from error


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON (sorted keys, no white space), as 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
