# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["numpy==2.2.6", "matplotlib==3.10.8", "scipy==1.15.3"]
# ///
"""Which cost holds a run with two budgets, and one with a budget for their sum: a picture in figures/, by
`uv run studies/two_budgets.py FOLDER FOLDER`. studies/two_budgets.toml makes the runs.

A folder has runs seed-0, seed-1, ... of ctrpo.py or strpo.py with two --costs; the first a budget for each.
The picture: return and each cost over the steps, a line for each folder, the mean of its seeds, and a band
of a standard deviation (n - 1) to either side; dashed: the budgets. It prints a table:
return and each cost in the last tenth of the epochs, mean and standard deviation over seeds; and which cost
holds a run, by the share of all epochs in which it was at or above its budget.
"""

import argparse, csv, json, sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from report import joined, progress_of, spread

COLOURS = "#0072b2", "#d55e00"
POINTS = 20  # of a curve: each the mean over a twentieth of the steps


def read(run: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(options, columns) of a run."""
    try:
        config = json.loads((run / "config.json").read_text())["config"]
        rows = list(csv.DictReader(progress_of(run).splitlines()))
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"{run} holds no run that can be read: {error}.")
    if len(config.get("costs", [])) != 2 or len(rows) < 10:
        sys.exit(f"{run} is not a run of ten epochs or more with two --costs.")
    names = ["Metrics/EpRet", *(f"Metrics/EpCost_{name}" for name in config["costs"])]
    columns = {name: np.array([float(row[name]) for row in rows]) for name in names}
    return config, columns | {"steps": np.array([int(row["Train/TotalSteps"]) for row in rows])}


def curve(columns: dict, name: str, ends: np.ndarray) -> np.ndarray:
    """Means of the epochs that end between two of these numbers of steps."""
    part = np.searchsorted(ends, columns["steps"])
    return np.array([columns[name][part == i].mean() if (part == i).any() else np.nan
                     for i in range(len(ends))])


def label(limit) -> str:
    return f"budgets {limit[0]:g} and {limit[1]:g}" if isinstance(limit, list) else f"{limit:g} for the sum"


def cell(values) -> str:
    """Mean and standard deviation (n - 1); a single value has none."""
    deviation = f" ± {spread(values):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{deviation}"


def line(runs: list, budgets: list) -> list[str]:
    """A row of the table."""
    names = list(runs[0][1])[:3]
    last = [[columns[name][-(len(columns[name]) // 10):].mean() for _, columns in runs] for name in names]
    above = [[(columns[name] >= budget).mean() for _, columns in runs]
             for name, budget in zip(names[1:], budgets)]
    shares = [f"{np.mean(share):.0%}" for share in above]
    return [label(runs[0][0]["cost_limit"]), str(len(runs)), *map(cell, last), *shares]


def draw(groups: list, budgets: list, path: Path) -> None:
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    ends = np.linspace(0, max(columns["steps"][-1] for runs in groups for _, columns in runs), POINTS + 1)[1:]
    names = list(groups[0][0][1])[:3]
    for axis, name, budget in zip(figure.subplots(1, 3), names, [None, *budgets]):
        for runs, colour in zip(groups, COLOURS):
            curves = np.array([curve(columns, name, ends) for _, columns in runs])
            mean, std = curves.mean(axis=0), curves.std(axis=0, ddof=min(1, len(curves) - 1))
            axis.plot(ends / 1e6, mean, color=colour, label=label(runs[0][0]["cost_limit"]))
            axis.fill_between(ends / 1e6, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
        if budget is not None:
            axis.axhline(budget, color="#444444", linestyle="--", linewidth=1.2)
            axis.set_ylim(bottom=0)
        title = "return" if budget is None else "cost: " + name.removeprefix("Metrics/EpCost_")
        axis.set(title=title, xlabel="million steps")
    axis.legend()
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", metavar="FOLDER", nargs=2, type=Path, help="of runs seed-0, seed-1, ...")
    parser.add_argument("--figure", type=Path, default=ROOT / "figures" / "two_budgets.png")
    options = parser.parse_args(argv)
    groups = [[read(run) for run in sorted(folder.glob("seed-*"))] for folder in options.folders]
    if not all(groups) or not isinstance(budgets := groups[0][0][0]["cost_limit"], list):
        sys.exit("The first folder needs runs with a --cost-limit for each of --costs, the second runs, too.")
    draw(groups, budgets, options.figure)
    names = groups[0][0][0]["costs"]
    above = [f"epochs at or above {budget:g}: {name}" for name, budget in zip(names, budgets)]
    head = ["run", "seeds", "return", *names, *above]
    print(joined(head, [line(runs, budgets) for runs in groups]))


if __name__ == "__main__":
    main()
