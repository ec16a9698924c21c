# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "tqdm==4.67.1", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Draws our runs of a task over published ones, and prints a Markdown table of both at equal steps.

`uv run experiments/published.py OUT.png FILE TASK ALGORITHM LABEL=GLOB ...`: FILE holds the published curves,
with columns task, algorithm, seed, env_steps, episode_return, episode_cost, at equal distances of env_steps;
each GLOB finds progress.csv files, one a seed. Ours are averaged over the same distances (the published
numbers are themselves running means over 50 episodes). Lines are means over seeds, bands one standard
deviation. The cost regret is the sum over time of max(0, cost - limit), of these averages, in
cost per episode times million steps: what exceeds the limit within an average does not count, for either.
"""

import argparse, csv, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np
from figures import COLOURS, find, save, smooth
from matplotlib.figure import Figure

PANELS = {"return": "return per episode", "cost": "cost per episode", "regret": "cost regret, in total"}


def with_regret(at: np.ndarray, returns: np.ndarray, costs: np.ndarray, limit: float) -> dict:
    """{panel: (seeds, times)}; regret in cost per episode times million steps."""
    regret = np.cumsum(np.maximum(costs - limit, 0), axis=1) * (at[1] - at[0]) / 1e6
    return {"return": returns, "cost": costs, "regret": regret}


def published(file: Path, task: str, algorithm: str, limit: float) -> tuple[np.ndarray, dict]:
    with open(file, newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if (row["task"], row["algorithm"]) == (task, algorithm)]
    if not rows:
        sys.exit(f"{file} has no rows of {algorithm} on {task}.")
    seeds, at = sorted({row["seed"] for row in rows}), sorted({int(row["env_steps"]) for row in rows})
    values = {(row["seed"], int(row["env_steps"])): row for row in rows}
    returns, costs = (np.array([[float(values[seed, t][name]) for t in at] for seed in seeds])
                      for name in ("episode_return", "episode_cost"))
    return np.array(at), with_regret(np.array(at), returns, costs, limit)


def ours(group: list[dict], grid: np.ndarray, limit: float) -> tuple[np.ndarray, dict]:
    """The runs, as far as all of them have come, averaged over the distances of the published grid."""
    at = grid[grid <= min(run["Train/TotalSteps"][-1] for run in group)]
    if len(at) < 2:
        sys.exit(f"a run has not come to {grid[1]:,} steps yet.")
    returns, costs = (np.array([smooth(run["Train/TotalSteps"], run[f"Metrics/{name}"], at, at[1] - at[0])
                                for run in group]) for name in ("EpRet", "EpCost"))
    return at, with_regret(at, returns, costs, limit)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("path", metavar="OUT.png", type=Path)
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("task", metavar="TASK")
    parser.add_argument("algorithm", metavar="ALGORITHM")
    parser.add_argument("series", metavar="LABEL=GLOB", nargs="+")
    parser.add_argument("--cost-limit", type=float, default=25.0)
    options = parser.parse_args(argv)
    grid, values = published(options.file, options.task, options.algorithm, options.cost_limit)
    groups = {"published": (grid, values)}
    groups |= {label: ours(group, grid, options.cost_limit) for label, group in find(options.series).items()}
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = dict(zip(PANELS, figure.subplots(1, 3)))
    for (label, (at, values)), colour in zip(groups.items(), ("#444444", *COLOURS)):
        for panel, axis in axes.items():
            mean, std = values[panel].mean(0), values[panel].std(0)
            name = f"{label} ({len(values[panel])} seed{'s' * (len(values[panel]) > 1)})"
            axis.plot(at / 1e6, mean, color=colour, label=name)
            axis.fill_between(at / 1e6, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
    for panel, axis in axes.items():
        axis.set(title=PANELS[panel], xlabel="million steps", xlim=(0, None))
    axes["cost"].axhline(options.cost_limit, color="#444444", linestyle="--", linewidth=1.2)
    axes["return"].legend(fontsize=9)
    figure.suptitle(options.task, fontsize=13)
    save(figure, options.path)
    print("| steps | runs | seeds | return | cost | cost regret so far |\n|---|---|---|---|---|---|")
    marks = {t for t in (1_000_000, 2_000_000, 3_000_000, 5_000_000, 10_000_000) if t in grid}
    for t in sorted(marks | {int(min(at[-1] for at, _ in groups.values()))}):
        for label, (at, values) in groups.items():
            if t in at:
                i, seeds = int(np.argmax(at == t)), len(values["return"])
                cells = [f"{values[p][:, i].mean():,.1f} ± {values[p][:, i].std():,.1f}" for p in PANELS]
                print(f"| {t / 1e6:g}M | {label} | {seeds} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
