"""One preprocessed scan on disk: written whole or not at all, read window by window."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.geometry import Geometry
from datamodules.normalisation import Normalisation

FORMAT_VERSION = 1
"""Part of every key: a change of what entries hold makes new entries instead of misreading old ones."""

Window = tuple[slice, slice, slice]

FOREGROUND_SAMPLE = 20_000
"""Voxels of the mask that an entry lists: enough to draw patches from, small enough to keep in memory."""
_LEVELS = 65_534
_COARSEST_STEP = 0.005
"""Where one int16 step would be more than this share of the body's spread (an extreme outlier), float32 is stored."""


class DamagedEntryError(Exception):
    """An entry on disk is not what was written: it has to be made again."""


class Entry:
    """A preprocessed scan in the store, memory-mapped: a window costs what the window holds.

    Args:
        folder: The entry's folder.

    Raises:
        DamagedEntryError: A file is missing or has another size than was written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[str, npt.NDArray[np.generic]] = {}
        try:
            self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            for name, size in self.meta["files"].items():
                found = (folder / name).stat().st_size
                if found != size:
                    raise DamagedEntryError(f"{name} has {found} of {size} bytes")
            self.geometry = Geometry.from_json(self.meta["geometry"])
            self.key: str = self.meta["key"]
            self._scale = np.float32(self.meta["scale"])
            self._offset = np.float32(self.meta["offset"])
        except FileNotFoundError as error:
            raise DamagedEntryError(f"{Path(error.filename).name} is missing") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedEntryError(f"meta.json is unreadable ({error})") from error

    def __getstate__(self) -> dict[str, Any]:
        # a memory map would be pickled as a full copy of the scan
        return {**self.__dict__, "_maps": {}}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the RAS+ axes."""
        return self.geometry.shape

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along the RAS+ axes in mm."""
        return self.geometry.spacing

    @property
    def has_mask(self) -> bool:
        """Whether the scan came with a reference mask."""
        return "mask.npy" in self.meta["files"]

    @property
    def normalisation(self) -> Normalisation:
        """What was done to the intensities, with the body's mean and standard deviation before it."""
        value = dict(self.meta["normalisation"])
        return Normalisation(**{**value, "source": tuple(value["source"]), "target": tuple(value["target"])})

    @property
    def foreground(self) -> npt.NDArray[np.int32]:
        """Voxels of the mask, a fixed random sample of at most 20 000: indices (N, 3); N is 0 without a mask."""
        found: npt.NDArray[Any] = self._map("foreground.npy")
        return found

    def image(self, window: Window | None = None) -> npt.NDArray[np.float32]:
        """Normalised intensities.

        Args:
            window: Slices along I, J, K inside the scan; None for all of it.

        Returns:
            float32, the window's shape, C-contiguous and writable.

        Raises:
            ValueError: The window reaches beyond the scan.
        """
        stored = self._map("image.npy")[self._checked(window)]
        out = np.empty(stored.shape, dtype=np.float32)
        np.copyto(out, stored, casting="unsafe")
        out *= self._scale
        out += self._offset
        return out

    def stored(self) -> tuple[npt.NDArray[np.generic], float, float]:
        """The whole scan as it is stored, with scale and offset: ``normalised = stored * scale + offset``."""
        return np.array(self._map("image.npy")), float(self._scale), float(self._offset)

    def mask(self, window: Window | None = None) -> npt.NDArray[np.uint8]:
        """The reference mask: 1 inside, 0 outside.

        Args:
            window: Slices along I, J, K inside the scan; None for all of it.

        Returns:
            uint8, the window's shape, C-contiguous and writable.

        Raises:
            InputError: The scan has no reference mask.
            ValueError: The window reaches beyond the scan.
        """
        if not self.has_mask:
            raise InputError(f"{self.key}: this scan has no reference mask; choose another mask source or scan")
        return np.array(self._map("mask.npy")[self._checked(window)], dtype=np.uint8, order="C")

    def _map(self, name: str) -> npt.NDArray[np.generic]:
        array = self._maps.get(name)
        if array is None:
            loaded = np.load(self._folder / name, mmap_mode="r")
            # a plain array over the same map: slicing a memmap object costs ten times as much
            array = self._maps[name] = np.asarray(loaded)
        return array

    def _checked(self, window: Window | None) -> Window:
        if window is None:
            return slice(None), slice(None), slice(None)
        for part, size in zip(window, self.shape, strict=True):
            start, stop = part.start or 0, size if part.stop is None else part.stop
            if not 0 <= start < stop <= size or part.step not in (None, 1):
                raise ValueError(f"window {window} is not inside a scan of shape {self.shape}")
        return window


