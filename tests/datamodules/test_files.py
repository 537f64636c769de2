from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.files import atomic_path, read_json, sha256_of_file, sha256_of_json, write_json, write_text


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "new" / "scan.nii.gz"
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.name.endswith(".nii.gz"), "writers choose their format by it"
        raise RuntimeError("killed")
    assert list(target.parent.iterdir()) == []
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("killed")
    assert [path.name for path in target.parent.iterdir()] == ["scan.nii.gz"]
    assert target.read_text() == "old"
    write_text(target, "new")
    assert target.read_text() == "new"


def test_files_are_as_open_as_the_user_wants_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_json_is_readable_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "Ω", "a": [1, 2.5]})
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["b", "a"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000], ids=["empty", "torn", "bytes", "deep"])
def test_torn_json_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a split file") as caught:
        read_json(path, "a split file")
    assert len(str(caught.value).splitlines()) == 1


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; a split file is expected there"):
        read_json(tmp_path / "a.json", "a split file")
    with pytest.raises(InputError, match="cannot be read"):
        sha256_of_file(tmp_path / "a")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "file" / "below", "x")


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_of_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_json({"a": 1, "b": [2]}) == sha256_of_json({"b": [2], "a": 1})
    assert sha256_of_json({"a": 1}) != sha256_of_json({"a": "1"})


def test_an_error_has_a_fault_and_each_is_one_line() -> None:
    assert InputError("a:\n  b", "c").faults == ("a: b", "c")
    with pytest.raises(TypeError):
        InputError()
