"""Feature maps of a frozen encoder: computed once for each volume, kept as files, and read ever after."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn


class FeatureMemory:
    """Remembers what a frozen encoder made of a volume's slices, by their content.

    A file is named after the slices' values, their number format, the precision that the encoder computes in, and
    the stages asked for; its folder after the encoder's weights. So an entry can be shared by all runs whose encoder
    and images are the same, and none can be mistaken: another preprocessing, mask or weight is another name. Files
    are written whole or not at all, and many processes may write the same.

    Args:
        folder: Where the folder of these weights lies; it is made.
        weights: The module whose weights and buffers name the folder. They are hashed when the first volume comes,
            because a checkpoint may be loaded until then.
        whole: Opens a file that is whole or absent: gives the path to write to for a path, as ``atomic_path`` of the
            data modules does.

    Attributes:
        computed: Volumes that were encoded.
        recalled: Volumes that were read.
    """

    def __init__(self, folder: Path, weights: nn.Module, whole: Callable[[Path], AbstractContextManager[Path]]) -> None:
        self.folder = folder
        self.weights = weights
        self.whole = whole
        self.computed = self.recalled = 0
        self._own: Path | None = None

    @property
    def own_folder(self) -> Path:
        """The folder of these weights."""
        if self._own is None:
            digest = hashlib.blake2b(digest_size=16)
            for name, value in sorted(self.weights.state_dict().items()):
                digest.update(name.encode())
                _add(digest, value)
            self._own = self.folder / digest.hexdigest()
        return self._own

    def recall(
        self, slices: Tensor, counts: Sequence[int], stages: int, encode: Callable[[Tensor], list[Tensor]]
    ) -> list[Tensor]:
        """The maps of all slices, read where a volume is known, else computed and kept.

        Args:
            slices: Slices of all volumes, one volume after the other, shape (N, C, I, J).
            counts: Slices of each volume; they add up to N.
            stages: How many of the last stages are wanted.
            encode: Gives the stages' maps of slices, highest resolution first, each (N, C', H, W).

        Returns:
            The last ``stages`` maps, each (N, C', H, W), without gradient.

        Raises:
            ValueError: ``counts`` do not add up to N.
        """
        volumes = torch.split(slices, list(counts))
        files = [self.own_folder / f"{_name(volume, stages)}.pt" for volume in volumes]
        missing = [place for place, file in enumerate(files) if not file.is_file()]
        known: dict[int, list[Tensor]] = {}
        if missing:
            with torch.no_grad():
                maps = encode(torch.cat([volumes[place] for place in missing]))[-stages:]
            parts = zip(*(torch.split(stage, [counts[place] for place in missing]) for stage in maps), strict=True)
            for place, part in zip(missing, parts, strict=True):
                known[place] = list(part)
                with self.whole(files[place]) as temporary:
                    # a clone: a view would be saved with the whole batch behind it
                    torch.save([stage.detach().cpu().clone() for stage in part], temporary)
        for place, file in enumerate(files):
            if place not in known:
                read: list[Tensor] = torch.load(file, weights_only=True)
                known[place] = [stage.to(slices.device) for stage in read]
        self.computed += len(missing)
        self.recalled += len(files) - len(missing)
        return [torch.cat([known[place][stage] for place in range(len(files))]) for stage in range(len(known[0]))]


def _name(volume: Tensor, stages: int) -> str:
    """Hash of a volume's slices and of what else decides its maps."""
    kind = volume.device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else volume.dtype
    digest = hashlib.blake2b(f"{stages} {precision}".encode(), digest_size=16)
    _add(digest, volume)
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, value: Tensor) -> None:
    value = value.detach().cpu().contiguous()
    digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
    digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
