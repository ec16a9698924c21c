# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""C-TRPO's returns and costs are those of its official release, as far as the seeds can tell:
results/published.md, by `uv run studies/published.py OUT.png TASK LABEL=FOLDER ...` for each task.

It draws runs over published ones, and prints a table of all at equal steps. A FOLDER holds runs, one a seed,
of ours or of the official release of C-TRPO, whose columns have the same names; the first is drawn in grey.
All are averaged over --window steps (the release's numbers are themselves running means over 50 episodes).
Lines are means over seeds; bands, and what follows ±, one standard deviation, with n - 1. The cost regret is
the sum over time of max(0, cost - limit), of these averages, in cost per episode times million steps: what
exceeds the limit within an average does not count, for either.
"""

import argparse, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import numpy as np
from matplotlib.figure import Figure
from report import COLOURS, Run, find, save, smooth, spread

PANELS = {"return": "return per episode", "cost": "cost per episode", "regret": "cost regret, in total"}
MARKS = 1_000_000, 2_000_000, 3_000_000, 5_000_000, 10_000_000  # rows, beside the last that all have


def averages(group: list[Run], window: int, limit: float) -> tuple[np.ndarray, dict]:
    """Ends of the windows, as far as all runs have come, and {panel: (seeds, windows)}."""
    at = np.arange(window, min(run.steps[-1] for run in group) + 1, window)
    if not len(at):
        sys.exit(f"a run has not come to {window:,} steps yet.")
    returns, costs = (np.array([smooth(run.steps, run.columns[name], at, window) for run in group])
                      for name in ("return", "cost"))
    regret = np.cumsum(np.maximum(costs - limit, 0), axis=1) * window / 1e6
    return at, {"return": returns, "cost": costs, "regret": regret}


def cell(values: np.ndarray) -> str:
    """Mean ± standard deviation over seeds; a single one has no ±."""
    digits = 0 if values.mean() >= 100 else 1
    mean = f"{values.mean():,.{digits}f}"
    return f"{mean} ± {spread(values):,.{digits}f}" if len(values) > 1 else mean


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parser.add_argument("path", metavar="OUT.png", type=Path)
    parser.add_argument("task", metavar="TASK")
    parser.add_argument("series", metavar="LABEL=FOLDER", nargs="+")
    parser.add_argument("--window", type=int, default=200_000, metavar="STEPS")
    parser.add_argument("--cost-limit", type=float, default=25.0)
    options = parser.parse_args(argv)
    groups = {}
    for run in find(options.series):
        if run.task != options.task:
            sys.exit(f"{run.folder} is a run of {run.task}, not of {options.task}.")
        groups.setdefault(run.label or run.experiment, []).append(run)
    groups = {label: averages(group, options.window, options.cost_limit) for label, group in groups.items()}
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = dict(zip(PANELS, figure.subplots(1, 3)))
    for (label, (at, values)), colour in zip(groups.items(), ("#444444", *COLOURS)):
        for panel, axis in axes.items():
            mean, std = values[panel].mean(0), spread(values[panel])
            name = f"{label} ({len(values[panel])} seed{'s' * (len(values[panel]) > 1)})"
            axis.plot(at / 1e6, mean, color=colour, label=name)
            axis.fill_between(at / 1e6, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
    for panel, axis in axes.items():
        axis.set(title=PANELS[panel], xlabel="million steps", xlim=(0, None))
    axes["cost"].axhline(options.cost_limit, color="#444444", linestyle="--", linewidth=1.2)
    axes["return"].legend(fontsize=9)
    figure.suptitle(options.task, fontsize=13)
    save(figure, options.path)
    print(f"\n### {options.task}\n\n| steps | runs | seeds | return | cost | cost regret so far |\n"
          "|---|---|---|---|---|---|")
    for t in sorted({*MARKS, int(min(at[-1] for at, _ in groups.values()))}):
        for label, (at, values) in groups.items():
            if t in at:
                i, seeds = int(np.argmax(at == t)), len(values["return"])
                cells = [cell(values[panel][:, i]) for panel in PANELS]
                print(f"| {t / 1e6:g}M | {label} | {seeds} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
