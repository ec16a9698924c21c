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

`uv run experiments/figures.py two-state`: figures/two_state.png, all policies of the two-state world as a
square, and the paths that ten safe ones take: the flows NPG and C-NPG, integrated, and TRPO, C-TRPO and
SB-TRPO, by the functions that train on exact gradients and surrogates, all for delta = 0.01.
"""

import argparse, csv, glob, math, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

import ctrpo
import sbtrpo
import tabular_cmdp

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito: for all eyes
PANELS = {"EpRet": "return per episode", "EpCost": "cost per episode",
          "SafetyProbability": "safety probability", "SafeReward": "safe reward per episode"}
matplotlib.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False,
                            "axes.grid": True, "grid.color": "#e6e6e6", "axes.axisbelow": True,
                            "legend.frameon": False, "axes.titlesize": 12, "lines.linewidth": 1.8,
                            "hatch.linewidth": 0.5, "hatch.color": "#777777"})


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


def exact_path(world, theta: np.ndarray, algorithm: str, barrier: str, beta: float, delta: float = 0.01):
    """Logits along 200 updates of a shipped step and line search, fed with exact gradients and surrogates."""
    path, recovery = [theta], True
    for _ in range(200):
        old, m = path[-1], world.limit - world.J(path[-1], world.c)
        g_r, x_r, g_c, x_c = (of(old, f).ravel() for f in (world.r, world.c)
                              for of in (world.gradient, world.natural_direction))
        recovery = m <= (0.2 * world.limit if recovery else 0)
        if algorithm == "C-TRPO":
            step, _ = ctrpo.barrier_step(g_r, x_r, g_c, x_c, delta, beta, 0 if recovery else m, barrier)
        elif algorithm == "SB-TRPO":
            step, _ = sbtrpo.safety_biased_step(g_r, x_r, g_c, x_c, delta, beta)
        else:
            _, step = sbtrpo.steepest_step(g_r, x_r, delta)

        def judge(new, old=old, m=m, recovery=recovery):
            divergence, cost = world.kl(old, new), world.surrogate(old, new, world.c)
            if algorithm == "C-TRPO" and not recovery:
                divergence += beta * ctrpo.barrier_divergence(cost, m, barrier)
            rises = cost > 1e-12 and (algorithm == "SB-TRPO" or recovery and algorithm == "C-TRPO")
            return "divergence" if not divergence <= delta else "cost" if rises else "", {}

        path.append(sbtrpo.line_search(judge, old, step.reshape(old.shape))[0])
    return np.array(path)


def two_state_panel(axis, world, square: tuple, paths: list, title: str) -> None:
    """Reward in shades of grey, the unsafe set hatched, the paths, and how many end at the optimum."""
    p, reward, cost = square
    axis.contourf(p, p, reward, np.linspace(0, 2, 41), cmap="Greys", vmin=-0.2, vmax=3)
    axis.contourf(p, p, cost, (world.limit, 2), colors="none", hatches=["///"])
    axis.contour(p, p, cost, (world.limit,), colors=COLOURS[1], linewidths=2)
    best, arrived = world.optimum(), 0
    for path in paths:
        pi = np.array([tabular_cmdp.policy(theta)[:, 0] for theta in path])
        axis.plot(*pi.T, ".-" if "TRPO" in title else "-", color=COLOURS[0], linewidth=1.2, markersize=3.5)
        axis.plot(*pi[0], "o", color="white", markeredgecolor=COLOURS[0], markersize=5, zorder=3)
        axis.plot(*pi[-1], "s", color=COLOURS[0], markersize=5, zorder=3, clip_on=False)
        arrived += (abs(world.J(path[-1], world.r) - best.value) < 2e-3
                    and world.J(path[-1], world.c) < world.limit + 1e-3)
    axis.plot(*best.policy[:, 0], "*", color=COLOURS[5], markeredgecolor="#444444", markersize=13, zorder=4,
              clip_on=False)
    axis.set_title(f"{title}: {arrived}/10", fontsize=11)
    axis.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
    axis.grid(False)


def two_state(path: Path) -> None:
    world, draws = tabular_cmdp.two_state(), np.random.default_rng(1).normal(size=(200, 2, 2))
    starts = [theta for theta in draws if world.J(theta, world.c) < world.limit / 2][:10]
    p = np.linspace(0.001, 0.999, 101)
    logits = np.log(p / (1 - p))
    square = (p, *(np.array([[world.J(np.array([[x, 0], [y, 0]]), f) for x in logits] for y in logits])
                   for f in (world.r, world.c)))
    times, names = np.append(0, np.geomspace(0.01, 1000, 400)), {"log": r"$-\log x$", "xlogx": r"$x\,\log x$"}
    figure = Figure(figsize=(11, 8.6), layout="constrained")
    axes = figure.subplots(3, 4, sharex=True, sharey=True)
    for row, barrier in enumerate(names):
        for axis, beta in zip(axes[row, 1:], (0.01, 0.1, 1)):
            paths = [world.flow(theta, times, beta, barrier)[0] for theta in starts]
            two_state_panel(axis, world, square, paths, rf"C-NPG, {names[barrier]}, $\beta$ = {beta:g}")
    paths = [world.flow(theta, times, 0)[0] for theta in starts]
    two_state_panel(axes[0, 0], world, square, paths, "NPG")
    for axis, (name, barrier, beta) in zip(axes[2], (("TRPO", "", 0), ("C-TRPO", "log", 0.1),
                                                     ("C-TRPO", "xlogx", 0.1), ("SB-TRPO", "", 0.75))):
        paths = [exact_path(world, theta, name, barrier, beta) for theta in starts]
        two_state_panel(axis, world, square, paths, name + (f", {names[barrier]}" if barrier else "")
                        + (rf", $\beta$ = {beta:g}" if beta else ""))
    axes[1, 0].axis("off")
    handles = [Line2D([], [], color=COLOURS[0], label="path"),
               Line2D([], [], color="white", markeredgecolor=COLOURS[0], marker="o", label="start"),
               Line2D([], [], color=COLOURS[0], linestyle="", marker="s", label="end"),
               Line2D([], [], color=COLOURS[5], markeredgecolor="#444444", linestyle="", marker="*",
                      markersize=12, label="best safe policy"),
               Line2D([], [], color=COLOURS[1], linewidth=2, label="$J_c = b$"),
               Patch(facecolor="#dddddd", hatch="///", edgecolor="#777777", label="unsafe"),
               Patch(facecolor="#888888", label="dark: more reward")]
    axes[1, 0].legend(handles=handles, loc="center", fontsize=11, title="n/10: ends at the best")
    figure.supxlabel(r"$\pi(a_0 \mid s_0)$", fontsize=12)
    figure.supylabel(r"$\pi(a_0 \mid s_1)$", fontsize=12)
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
    square = commands.add_parser("two-state", help="paths over the policies of the two-state world")
    square.add_argument("path", nargs="?", type=Path, default=ROOT / "figures" / "two_state.png")
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
    elif options.command == "two-state":
        two_state(options.path)
    else:
        curves(options.path, options.series, options.paper, options.window, options.title)


if __name__ == "__main__":
    main()
