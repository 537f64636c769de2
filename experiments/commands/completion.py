"""``hepastage completion``: words that a shell offers, from the parsers themselves."""

from __future__ import annotations

import argparse
import sys

SHELLS = ("bash", "zsh", "fish")
TRAINING = ("fit", "validate", "test")

BASH = """\
# hepastage: completion for bash; put 'source <(hepastage completion bash)' into ~/.bashrc
_hepastage() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" place="" word words=""
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$place $word" in
            {places}) place="$place $word" ;;
        esac
    done
    case "$prev" in
        -c|--config) words="{configs}" ;;
        *) case "$place" in
{cases}
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    if [ ${{#COMPREPLY[@]}} -eq 0 ]; then COMPREPLY=($(compgen -f -- "$cur")); fi
}}
complete -o filenames -F _hepastage hepastage
"""

ZSH = """\
# hepastage: completion for zsh; put 'source <(hepastage completion zsh)' into ~/.zshrc
autoload -U +X compinit && compinit -u
autoload -U +X bashcompinit && bashcompinit
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "completion",
        help="complete hepastage's words in your shell: source <(hepastage completion bash)",
        description="Print a script that lets the shell complete commands, options, configurations and keys.",
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS, help="your shell")
    parser.set_defaults(run=lambda options: run(options.shell))


def run(shell: str) -> int:
    """Print the script.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.

    Returns:
        0.
    """
    sys.stdout.write(script(shell))
    return 0


def script(shell: str) -> str:
    """A completion script for the commands that there are.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.
    """
    words = words_by_place()
    configs = configurations()
    if shell == "fish":
        lines = [
            "# hepastage: completion for fish; hepastage completion fish > ~/.config/fish/completions/hepastage.fish"
        ]
        for place, offered in words.items():
            path = place.split()
            seen = f"__fish_seen_subcommand_from {path[-1]}" if path else "__fish_use_subcommand"
            lines.append(f"complete -c hepastage -n '{seen}' -a '{' '.join(offered)}'")
        lines.append(f"complete -c hepastage -s c -l config -x -a '{' '.join(configs)}'")
        return "\n".join(lines) + "\n"
    cases = "\n".join(f'            "{place}") words="{" ".join(offered)}" ;;' for place, offered in words.items())
    places = "|".join(f'"{place}"' for place in words if place)
    return (ZSH if shell == "zsh" else "") + BASH.format(places=places, configs=" ".join(configs), cases=cases)


def words_by_place() -> dict[str, list[str]]:
    """Words that may follow each chain of commands: ``""``, ``" cohort"``, ``" cohort nifti"`` ..."""
    from experiments.cli import build_parser

    found: dict[str, list[str]] = {}

    def visit(parser: argparse.ArgumentParser, place: str) -> None:
        offered = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                offered += list(action.choices)
                for name, child in action.choices.items():
                    visit(child, f"{place} {name}")
            elif action.choices and not action.option_strings:
                offered += [str(choice) for choice in action.choices]
        if place.strip() in TRAINING:
            offered += training_words(place.strip())
        found[place] = list(dict.fromkeys(offered))

    visit(build_parser(), "")
    return found


def training_words(command: str) -> list[str]:
    """Keys of the configuration that are the same for all modules, and the command's own words."""
    from experiments.cli_source import TRAINER, arguments_of, top_keys

    own = ["--restart", "--print_config"] if command == "fit" else ["--run", "--ckpt"]
    keys = [key for key in top_keys() if key not in ("trainer", "model", "data", "print_config")]
    trainer = [f"--trainer.{name}" for name in arguments_of(TRAINER) or ()]
    data = [f"--data.init_args.{name}" for name in ("cohort", "splits", "fold", "store", "batch_size", "workers")]
    return [*own, "--model", "--data", *(f"--{key}" for key in keys), *data, *trainer]


def configurations() -> list[str]:
    """Short names of the shipped configurations."""
    from experiments.cli_words import shipped_names

    return [name.removesuffix(".yaml") for name in shipped_names()]
