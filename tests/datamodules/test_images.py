"""NIfTI files: read as nibabel reads them, or refused with one line that names the file."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.images import Volume, check_same_grid, read_header, read_image, read_mask, write_nifti

AFFINE = np.array([[-1.2, 0.1, 0.0, 90.0], [0.1, -1.2, 0.2, 80.0], [0.0, 0.2, 3.6, -40.0], [0.0, 0.0, 0.0, 1.0]])
DATA = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)


def save(path: Path, data: np.ndarray[Any, Any] = DATA, affine: np.ndarray[Any, Any] | None = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "with space.nii.gz", "Leber_ö_肝.v2.nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "uint16", "int32", "float32", "float64"])
def test_voxels_and_affine_are_those_of_nibabel(tmp_path: Path, name: str, dtype: str) -> None:
    path = save(tmp_path / name, DATA.astype(dtype))
    volume = read_image(path)
    np.testing.assert_array_equal(volume.data, DATA)
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
    assert volume.data.dtype == np.dtype(dtype).newbyteorder("=")


def test_scaling_is_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(DATA, AFFINE)
    image.header.set_slope_inter(0.25, -7.0)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_image(tmp_path / "a.nii.gz").data, nib.load(tmp_path / "a.nii.gz").get_fdata())


def test_members_of_a_gzip_file_are_joined(tmp_path: Path) -> None:
    plain = save(tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain[:400]) + gzip.compress(plain[400:]))
    np.testing.assert_array_equal(read_image(tmp_path / "b.nii.gz").data, DATA)


def test_trailing_axes_of_one_are_dropped_and_others_refused(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "a.nii.gz", DATA[..., None, None])).data.shape == DATA.shape
    with pytest.raises(InputError, match=r"b\.nii\.gz: a scan has 3 axes, this file has 4 \(5 × 6 × 7 × 2\)"):
        read_image(save(tmp_path / "b.nii.gz", np.stack([DATA, DATA], axis=-1)))
    with pytest.raises(InputError, match="has 2"):
        read_image(save(tmp_path / "c.nii.gz", DATA[0]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    data = DATA.astype(np.float32)
    data[1, 2, 3] = value
    with pytest.raises(InputError, match="1 of 210 voxels are NaN or infinite"):
        read_image(save(tmp_path / "a.nii.gz", data))


def test_colour_and_complex_are_refused(tmp_path: Path) -> None:
    colour = np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for data in (colour, np.zeros((3, 3, 3), dtype=np.complex64)):
        with pytest.raises(InputError, match="not a grey-value image"):
            read_image(save(tmp_path / "a.nii.gz", data))


def edited(path: Path, target: Path, offset: int, value: bytes) -> Path:
    """A copy of an uncompressed NIfTI file with some bytes of its header changed."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(value)] = value
    target.write_bytes(raw)
    return target


def test_a_geometry_is_never_guessed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", affine=None)
    with pytest.raises(InputError, match="sform and qform codes are 0"):
        read_image(path)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (280, np.array([0, 0, 0, 5], dtype="<f4").tobytes(), "measure|plane"),  # sform's first row
        (280, np.array([np.nan, 0, 0, 5], dtype="<f4").tobytes(), "not finite"),
        (280, np.array([0.1, -1.2, 0.2, 80], dtype="<f4").tobytes(), "one plane"),  # equals the second row
        (123, b"\x01", "metres"),
        (40, np.array([3, -5, 6, 7], dtype="<i2").tobytes(), "claims"),
        (40, np.array([9, 5, 6, 7], dtype="<i2").tobytes(), "9 axes"),
        (40, np.array([3, 32000, 32000, 32000], dtype="<i2").tobytes(), "more than any scan"),
        (70, np.array([9999], dtype="<i2").tobytes(), "unknown data type"),
        (108, np.array([1e9], dtype="<f4").tobytes(), "cannot start at"),
        (108, np.array([np.nan], dtype="<f4").tobytes(), "cannot start at"),
        (344, b"xyz\0", "magic"),
        (0, b"\0\0\0\0", "not a NIfTI file"),
    ],
)
def test_a_broken_header_is_named(tmp_path: Path, offset: int, value: bytes, message: str) -> None:
    path = edited(save(tmp_path / "a.nii"), tmp_path / "b.nii", offset, value)
    with pytest.raises(InputError, match=message) as caught:
        read_image(path)
    assert caught.value.faults[0].startswith(str(path))
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.98])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, share: float) -> None:
    path = save(tmp_path / name, np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(InputError, match=name):
        read_image(path)


def test_a_flipped_bit_in_a_gzip_file_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    with pytest.raises(InputError, match="damaged gzip"):
        read_image(path)


def test_a_small_file_that_claims_much_costs_little(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_sform(AFFINE, code=1)
    header["dim"][:4] = (3, 800, 800, 800)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    raw = header.binaryblock + bytes(600)
    (tmp_path / "a.nii").write_bytes(raw)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw))
    tracemalloc.start()
    for name in ("a.nii", "a.nii.gz"):
        with pytest.raises(InputError, match="too short"):
            read_image(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


def test_missing_files_and_other_formats(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "none.nii.gz")
    with pytest.raises(InputError, match="no such file"):
        read_header(tmp_path / "none.nii.gz")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path)
    (tmp_path / "a.mha").write_bytes(b"ObjectType = Image")
    with pytest.raises(InputError, match="convert it to NIfTI"):
        read_image(tmp_path / "a.mha")


