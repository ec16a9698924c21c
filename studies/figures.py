# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Draws the pictures in figures/ of exact worlds, and training curves: `uv run studies/figures.py NAME`.

`uv run studies/figures.py table`: figures/left_on_the_table.png, the first-order reward of the convex
step and of the exact optimum, in units of the best reward step, sqrt(2 delta g_r.x_r), over rho, the cosine
of the two gradients in the F^-1 metric; and the share of delta that they use. The functions that train
compute it all; dots mark where reward stops rising, at rho = 1 - beta and sqrt(1 - beta^2).

`uv run studies/figures.py curves OUT.png LABEL=GLOB ... [--paper 7.5,0.99]`: return, cost, safety
probability and safe reward of training episodes over environment steps, from the progress.csv files, one a
seed, that each GLOB finds. A line is the mean over seeds as far as all have come, a band reaches from the
least to the largest. Each seed is smoothed first: a point is the mean of the epochs that ended in the last
--window steps (default: 5% of the longest run). --paper draws the paper's safe reward and probability.

`uv run studies/figures.py trust-regions`: figures/trust_regions.png; `grid`: figures/hazard_grid.png,
exact runs of three update rules; `noise`, `promise`: figures of these names, from results/noise.json and
results/promise.json; `all`: these, and `two-state` and `table`, as `uv run tabular_cmdp.py` does.

`uv run studies/figures.py two-state`: figures/two_state.png, all policies of the two-state world as a
square, and the paths that ten safe ones take: the flows NPG and C-NPG, integrated, and TRPO, C-TRPO and
SB-TRPO, by the functions that train on exact gradients and surrogates, all for delta = 0.01.
"""

import argparse, csv, glob, json, math, sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

import ctrpo
import sbtrpo
import strpo
import tabular_cmdp
from report import COLOURS, progress_of, save, smooth

ARROWS = {  # of trust_regions: colour, width, label and its offset from the tip [points]
    "best reward step": (COLOURS[2], 2.2, "best reward step", (-8, 14)),
    "best cost step": (COLOURS[1], 2.2, "best cost step", (-4, -14)),
    "away": (COLOURS[3], 2.2, "away", (-56, -16)), "SB-TRPO": ("black", 3.4, "step", (20, 12)),
    "optimal": ("black", 1.6, "optimal", (26, 15)), "C-TRPO": ("black", 3.4, "step", (27, 3)),
    "sTRPO": ("black", 3.4, "step", (-20, 8))}
MARKERS, SHADES = "osD^", matplotlib.colormaps["Blues"]
PANELS = {"EpRet": "return per episode", "EpCost": "cost per episode",
          "SafetyProbability": "safety probability", "SafeReward": "safe reward per episode"}


def step_info(update: str, rho: float, beta: float) -> tuple[float, float]:
    """(reward, KL) of a step, in units of the best reward step and of delta, where F is the identity."""
    g_r, g_c = np.array([1.0, 0.0]), np.array([rho, math.sqrt(1 - rho**2)])
    _, info = sbtrpo.safety_biased_step(  # delta = 0.5: the best reward step gains 1
        g_r, g_r, g_c, g_c, 0.5, beta, update=update)
    return info["reward_change"], info["kl"] / 0.5


def left_on_the_table(path: Path) -> None:
    """What the convex step leaves on the table: first-order reward and KL of both steps, over rho."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    reward, kl = figure.subplots(1, 2)
    rhos = np.linspace(-0.9999, 0.9999, 801)
    for beta, colour in zip((0.5, 0.75, 0.9), COLOURS):
        zeros = {"convex": ("-", 1 - beta), "optimal": ("--", math.sqrt(1 - beta**2))}
        for update, (style, zero) in zeros.items():
            values = np.array([step_info(update, rho, beta) for rho in rhos])
            assert abs(step_info(update, zero, beta)[0]) < 1e-12
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


