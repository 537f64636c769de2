"""The shell offers the words that there are."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.commands.completion import script


def offered(folder: Path, *words: str) -> list[str]:
    """What bash would offer for the last of the words."""
    path = folder / "completion.bash"
    path.write_text(script("bash"))
    line = " ".join(f"'{word}'" for word in ("hepastage", *words))
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _hepastage"
    check = f"source {path}; {ask}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", check], capture_output=True, text=True, check=True, cwd=folder)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "among"),
    [
        (["coh"], ["cohort"]),
        (["cohort", "ni"], ["nifti"]),
        (["cohort", "nifti", "--mask-"], ["--mask-label"]),
        (["split", "make", "--ru"], ["--rule"]),
        (["fit", "-c", "masked"], ["masked_attention_resnet"]),
        (["fit", "-c", "direct", "--trainer.max_ep"], ["--trainer.max_epochs"]),
        (["test", "--ru"], ["--run", "--runs"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_bash_completes(words: list[str], among: list[str], tmp_path: Path) -> None:
    assert set(among) <= set(offered(tmp_path, *words))


def test_files_are_offered_where_no_word_fits(tmp_path: Path) -> None:
    (tmp_path / "liver.parquet").touch()
    assert offered(tmp_path, "split", "make", "liv") == ["liver.parquet"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_accept_the_script(shell: str, tmp_path: Path) -> None:
    text = script(shell)
    assert "cohort" in text and "--trainer.max_epochs" in text
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine to read the script")
    (tmp_path / "script").write_text(text)
    done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
