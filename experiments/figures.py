# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "tqdm==4.67.1"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Draws the figures of the README.

`uv run experiments/figures.py table`: figures/left_on_the_table.png, the first-order reward of the convex
step and of the exact optimum, in units of the best reward step, sqrt(2 delta g_r.x_r), over rho, the cosine
of the two gradients in the F^-1 metric; and the share of delta that they use. The functions that train
compute it all; dots mark where reward stops rising, at rho = 1 - beta and sqrt(1 - beta^2).

`uv run experiments/figures.py curves OUT.png LABEL=GLOB ... [--paper 7.5,0.99]`: return, cost, safety
probability and safe reward of training episodes over environment steps, from the progress.csv files, one a
seed, that each GLOB finds. A line is the mean over seeds as far as all have come, a band reaches from the
least to the largest. Each seed is smoothed first: a point is the mean of the epochs that ended in the last
--window steps (default: 5% of the longest run). --paper draws the paper's safe reward and probability.
"""

import argparse, csv, glob, math, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import sbtrpo

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito: for all eyes
PANELS = {"EpRet": "return per episode", "EpCost": "cost per episode",
          "SafetyProbability": "safety probability", "SafeReward": "safe reward per episode"}
matplotlib.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False,
                            "axes.grid": True, "grid.color": "#e6e6e6", "axes.axisbelow": True,
                            "legend.frameon": False, "axes.titlesize": 12, "lines.linewidth": 1.8})


def step_info(rule, rho: float, beta: float) -> tuple[float, float]:
    """(reward, KL) of a step, in units of the best reward step and of delta, where F is the identity."""
    g_r, g_c = np.array([1.0, 0.0]), np.array([rho, math.sqrt(1 - rho**2)])
    _, info = rule(g_r, g_r, g_c, g_c, 0.5, beta)  # delta = 0.5: the best reward step gains 1
    return info["reward_change"], info["kl"] / 0.5


def left_on_the_table(path: Path) -> None:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    reward, kl = figure.subplots(1, 2)
    rhos = np.linspace(-0.9999, 0.9999, 801)
    for beta, colour in zip((0.5, 0.75, 0.9), COLOURS):
        for rule, style, zero in ((sbtrpo.safety_biased_step, "-", 1 - beta),
                                  (sbtrpo.optimal_safety_biased_step, "--", math.sqrt(1 - beta**2))):
            values = np.array([step_info(rule, rho, beta) for rho in rhos])
            assert abs(step_info(rule, zero, beta)[0]) < 1e-12
            reward.plot(rhos, values[:, 0], style, color=colour)
            kl.plot(rhos, values[:, 1], style, color=colour)
            reward.plot(zero, 0, "o", color=colour, markersize=6, markeredgecolor="white", zorder=3)
        kl.plot([], [], color=colour, label=rf"$\beta$ = {beta:g}")
    for style, name in (("-", "convex step (the paper)"), ("--", "exact optimum"), ("o", "no reward gained")):
        kl.plot([], [], style, color="#444444", label=name)
    reward.axhline(0, color="#444444", linewidth=0.8)
    reward.set(title="Reward gained to first order", ylabel="in units of the best reward step")
    kl.set(title="Trust region used", ylabel=r"predicted KL / $\delta$", ylim=(0, 1.05))
    for axis in (reward, kl):
        axis.set(xlabel=r"$\rho$, cosine of the reward and cost gradients", xlim=(-1, 1),
                 xticks=(-1, -0.5, 0, 0.5, 1))
    kl.legend(loc="lower left")
    save(figure, path)


def read(path: str) -> dict:
    """{column: values} of a progress.csv."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["Train/TotalSteps", *(f"Metrics/{name}" for name in PANELS)]
    try:
        columns = {name: np.array([float(row[name]) for row in rows]) for name in names}
    except (KeyError, TypeError, ValueError) as error:
        sys.exit(f"{path} is not the progress.csv of a run ({type(error).__name__}: {error}).")
    if not rows:
        sys.exit(f"{path} has no epochs yet.")
    return columns


