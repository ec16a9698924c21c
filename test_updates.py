# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "tqdm==4.67.1", "scipy==1.15.3", "pytest==9.2.0",
#                 "pytest-xdist==3.8.0", "hypothesis==6.168.5", "distributed==2026.8.0", "rliable==1.2.0",
#                 "pandas==2.3.3", "dask-jobqueue==0.9.0", "tomli==2.5.0; python_version < '3.11'"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""The theorems behind the scripts, tested on what ships: name = statement, docstring = assumptions.

Here stand the statements on SB-TRPO's update and the headline statement of C-TRPO and of sTRPO; tests/ has
all others: networks, bounds, worlds, ctrpo, strpo, and what runs survive. `uv run test_updates.py` runs
everything (options are pytest's: `-k budget`, `-x`, ...), `pytest test_updates.py` this page. The summary
ends with one line per figure: the worst one met and the bound it had to keep. A figure is a guarantee or an
identity, a counterexample to a statement as printed (erratum), or a negative control: a case outside the
assumptions, where the guarantee visibly fails. Then comes the ledger (tests/conftest.py), a row for each
statement of the papers: which holds, and on what. Rows have names such as B2; a section and a docstring name
theirs. Long sweeps are skipped unless asked for: `-m slow` runs those alone, and `-m "slow or not slow"`
everything.

g is a gradient and x = F^-1 g its natural direction; q = g_r.x_r, r = g_r.x_c, s = g_c.x_c, and
rho = r / sqrt(q s). The greatest linear change that a trust region of radius delta allows is sqrt(2 delta q)
for the reward and sqrt(2 delta s) for the cost: steps are judged in those units, named in [brackets].
"""
import itertools
import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest
import strpo
from conftest import check, slow
from ctrpo import barrier_step
from problems import (
    BARRIERS, IDENTITY, bandit, barrier_training, both_barriers, cases, first_order, garnets,
    optimal_safety_biased_step, plane, problems, random_problem, safe_starts, units)
from sbtrpo import conjugate_gradients, convex_weights, safety_biased_step
from tabular_cmdp import hazard_grid, two_state


@pytest.fixture(scope="session", autouse=True)
def tables(pytestconfig):
    """The tables at the end, also where pytest is given this file alone, without tests/conftest.py."""
    conftest.pytest_configure(pytestconfig)


# -------------------------------------------------------------------- SB-TRPO: the update, in any metric (A1)


def test_mu_is_the_smallest_feasible_weight():
    """mu in closed form, against a search over 10,001 convex combinations; delta = .01, random SPD
    metrics."""
    rng, grid, worst, delta, tried = np.random.default_rng(0), np.linspace(0, 1, 10_001), 0.0, 0.01, 0
    for _ in range(300):
        _, (g_r, x_r, g_c, x_c) = random_problem(rng)
        beta = rng.uniform(0.05, 1)
        best_r, best_c, _ = units(g_r, x_r, g_c, x_c, delta)
        cost_r, cost_c = 2 * delta * (g_c @ x_r) / best_r, -best_c  # g_c.step_r, g_c.step_c
        feasible = (1 - grid) * cost_r + grid * cost_c <= beta * cost_c * (1 - 1e-12)
        _, info = safety_biased_step(g_r, x_r, g_c, x_c, delta, beta)
        worst, tried = max(worst, abs(grid[feasible][0] - info["mu"])), tried + 1
    check("mu = smallest feasible weight (grid of 1e-4)", worst, at_most=1.01e-4, supports="A1", cases=tried)


def test_step_keeps_its_share_of_the_best_cost_decrease():
    """g_c.step = -beta sqrt(2 delta s) if rho > -beta, and no more than that otherwise; g_c != 0. Both
    updates.

    Control: the reward step alone.
    """
    rng, equal, guarantee, control, delta = np.random.default_rng(1), 0.0, -1.0, -1.0, 0.01
    for _ in range(1000):
        _, vectors = random_problem(rng, rng.integers(2, 8))
        beta = rng.uniform(0.05, 1)
        _, best, rho = units(*vectors, delta)
        for update in (safety_biased_step, optimal_safety_biased_step):
            step, _ = update(*vectors, delta, beta)
            share = vectors[2] @ step / best
            guarantee = max(guarantee, share + beta)
            equal = max(equal, abs(share + beta)) if rho > -beta else equal
        step, _ = safety_biased_step(*vectors[:2], 0 * vectors[2], 0 * vectors[3], delta, beta)
        control = max(control, vectors[2] @ step / best + beta)
    check("cost decrease >= beta * best decrease, both updates [best decrease]", guarantee, at_most=IDENTITY)
    check("  with equality when rho > -beta", equal, at_most=IDENTITY)
    check("  control: the reward step alone misses it (by, largest)", control, at_least=1.0)


def test_predicted_changes_in_closed_form():
    """Reward (1 - beta - rho) sqrt(2 delta q), KL delta (1 - 2 (beta + rho)(1 - beta)/(1 + rho)) for rho >
    -beta, and k = sqrt((1 - beta^2)/(1 - rho^2)) of the optimum; predictions in `info` against dense
    algebra."""
    rng, delta, formula, dense = np.random.default_rng(2), 0.02, 0.0, 0.0
    for _ in range(1000):
        F, vectors = random_problem(rng)
        beta = rng.uniform(0.05, 1)
        best_r, best_c, rho = units(*vectors, delta)
        for update in (safety_biased_step, optimal_safety_biased_step):
            step, info = update(*vectors, delta, beta)
            reward, kl = vectors[0] @ step / best_r, step @ F @ step / 2 / delta
            dense = max(dense, abs(info["reward_change"] / best_r - reward), abs(info["kl"] / delta - kl),
                        abs(info["cost_change"] - vectors[2] @ step) / best_c, abs(info["rho"] - rho),
                        abs(info["cost_change"] / best_c - min(-beta, rho)),
                        abs(info["required"] / best_c - beta))
            if rho <= -beta:
                formula = max(formula, abs(reward - 1), abs(kl - 1))
            elif update is safety_biased_step:
                used = 1 - 2 * (beta + rho) * (1 - beta) / (1 + rho)
                formula = max(formula, abs(reward - (1 - beta - rho)), abs(kl - used))
            else:
                optimum = -beta * rho + math.sqrt((1 - beta**2) * (1 - rho**2))
                formula = max(formula, abs(reward - optimum), abs(kl - 1))
    check("reward and KL of both steps = closed forms [best change, delta]", formula, at_most=IDENTITY)
    check("predictions in info = dense algebra [best change, delta]", dense, at_most=IDENTITY)


def test_optimal_step_is_certified_by_its_dual():
    """max g_r.step subject to g_c.step <= -required, KL <= delta. Any nu >= 0 bounds the optimum from above
    by sqrt(2 delta |g_r - nu g_c|^2_{F^-1}) - nu required; the step is feasible and reaches the least such
    bound."""
    rng, gap, feasible, delta, tried = np.random.default_rng(3), 0.0, -1.0, 0.01, 0
    for _ in range(200):
        F, vectors = random_problem(rng)
        beta, (best_r, best_c, rho) = rng.uniform(0.05, 0.99), units(*vectors, delta)
        step, _ = optimal_safety_biased_step(*vectors, delta, beta)

        def bound(nu, rho=rho, beta=beta):  # in units of the best changes
            return math.sqrt(max(0.0, 1 - 2 * nu * rho + nu**2)) - nu * beta

        least = minimize_scalar(bound, bounds=(0, 300), method="bounded", options={"xatol": 1e-9}).fun
        gap = max(gap, abs(vectors[0] @ step / best_r - min(bound(0.0), least)))
        feasible = max(feasible, step @ F @ step / 2 / delta - 1, vectors[2] @ step / best_c + beta)
        tried += 1
    row = "A1 optimal"
    check("optimal step: duality gap [best reward change]", gap, at_most=1e-9, supports=row, cases=tried)
    check("optimal step: violation of KL or cost constraint [relative]", feasible, IDENTITY, supports=row)


def test_optimal_step_beats_the_convex_combination():
    """Same problem, larger feasible set: never less reward. At beta = .75 rewards in sqrt(2 delta q) of both,
    and the share of delta that the first uses, are those of an independent program."""
    table = {-0.5: (0.75, 0.948, 0.75), -0.25: (0.50, 0.828, 0.667), 0: (0.25, 0.661, 0.625),
             0.25: (0, 0.453, 0.60), 0.5: (-0.25, 0.198, 0.583)}
    worst, unit = 0.0, math.sqrt(2 * 0.01)
    for rho, known in table.items():
        _, convex = safety_biased_step(*plane(rho), 0.01, 0.75)
        _, optimal = optimal_safety_biased_step(*plane(rho), 0.01, 0.75)
        measured = convex["reward_change"] / unit, optimal["reward_change"] / unit, convex["kl"] / 0.01
        worst = max(worst, np.abs(np.subtract(measured, known)).max())
    check("table of both updates at beta = .75 (3 digits)", worst, at_most=5.1e-4)
    behind = 0.0
    for rho in np.linspace(-0.999, 0.999, 201):
        for beta in (0.1, 0.5, 0.75, 0.9, 1.0):
            gains = [update(*plane(rho), 0.01, beta)[1]["reward_change"] for update in
                     (safety_biased_step, optimal_safety_biased_step)]
            behind = max(behind, (gains[0] - gains[1]) / unit)
    check("optimal step earns no less than the convex combination [best change]", behind, at_most=IDENTITY)


@pytest.mark.parametrize("update", [safety_biased_step, optimal_safety_biased_step])
def test_every_degenerate_row_is_finite(update):
    """Zero gradients, parallel, antiparallel, beta = 1; in the plane, delta = .01. No warning on the way."""
    e, zero, beta = np.array([1.0, 0]), np.zeros(2), 0.75
    unit, convex = math.sqrt(0.02), update is safety_biased_step
    rows = [("g_c = 0: the reward step", (e, e, zero, zero, 0.01, beta), unit * e),
            ("g_r = 0: the cost step", (zero, zero, e, e, 0.01, beta), -unit * e),
            ("both 0: stay", (zero, zero, zero, zero, 0.01, beta), zero),
            ("rho = 1: beta * the cost step", (e, e, e, e, 0.01, beta), -beta * unit * e),
            ("rho = -1: the reward step", (e, e, -e, -e, 0.01, beta), unit * e),
            ("rho = -1, beta = 1 (0/0): the reward step", (e, e, -e, -e, 0.01, 1.0), unit * e),
            ("beta = 1: the cost step", (*plane(0.3), 0.01, 1.0), -unit * plane(0.3)[2])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no division by zero on the way
        for name, arguments, expected in rows:
            check(f"degenerate, {'convex' if convex else 'optimal'}, {name}",
                  np.abs(update(*arguments)[0] - expected).max(), at_most=IDENTITY)


def test_the_promise_to_cost_survives_rough_solves():
    """Directions after one iteration of conjugate gradients, in three dimensions: the cosine of the two steps
    is none any more, up to 32, and the promise to cost is kept for all that, if not the KL; with a budget,
    too, within which the cost may rise by 1 to 6 best decreases. Control: clipped to [-1, 1], where it is for
    exact solves, the promise would not be kept."""
    rng, worst, clipped, largest = np.random.default_rng(5), 0.0, 0.0, 0.0
    for _ in range(2000):
        F, g_r, g_c = np.diag(10.0 ** rng.uniform(-3, 3, 3)), *rng.normal(size=(2, 3))
        x_r, x_c = (conjugate_gradients(F.dot, g, 1)[0] for g in (g_r, g_c))
        left = rng.uniform(1, 6) * math.sqrt(0.02 * (g_c @ x_c))
        for update, excess in itertools.product(("convex", "optimal"), (-left, None)):
            step, info = safety_biased_step(g_r, x_r, g_c, x_c, 0.01, 0.75, excess, update)
            worst = max(worst, (float(g_c @ step) + info["required"]) / info["best_cost"])
        largest = max(largest, abs(info["rho"]))
        weight, mu = convex_weights(float(np.clip(info["rho"], -1, 1)), 0.75)
        clipped = max(clipped, weight * info["rho"] - mu + 0.75)
    check("rough solves: cost beyond the promise [best decrease]", worst, at_most=IDENTITY)
    check("rough solves: largest cosine of the steps", largest, at_least=10)
    check("rough solves: cost beyond the promise if the cosine were clipped", clipped, at_least=1)


def test_the_other_two_steps_survive_rough_solves():
    """The same. sTRPO meets a demand of -3 to .99 of the best. Of C-TRPO's step the cost change is the one
    of (5), keep rho / sqrt(1 - rho^2 + keep rho^2), with 1 - rho^2 as step and cosine say. Control: with
    a cosine that is clipped to [-1, 1] sTRPO misses half of the best, by more than the best."""
    rng, missed, cost, clipped, largest = np.random.default_rng(5), 0.0, 0.0, 0.0, 0.0
    for _ in range(2000):
        F, g, phi = np.diag(10.0 ** rng.uniform(-3, 3, 3)), *rng.normal(size=(2, 3))
        x, y = (conjugate_gradients(F.dot, each, 1)[0] for each in (g, phi))
        (step_g, per_best_g), (step_phi, per_best_phi) = (
            strpo.steepest_step(*pair, 0.01) for pair in ((g, x), (phi, y)))
        rho, best = per_best_phi @ step_g, float(phi @ step_phi)
        for fraction in (0.5, rng.uniform(-3, 0.99)):
            step, info = strpo.exclusion_step(g, x, phi, y, 0.01, fraction * best)
            missed = max(missed, fraction - phi @ step / best)
        largest = max(largest, abs(info["rho"]))
        cut = np.clip(rho, -1, 1)
        sine2 = (per_best_g - cut * per_best_phi) @ (step_g - cut * step_phi)
        k, mu = strpo.optimal_weights(cut, 0.5, sine2)
        clipped = max(clipped, 0.5 - (k * rho + mu))
        step, info = barrier_step(g, x, phi, y, 0.01, 0.1, 10.0 ** rng.uniform(-3, 3) * best)
        sine2 = (per_best_g - rho * per_best_phi) @ (step_g - rho * step_phi)
        if sine2 > 1e-12:
            expected = info["keep"] * rho / math.sqrt(sine2 + info["keep"] * rho**2)
            cost = max(cost, abs(phi @ step / best - expected))
    check("rough solves, sTRPO: demand missed [best]", missed, at_most=1e-12)
    check("rough solves, sTRPO and C-TRPO: largest cosine", largest, at_least=10)
    check("rough solves, C-TRPO: cost change - that of (5) [best]", cost, at_most=1e-12)
    check("  control: demand of .5 missed if the cosine were clipped [best]", clipped, at_least=1)


def test_full_bias_and_orthogonal_gradients_gain_nothing():
    """C1: q = s = 1, rho = 0, beta = 1 gives mu = 1 and gain exactly 0, so 'reward rises if g_r != 0 and
    g_r.step_c >= 0' needs beta < 1. The corrected rule, rho < 1 - beta, is silent there."""
    _, info = safety_biased_step(*plane(0.0), 0.01, 1.0)
    check("erratum: beta = 1, rho = 0 has mu = 1 ...", abs(info["mu"] - 1), at_most=IDENTITY)
    check("erratum: reward gained to first order", abs(info["reward_change"]), at_most=IDENTITY,
          refutes="C1 printed", cases=1)
    _, info = safety_biased_step(*plane(0.0), 0.01, 0.9)
    check("  control: beta = .9 gains", info["reward_change"], at_least=0.01)


@slow
def test_share_of_reward_that_the_convex_combination_leaves():
    """Random isotropic gradients: mean reward of the convex combination over that of the optimum. An
    independent program gave the ratios, to two digits."""
    rng, worst = np.random.default_rng(4), 0.0
    known = {0.6: (0.59, 0.53, 0.50), 0.75: (0.48, 0.40, 0.38), 0.9: (0.34, 0.25, 0.23)}
    for beta, ratios in known.items():
        for n, ratio in zip((2, 10, 75), ratios, strict=True):
            gains = np.zeros(2)
            for g_r, g_c in rng.normal(size=(10_000, 2, n)):
                for k, update in enumerate((safety_biased_step, optimal_safety_biased_step)):
                    _, info = update(g_r, g_r, g_c, g_c, 0.01, beta)
                    gains[k] += info["reward_change"] / np.linalg.norm(g_r)
            worst = max(worst, abs(gains[0] / gains[1] - ratio))
    check("share of the optimum's mean reward, random directions (2 digits)", worst, at_most=0.015)


def test_a_budget_far_away_leaves_the_reward_step():
    """Ten best decreases inside the budget, both updates, exact and rough solves: the step is step_r, unless
    its own cost is more than that."""
    rng, worst, tried = np.random.default_rng(6), 0.0, 0
    for iterations in np.repeat([1, 3], 1000):
        F, g_r, g_c = np.diag(10.0 ** rng.uniform(-3, 3, 3)), *rng.normal(size=(2, 3))
        x_r, x_c = (conjugate_gradients(F.dot, g, iterations)[0] for g in (g_r, g_c))
        step_r, best = strpo.steepest_step(g_r, x_r, 0.01)[0], math.sqrt(0.02 * (g_c @ x_c))
        if g_c @ step_r < 9.9 * best:
            for update in ("convex", "optimal"):
                step, _ = safety_biased_step(g_r, x_r, g_c, x_c, 0.01, 0.75, -10 * best, update)
                worst, tried = max(worst, np.abs(step / step_r - 1).max()), tried + 1
    check("budget far away: step - step_r [relative]", worst, at_most=IDENTITY)
    check("  steps with the budget far away", tried, at_least=3000)


# -------------------------------------------------------------------------- hypothesis: any metric, any scale


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(problems(), st.floats(0.01, 1.0), st.sampled_from([1e-4, 0.01, 0.5]))
def test_every_metric_and_scale_keeps_the_guarantees(problem, beta, delta):
    """Gradients from 1e-300 to 1e150, parallel, antiparallel and nearly so: finite, KL <= delta, share of the
    cost."""
    F, g_r, x_r, g_c, x_c, scale_r, scale_c = problem
    best = math.sqrt(2 * delta * (g_c @ x_c))
    for update in (safety_biased_step, optimal_safety_biased_step):
        name = "convex" if update is safety_biased_step else "optimal"
        step, info = update(scale_r * g_r, scale_r * x_r, scale_c * g_c, scale_c * x_c, delta, beta)
        assert np.all(np.isfinite(step)) and np.isfinite([info["kl"], info["reward_change"]]).all()
        check(f"any metric and scale, {name}: KL / delta - 1", step @ F @ step / 2 / delta - 1, at_most=1e-9)
        check(f"any metric and scale, {name}: cost share missed", g_c @ step / best + beta, at_most=1e-9)
        check(f"any metric and scale, {name}: |predicted KL - dense KL| [delta]",
              abs(info["kl"] - step @ F @ step / 2) / delta, at_most=1e-9)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(problems(), st.floats(0.01, 1.0), st.floats(-3.0, 3.0))
def test_budget_is_honoured_to_first_order(problem, beta, excess):
    """g_c.step <= -min(beta * best decrease, excess), `excess` = J_c - b here in units of the best decrease;
    negative inside the budget, where the cost may rise by the margin at most. What is asked for is 2% of the
    best more than `excess`, if that is less than beta; the step does that, or what step_r does, if that is
    less cost."""
    F, g_r, x_r, g_c, x_c, _, _ = problem
    delta = 0.01
    best = math.sqrt(2 * delta * (g_c @ x_c))
    for update in (safety_biased_step, optimal_safety_biased_step):
        step, info = update(g_r, x_r, g_c, x_c, delta, beta, excess * best)
        check("budget: cost change <= -min(beta best, J_c - b) [best decrease]",
              g_c @ step / best + min(beta, excess), at_most=1e-9)
        check("budget: |required - min(J_c - b + 2%, beta)| [best decrease]",
              abs(info["required"] / best - min(excess + 0.02, beta)), at_most=1e-9)
        check("budget: cost change <= -required [best decrease]",
              (g_c @ step + info["required"]) / best, at_most=1e-9)
        check("budget: |cost change - min(-required, rho)| [best decrease]",
              abs(g_c @ step / best - min(-info["required"] / best, info["rho"])), at_most=1e-9)
        check("budget: KL / delta - 1", step @ F @ step / 2 / delta - 1, at_most=1e-9)


# ------------------------------ SB-TRPO: what an update does to cost and reward, on exact worlds (B2, B3, C1)


def test_cost_falls_wherever_its_gradient_is_not_zero():
    """Theorem 4.2(1): g_c != 0, random policies of 300 Garnets. The small step proves the first-order claim;
    the full step at delta = .01 is measured. Controls: the reward step alone, where rho > .01; the full step
    towards an action of probability 1e-5 that earns and costs 1, which the small step hardly sees."""
    small, full, control, tried, controls = -np.inf, -np.inf, np.inf, 0, 0
    for world, theta in cases(300)[3:]:
        vectors = first_order(world, theta)
        cost, (_, best, rho) = world.J(theta, world.c), units(*vectors, 0.01)
        for update in (safety_biased_step, optimal_safety_biased_step):
            step = update(*vectors, 0.01, 0.75)[0].reshape(theta.shape)
            small = max(small, (world.J(theta + 1e-4 * step, world.c) - cost) / (1e-4 * best))
            full, tried = max(full, (world.J(theta + step, world.c) - cost) / best), tried + 1
        if rho > 0.01:
            step = safety_biased_step(*vectors[:2], 0 * vectors[2], 0 * vectors[3], 0.01, 0.75)[0]
            moved = theta + 1e-4 * step.reshape(theta.shape)
            control = min(control, (world.J(moved, world.c) - cost) / (1e-4 * best))
            controls += 1
    check("cost change of 1e-4 of a step, 300 Garnets [best decrease]", small, at_most=-0.74, supports="B2",
          cases=tried)
    check("cost change of a full step, 300 Garnets [best decrease]", full, at_most=-0.1, supports="B2")
    check("  control: the reward step raises cost when rho > .01 (least)", control, at_least=0.009)
    world, theta = bandit((0, 0, 1), (1, 0, 1)), np.log([[0.5, 0.5 - 1e-5, 1e-5]])
    vectors = first_order(world, theta)
    moved = theta + safety_biased_step(*vectors, 0.01, 0.75)[0]
    rise = (world.J(moved, world.c) - world.J(theta, world.c)) / units(*vectors, 0.01)[1]
    check("  control: a rare action: cost change of a full step [best decrease]", rise, at_least=1)
    check("  policies with rho > .01", controls, at_least=30)


def test_reward_rises_iff_rho_is_below_one_minus_beta():
    """Theorem 4.2(2) in its sharp form: sign of the exact reward change of a small step, cases with
    |rho - (1 - beta)| > .01; 300 Garnets, three beta."""
    wrong, rising, falling = 0, 0, 0
    for i, (world, theta) in enumerate(cases(300)[3:]):
        vectors, beta = first_order(world, theta), (0.5, 0.75, 0.9)[i % 3]
        margin = 1 - beta - units(*vectors, 0.01)[2]
        if abs(margin) > 0.01:
            step = safety_biased_step(*vectors, 0.01, beta)[0].reshape(theta.shape)
            change = world.J(theta + 1e-4 * step, world.r) - world.J(theta, world.r)
            wrong += (change > 0) != (margin > 0)
            rising, falling = rising + (margin > 0), falling + (margin < 0)
    check("reward rises iff rho < 1 - beta: exceptions", wrong, at_most=0, supports="C1 corrected",
          cases=rising + falling)
    check("  cases where it rises", rising, at_least=30)
    check("  cases where it falls", falling, at_least=30)


def test_aligned_gradients_raise_reward():
    """Theorem 4.2(2) as stated: g_r != 0 and g_r.step_c >= 0 (rho <= 0), beta < 1; 300 Garnets, exact small
    step. Control: where rho > 1 - beta, the reward falls."""
    worst, met, control, controls = np.inf, 0, -np.inf, 0
    for world, theta in cases(300)[3:]:
        vectors = first_order(world, theta)
        best, _, rho = units(*vectors, 0.01)
        step = safety_biased_step(*vectors, 0.01, 0.75)[0].reshape(theta.shape)
        gain = (world.J(theta + 1e-4 * step, world.r) - world.J(theta, world.r)) / (1e-4 * best)
        if rho <= 0:
            worst, met = min(worst, gain), met + 1
        elif rho > 0.26:
            control, controls = max(control, gain), controls + 1
    check("reward gain when rho <= 0, beta = .75 [best gain], at least 1 - beta", worst, at_least=0.249,
          supports="B3", cases=met)
    check("  policies with rho <= 0", met, at_least=30)
    check("  control: reward gain where rho > .26 [best gain] (largest)", control, at_most=-0.005)
    check("  policies with rho > .26", controls, at_least=30)


# ---------------------------------------------------------- C-TRPO: the step, and that it stays safe (A2, B8)


def dense_barrier_step(F, g_r, u, weight: float, delta: float) -> np.ndarray:
    """sqrt(2 delta / g_r.y) y, where H y = g_r and H = F + weight u u^T, by elimination in [[F, u], [u, -1 /
    weight]], which is as well conditioned for an infinite weight as for any."""
    K = np.block([[F, u[:, None]], [u[None, :], -np.full((1, 1), 1 / max(weight, 1e-30))]])
    y = np.linalg.solve(K, np.append(g_r, 0.0))[:-1]
    return math.sqrt(2 * delta / (g_r @ y)) * y


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(problems(), st.sampled_from([1e-3, 0.1, 10.0]), st.sampled_from([1e-4, 0.01, 0.5]),
       st.sampled_from(list(BARRIERS)), st.sampled_from([None, -12, -8, -4, -2, -1, 0, 1, 2, 4]))
def test_barrier_step_is_the_natural_step_of_the_dense_hessian(problem, beta, delta, barrier, share):
    """H = F + beta phi''(m) g_c g_c^T; gradients from 1e-300 to 1e150; margins 10^share times the best cost
    decrease, or 1e-300. Errors in the Fisher norm, units of the radius, times the sine between the gradients,
    the problem's conditioning. Gradients with a sine below 1e-6 count as parallel: a shorter reward step."""
    F, g_r, x_r, g_c, x_c, scale_r, scale_c = problem
    radius, size, s = math.sqrt(2 * delta), np.linalg.norm(g_c), g_c @ x_c
    margin = 1e-300 if share is None else 10.0**share * scale_c * radius * math.sqrt(s)
    power = 2 if barrier == "log" else 1
    log10_weight = math.log10(beta) + 2 * math.log10(scale_c * size) - power * math.log10(margin)
    weight, u = 10.0 ** np.clip(log10_weight, -300, 300), g_c / size
    step, info = barrier_step(scale_r * g_r, scale_r * x_r, scale_c * g_c, scale_c * x_c,
                              delta, beta, margin, barrier)
    assert np.all(np.isfinite(step)) and 0 <= info["keep"] <= 1
    kl, cost, best = step @ F @ step / 2, u @ step, radius * math.sqrt(s) / size
    across = g_r - (g_r @ x_c) / s * g_c
    sine = math.sqrt(max(0.0, across @ np.linalg.solve(F, across)) / (g_r @ x_r))
    conditioning = sine if sine > 5e-7 else 1.0
    check("any metric, scale, margin: (KL / delta - 1) sine", (kl / delta - 1) * conditioning, at_most=1e-10)
    check("any metric, scale, margin: |predicted KL - dense KL| [delta / sine]",
          abs(info["kl"] - kl) / delta * conditioning, at_most=1e-10, supports="A2", cases=1)
    if weight * best**2 < 1e10:  # else rounding of u.step is all that is left of the barrier's part
        error = abs(kl + weight * cost**2 / 2 - delta) / delta
        check("any metric, scale, margin: |dense divergence / delta - 1| [1 / sine]",
              error * conditioning, at_most=1e-9)
    if sine > 2e-6:
        error = (step - dense_barrier_step(F, g_r, u, weight, delta)) * sine
        name, bound = "closed form - dense solve [radius / sine]", 1e-9
    elif sine < 5e-7:
        error = step - radius / math.sqrt((g_r @ x_r) * (1 + weight * s / size**2)) * x_r
        name, bound = "parallel: step - shorter reward step [radius]", 1e-6
    else:  # about 1e-6 rounding decides which of the two it is
        return
    check(f"any metric, scale, margin: {name}", math.sqrt(error @ F @ error) / radius, bound, supports="A2")


@both_barriers
def test_exact_divergence_never_leaves_the_safe_set(barrier):
    """Whole runs, delta = .1, beta = .1, which is below 2 delta: two states from safe starts, the
    grid and 4 Garnets from wherever recovery first ends. An infinite divergence keeps them inside
    by construction; what can fail is rounding, and that they get ahead: each closes half of the gap
    to the optimum. Controls: the surrogate divergence, and Psi left out, leave the safe set."""
    runs = [(two_state(), theta) for theta in safe_starts(4)]
    runs += [(world, None) for world in (replace(hazard_grid("A"), limit=0.1), *garnets(4))]
    over, steps, closed = {True: -np.inf, False: -np.inf, None: -np.inf}, 0, np.inf
    for (world, theta), exact in itertools.product(runs, over):
        path = barrier_training(world, barrier, 0.1, 20, theta, 0.1, exact=exact)[1]
        assert path[:, 1].min() < 0.8 * world.limit  # else there is nothing to judge
        inside = path[np.argmax(path[:, 1] < 0.8 * world.limit):]
        over[exact] = max(over[exact], inside[:, 1].max() - world.limit)
        if exact:
            gap = world.optimum().value - inside[[0, -1], 0]
            closed, steps = min(closed, 1 - gap[1] / gap[0]), steps + len(inside) - 1
    check("exact divergence: J_c - b in whole runs", over[True], 1e-12, supports="B8", cases=steps)
    check("exact divergence: share of the gap to the optimum that a run closes", closed,
          at_least=0.5, supports="B8")
    for name, exact in (("surrogate divergence", False), ("Psi left out", None)):
        check(f"  control: {name}, {barrier}: J_c - b [delta]", over[exact] / 0.1, at_least=0.1)


# -------------------------------------------------------------------- sTRPO: the step, and Theorem 1(i) (B15)


def test_theorem_1_i_the_step_keeps_the_trust_region():
    """s.F s / 2 = delta for the paper's step with any lambda_2, random metrics; g + lambda_2 phi != 0.
    Control: G itself, not scaled by alpha."""
    rng, worst, control, tried = np.random.default_rng(31), 0.0, 0.0, 0
    for _ in range(1000):
        F, vectors = random_problem(rng)
        lambda_2 = 10 ** rng.uniform(-3, 2)
        step, _ = strpo.fixed_step(*vectors, 0.01, 0.01, lambda_2)
        G = vectors[1] + lambda_2 * vectors[3]
        worst, tried = max(worst, abs(step @ F @ step / 0.02 - 1)), tried + 1
        control = max(control, G @ F @ G / 0.02)
    check("sTRPO, Theorem 1(i): |KL / delta - 1|", worst, at_most=1e-9, supports="B15", cases=tried)
    check("  control: without the step size [delta]", control, at_least=10)


def kkt_errors(F, vectors, delta: float, demand: float, step, info, scales) -> tuple:
    """Beyond delta; beyond the demand, as far as possible; stationarity; and the duality gap: any lambda_2
    bounds g.s by sqrt(2 delta) |g + lambda_2 phi|_{F^-1} - lambda_2 demand, whose least value is g.s. Units:
    delta, best changes, |g|_{F^-1}; gradients of order 1, `scales` are theirs in `info`."""
    g, x, phi, y = vectors
    best_g, best_phi = math.sqrt(2 * delta * (g @ x)), math.sqrt(2 * delta * (phi @ y))
    beyond = step @ F @ step / 2 / delta - 1, (min(demand, best_phi) - phi @ step) / best_phi
    if demand >= best_phi or not 1e-290 < scales[0] / scales[1] < 1e290:  # none; or lambda_2 is no number
        return *beyond, 0.0, 0.0
    lambda_1, lambda_2 = info["lambda_1"] / scales[0], info["lambda_2"] / scales[0] * scales[1]
    residual = g - lambda_1 * F @ step + lambda_2 * phi
    total = (g + lambda_2 * phi) @ (x + lambda_2 * y)
    bound = math.sqrt(2 * delta * max(0.0, total)) - lambda_2 * demand
    return *beyond, math.sqrt(residual @ np.linalg.solve(F, residual) / (g @ x)), (bound - g @ step) / best_g


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(problems(), st.floats(-1.5, 1.5), st.sampled_from([1e-4, 0.01, 0.5]))
def test_exclusion_step_solves_its_problem_in_every_metric_and_scale(problem, f, delta):
    """KKT conditions and duality gap of Eq. 8, delta_2 = f times the best change; gradients from 1e-300 to
    1e150, parallel, antiparallel and nearly so: a sine below 1e-6 counts as parallel, and costs as much."""
    F, g, x, phi, y, *scales = problem
    (a, b), demand = scales, f * math.sqrt(2 * delta * (phi @ y))
    step, info = strpo.exclusion_step(a * g, a * x, b * phi, b * y, delta, b * demand)
    assert np.isfinite(step).all() and min(info["lambda_1"], info["lambda_2"]) >= 0
    assert info["feasible"] == (f <= 1) or abs(f - 1) < 1e-12  # there rounding decides
    kl, short, residual, gap = kkt_errors(F, (g, x, phi, y), delta, demand, step, info, scales)
    sine = math.sqrt(max(0.0, 1 - (g @ y) ** 2 / ((g @ x) * (phi @ y))))
    tolerance = 1e-7 if sine > 1e-4 else 1e-5
    name = "sTRPO, any metric and scale" + ("" if sine > 1e-4 else ", sine < 1e-4")
    check(f"{name}: KL / delta - 1", kl, at_most=tolerance)
    check(f"{name}: exclusion missed [best]", short, at_most=1e-9)
    check(f"{name}: predicted KL - dense KL [delta]", abs(info["kl"] / delta - 1 - kl), at_most=tolerance)
    check(f"{name}: duality gap [best gain]", abs(gap), at_most=tolerance)
    if not abs(residual) <= tolerance:  # multipliers of nearly parallel problems grow without bound
        assert sine <= 1e-4
    elif sine > 1e-4:
        check(f"{name}: stationarity [|g|]", residual, at_most=tolerance)


def main() -> int:
    """Runs pytest on this file and on all of tests/: everything in two processes, each file in one of them.
    With options, which are pytest's, in one process."""
    options = ["-q", "-p", "no:cacheprovider",
               "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # this file has imported hypothesis already
    options += sys.argv[1:] or ["-n", "2", "--dist", "loadfile"]
    return pytest.main([__file__, str(ROOT / "tests"), *options])


if __name__ == "__main__":
    sys.exit(main())