def exact_path(world, theta: np.ndarray, algorithm: str, barrier: str = "log", beta: float = 0.1,
               delta: float = 0.01, iterations: int = 200) -> np.ndarray:
    """Logits along updates of a shipped step and line search, fed with exact gradients and surrogates. A
    gradient counts as zero where the best step changes less than 1e-8 of the largest reward or cost: exact
    runs exhaust the cost, and what is left is rounding."""
    path, recovery = [theta], True
    for _ in range(iterations):
        old, m, vectors = path[-1], world.limit - world.J(path[-1], world.c), []
        for f in (world.r, world.c):
            g, x = world.gradient(old, f).ravel(), world.natural_direction(old, f).ravel()
            counts = 2 * delta * (g @ x) > (1e-8 * np.abs(f).max()) ** 2
            vectors += [g * counts, x * counts]
        recovery = m <= (0.2 * world.limit if recovery else 0)
        if algorithm == "C-TRPO":
            step, _ = ctrpo.barrier_step(*vectors, delta, beta, m, barrier, recovery)
        elif algorithm == "SB-TRPO":
            step, _ = sbtrpo.safety_biased_step(*vectors, delta, beta)
        else:
            step, _ = sbtrpo.steepest_step(*vectors[:2], delta)

        def judge(new, old=old, m=m, recovery=recovery):
            divergence, cost = world.kl(old, new), world.surrogate(old, new, world.c)
            if algorithm == "C-TRPO" and not recovery:
                divergence += beta * ctrpo.barrier_divergence(cost, m, barrier)
            rises = cost > 1e-12 and (algorithm == "SB-TRPO" or recovery and algorithm == "C-TRPO")
            return "divergence" if not divergence <= delta else "cost" if rises else "", {}

        path.append(sbtrpo.line_search(judge, old, step.reshape(old.shape))[0])
    return np.array(path)


def first_order(world, theta: np.ndarray) -> list[np.ndarray]:
    """g_r, x_r, g_c, x_c, flat: gradients and F^+ times them."""
    return [of(theta, f).ravel() for f in (world.r, world.c)
            for of in (world.gradient, world.natural_direction)]


def methods_at(world, theta: np.ndarray, delta: float, beta: float, bend: float, share: float) -> tuple:
    """Steps of the shipped rules at one policy, and {method: (S, A) logits -> how far inside its region}."""
    g_r, x_r, g_c, x_c = first_order(world, theta)
    unsafe = exact_path(replace(world, r=world.c), theta, "TRPO")[-1]  # trained for cost
    d, pi, pi_u = world.state_occupancy(theta)[:, None], *map(tabular_cmdp.policy, (theta, unsafe))
    y = 1 - pi_u / pi  # F^+ phi, where phi = -d (pi_u - pi) is the gradient of KL(unsafe || pi)
    phi, y = (-d * (pi_u - pi)).ravel(), (y - y.mean(axis=1, keepdims=True)).ravel()
    step_r, step_c, step_phi = (sbtrpo.steepest_step(g, x, delta)[0] for g, x in
                                ((g_r, x_r), (g_c, -x_c), (phi, y)))
    margin, demand = world.limit - world.J(theta, world.c), share * (phi @ step_phi)
    steps = {"best reward step": step_r, "best cost step": step_c, "away": step_phi,
             "SB-TRPO": sbtrpo.safety_biased_step(g_r, x_r, g_c, x_c, delta, beta)[0],
             "optimal": sbtrpo.safety_biased_step(
                 g_r, x_r, g_c, x_c, delta, beta, update="optimal")[0],
             "C-TRPO": ctrpo.barrier_step(g_r, x_r, g_c, x_c, delta, bend, margin)[0],
             "sTRPO": strpo.exclusion_step(g_r, x_r, phi, y, delta, demand)[0]}

    def inside(new):  # of the trust region, and of each method's own
        room, cost = delta - world.kl(theta, new), world.surrogate(theta, new, world.c)
        excluded = np.sum(d * pi_u * (tabular_cmdp.log_policy(theta) - tabular_cmdp.log_policy(new)))
        return (room, min(room, beta * (g_c @ step_c) - g_c @ (new - theta).ravel()),
                max(-1.0, room - bend * ctrpo.barrier_divergence(cost, margin, "log")),
                min(room, excluded - demand), world.limit - world.J(new, world.c))

    return {name: step.reshape(2, 2) @ (1, -1) for name, step in steps.items()}, inside


