"""In place of ``hepastage fit``: reports to a search as a training does, and imports nothing heavy.

Its metric is ``(lr - 3)^2`` plus the fold, coming down by an epoch; ``FAKE_FIT`` names a file that says how it ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml

EPOCHS = 5


def main(words: list[str]) -> int:
    """Train nothing."""
    given = dict(zip(words[::2], words[1::2], strict=True))
    (watcher,) = json.loads(given["--trainer.callbacks+"])
    options = watcher["init_args"]
    folder = Path(options["folder"])
    how: dict[str, Any] = json.loads(Path(os.environ["FAKE_FIT"]).read_text())
    overlay = [words[index + 1] for index, word in enumerate(words) if word == "-c"][-1]
    lr = yaml.safe_load(Path(overlay).read_text())["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    fold = int(given["--data.init_args.fold"])
    run = Path(given["--runs"], given["--study"], given["--arm"], f"{fold:012d}")
    run.mkdir(parents=True, exist_ok=True)
    with (run / "starts").open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    if how.get("refuse"):
        sys.stderr.write("some warning\nhepastage: data.init_args.cohort: is of no use\nand the end\n")
        return 2
    session, stopped, best = str(os.getpid()), False, None
    for epoch in range(EPOCHS):
        value = None if how.get("nan") else (lr - 3) ** 2 + fold + EPOCHS - epoch
        line = {
            "epoch": epoch, "of": EPOCHS, "session": session, "seconds": 60.0 * (epoch + 1), "processes": 2,
            "metrics": {"valid/loss": value, "valid/auc": 0.1 * epoch + fold},
        }  # fmt: skip
        with (folder / "report.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        best = value
        if fold == how.get("dies_in") and epoch == 2:
            os.kill(os.getpid(), 9)
        if fold == how.get("hangs_in"):
            time.sleep(60)
        if options["wait_s"] and answered(folder, session, epoch):
            stopped = True
            break
    ended = {"run": str(run), "best": best, "stopped": stopped, "epochs": epoch + 1, "processes": 2}
    (folder / "ended.json").write_text(json.dumps(ended))
    (run / "done.json").write_text(json.dumps({"fit": {}}))
    return 0


def answered(folder: Path, session: str, epoch: int) -> bool:
    """Wait for the search's answer."""
    for _ in range(1000):
        try:
            answer = json.loads((folder / "answer.json").read_text())
        except (OSError, ValueError):
            answer = {}
        if answer.get("session") == session and answer["epoch"] >= epoch:
            return bool(answer["stop"])
        time.sleep(0.01)
    raise TimeoutError("no answer")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