def write_entry(
    folder: Path,
    key: str,
    image: npt.NDArray[np.float32],
    normalisation: Normalisation,
    mask: npt.NDArray[np.uint8] | None,
    geometry: Geometry,
    notes: dict[str, Any],
) -> None:
    """Write an entry beside its place and rename it there. The caller holds the key's lock.

    Args:
        folder: Where the entry will be; an older (damaged) one there is replaced.
        key: The entry's key.
        image: Intensities before normalisation, (I, J, K). Overwritten.
        normalisation: Applied before storing.
        mask: uint8 (I, J, K), or None.
        geometry: The way back.
        notes: More for ``meta.json``.

    Raises:
        OSError: The disk is full or not writable; nothing is left behind.
    """
    stored, scale, offset = quantise(image, normalisation)
    # only the holder of the key's lock writes here, so what a killed process left can go
    temporary = folder.with_name(f".writing-{key}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        sizes = {"image.npy": _write_array(temporary / "image.npy", stored)}
        if mask is not None:
            sizes["mask.npy"] = _write_array(temporary / "mask.npy", mask)
        sizes["foreground.npy"] = _write_array(temporary / "foreground.npy", _sample(mask, key))
        meta = {
            "format": FORMAT_VERSION,
            "key": key,
            "files": sizes,
            "scale": scale,
            "offset": offset,
            "normalisation": {
                name: getattr(normalisation, name)
                for name in ("gain", "offset", "low", "high", "mean", "std", "source", "target")
            },
            "geometry": geometry.as_json(),
            **notes,
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if folder.exists():
            remove_entry(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_entry(folder: Path) -> None:
    """Take an entry away: its meta.json first, so that a half-removed entry is never read."""
    with contextlib.suppress(FileNotFoundError):
        (folder / "meta.json").unlink()
    shutil.rmtree(folder)


def quantise(
    image: npt.NDArray[np.float32], normalisation: Normalisation
) -> tuple[npt.NDArray[np.generic], float, float]:
    """Normalise and store in 16 bits: ``normalised = stored * scale + offset``.

    The error is at most half a step, 1 / 131 068 of the image's range.

    Returns:
        int16 (or float32 where an outlier makes the steps coarse), scale and offset.
    """
    if normalisation.source or normalisation.low is not None:
        image, gain, shift = normalisation.apply(image), 1.0, 0.0
    else:
        gain, shift = normalisation.gain, normalisation.offset
    low, high = (float(end) * gain + shift for end in (image.min(), image.max()))
    step = (high - low) / _LEVELS
    # what the body's intensities spread over after normalisation; histogram matching makes that a share of 1
    spread = 1.0 if normalisation.source else normalisation.std * normalisation.gain
    if step == 0 or step > _COARSEST_STEP * spread:
        return image * np.float32(gain) + np.float32(shift), 1.0, 0.0
    offset = (low + high) / 2
    stored = np.empty(image.shape, dtype=np.int16)
    factor, term = np.float32(gain / step), np.float32((shift - offset) / step)
    # slice by slice: each stays in the cache through all four passes
    for part, place in zip(image, stored, strict=True):
        scaled = part * factor
        scaled += term
        np.rint(scaled, out=scaled)
        np.copyto(place, scaled, casting="unsafe")
    return stored, step, offset


def _sample(mask: npt.NDArray[np.uint8] | None, key: str) -> npt.NDArray[np.int32]:
    if mask is None:
        return np.zeros((0, 3), dtype=np.int32)
    inside = np.flatnonzero(mask.view(np.bool_))
    if len(inside) > FOREGROUND_SAMPLE:
        # one voxel from each of as many equal parts; the key seeds the choice, so it is the same on every machine
        edges = np.arange(FOREGROUND_SAMPLE + 1) * len(inside) // FOREGROUND_SAMPLE
        inside = inside[np.random.default_rng(int(key[:16], 16)).integers(edges[:-1], edges[1:])]
    return np.stack(np.unravel_index(inside, mask.shape), axis=1).astype(np.int32)


def _write_array(path: Path, array: npt.NDArray[np.generic]) -> int:
    """Write ``.npy`` with plain writes: a full disk is then an OSError, and no bus error in a memory map."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(array.data)
        return stream.tell()