def trust_regions(path: Path, stay: tuple = (0.75, 0.4), delta: float = 0.01) -> None:
    """Where each method may go from one policy of two_state: in the plane of the log odds of staying, which
    is all there is. Regions are exact, and the steps are the shipped functions'."""
    world, half = tabular_cmdp.two_state(), np.log(np.divide(stay, np.subtract(1, stay))) / 2
    theta = np.stack([half, -half], axis=1)
    ends, inside = methods_at(world, theta, delta, beta=0.75, bend=0.1, share=0.75)
    x, y = (scale * np.abs([*ends.values()]).max() * np.linspace(-1, 1, 101) for scale in (1.02, 1.28))
    plane = np.array([[inside(theta + np.array([[a, -a], [b, -b]]) / 2) for a in x] for b in y])
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    panels = {"SB-TRPO": ("keeps ¾ of the best cost decrease", ("best cost step", "optimal")),
              "C-TRPO": ("the region bends away from the budget", ()),
              "sTRPO": ("moves away from an unsafe policy", ("away",))}
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    for region, (axis, (name, (text, others))) in enumerate(zip(axes, panels.items()), start=1):
        axis.contourf(x, y, plane[..., 4], (-9, 0), colors=["#f4f4f4"], hatches=["///"])
        axis.contour(x, y, plane[..., 4], (0,), colors="#777777", linewidths=1.2)
        axis.contour(x, y, plane[..., 0], (0,), colors="#444444", linestyles="--", linewidths=1.4)
        axis.contourf(x, y, plane[..., region], (0, 9), colors=[COLOURS[4]], alpha=0.6)
        for arrow in ("best reward step", *others, name):
            colour, width, label, place = ARROWS[arrow]
            axis.annotate("", ends[arrow], (0, 0), arrowprops={
                "arrowstyle": "-|>", "color": colour, "linewidth": width, "mutation_scale": 14, "shrinkA": 0,
                "shrinkB": 0, "linestyle": "--" if arrow == "optimal" else "-"})
            axis.annotate(label, ends[arrow], place, textcoords="offset points", color=colour, ha="center",
                          va="center", fontweight="bold", bbox={
                              "facecolor": "white", "linewidth": 0, "pad": 1.5,
                              "alpha": 0.85 if arrow == "best reward step" else 0})
        axis.plot(0, 0, "o", color="black", markersize=6)
        axis.text(0.04, 0.96, "over budget", transform=axis.transAxes, va="top",
                  bbox={"facecolor": "white", "linewidth": 0, "pad": 1.5})
        axis.set_title(name, fontweight="bold", fontsize=14, pad=24)
        axis.text(0.5, 1.02, text, transform=axis.transAxes, ha="center", va="bottom", fontsize=12)
        axis.set(aspect="equal", xticks=(), yticks=(), xlim=x[[0, -1]], ylim=y[[0, -1]])
        axis.set_xlabel("stay in state 0 more often →")
        axis.grid(False)
    axes[0].set_ylabel("stay in state 1 more often →")
    save(figure, path, bbox_inches="tight")


def draw_grid(axis, world, theta: np.ndarray) -> None:
    """The hazard grid: dark where the policy often is, arrows as wide as its moves are frequent."""
    rows, occupancy = tabular_cmdp.GRID_MAPS["A"], world.occupancy(theta)
    width = len(rows[0])
    for s, cell in enumerate("".join(rows)):
        (y, x), share = divmod(s, width), occupancy[s].sum()
        axis.add_patch(Rectangle((x, y), 1, 1, facecolor=SHADES(1.5 * share), edgecolor="white", linewidth=3))
        if cell == "H":
            axis.add_patch(Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, fill=False, edgecolor=COLOURS[1],
                                     linewidth=2.5, linestyle=(0, (3, 1.5))))
        axis.text(x + 0.12, y + 0.1, cell.strip("."), fontweight="bold", va="top", fontsize=12)
        axis.text(x + 0.12, y + 0.92, f"{share:.0%}" if share >= 0.005 else "", va="bottom")
        for a in range(5):
            t = divmod(int(world.P[s, a].argmax()), width)
            move = np.array([t[1] - x, t[0] - y])
            at = (x, y) + (np.array([0.5, 0.5]) if move[0] else np.array([0.82, 0.5]))
            if abs(move).sum() == 1 and cell != "G" and occupancy[s, a] > 0.005:
                at = at + 0.08 * move[::-1] * (1, -1)  # there and back, side by side
                axis.annotate("", at + 0.72 * move, at + 0.28 * move, zorder=3, arrowprops={
                    "arrowstyle": "-|>", "color": "#222222", "linewidth": 1 + 18 * occupancy[s, a],
                    "mutation_scale": 10 + 30 * occupancy[s, a], "shrinkA": 0, "shrinkB": 0})
    axis.set(xlim=(0, width), ylim=(len(rows), 0), aspect="equal")
    axis.axis("off")


