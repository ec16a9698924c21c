# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""How much sTRPO's exclusion changes a step: a table in docs/strpo.md, by `uv run studies/binding.py`, from
progress.csv of the runs with the exact dual, results/strpo-TASK-exact and those with a budget of 0.

It binds in an epoch if lambda_2 > 0: step_g alone would not lead away by delta_2. With f the share of the
best step away that is asked for, near 0 here, the step then has k (1 - rho^2) + rho f of the best gain, with
k = sqrt((1 - f^2) / (1 - rho^2)): nearly sqrt(1 - rho^2), which is printed. (Where the step has room, f is
0.02, which takes another 0.02 |rho|.) The policy stays where the line search passes no fraction of it. In
the other epochs the step is step_g, and the distance rises unasked.
"""

import argparse, csv, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import numpy as np
from pages import fill
from report import progress_of
from table import ANT, CIRCLE, GOAL, HOPPER, joined

FOLDERS = "strpo-{}-exact*", "*strpo-{}-limit-0-1M*"  # with a budget of 25, and of 0
HEAD = ["run", "epochs", "it binds in", "after 1.5M steps", "at [nats]",
        "of these it stays in", "gain kept there: mean", "least", "rise elsewhere [nats a step]: mean"]


def cells(folder: Path) -> list[str]:
    """Of one run."""
    rows = list(csv.DictReader(progress_of(folder).splitlines()))
    lambda_2, rho, rise, level, fraction, steps = (np.array([float(row[name]) for row in rows]) for name in (
        "Misc/lambda_2", "Misc/rho", "Misc/realised_exclusion", "Misc/exclusion", "Misc/fraction",
        "Train/TotalSteps"))
    binds = lambda_2 > 0
    late = binds & (steps > 1.5e6)
    gain = np.sqrt(1 - rho[binds] ** 2)
    between = f"{level[late].min():.1f} to {level[late].max():.1f}" if late.any() else ""
    return [str(len(rows)), f"{binds.mean():.1%}", str(late.sum()), between,
            str((fraction[binds] == 0).sum()), f"{gain.mean():.4f}",
            f"{gain.min():.3f}", f"{rise[~binds].mean():.2f}"]


def table() -> str:
    lines = []
    for name in FOLDERS:
        for task in CIRCLE, GOAL, HOPPER, ANT:
            for folder in sorted((ROOT / "results").glob(f"{name.format(task)}/seed-*")):
                lines.append([f"{folder.parent.name}/{folder.name}", *cells(folder)])
    return joined(HEAD, lines)


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0]).parse_args(argv)
    fill("binding.py", {"binding": table()})


if __name__ == "__main__":
    main()
