# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""C-TRPO does not know its margin: a normal step is taken when noise has made the cost look low. A table of
runs in results/, in docs/ctrpo.md, by `uv run studies/margins.py`; of others it prints one, given
[LABEL=]FOLDER ....

The margin of a step is b - J_c, and J_c a mean of a few episodes. A step is normal because J_c came out low:
chosen by its own noise, it is too low on average, and the margin too wide. The table shows it by the cost of
the next epoch, whose episodes nobody has chosen. The rest of the gap is what the step itself has cost, and,
with --cost-window, what J_c lags behind the cost of the batch. A row is a run, from a quarter of its epochs
on:

    swing        standard deviation of the differences of the cost of neighbouring epochs, over sqrt(2)
    normal       share of epochs with a normal step; mean J_c and mean cost of these, and mean cost of the
                 epochs after them
    seen         by how much the cost rises in a normal step according to its own batch: the median of the
                 surrogate [cost per episode; with --official-units discounted, 5 to 10 times less]
    recovery     J_c and the costs of the epochs with a recovery step
"""

import argparse, csv, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import numpy as np
from pages import fill
from report import Run, find, progress_of
from table import ANT, HOPPER, POINT, TASKS, joined, short

SETTINGS = [(POINT, "defaults", "defaults-5M"), (POINT, "preset paper", "paper"),
            (ANT, "delta 0.03", "delta-0.03"), (ANT, "preset paper", "paper"),
            (HOPPER, "defaults", "defaults-5M"), (HOPPER, "preset paper", "paper"),
            *((task, "budget 15", "paper-limit-15") for task in TASKS["SB-TRPO"])]


def cells_of(folder: Path) -> list[str]:
    rows = list(csv.DictReader(progress_of(folder).splitlines()))
    if "Misc/recovery" not in rows[0] or len(rows) < 8:
        sys.exit(f"{folder} is not a run of ctrpo.py of eight epochs or more.")
    if np.any(np.diff([int(row["Train/Epoch"]) for row in rows]) != 1):  # studies/keep.py leaves some out
        sys.exit(f"{folder} has not the rows of all its epochs: neighbours are not to be had.")
    rows = rows[len(rows) // 4 :]
    cost, recovery = (np.array([float(row[name]) for row in rows])
                      for name in ("Metrics/EpCost", "Misc/recovery"))
    J_c = np.array([float(row.get("Misc/mean_cost") or row["Metrics/EpCost"]) for row in rows])
    surrogate = np.array([float(row["Misc/surrogate_cost"]) for row in rows])
    means = []
    for flag in (0, 1):
        now = recovery[:-1] == flag
        means.append([f"{values[now].mean():.1f}" if now.any() else "–"
                      for values in (J_c[:-1], cost[:-1], cost[1:])])
    seen = f"{np.median(surrogate[recovery == 0]).round(2) + 0:.2f}" if np.any(recovery == 0) else "–"
    return [f"{np.diff(cost).std() / 2**0.5:.1f}", f"{1 - recovery.mean():.0%}", *means[0], seen, *means[1]]


def table(runs: list[Run]) -> str:
    costs = "this epoch", "next epoch"
    head = ["run", "swing", "normal", "J_c", *costs, "seen", "recovery: J_c", *costs]
    lines = [[f"{run.label or run.task}, seed {run.seed}", *cells_of(run.folder)] for run in runs]
    return joined(head, lines)


def kept() -> list[Run]:
    """The runs in results/, as far as there are any."""
    texts = []
    for task, label, end in SETTINGS:
        folder = ROOT / "results" / f"ctrpo-{task}-{end}"
        if folder.exists():
            texts.append(f"{short(task)}, {label}={folder}")
    return find(texts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", metavar="[LABEL=]FOLDER", nargs="*", help="runs, at any depth")
    if texts := parser.parse_args(argv).folders:
        print(table(find(texts)))
    else:
        fill("margins.py", {"margins": table(kept())})


if __name__ == "__main__":
    main()