def grid_story(path: Path, iterations: int = 40) -> None:
    """Exact runs of three rules on the hazard grid: from the uniform policy, delta = 0.01, beta = 0.75."""
    world = tabular_cmdp.hazard_grid("A")
    runs = {"TRPO": ("TRPO: risky, productive", COLOURS[1]),
            "C-TRPO": ("cost only: safe, useless", COLOURS[3]),  # what C-TRPO is without a budget
            "SB-TRPO": ("SB-TRPO: safe, productive", COLOURS[0])}
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, 6, height_ratios=(1, 1.5))
    curves = figure.add_subplot(grid[1, :3]), figure.add_subplot(grid[1, 3:])
    for i, (name, (title, colour)) in enumerate(runs.items()):
        thetas = exact_path(world, np.zeros(world.r.shape), name, "log", 0.75, iterations=iterations)
        values = np.array([[world.J(theta, f) for f in (world.r, world.c)] for theta in thetas])
        axis = figure.add_subplot(grid[0, 2 * i : 2 * i + 2])
        draw_grid(axis, world, thetas[-1])
        axis.set_title(title, color=colour, fontweight="bold", fontsize=13)
        axis.text(0.5, -0.03, f"reward {values[-1, 0]:.3f}, cost {abs(values[-1, 1]):.3f} per step",
                  transform=axis.transAxes, ha="center", va="top")
        for curve, line in zip(curves, values.T):
            curve.plot(line, color=colour, linewidth=2.5)
    for curve, text, best in zip(curves, ("reward", "cost"), (world.optimum().value, 0)):
        curve.axhline(best, color="#444444", linestyle="--", linewidth=1.2, zorder=1)
        curve.set(title=f"{text} per step", xlabel="update", xlim=(0, iterations))
    curves[0].text(0.99 * iterations, world.optimum().value + 0.003, "the best that is safe", ha="right")
    save(figure, path)


def noise(path: Path, source: Path = ROOT / "results" / "noise.json") -> None:
    """The noise scale of four policies and estimators: and the law against what batches gave."""
    results = json.loads(source.read_text())
    names = ("two states", "hazard grid", "Garnet", "hazard grid,\ncost is rare")
    estimators = {"mc": "no baseline", "time": "mean at equal time", "value": "exact value",
                  "gae": "critic"}
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    scales, errors, shares = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    for row, result in enumerate(results.values()):
        for k, (estimator, colour) in enumerate(zip(estimators, COLOURS)):
            style = {"marker": MARKERS[row], "linestyle": "", "color": colour}
            n_star, height = result[estimator]["cost"]["noise_scale"], row + 0.17 * (k - 1.5)
            fixed = result["fixed length"][estimator]["cost"]["noise_scale"]
            for scale in (result, result["fixed length"]):  # a standard error to either side
                scale = scale[estimator]["cost"]
                low, high = (scale["noise_scale"] + sign * scale["standard_error"] for sign in (-1, 1))
                scales.plot((low, high), (height, height), color=colour, linewidth=7, alpha=0.25, zorder=1)
            scales.plot(n_star, height, **style, markersize=8)
            scales.plot(fixed, height, **style, markersize=8, markerfacecolor="white", markeredgewidth=1.8)
            for n, batch in result[estimator]["batches"].items():
                errors.plot(int(n) / n_star, batch["cost_error"]["rms"], **style, markersize=6, alpha=0.8)
                shares.plot(int(n) / n_star, batch["cost_share"]["mean"], **style, markersize=6, alpha=0.8)
    x = np.geomspace(5e-4, 500, 200)
    errors.loglog(x, x**-0.5, color="#444444", zorder=1)
    shares.semilogx(x, (1 + 1 / x) ** -0.5, color="#444444", zorder=1)
    scales.set(xscale="log", yticks=range(4), yticklabels=names, ylim=(3.6, -0.6), xlim=(0.2, 9000),
               xlabel="episodes", title="Noise scale n* of the cost gradient")
    scales.grid(False, axis="y")
    errors.set(xlabel="n / n*", title="Error of n episodes")
    shares.set(xlabel="n / n*", title="Share of the best cost decrease", ylim=(0, 1.02))
    dot, grey = {"marker": "o", "linestyle": "", "markersize": 8}, "#444444"
    handles = [Line2D([], [], **dot, color=c, label=text) for text, c in zip(estimators.values(), COLOURS)]
    handles += [Line2D([], [], **dot, color=grey, label="ends at random"),
                Line2D([], [], **dot, color=grey, markerfacecolor="white", label="60 steps"),
                Line2D([], [], color=grey, label="law")]
    figure.legend(handles=handles, loc="outside lower center", ncols=7, columnspacing=1.2, handletextpad=0.4)
    save(figure, path)


