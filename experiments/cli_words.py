"""Words of the command line before they are parsed: shipped configurations by name, and ``--run``."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path

import yaml

from callbacks.run_directory import RunDirectory
from datamodules.errors import InputError
from experiments.cli_hints import did_you_mean


def with_shipped(arguments: Sequence[str]) -> list[str]:
    """Replace the short names of shipped configurations by their files.

    Args:
        arguments: Words after the command; ``-c NAME``, ``-c=NAME``, ``--config NAME`` and ``--config=NAME``.

    Raises:
        InputError: There is neither a file nor a shipped configuration of a name.
    """
    words = [part for word in arguments for part in _config_words(word)]
    return [shipped(word, words[index - 1] if index else "") for index, word in enumerate(words)]


def take_restart(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Take ``--restart`` out of the words of ``fit``.

    Args:
        arguments: Words after the command.

    Returns:
        Whether it was among them, and the other words.
    """
    return "--restart" in arguments, [word for word in arguments if word != "--restart"]


def expand_run(command: str, arguments: list[str]) -> tuple[RunDirectory | None, str, list[str]]:
    """Replace ``--run DIR`` by that run's configuration, and take out ``--ckpt``.

    Args:
        command: The command.
        arguments: Its words.

    Returns:
        The run directory or None, the checkpoint (``best`` unless said otherwise), and the remaining words.

    Raises:
        InputError: ``--run`` without a folder, or with ``fit``.
    """
    run: RunDirectory | None = None
    which = "best"
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, _, value = word.partition("=")
        if name in ("--run", "--ckpt"):
            value = value or next(words, "")
            if not value:
                raise InputError(
                    f"{name}: needs a value; give {'a run directory' if name == '--run' else 'best, last or a file'}"
                )
            if name == "--ckpt":
                which = value
            else:
                run = RunDirectory.existing(value)
        else:
            rest.append(word)
    if run is None:
        return None, which, rest
    if command == "fit":
        raise InputError("--run: is for validate, test and predict; 'hepastage fit' takes -c CONFIG.yaml")
    # <runs>/<study>/<arm>/<cell>: a moved or renamed folder keeps its cell
    runs = run.path.parent.parent.parent
    return run, which, ["-c", str(run.config), "--runs", str(runs), *rest]


def _config_words(word: str) -> list[str]:
    """``--config=NAME`` and ``-c=NAME`` as two words."""
    name, sign, value = word.partition("=")
    return [name, value] if sign and name in ("-c", "--config") else [word]


def shipped(word: str, before: str) -> str:
    """A shipped configuration by its short name: ``-c direct`` where no file of that name exists."""
    if before not in ("-c", "--config"):
        return word
    if Path(word).is_file():
        _check_yaml(Path(word))
        return word
    name = word if word.endswith(".yaml") else f"{word}.yaml"
    candidate = importlib.resources.files("experiments.configs").joinpath(name)
    if candidate.is_file():
        return str(candidate)
    known = sorted(str(path)[:-5] for path in shipped_names())
    hint = did_you_mean(word, known)
    raise InputError(f"{word}: no such configuration file; {hint}shipped ones are {', '.join(_shown(word, known))}")


def _shown(word: str, known: list[str]) -> list[str]:
    """The names worth a line: those of the folder that was meant, else those of no folder, and the folders."""
    folder, slash, _ = word.partition("/")
    within = [name for name in known if slash and name.startswith(f"{folder}/")]
    if within:
        return within
    folders = sorted({name.partition("/")[0] for name in known if "/" in name})
    return [*(name for name in known if "/" not in name), *(f"{name}/..." for name in folders)]


def _check_yaml(path: Path) -> None:
    """The parser's own message would not name the file.

    Raises:
        InputError: It is no YAML mapping.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise InputError(f"{path}: cannot be read as YAML: {line}{error.problem}; correct it") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({error}); correct it") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: is not a mapping of keys to values; see 'hepastage fit --print_config -c direct'")


def shipped_names() -> list[str]:
    """Relative names of all shipped configurations."""
    root = Path(str(importlib.resources.files("experiments.configs")))
    return [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.yaml"))]
