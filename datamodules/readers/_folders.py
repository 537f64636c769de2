"""Finding a data set's folders wherever an archive was unpacked, and pairing images with masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from datamodules.errors import InputError
from datamodules.readers._common import Notify, files_below, listed, nifti_stem, niftis_in


class LabelledImage(NamedTuple):
    """One image of an ``images*`` folder, and its mask if there is one."""

    case: str
    image: Path
    mask: Path | None
    split: str


def agreed_folder(candidates: Iterable[Path], what: str) -> Path:
    """The one folder that several candidates agree on.

    Archives are often unpacked twice or into doubled folders. Copies that list the same NIfTI files
    (names and sizes) are one folder, and the one nearest to the top is taken.

    Args:
        candidates: One folder or more.
        what: What they would be, for the error ("the T1 train images").

    Raises:
        InputError: Two of them list different files; both are named.
    """
    folders = sorted(set(candidates), key=lambda folder: (len(folder.parts), str(folder)))

    def content(folder: Path) -> set[tuple[str, int]]:
        try:
            return {(path.name, path.stat().st_size) for path in niftis_in(folder).values()}
        except OSError as error:
            raise InputError(
                f"{error.filename}: cannot be read ({error.strerror}); repair the link or copy the file again"
            ) from error

    faults = [
        f"{folders[0]} and {other} could both be {what}, and hold different files; keep only one of them"
        for other in folders[1:]
        if content(other) != content(folders[0])
    ]
    if faults:
        raise InputError(*faults)
    return folders[0]


def image_label_folders(root: Path, parts: Mapping[str, str]) -> list[tuple[str, Path, Path | None]]:
    """Find ``images<part>`` and ``labels<part>`` folders anywhere below a root.

    Args:
        root: Where to look.
        parts: Official split by part, such as ``{"Tr": "train", "Ts": "test"}``.

    Returns:
        (official split, images folder, labels folder or None) for each part that is there.

    Raises:
        InputError: There is no images folder with NIfTI files, or two that differ.
    """
    paths = files_below(root)
    folders: dict[str, set[Path]] = {}
    for path in paths:
        file = root / path
        if nifti_stem(file.name) is not None:
            folders.setdefault(file.parent.name, set()).add(file.parent)
    found: list[tuple[str, Path, Path | None]] = []
    faults: list[str] = []
    for part, split in parts.items():
        pair: list[Path | None] = []
        for name in (f"images{part}", f"labels{part}"):
            try:
                pair.append(agreed_folder(folders[name], f"{name} of {root}") if name in folders else None)
            except InputError as error:
                faults += error.faults
        if len(pair) == 2 and pair[0] is not None:
            found.append((split, pair[0], pair[1]))
    if faults:
        raise InputError(*faults)
    if not found:
        wanted = " or ".join(f"images{part}" for part in parts)
        there = f"the first files there are {listed(paths[:5])}" if paths else "the folder holds no files"
        raise InputError(f"{root}: no folder {wanted} with NIfTI files; {there}")
    return found


def labelled_images(
    root: Path, parts: Mapping[str, str], case_of: Callable[[str], str | None], notify: Notify
) -> list[LabelledImage]:
    """Pair the images of ``images*`` with the masks of ``labels*``.

    Args:
        root: Where to look.
        parts: Official split by part, as in :func:`image_label_folders`.
        case_of: The case's name from an image's or mask's file name without ending; None where the
            file is named like no case.
        notify: Called with the images without a mask.

    Raises:
        InputError: A file is named like no case, a case occurs twice, or a mask has no image: all
            faults together.
    """
    found: dict[str, LabelledImage] = {}
    faults: list[str] = []
    for split, images_folder, labels_folder in image_label_folders(root, parts):
        pair: list[dict[str, Path]] = []
        for folder in (images_folder, labels_folder):
            cases: dict[str, Path] = {}
            for stem, path in ({} if folder is None else niftis_in(folder)).items():
                case = case_of(stem)
                if case is None:
                    faults.append(f"{path}: is not named like a case of this data set; rename or remove it")
                elif case in cases:
                    faults.append(f"{cases[case]} and {path} are the same case twice; keep one of them")
                else:
                    cases[case] = path
            pair.append(cases)
        images, masks = pair
        faults += [
            f"{masks[case]}: a mask without its image in {images_folder}; add the image or remove the mask"
            for case in masks
            if case not in images
        ]
        for case, image in images.items():
            if case in found:
                faults.append(f"{found[case].image} and {image} are the same case twice; keep one of them")
                continue
            found[case] = LabelledImage(case, image, masks.get(case), split)
    if faults:
        raise InputError(*faults)
    bare = [case for case, entry in found.items() if entry.mask is None]
    if bare:
        notify(f"{root}: {len(bare)} images have no mask: {listed(bare, len(bare))}")
    return list(found.values())