def test_a_mask_holds_its_labels_only(tmp_path: Path) -> None:
    data = (np.arange(60) % 4).reshape(3, 4, 5).astype(np.float32)
    path = save(tmp_path / "m.nii.gz", data)
    np.testing.assert_array_equal(read_mask(path, (1,)).data, data == 1)
    np.testing.assert_array_equal(read_mask(path, (1, 3)).data, np.isin(data, (1, 3)))
    np.testing.assert_array_equal(read_mask(path, ()).data, data != 0)
    assert read_mask(path, (9,)).data.sum() == 0
    assert read_mask(path, (1,)).data.dtype == np.uint8
    with pytest.raises(InputError, match="whole numbers"):
        read_mask(save(tmp_path / "p.nii.gz", data + 0.5), (1,))


def test_masks_on_another_grid_are_refused() -> None:
    image = Volume(DATA, AFFINE)
    moved, nudged, turned = AFFINE.copy(), AFFINE.copy(), AFFINE.copy()
    moved[0, 3] += 0.5
    nudged[0, 3] += 0.01
    turned[:, 0] *= -1
    paths = (Path("image.nii.gz"), Path("mask.nii.gz"))
    check_same_grid(image, Volume(DATA, nudged), *paths)
    with pytest.raises(InputError, match=r"mask\.nii\.gz: .* image\.nii\.gz"):
        check_same_grid(image, Volume(DATA[1:], AFFINE), *paths)
    for affine in (moved, turned):
        with pytest.raises(InputError, match="voxels away from its image"):
            check_same_grid(image, Volume(DATA, affine), *paths)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.bool_])
def test_what_is_written_is_read_and_the_bytes_repeat(tmp_path: Path, dtype: type[np.generic]) -> None:
    data = DATA.astype(dtype)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / "sub" / name, data, AFFINE)
    assert (tmp_path / "sub/a.nii.gz").read_bytes() == (tmp_path / "sub/b.nii.gz").read_bytes()
    image = nib.load(tmp_path / "sub/a.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), data)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    assert image.get_data_dtype() == (np.uint8 if dtype is np.bool_ else dtype)


def test_the_geometry_of_another_file_is_taken_over_bit_by_bit(tmp_path: Path) -> None:
    model = nib.Nifti1Image(DATA, None)
    model.header.set_qform(np.diag([-1.0, -1.3, 2.7, 1.0]), code=1)
    nib.save(model, tmp_path / "like.nii.gz")
    like = read_image(tmp_path / "like.nii.gz")
    write_nifti(tmp_path / "out.nii.gz", (DATA > 3).astype(np.uint8), like.affine, like=tmp_path / "like.nii.gz")
    written, wanted = nib.load(tmp_path / "out.nii.gz"), nib.load(tmp_path / "like.nii.gz")
    np.testing.assert_array_equal(written.affine, wanted.affine)
    for field in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "pixdim"):
        np.testing.assert_array_equal(written.header[field], wanted.header[field])
    with pytest.raises(InputError, match="not lie on the grid"):
        write_nifti(tmp_path / "bad.nii.gz", DATA, AFFINE, like=tmp_path / "like.nii.gz")
    assert not (tmp_path / "bad.nii.gz").exists()
