"""The store of preprocessed scans: made once, shared by all runs, addressed by content.

An entry's key hashes what it was made from (the image file, the mask file and its labels, the preprocessing, the
format), so a changed file or parameter finds no old entry, and two studies that agree share theirs.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.files import atomic_path, sha256_of_json
from datamodules.images import check_same_grid, decode, decode_mask, read_bytes, spacing_of
from datamodules.preprocessing import Preprocessing, intensities, preprocess_mask
from datamodules.store_entry import FORMAT_VERSION, DamagedEntryError, Entry, Window, write_entry

if TYPE_CHECKING:
    from datamodules.cohort import Cohort, Scan

logger = logging.getLogger(__name__)


class StoreFullError(InputError):
    """The disk is full: no further scan need be tried."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What one entry is made from.

    Attributes:
        image: The image file.
        mask: The reference mask file, or None.
        labels: Values of the mask file that count.
        key: The entry's key.
        stamps: Size and modification time of the files when they were hashed.
    """

    image: Path
    mask: Path | None
    labels: tuple[int, ...]
    key: str
    stamps: tuple[tuple[int, int], ...]


class Store:
    """Preprocessed scans under one folder.

    Safe for many processes and nodes at once: an entry appears by a rename, and a lock file per key (``flock``) lets
    only one process make it.

    Args:
        root: The store's folder; made where missing. One folder serves any number of preprocessings and cohorts.
        preprocessing: What is done to each scan.
    """

    def __init__(self, root: str | Path, preprocessing: Preprocessing) -> None:
        self.root = Path(root).absolute()
        self.preprocessing = preprocessing
        self._requests: dict[tuple[Path, Path | None, tuple[int, ...]], Request] = {}
        self._entries: dict[str, Entry] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_entries": {}}

    def fill(self, cohort: Cohort, workers: int | None = None, progress: bool = True) -> dict[str, str]:
        """Make the entries that are missing, in parallel.

        Args:
            cohort: The scans.
            workers: Processes; None for as many as this process may use cores.
            progress: Show a progress bar on stderr.

        Returns:
            The key of each scan, by scan id.

        Raises:
            InputError: All faults of all scans together; what could be made is made and kept. At once where the disk
                is full.
        """
        from datamodules.store_fill import make_all, usable_cores

        workers = usable_cores() if workers is None else max(1, workers)
        scans = list(cohort)
        faults: list[str] = []
        requests: dict[str, Request] = {}
        with ThreadPoolExecutor(workers) as pool:
            for scan, result in zip(scans, pool.map(self._request_or_faults, scans), strict=True):
                if isinstance(result, Request):
                    requests[scan.scan_id] = result
                else:
                    faults += result
        missing = {request.key: request for request in requests.values() if self._opened(request.key) is None}
        faults += make_all(self, list(missing.values()), workers, progress)
        if faults:
            raise InputError(*dict.fromkeys(faults))
        return {scan.scan_id: requests[scan.scan_id].key for scan in scans}

    def entry(self, scan: Scan) -> Entry:
        """The entry of a scan, made now where it is missing.

        Raises:
            InputError: The scan's files are at fault, or the store cannot be written to.
        """
        request = self._request(scan)
        entry = self._entries.get(request.key)
        return entry if entry is not None else self.make(request)

    def external_mask(self, scan: Scan, path: Path) -> npt.NDArray[np.uint8]:
        """Bring another mask of a scan to the preprocessed grid; kept in the store by its content.

        Args:
            scan: The scan.
            path: A NIfTI file on the scan's native grid; any value but zero counts. It may be empty: a segmenter may
                have found nothing.

        Returns:
            uint8 in {0, 1}, shape of the entry.

        Raises:
            InputError: The file is at fault or on another grid, or the store cannot be written to.
        """
        entry = self.entry(scan)
        path = Path(path).absolute()
        digest, _ = _hashed(path)
        key = sha256_of_json({"format": FORMAT_VERSION, "entry": entry.key, "mask": digest})
        target = self.root / "masks" / key[:2] / f"{key}.npy"
        try:
            found: npt.NDArray[np.uint8] = np.load(target)
            if found.shape == entry.shape and found.dtype == np.uint8:
                return found
            logger.warning("%s: the stored mask is damaged; it is made again", target)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, EOFError) as error:
            logger.warning("%s: the stored mask is damaged (%s); it is made again", target, error)
        mask = decode_mask(read_bytes(path), path, ())
        geometry = entry.geometry
        if mask.data.shape != geometry.native_shape:
            raise InputError(
                f"{path}: the mask has {mask.data.shape} voxels, its image {scan.image} has {geometry.native_shape}; "
                "bring the mask to the image's grid"
            )
        image = dataclasses.replace(mask, affine=np.array(geometry.native_affine))
        check_same_grid(image, mask, scan.image, path)
        array = preprocess_mask(mask.data, geometry, self.preprocessing)
        with atomic_path(target) as temporary:
            np.save(temporary, array)
        return array

    def make(self, request: Request) -> Entry:
        """Make one entry, or wait until another process has made it.

        Raises:
            StoreFullError: The disk is full.
            InputError: The scan's files are at fault, or the store cannot be written to.
        """
        try:
            with self._locked(request.key):
                entry = self._opened(request.key)
                if entry is None:
                    _make(request, self._folder(request.key), self.preprocessing)
                    entry = self._opened(request.key)
        except OSError as error:
            kind = StoreFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else InputError
            why = "the disk is full" if kind is StoreFullError else f"cannot be written ({error.strerror or error})"
            raise kind(
                f"{self.root}: {why}, at {request.image}; free space or choose another --store and run again: finished "
                "entries are kept"
            ) from error
        if entry is None:
            raise InputError(f"{self.root}: the entry of {request.image} cannot be read back; check the disk")
        return entry

    def _folder(self, key: str) -> Path:
        return self.root / key[:2] / key

    def _opened(self, key: str) -> Entry | None:
        """The entry if it is there and whole."""
        entry = self._entries.get(key)
        if entry is not None:
            return entry
        folder = self._folder(key)
        if not folder.is_dir():
            return None
        try:
            entry = self._entries[key] = Entry(folder)
        except DamagedEntryError as error:
            logger.warning("%s: the entry is damaged (%s); it is made again", folder, error)
            return None
        return entry

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        # locks are never removed: a process that waits on a removed file would not keep others out
        path = self.root / "locks" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _request_or_faults(self, scan: Scan) -> Request | tuple[str, ...]:
        try:
            return self._request(scan)
        except InputError as error:
            return error.faults

    def _request(self, scan: Scan) -> Request:
        """Hash a scan's files; remembered for the life of this process."""
        known = (scan.image, scan.mask, scan.mask_labels)
        request = self._requests.get(known)
        if request is None:
            image, image_stamp = _hashed(scan.image)
            mask, mask_stamp = (None, None) if scan.mask is None else _hashed(scan.mask)
            key = sha256_of_json(
                {
                    "format": FORMAT_VERSION,
                    "image": image,
                    "mask": mask,
                    "labels": sorted(scan.mask_labels) if scan.mask is not None else [],
                    "preprocessing": self.preprocessing.as_json(),
                }
            )
            stamps = (image_stamp,) if mask_stamp is None else (image_stamp, mask_stamp)
            request = self._requests[known] = Request(scan.image, scan.mask, scan.mask_labels, key, stamps)
        return request


