"""Whether a checkpoint's file is whole. Light: no torch is needed to say that one is torn."""

from __future__ import annotations

import zipfile
from pathlib import Path

from datamodules.errors import InputError


def fault_of(path: Path) -> str | None:
    """What is wrong with a checkpoint's file, by the checksums in it; None where it is whole.

    Args:
        path: A checkpoint as PyTorch writes it: a zip archive.
    """
    if path.is_dir():
        return "is a folder of parts (give FSDPStrategy 'state_dict_type: full')"
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
        return f"is torn ({' '.join(str(error).split())})"
    return None if torn is None else f"is torn (checksum of {torn})"


def require_whole(path: Path) -> None:
    """Refuse a torn checkpoint.

    Args:
        path: The checkpoint.

    Raises:
        InputError: It is torn.
    """
    if path.is_file() and (fault := fault_of(path)) is not None:
        raise InputError(f"{path}: {fault}; give another checkpoint, or train the cell again")
