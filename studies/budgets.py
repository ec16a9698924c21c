# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""With a budget, SB-TRPO's optimal step finds the optimum about as often as C-TRPO and more often than CPO,
but exceeds the budget on the way: results/budgets.json, by `uv run studies/budgets.py`.

That is on exact worlds; no run with sampled gradients says it. Shipped steps and line searches on exact
gradients and surrogates, delta = .01, 200 iterations, from safe policies and from the uniform one, which need
not be: the two-state world and the first 20 Garnets, none left out. Safe starts are theta ~ N(0, 1) with half
the budget or less (two states), and where cost steps from the uniform policy have come half the way from the
budget to the least cost (Garnets). It prints a table, too:

reached     runs that come within 1e-3 of the linear program's value at J_c < b + 1e-3, if they stay or not
iterations  until then, median of the runs that do
gap         to the value of the linear program after all iterations, median and largest; negative beyond b
violation   largest J_c - b from J_c <= b on (if never met: at the end), and in how many runs it exceeds 1e-6
"""

import argparse, functools, json, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import numpy as np

import ctrpo
import sbtrpo
from tabular_cmdp import TabularCMDP, cpo_step, garnet, log_policy, policy, trpo_step, two_state

DELTA, ITERATIONS, HYSTERESIS = 0.01, 200, 0.8
RULES = {f"SB-TRPO, {update}": functools.partial(sbtrpo.safety_biased_step, update=update)
         for update in ("convex", "optimal")}
BARRIERS = {"C-TRPO, −log x, β = 0.1": ("log", 0.1), "C-TRPO, x log x, β = 1": ("xlogx", 1.0)}
UPDATES = [*RULES, *BARRIERS, "CPO", "TRPO, no budget"]


def first_order(world: TabularCMDP, theta: np.ndarray) -> list[np.ndarray]:
    """g_r, x_r, g_c, x_c, flat. A gradient whose best step changes its objective by less than 1e-8 of the
    largest reward or cost is rounding, and counts as zero."""
    vectors = []
    for f in (world.r, world.c):
        g, x = world.gradient(theta, f).ravel(), world.natural_direction(theta, f).ravel()
        significant = 2 * DELTA * (g @ x) > (1e-8 * np.abs(f).max()) ** 2
        vectors += [g * significant, x * significant]
    return vectors


def take_step(world: TabularCMDP, old: np.ndarray, update: str, margin: float) -> np.ndarray:
    """One update at b - J_c = margin [normalised cost of a step]; C-TRPO's is 0 in recovery."""
    vectors = first_order(world, old)
    barrier, beta = BARRIERS.get(update, ("", 0.0))
    if update in RULES:
        step, _ = RULES[update](*vectors, DELTA, 0.75, -margin)
    elif barrier:
        step, _ = ctrpo.barrier_step(*vectors, DELTA, beta, margin, barrier, recovery=not margin)
    else:
        step, _ = cpo_step(*vectors, DELTA, -margin) if update == "CPO" else trpo_step(*vectors, DELTA)
    allowed = np.inf if "TRPO, no" in update else max(0.0, margin) + 1e-12
    d, *advantages = world.state_occupancy(old)[:, None], world.advantage(old, world.r), world.advantage(
        old, world.c)

    def judge(new):
        divergence = np.sum(d * policy(old) * (log_policy(old) - log_policy(new)))
        reward, cost = (np.sum(d * policy(new) * A) for A in advantages)  # the surrogates
        if barrier and margin:
            divergence += beta * ctrpo.barrier_divergence(cost, margin, barrier)
        worse = reward < -1e-14 if barrier and margin else cost > allowed
        return "divergence" if not divergence <= DELTA else "surrogate" if worse else "", {}

    return sbtrpo.line_search(judge, old, step.reshape(old.shape))[0]


def train(world: TabularCMDP, theta: np.ndarray, update: str) -> np.ndarray:
    """Rows (J_r, J_c) of all iterations."""
    path, recovery = [(world.J(theta, world.r), world.J(theta, world.c))], update in BARRIERS
    for _ in range(ITERATIONS):
        recovery = update in BARRIERS and path[-1][1] >= world.limit * (HYSTERESIS if recovery else 1)
        theta = take_step(world, theta, update, 0.0 if recovery else world.limit - path[-1][1])
        path.append((world.J(theta, world.r), world.J(theta, world.c)))
    return np.array(path)


def cheap_policy(world: TabularCMDP) -> np.ndarray:
    """Recovery steps from the uniform policy, half the way from the budget to the least cost."""
    theta, least = np.zeros(world.r.shape), world.optimum(np.inf, -world.c).cost
    while world.J(theta, world.c) > (world.limit + least) / 2:
        theta = take_step(world, theta, [*BARRIERS][0], 0.0)
    return theta


def problems() -> dict:
    """{name: [(world, start)]}."""
    small, draws = two_state(), np.random.default_rng(23).normal(size=(200, 2, 2))
    safe = [theta for theta in draws if small.J(theta, small.c) < small.limit / 2][:10]
    garnets = [garnet(seed) for seed in range(20)]
    return {"two states, safe": [(small, theta) for theta in safe],
            "two states, uniform": [(small, np.zeros((2, 2)))],
            "Garnets, safe": [(world, cheap_policy(world)) for world in garnets],
            "Garnets, uniform": [(world, np.zeros(world.r.shape)) for world in garnets]}


def summary(runs: list) -> dict:
    """The columns of the table, from (world, path) of each run."""
    reached, gaps, over = [], [], []
    for world, path in runs:
        value, (reward, cost) = world.optimum().value, path.T
        hits, inside = (reward > value - 1e-3) & (cost < world.limit + 1e-3), cost <= world.limit
        reached += [hits.argmax()] if hits.any() else []
        gaps.append(value - reward[-1])
        over.append(cost[inside.argmax() if inside.any() else -1:].max() - world.limit)
    figures = {"gap_median": np.median(gaps), "gap_largest": max(gaps), "violation": max(over)}
    return {"runs": len(runs), "reached": len(reached), "violating": sum(bool(each > 1e-6) for each in over),
            "iterations": float(np.median(reached)) if reached else None,
            **{name: float(f"{value:.1e}") for name, value in figures.items()}}


def number(value: float) -> str:
    """Two digits, and a minus sign as in print."""
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def table(results: dict) -> str:
    """Markdown, a line for each world, start and update."""
    lines = ["| world, start | update | reached | iterations | gap: median, largest | violation, runs |",
             "|---|---|---|---|---|---|"]
    for name, updates in results.items():
        for update, x in updates.items():
            iterations = "–" if x["iterations"] is None else f"{x['iterations']:g}"
            gap, largest, over = (number(x[key]) for key in ("gap_median", "gap_largest", "violation"))
            cells = [name, update, f"{x['reached']} of {x['runs']}", iterations, f"{gap}, {largest}",
                     f"{over}, {x['violating']}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0]).parse_args(argv)
    results = {name: {update: summary([(world, train(world, theta, update)) for world, theta in starts])
                      for update in UPDATES} for name, starts in problems().items()}
    (ROOT / "results" / "budgets.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