def _make(request: Request, folder: Path, params: Preprocessing) -> None:
    """Read, preprocess and write one scan. The caller holds the key's lock."""
    image = decode(read_bytes(request.image), request.image)
    mask = None
    if request.mask is not None:
        mask = decode_mask(read_bytes(request.mask), request.mask, request.labels)
        check_same_grid(image, mask, request.image, request.mask)
        if not mask.data.any():
            labels = ",".join(str(label) for label in request.labels)
            raise InputError(
                f"{request.mask}: an empty mask (no voxel has a value of {labels or 'anything but 0'}); correct "
                "mask_labels, or leave mask empty in the cohort table"
            )
    for path, stamp in zip((request.image, request.mask), request.stamps, strict=False):
        if path is not None and _stamp(path) != stamp:
            raise InputError(f"{path}: the file changed while it was being read; run again when it is complete")
    array, normalisation, geometry = intensities(image, params)
    prepared = None if mask is None else preprocess_mask(mask.data, geometry, params)
    if prepared is not None and not prepared.any():
        raise InputError(
            f"{request.mask}: nothing of the mask is left on the preprocessed grid of {geometry.shape} voxels; choose "
            "a larger shape or a finer spacing"
        )
    notes: dict[str, Any] = {"preprocessing": params.as_json(), "native_spacing_mm": spacing_of(image.affine)}
    write_entry(folder, request.key, array, normalisation, prepared, geometry, notes)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _hashed(path: Path) -> tuple[str, tuple[int, int]]:
    """SHA-256 of a file's bytes, and its size and modification time from before reading."""
    try:
        stamp = _stamp(path)
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest(), stamp
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct the path in the cohort table") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); check the file and its permissions") from error


__all__ = ["Entry", "Request", "Store", "StoreFullError", "Window"]