def promise(path: Path, source: Path = ROOT / "results" / "promise.json") -> None:
    """What fresh episodes confirm of a step's promise: against n, the law, and what the log says."""
    results = json.loads(source.read_text())
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    one, law, logged = figure.subplots(1, 3)
    x = np.geomspace(1e-3, 30, 200)
    law.semilogx(x, 1 / (1 + 1 / x), color="#444444", zorder=1)
    logged.plot((0, 1), (0, 1), color="#444444", zorder=1)
    tasks, stages = {}, ("0", "80000", "400000", "800000")
    for name, result in results.items():
        algorithm, *task, steps = name.split("-")
        task = "-".join(task)
        colour = COLOURS[tasks.setdefault((algorithm, task), len(tasks))]
        style = {"marker": MARKERS[stages.index(steps)], "linestyle": "", "color": colour, "markersize": 5}
        scales = [scale for scale in result["noise_scale"] if scale is not None]
        for n, row in result["estimators"]["time"].items():
            if row["kept"] is None:
                continue
            ends = np.array(row["interval"], float)
            low, high = np.abs(ends - row["kept"])
            if (algorithm, task) == next(iter(tasks)):
                one.errorbar(int(n), row["kept"], [[low], [high]], **style, label=f"{int(steps):,} steps"
                             if n == "10" else None)
            if len(scales) == 2:
                law.errorbar(int(n) / np.mean(scales), row["kept"], [[low], [high]], **style, alpha=0.7)
            if "logged" in row:
                logged.plot(row["kept"], row["logged"]["median"], **style, alpha=0.7)
        if (algorithm, task) == next(iter(tasks)) and len(scales) == 2:
            n = np.geomspace(8, 600, 50)
            one.plot(n, 1 / (1 + np.mean(scales) / n), color=colour, linewidth=1, zorder=1)
    one.set(xscale="log", xlabel="episodes in the batch, n", title="Kept / promised, SB-TRPO, CarCircle2")
    one.legend(fontsize=9)
    law.set(xlabel="n / n*", title="All policies; the law", ylim=(-0.25, 1.05))
    logged.set(xlabel="kept", ylabel="Misc/kept, median of a batch", title="What the log says",
               xlim=(-0.25, 1.05), ylim=(-0.75, 1.05))
    names = {"sbtrpo": "SB-TRPO", "ctrpo": "C-TRPO", "strpo": "sTRPO"}
    handles = []
    for (algorithm, task), k in tasks.items():
        short = task.removeprefix("Safety").split("-v")[0].removesuffix("Velocity")
        handles.append(Line2D([], [], marker="o", linestyle="", color=COLOURS[k],
                              label=f"{names[algorithm]}, {short}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, handletextpad=0, columnspacing=0.8,
                  fontsize=10)
    save(figure, path)


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
    """Paths over all policies of the two-state world: flows and algorithms, from ten safe starts."""
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
    names = ["Train/TotalSteps", *(f"Metrics/{name}" for name in PANELS)]
    if Path(path).name != "progress.csv":
        sys.exit(f"{path} is not the progress.csv of a run.")
    try:
        rows = list(csv.DictReader(progress_of(Path(path).parent).splitlines()))
        columns = {name: np.array([float(row[name]) for row in rows]) for name in names}
    except (OSError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"{path} is not the progress.csv of a run ({type(error).__name__}: {error}).")
    if not rows:
        sys.exit(f"{path} has no epochs yet.")
    return columns


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


def two_numbers(text: str) -> list[float]:
    try:
        reward, probability = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} needs to be two numbers, as 7.5,0.99") from None
    return [reward, probability]


DRAWINGS = {"trust-regions": (trust_regions, "trust_regions.png"), "two-state": (two_state, "two_state.png"),
            "grid": (grid_story, "hazard_grid.png"), "table": (left_on_the_table, "left_on_the_table.png"),
            "noise": (noise, "noise.png"), "promise": (promise, "promise.png")}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("all", help="all of the following but the training curves")
    for name, (draw, path) in DRAWINGS.items():
        command = commands.add_parser(name, help=draw.__doc__.split(": ")[0])
        command.add_argument("path", nargs="?", type=Path, default=ROOT / "figures" / path)
    many = commands.add_parser("curves", help="training curves", allow_abbrev=False)
    many.add_argument("path", metavar="OUT.png", type=Path)
    many.add_argument("series", metavar="LABEL=GLOB", nargs="+")
    many.add_argument("--paper", metavar="SAFE_REWARD,PROBABILITY", type=two_numbers)
    many.add_argument("--window", type=float, help="of smoothing [steps]")
    many.add_argument("--title", default="")
    options = parser.parse_args(argv)
    if options.command == "curves" and options.window is not None and not options.window > 0:
        parser.error("--window must be positive")
    if options.command == "curves":
        curves(options.path, options.series, options.paper, options.window, options.title)
    elif options.command == "all":
        for draw, path in DRAWINGS.values():
            draw(ROOT / "figures" / path)
    else:
        DRAWINGS[options.command][0](options.path)


if __name__ == "__main__":
    main()
