"""What README and docs say can be typed and followed: commands parse, links lead somewhere, no path of one machine."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from datamodules.errors import InputError
from experiments.cli import LIGHTNING, build_parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
SHELL = ("sh", "")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SEPARATORS = {";", "&&", "||", "|", "&"}
COHORT = ("--data.init_args.cohort", "liver.parquet")
KEYWORDS = {"do", "done", "then", "fi", "nice", "time"}

# Lightning warns of words given beside those of the process, which here are pytest's
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


class Command(NamedTuple):
    """One ``hepastage`` command of a document, its shell variables replaced by their first value."""

    document: str
    words: list[str]


class Parsed(Exception):  # noqa: N818 (no error: parsing got as far as it should)
    """The command line was parsed and checked; only files would be opened next."""


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(text_of(name)) if language in languages]


def prose(name: str) -> str:
    return FENCE.sub("", text_of(name))


def statements(block: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell block, with the values of ``for`` loops put in."""
    values: dict[str, str] = {}
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        for separator, group in itertools.groupby(words, key=SEPARATORS.__contains__):
            statement = list(group)
            if separator:
                continue
            while statement and statement[0] in KEYWORDS:
                statement.pop(0)
            if statement[:1] == ["for"]:
                assert statement[2] == "in", f"a loop that this test cannot read: {line}"
                values[statement[1]] = statement[3]
            elif statement:
                yield [re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], word) for word in statement]


def shell_commands(program: str) -> list[Command]:
    return [
        Command(name, words[1:])
        for name in NAMES
        for block in blocks(name, *SHELL)
        # a block without a language may hold a file's content or a picture
        if re.search(rf"\b{program} ", block)
        for words in statements(block)
        if words[0] == program
    ]


COMMANDS = shell_commands("hepastage")


def shown(command: Command) -> str:
    return f"{command.document}: {shlex.join(['hepastage', *command.words])}"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory that holds the YAML files that documents show under their names."""
    for name in NAMES:
        for block in blocks(name, "yaml"):
            title = re.match(r"# (\S+\.yaml)\n", block)
            assert title, f"{name}: a YAML block begins with '# FILE.yaml', so that commands can use it"
            (tmp_path / title[1]).write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_documents_hold_commands() -> None:
    found = [command.words[0] for command in COMMANDS]
    assert len(found) > 40
    assert {"cohort", "split", "fit", "test", "predict", "masks", "compare", "demo"} <= set(found)


@pytest.mark.parametrize("command", [item for item in COMMANDS if item.words[0] not in LIGHTNING], ids=shown)
def test_light_commands_parse(command: Command) -> None:
    options = build_parser().parse_args(command.words)
    assert callable(options.run)
    if command.words[:2] == ["split", "make"] and options.rule is not None:
        from datamodules.labels import parse_rule

        for rule in (options.rule, options.test_rule):
            assert rule is None or str(parse_rule(rule))


@pytest.mark.parametrize("command", [item for item in COMMANDS if item.words[0] in LIGHTNING], ids=shown)
def test_training_commands_parse(command: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse_training(command.words, monkeypatch)


def parse_training(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse ``fit``, ``validate``, ``test`` or ``predict`` by its own parser, up to the first file of the user's.

    Raises:
        InputError: The words are wrong.
        SystemExit: The words are wrong.
    """
    from experiments.cli_words import expand_run
    from experiments.lightning_cli import HepastageCLI, parsed
    from experiments.predict import _parser

    name, *rest = words
    if name == "predict":
        _parser().parse_args(rest)
        return
    if name in ("validate", "test"):
        with pytest.raises(InputError, match="not a run directory"):
            expand_run(name, rest)
        # a run's saved configuration is complete; what else is said must be keys that there are
        rest = ["-c", "direct", *rest[2:], *COHORT]
    elif rest[-1] == "--print_config":
        # the one command that does not need to know whose scans
        rest = [*rest[:-1], *COHORT]

    def stop(cli: HepastageCLI) -> None:
        raise Parsed

    monkeypatch.setattr(HepastageCLI, "before_instantiate_classes", stop)
    with pytest.raises(Parsed):
        parsed(name, rest)


@pytest.mark.parametrize(
    "words",
    [
        "fit -c direct --data.init_args.foldd 0",
        "fit -c no_such_configuration",
        "fit -c direct --trainer.max_epoch 3",
        "test --runs runs/liver/direct/0",
        "predict --run runs/a --data scans",
    ],
)
def test_wrong_training_commands_are_found(words: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((InputError, SystemExit, pytest.fail.Exception)):
        parse_training(words.split(), monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_commands_named_in_a_sentence_exist(name: str) -> None:
    for code in re.findall(r"`hepastage ([^`]*)`", prose(name)):
        words = shlex.split(code)
        if not words or words == ["--help"]:
            continue
        alternatives = [word for word in words[:2] if not word.startswith("-")]
        stem = alternatives if words[0] in ("cohort", "split") else alternatives[:1]
        with pytest.raises(SystemExit) as caught:
            build_parser().parse_args([*stem, "--help"])
        assert caught.value.code == 0, f"{name}: there is no command 'hepastage {' '.join(stem)}'"


@pytest.mark.parametrize("name", NAMES)
def test_links_and_pictures_lead_somewhere(name: str) -> None:
    faults = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(name)):
        if re.match(r"(https?|mailto):", target):
            continue
        place, _, anchor = target.partition("#")
        path = (ROOT / name).parent / place if place else ROOT / name
        if not path.exists():
            faults.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(path):
            faults.append(f"{target}: no such heading; there are {', '.join(sorted(anchors(path)))}")
    assert not faults, f"{name}: {'; '.join(faults)}"


def anchors(path: Path) -> set[str]:
    """Headings of a document as the names that links use."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_document_is_in_the_index() -> None:
    index = text_of("docs/index.md")
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "index.md" and path.name not in index]
    assert not missing, f"docs/index.md does not name {', '.join(missing)}"


@pytest.mark.parametrize("name", NAMES)
def test_no_path_of_one_machine(name: str) -> None:
    found = re.findall(
        r"(?<![\w.])/(?:home|root|tmp|work|mnt|opt|var|usr|Users|scratch)/\S*|\b[A-Z]:\\\S*", text_of(name)
    )
    assert not found, f"{name}: {found[0]} means nothing on another machine"


@pytest.mark.parametrize("name", NAMES)
def test_source_files_that_are_named_exist(name: str) -> None:
    pattern = r"`((?:datamodules|lightning_modules|callbacks|experiments|benchmarks|tests)/[\w./]*)`"
    missing = [path for path in re.findall(pattern, prose(name)) if not (ROOT / path).exists()]
    assert not missing, f"{name}: there is no {', '.join(missing)}"


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "python")])
def test_python_compiles_and_its_imports_exist(name: str) -> None:
    for block in blocks(name, "python"):
        for node in ast.walk(ast.parse(block, name)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{name}: {node.module} has no {', '.join(missing)}"


def test_make_targets_exist() -> None:
    makefile = text_of("Makefile")
    targets = {words[0] for command in shell_commands("make") for words in [command.words]}
    targets |= {target for name in NAMES for target in re.findall(r"`make (\w+)`", prose(name))}
    assert {"demo", "test"} <= targets
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]
