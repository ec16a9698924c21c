# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = []
# ///
"""Puts a run into results/, by `uv run studies/keep.py RUN NAME`: its folder NAME/seed-N gets config.json,
checkpoint.npz and at most 500 rows of progress.csv.

Of a longer run each second row stays, or each third, ..., the last one among them. It has the time of those
left out, so that a sum of times is the run's. RUN is the folder that training printed, NAME as in
results/README.md: ALGORITHM-TASK-SETTING. A run that is there is replaced only by its own continuation:
the same options, and as many epochs or more.
"""

import argparse, csv, io, json, shutil, sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "results"
SAME = {"total_steps", "workers", "scheduler"}  # what a resumed run may change
MOST = 500


def thinned(text: str, most: int = MOST) -> str:
    """A progress.csv with at most so many of its rows."""
    head, *rows = csv.reader(text.splitlines())
    each = -(-len(rows) // most)
    if each <= 1:
        return text
    times = [k for k, name in enumerate(head) if name.startswith("Time/")]
    kept, start = [], 0
    for end in range((len(rows) - 1) % each, len(rows), each):
        row = list(rows[end])
        for k in times:
            row[k] = sum(float(other[k]) for other in rows[start : end + 1])
        kept.append(row)
        start = end + 1
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([head, *kept])
    return out.getvalue()


def options(run: Path) -> dict:
    """Which algorithm, and its options, but for those that change no result so far."""
    about = json.loads((run / "config.json").read_text())
    config = {name: value for name, value in about["config"].items() if name not in SAME}
    return {"algorithm": about["algorithm"]} | config


def last_epoch(run: Path) -> int:
    """Of its progress.csv, whose first column is the epoch."""
    return int((run / "progress.csv").read_text().splitlines()[-1].split(",")[0])


def keep(run: Path, to: Path, checkpoint: bool = True) -> None:
    """Copies what is kept of a run into this folder."""
    if (to / "config.json").exists() and options(to) != options(run):
        sys.exit(f"{to} is another run: take another NAME.")
    if (to / "config.json").exists() and last_epoch(to) > last_epoch(run):
        sys.exit(f"{to} is longer than {run}.")
    progress = thinned((run / "progress.csv").read_text())
    to.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "config.json", to)
    (to / "progress.csv").write_text(progress)
    if checkpoint:
        shutil.copy(run / "checkpoint.npz", to)
    else:  # that of an earlier time, whose epochs would be read instead of these
        (to / "checkpoint.npz").unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="runs/EXPERIMENT/TASK/ALGORITHM/seed-N")
    parser.add_argument("name", metavar="NAME", help="of the folder in results/")
    parser.add_argument("--no-checkpoint", action="store_true", help="the numbers alone, some 200 kB less")
    args = parser.parse_args(argv)
    files = ["config.json", "progress.csv"] + ["checkpoint.npz"] * (not args.no_checkpoint)
    missing = [name for name in files if not ((args.run / name).exists() and (args.run / name).read_bytes())]
    if missing:
        sys.exit(f"{args.run} holds no run with an epoch: {', '.join(missing)} is not there, or empty.")
    to = RESULTS / args.name / args.run.name
    keep(args.run, to, not args.no_checkpoint)
    print(to)
    if (to.parent / "evaluation.json").exists():
        print(f"{to.parent}/evaluation.json is of what was there before: make it anew")


if __name__ == "__main__":
    main()
