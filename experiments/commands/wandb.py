"""``hepastage wandb``: send offline runs, with their artifacts and lineage, by one command."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command group."""
    group = subparsers.add_parser("wandb", help="send offline runs to Weights & Biases", allow_abbrev=False)
    actions = group.add_subparsers(title="actions", metavar="ACTION", required=True)
    sync = actions.add_parser(
        "sync",
        help="send all runs below a folder, segmenters first, with artifacts and lineage",
        description="Nothing else sends anything. What arrived is marked and skipped the next time, so the same "
        "command goes on after a broken transfer. Needs a login ('wandb login') or WANDB_API_KEY.",
        allow_abbrev=False,
    )
    sync.add_argument("paths", nargs="+", type=Path, metavar="DIR", help="folders of runs, such as runs/STUDY")
    sync.add_argument("--dry-run", action="store_true", help="only list what would be sent")
    sync.add_argument("--entity", metavar="NAME", help="owner to send to (the configured or the default one)")
    sync.add_argument("--project", metavar="NAME", help="project to send to (the configured one)")
    sync.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Send, or list; 1 where something did not arrive."""
    from experiments.wandb_sync import sync

    return sync(options.paths, entity=options.entity, project=options.project, dry_run=options.dry_run)