def smooth(steps: np.ndarray, values: np.ndarray, at: np.ndarray, window: float) -> np.ndarray:
    """Mean of the values with t - window < steps <= t, for each t; the newest one if there is none."""
    sums = np.append(0, np.cumsum(values))
    last = np.searchsorted(steps, at, side="right")
    first = np.minimum(np.searchsorted(steps, at - window, side="right"), last - 1)
    return (sums[last] - sums[first]) / (last - first)


def find(series: list[str]) -> dict:
    """{label: progress of each run} of LABEL=GLOB."""
    runs = {}
    for text in series:
        label, _, pattern = text.rpartition("=")
        runs[label] = [read(found) for found in sorted(glob.glob(pattern, recursive=True))]
        if not runs[label]:
            sys.exit(f"{text} finds no file; write LABEL=GLOB, where GLOB finds progress.csv files.")
    return runs


def curves(path: Path, series: list[str], paper: list | None, window: float | None, title: str) -> None:
    runs = find(series)
    window = window or 0.05 * max(run["Train/TotalSteps"][-1] for group in runs.values() for run in group)
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = dict(zip(PANELS, figure.subplots(2, 2).flat))
    for (label, group), colour in zip(runs.items(), COLOURS * len(runs)):
        times = [run["Train/TotalSteps"] for run in group]
        at = np.linspace(max(t[0] for t in times), min(t[-1] for t in times), 400)
        name = f"{label} ({len(group)} seed{'s' * (len(group) > 1)})"
        for metric, axis in axes.items():
            lines = [smooth(t, run[f"Metrics/{metric}"], at, window) for t, run in zip(times, group)]
            axis.plot(at, np.mean(lines, axis=0), color=colour, label=name)
            low, high = np.min(lines, axis=0), np.max(lines, axis=0)
            axis.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    for metric, value in zip(("SafeReward", "SafetyProbability"), paper or ()):
        line = axes[metric].axhline(value, color="#444444", linestyle="--", linewidth=1.2)
        axes[metric].legend([line], [f"paper: {value:g}"], loc="lower right")
    decorate(figure, axes, window, title)
    save(figure, path)


def decorate(figure: Figure, axes: dict, window: float, title: str) -> None:
    for metric, axis in axes.items():
        axis.set_title(PANELS[metric])
        million = axis.get_xlim()[1] >= 1e6
        axis.xaxis.set_major_formatter(lambda x, _, m=million: f"{x / 1e6:g}M" if m else f"{x / 1e3:g}k")
        axis.set_xlim(left=0)
    axes["EpCost"].set_ylim(bottom=0)
    axes["SafetyProbability"].set_ylim(0, 1.02)
    axes["EpRet"].legend()
    figure.suptitle(title, fontsize=13)
    figure.supxlabel(f"environment steps; means of the epochs of the last {window:,.0f} steps", fontsize=11)


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(path)


def two_numbers(text: str) -> list[float]:
    reward, probability = map(float, text.split(","))
    return [reward, probability]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="what the convex step leaves on the table")
    table.add_argument("path", nargs="?", type=Path, default=ROOT / "figures" / "left_on_the_table.png")
    many = commands.add_parser("curves", help="training curves", allow_abbrev=False)
    many.add_argument("path", metavar="OUT.png", type=Path)
    many.add_argument("series", metavar="LABEL=GLOB", nargs="+")
    many.add_argument("--paper", metavar="SAFE_REWARD,PROBABILITY", type=two_numbers)
    many.add_argument("--window", type=float, help="of smoothing [steps]")
    many.add_argument("--title", default="")
    options = parser.parse_args(argv)
    if options.command == "curves" and options.window is not None and not options.window > 0:
        parser.error("--window must be positive")
    if options.command == "table":
        left_on_the_table(options.path)
    else:
        curves(options.path, options.series, options.paper, options.window, options.title)


if __name__ == "__main__":
    main()
