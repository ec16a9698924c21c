"""Several costs, each with its budget: C-TRPO's step, its flow, recovery; the sum where budgets are zero
(A4).

The costs of a step are g_1, ..., g_m; R is the matrix of cosines of (g_r, g_1, ..., g_m) in the F^-1 metric,
and `sine` the square root of its least eigenvalue: 0 if the gradients are dependent."""
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from conftest import check
from problems import (
    IDENTITY, LP, barriers_training, both_barriers, dot, garnets, random_problem, reached,
    train_exactly, units)

import strpo
from ctrpo import barrier_step, conjugate_gradients, several_barriers_step
from sbtrpo import safety_biased_step
from tabular_cmdp import corridor

# ----------------------------------------------------------------------------------------- the step (A4 step)


def random_gradients(rng, kind: str) -> tuple:
    """(F, V, X): metric of condition <= 1e4, gradients (1 + m, n) of reward and 2 to 4 costs, and F^-1 of
    them. By kind two costs, or the reward and all costs, are nearly dependent, or exactly; or one gradient is
    0."""
    m = int(rng.integers(2, 5))
    n = m + int(rng.integers(1, 5))
    Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    F = Q @ np.diag(10.0 ** rng.uniform(-2, 2, n)) @ Q.T
    V, alike = rng.normal(size=(1 + m, n)), 10.0 ** rng.integers(-8, 0)
    if kind == "two costs alike":
        V[2] = V[1] + alike * V[2]
    elif kind == "reward among the costs":
        V[0] = rng.normal(size=m) @ V[1:] + alike * V[0]
    elif kind == "two costs equal":
        V[2] = 3 * V[1]
    elif kind == "a cost that no action changes":
        V[1] = 0
    V *= 10.0 ** rng.uniform(-3, 3, size=(1 + m, 1))  # units of their own
    return F, V, np.linalg.solve(F, V.T).T


def dense_step(F, g_r, G, weights, delta: float) -> np.ndarray:
    """sqrt(2 delta / g_r.y) y, where (F + sum_i w_i g_i g_i^T) y = g_r, by elimination in [[F, G^T], [G, -1 /
    w]], of weights above 0, which is as well conditioned for large weights as for small ones."""
    G, weights = G[weights > 0], weights[weights > 0]
    size = np.linalg.norm(G, axis=1, keepdims=True) + (np.linalg.norm(G, axis=1, keepdims=True) == 0)
    U, weights = G / size, weights * size[:, 0] ** 2
    K = np.block([[F, U.T], [U, -np.diag(1 / weights)]])
    y = np.linalg.solve(K, np.append(g_r, np.zeros(len(U))))[: len(g_r)]
    return math.sqrt(2 * delta / (g_r @ y)) * y


def margins_of(weights, beta: float, barrier: str) -> np.ndarray:
    """m with w = beta phi''(m): infinite where w = 0."""
    power = 2 if barrier == "log" else 1
    with np.errstate(divide="ignore"):
        return (beta / weights) ** (1 / power)


@both_barriers
@pytest.mark.parametrize("kind", ["any", "two costs alike", "reward among the costs", "two costs equal",
                                  "a cost that no action changes"])
def test_step_with_several_budgets_is_the_natural_step_of_the_dense_hessian(kind, barrier):
    """H = F + sum_i w_i g_i g_i^T; w_i (g_i.x_i) is 0 or 1e-20 to 1e12, each cost in units of its own. Errors
    in the Fisher norm, over the trust region's radius, times the sine. Where costs are equal, or one is 0, it
    is the sine of the others. Control: one of the barriers is left out."""
    rng, delta, beta = np.random.default_rng([60, *kind.encode(), *barrier.encode()]), 0.01, 0.1
    worst, worst_kl, tried, control = 0.0, 0.0, 0, []
    for _ in range(300):
        F, V, X = random_gradients(rng, kind)
        s = np.sum(V * X, axis=1)
        weights = 10.0 ** rng.uniform(-20, 12, len(V) - 1) * (rng.random(len(V) - 1) < 0.8)
        weights /= np.where(s[1:] > 0, s[1:], 1)
        nowhere, margins = np.zeros(len(weights), bool), margins_of(weights, beta, barrier)
        step, info = several_barriers_step(V[0], X[0], V[1:], X[1:], delta, beta, margins, barrier, nowhere)
        others = np.delete(np.arange(len(V)), 2 if kind == "two costs equal" else [])
        others = others[s[others] > 0]
        unit = V[others] / np.sqrt(s[others, None])
        sine = np.linalg.svd(np.linalg.solve(np.linalg.cholesky(F), unit.T), compute_uv=False)[-1]
        error = step - dense_step(F, V[0], V[1:], weights, delta)
        worst = max(worst, math.sqrt(error @ F @ error / 2 / delta) * sine)
        worst_kl = max(worst_kl, abs(info["kl"] - step @ F @ step / 2) / delta * sine**2)
        tried += 1
        if (stiff := np.flatnonzero(weights * s[1:] > 1)).size and kind == "any":
            margins[stiff[0]] = np.inf
            other, _ = several_barriers_step(V[0], X[0], V[1:], X[1:], delta, beta, margins, barrier, nowhere)
            control.append(math.sqrt((other - step) @ F @ (other - step) / 2 / delta))
    check("several budgets: closed form - dense solve [radius / sine]", worst, IDENTITY, supports="A4 step",
          cases=tried)
    check("several budgets: |predicted KL - dense KL| [delta / sine^2]", worst_kl, IDENTITY,
          supports="A4 step")
    if kind == "any":
        check("  control: a barrier left out: difference [radius] (median)", np.median(control), at_least=0.1)


def rational_step(F, g_r, G, weights, delta: float) -> np.ndarray:
    """The same for a diagonal F, without any rounding until y / sqrt(g_r.y): in fractions."""
    F, g_r, weights = ([Fraction(each) for each in values] for values in (F, g_r, weights))
    G, n = [[Fraction(each) for each in g] for g in G], len(g_r)
    rows = [[(i == j) * F[i] + sum(w * g[i] * g[j] for w, g in zip(weights, G)) for j in range(n)] + [g_r[i]]
            for i in range(n)]
    for i in range(n):  # positive definite: no pivots
        rows[i] = [each / rows[i][i] for each in rows[i]]
        for j in range(n):
            if j != i:
                rows[j] = [a - rows[j][i] * b for a, b in zip(rows[j], rows[i])]
    y = [row[-1] for row in rows]
    length2 = sum(g * each for g, each in zip(g_r, y))
    return np.array([float(each / length2) for each in y]) * math.sqrt(2 * delta * float(length2))


@both_barriers
def test_step_with_several_budgets_whose_costs_span_the_goal_is_that_of_fractions(barrier):
    """One to three costs in a space of as many dimensions, or fewer; in every second case all gradients are
    parallel. The step is along costs, and short where their barriers are stiff, w_i (g_i.x_i) up to 1e11. To
    move a gradient by one rounding changes it by some 1e-16 of its length times the largest of these. So the
    error may be that, in the Fisher norm; D and reward stay right."""
    rng, delta, beta = np.random.default_rng([67, *barrier.encode()]), 0.01, 0.1
    worst, divergence, gained, shortest = 0.0, 0.0, np.inf, np.inf
    for k in range(600):
        m = int(rng.integers(1, 4))
        n = int(rng.integers(1, m + 1))
        F, V = 2.0 ** rng.integers(-6, 7, n), rng.normal(size=(1 + m, n))
        if k % 2:
            V = rng.choice([-3.0, 1.0], (1 + m, 1)) * V[0]
        V *= 2.0 ** rng.integers(-9, 10, (1 + m, 1))  # units of their own
        X, exponents = V / F, rng.uniform(-11, 11, m) if k % 3 else rng.choice([-11.0, 11.0], m)
        s = np.sum(V * X, axis=1)[1:]
        margins = margins_of(10.0**exponents / s, beta, barrier)
        weights = beta / margins ** (2 if barrier == "log" else 1)
        step, info = several_barriers_step(V[0], X[0], V[1:], X[1:], delta, beta, margins, barrier,
                                           np.zeros(m, bool))
        exact = rational_step(F, V[0], V[1:], weights, delta)
        length2 = np.sum(exact**2 * F)
        error = math.sqrt(np.sum((step - exact) ** 2 * F) / length2)
        worst = max(worst, error / (1 + np.max(weights * s)))
        quadratic = (step @ (F * step) + np.sum(weights * (V[1:] @ step) ** 2)) / 2
        divergence = max(divergence, abs(quadratic / delta - 1))
        gained = min(gained, float(V[0] @ step) / float(V[0] @ exact))
        shortest = min(shortest, math.sqrt(length2 / 2 / delta))
    check("several budgets, costs span the goal: step - that of fractions [length, 1 + w s]", worst, IDENTITY,
          supports="A4 step", cases=600)
    check("several budgets, costs span the goal: |quadratic D / delta - 1|", divergence, IDENTITY,
          supports="A4 step")
    check("several budgets, costs span the goal: reward of the step over the exact one's (least)", gained,
          at_least=0.99, supports="A4 step")
    check("  control: shortest step [radius]", shortest, 1e-5)


@both_barriers
def test_step_with_one_of_several_budgets_is_the_step_with_one(barrier):
    """A single row of costs, or all other margins infinite; in recovery, too. The same step, but for
    rounding."""
    rng, worst = np.random.default_rng(61), 0.0
    for k in range(300):
        F, (g_r, x_r, g_c, x_c) = random_problem(rng)
        other, margin, recovery = rng.normal(size=6), 10.0 ** rng.uniform(-3, 1), k % 5 == 0
        one, info = barrier_step(g_r, x_r, g_c, x_c, 0.01, 0.1, margin, barrier, recovery)
        pair = np.array([g_c, other]), np.array([x_c, np.linalg.solve(F, other)])
        for G, X, margins in ((g_c[None], x_c[None], [margin]), (*pair, [margin, np.inf])):
            flags = np.array([recovery, False])[: len(G)]
            step, found = several_barriers_step(g_r, x_r, G, X, 0.01, 0.1, np.array(margins), barrier, flags)
            error = step - one
            worst = max(worst, math.sqrt(error @ F @ error / 0.02), abs(info["kl"] - found["kl"]))
    check("several budgets, of which one counts: step - that of one [radius]", worst, IDENTITY,
          supports="A4 step", cases=600)


@both_barriers
def test_a_barrier_along_the_goal_slows_a_step_and_never_stops_it(barrier):
    """Reward and cost parallel, margins of 1e-1 to 1e-11 of the best decrease: the step is that of one
    budget, relative to its length. Two parallel costs, the first violated, such a margin left of the second:
    both fall, by .4 of that margin at least. The step is not made as a difference, 1 - w s / (1 + w s), which
    is down to 1e-23 here."""
    rng, worst, falls = np.random.default_rng(63), 0.0, -np.inf
    for exponent in np.linspace(-11, -1, 300):
        F, (g, x, _, _) = random_problem(rng)
        scale = 10.0 ** rng.uniform(-2, 2)
        best = scale * math.sqrt(0.02 * g @ x)
        margins, one = np.array([best * 10**exponent]), np.array([False])
        theirs, _ = barrier_step(g, x, scale * g, scale * x, 0.01, 0.1, margins[0], barrier)
        step, _ = several_barriers_step(
            g, x, scale * g[None], scale * x[None], 0.01, 0.1, margins, barrier, one)
        worst = max(worst, np.linalg.norm(step - theirs) / np.linalg.norm(theirs))
        pair = np.array([g, scale * g]), np.array([x, scale * x]), 0.01, 0.1, np.array([-1.0, margins[0]])
        _, info = several_barriers_step(g, x, *pair, barrier, np.array([True, False]))
        falls = max(falls, (info["cost_change"] / info["best_cost"]).max() / 10**exponent)
    check("a barrier along the reward: step with several budgets - with one [its length]", worst, 1e-9)
    check("a barrier along a violated cost: change of either [margin]", falls, at_most=-0.4)


def test_two_violated_costs_both_fall_and_of_three_one_may_rise():
    """Recovery: random metrics and gradients, each cost in units of its own. Both of two violated costs fall
    to first order: each by sqrt((1 + rho) / 2) of its best. Three costs in the plane at +-20 and 180 degrees:
    the third rises; at 0, 100 and 20, the third within its budget but near it, the first does. Controls: far
    from it; without the units, the sum of two gradients raises one of them somewhere."""
    rng, falls, formula, naive, none = np.random.default_rng(62), -np.inf, 0.0, -np.inf, np.full(2, 1.0)
    for _ in range(1000):
        F, (g_1, x_1, g_2, x_2) = random_problem(rng)
        scale = 10.0 ** rng.uniform(-2, 2)
        G, X = np.array([g_1, scale * g_2]), np.array([x_1, scale * x_2])
        step, info = several_barriers_step(0 * g_1, 0 * g_1, G, X, 0.01, 0.1, none, "log", np.ones(2, bool))
        _, _, rho = units(g_1, x_1, g_2, x_2, 0.01)
        share = info["cost_change"] / info["best_cost"]
        falls, formula = max(falls, share.max()), max(formula, np.abs(share + math.sqrt((1 + rho) / 2)).max())
        naive = max(naive, (G @ -(X.sum(axis=0)) / info["best_cost"]).max())
    check("recovery of two costs: change of the one that falls less [best decrease]", falls, at_most=-1e-3,
          supports="A4 two", cases=1000)
    check("recovery of two costs: |share of the best - sqrt((1 + rho) / 2)|", formula, 1e-9,
          supports="A4 two")
    check("  control: the plain sum of two gradients: the one that rises most", naive, at_least=100)
    G = np.array([[1.0, 0], [-2, 0]])  # opposed: what one gains the other loses
    step, _ = several_barriers_step(0 * G[0], 0 * G[0], G, G, 0.01, 0.1, none, "log", np.ones(2, bool))
    check("  control: recovery of two opposed costs: |s|", np.abs(step).max(), at_most=0.0)
    angles = np.radians([20, -20, 180])
    G = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    _, info = several_barriers_step(0 * G[0], 0 * G[0], G, G, 0.01, 0.1, np.ones(3), "log", np.ones(3, bool))
    check("recovery of three costs: change of the third [best decrease]",
          info["cost_change"][2] / info["best_cost"][2], at_least=0.5, supports="A4 three", cases=1)
    angles = np.radians([0, 100, 20])
    G, first = np.stack([np.cos(angles), np.sin(angles)], axis=1), []
    for margin in (0.001, 1e9):
        margins, recovery = np.array([1, 1, margin]), np.array([True, True, False])
        _, info = several_barriers_step(0 * G[0], 0 * G[0], G, G, 0.01, 0.1, margins, "log", recovery)
        first.append(info["cost_change"][0] / info["best_cost"][0])
    check("recovery of two costs beside a barrier: change of the first [best decrease]", first[0],
          at_least=0.2, supports="A4 three", cases=1)
    check("  control: the same far from the third budget", first[1], at_most=-0.5)


def test_several_budgets_survive_rough_solves():
    """Five iterations of conjugate gradients, 50 dimensions, condition 1e6: the quadratic divergence of the
    step is within 15% of delta, as with one. Control: to take (g_i.x_j + g_j.x_i) / 2 for g_i.x_j, which are
    not equal then, makes it ten times delta."""
    rng, worst, control, delta, beta = np.random.default_rng(63), 0.0, 0.0, 0.01, 0.1
    for _ in range(200):
        f = 10.0 ** rng.uniform(-3, 3, 50)
        V = rng.normal(size=(3, 50)) * np.sqrt(f)
        X = np.array([conjugate_gradients(f.__mul__, g, 5)[0] for g in V])
        weights = 10.0 ** rng.uniform(-2, 4, 2) / np.sum(V * X, axis=1)[1:]
        margins = margins_of(weights, beta, "log")
        nowhere = np.zeros(2, bool)
        step, _ = several_barriers_step(V[0], X[0], V[1:], X[1:], delta, beta, margins, "log", nowhere)
        S = (V @ X.T + X @ V.T) / 2
        y = X[0] - np.linalg.solve(S[1:, 1:] + np.diag(1 / weights), S[1:, 0]) @ X[1:]
        symmetric = math.sqrt(2 * delta / (V[0] @ y)) * y
        found = [(x @ (f * x) + weights @ (V[1:] @ x) ** 2) / 2 / delta for x in (step, symmetric)]
        worst, control = max(worst, found[0]), max(control, found[1])
    check("several budgets, rough solves: divergence of the step [delta]", worst, at_most=1.15)
    check("  control: the same with a matrix made symmetric [delta]", control, at_least=10)


# --------------------------------------------------------------------- exact worlds (A4 safe, recovery, flow)


def two_costs(seed: int):
    """A Garnet with two random costs, and a policy within the budgets, whose margins are .02 each."""
    world, rng = garnets(seed + 1)[seed], np.random.default_rng([64, seed])
    theta = rng.normal(size=world.r.shape)
    world = replace(world, c=rng.random((2, *world.r.shape)), names=("first", "second"))
    return replace(world, limit=np.array([world.J(theta, c) for c in world.c]) + 0.02), theta


SAFE = np.array([[0.0, 0, 3], [0, 3, 0], [3, 0, 0]])  # keeps to the corridor


@both_barriers
def test_exact_divergence_keeps_every_budget(barrier):
    """Whole runs of 30 steps, delta = .1, beta = .1: the corridor and ten Garnets of two costs. The exact
    divergence keeps each J_i below b_i; rounding could not. Controls: the surrogate divergence; and the
    second barrier left out."""
    runs, over, closed, steps = [(corridor(), SAFE), *map(two_costs, range(10))], {}, np.inf, 0
    for name, options in (("exact", {}), ("surrogate", {"exact": False}), ("left out", {"left_out": [1]})):
        over[name] = -np.inf
        for world, theta in runs:
            path = barriers_training(world, barrier, 0.1, 30, theta, 0.1, **options)
            over[name] = max(over[name], (path[:, 1:] - world.limit).max())
            if name == "exact":
                gap = world.optimum().value - path[[0, -1], 0]
                closed, steps = min(closed, 1 - gap[1] / gap[0]), steps + len(path) - 1
    check("several budgets, exact divergence: largest J_i - b_i in whole runs", over["exact"], 1e-12,
          supports="A4 safe", cases=steps)
    check("several budgets: share of the gap to the optimum that a run closes", closed, at_least=0.2,
          supports="A4 safe")
    check(f"  control: surrogate divergence, {barrier}: largest J_i - b_i", over["surrogate"], at_least=1e-5)
    check("  control: second barrier left out: largest J_i - b_i", over["left out"], at_least=0.01)


@both_barriers
def test_recovery_of_one_cost_keeps_the_others(barrier):
    """The corridor from policies that keep to one side: one cost is above its budget, the other below. While
    the first recovers, the exact divergence keeps the second below; in the end both are met. Control: without
    the barrier of the second, recovery of the first breaks it."""
    kept, ended, control, steps = -np.inf, -np.inf, np.inf, 0
    for broken, side in ((0, 0), (1, 2)):
        theta, world = SAFE.copy(), corridor()
        theta[:, side] += 4.0
        path = barriers_training(world, barrier, 0.1, 200, theta)
        over = path[:, 1:] - world.limit
        assert over[0, broken] > 0.1 and over[0, 1 - broken] < 0
        kept, ended = max(kept, over[:, 1 - broken].max()), max(ended, over[-1].max())
        steps += len(path) - 1
        tight = replace(world, limit=np.where(np.arange(2) == broken, 0.06, world.limit))
        path = barriers_training(tight, barrier, 0.1, 200, theta, left_out=[1 - broken])
        control = min(control, path[:, 2 - broken].max() - tight.limit[1 - broken])
    check("recovery of one cost: J_i - b_i of the other, all the way", kept, 1e-12, supports="A4 recovery",
          cases=steps)
    check("recovery of one cost: largest J_i - b_i in the end", ended, 0.0, supports="A4 recovery")
    check("  control: without the other's barrier: its J_i - b_i (least)", control, at_least=0.05)


@both_barriers
def test_flow_ends_at_the_optimum_of_the_program_with_all_budgets(barrier):
    """C-NPG in the corridor, where both budgets bind and have the prices 1 and .5. -log x: t (V* - V_t) tends
    to 2 beta, and t m_i to beta / price_i; x log x: V* - V_t falls below 1e-8. Control: with one of the
    budgets alone the other is broken."""
    world, beta, times = corridor(), 0.1, np.array([1e-9, 100.0, 3000.0])
    best = world.optimum()
    thetas, log_m = world.flow(SAFE, times[: 3 if barrier == "log" else 2], beta, barrier)
    gap, margins = best.value - world.J(thetas[-1], world.r), np.exp(log_m[-1])
    identity = max(abs(limit - world.J(theta, c) - m) for theta, row in zip(thetas, np.exp(log_m))
                   for (c, limit), m in zip(world.budgets(), row))
    check("flow, two budgets: |b_i - J_i - m_i|", identity, 1e-8, supports="A4 flow", cases=len(thetas))
    if barrier == "log":
        check("flow, two budgets, -log x: |t (V* - V_t) / 2 beta - 1|, t = 3000",
              abs(times[-1] * gap / 2 / beta - 1), 0.01, supports="A4 flow")
        check("flow, two budgets, -log x: |t m_i price_i / beta - 1|, t = 3000",
              np.abs(times[-1] * margins * best.dual / beta - 1).max(), 0.02, supports="A4 flow")
    else:
        check("flow, two budgets, x log x: V* - V_t, t = 100", abs(gap), LP, supports="A4 flow")
    alone = replace(world, c=world.c[0], limit=world.limit[0])
    theta = alone.flow(SAFE, times[:2], beta, barrier)[0][-1]
    check("  control: the flow with the first budget alone: J_2 - b_2", world.J(theta, world.c[1]) - 0.15,
          at_least=0.1)


# ---------------------------------------------------------------------------- the linear program and its dual


def test_budgets_of_the_corridor_have_the_prices_of_the_program():
    """V* = 1 + .3 + .15 / 2: the left lane pays 1 more than the corridor, the right one .5. Prices against
    differences of the value. Control: with one budget alone the optimum breaks the other."""
    world = corridor()
    best = world.optimum()
    assert best.value == pytest.approx(1.375, abs=1e-9) and best.cost == pytest.approx(world.limit, abs=1e-9)
    for i in range(2):
        more = world.limit + 1e-3 * np.eye(2)[i]
        assert (world.optimum(more).value - best.value) / 1e-3 == pytest.approx(best.dual[i], abs=1e-6)
        alone = np.where(np.arange(2) == i, world.limit, np.inf)
        assert world.optimum(alone).cost[1 - i] > world.limit[1 - i] + 0.1


def test_budgets_that_cannot_all_be_met_are_refused_with_the_proof():
    """.05 for each cost of the corridor, of which either alone can be met. The weights are >= 0, of sum 1,
    and by value iteration no policy has less than that weighted cost. Control: budgets that can be met have
    no proof."""
    world, limit = corridor(), np.array([0.05, 0.05])
    weights, excess = world.least_excess(limit)
    with pytest.raises(ValueError, match=r"with weights \[0.889 0.111\], any exceeds its budget by 0.04"):
        world.optimum(limit)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    cost, V = np.tensordot(weights, world.c, 1), np.zeros(3)
    for _ in range(400):
        V = np.min(cost + world.gamma * world.P @ V, axis=1)
    least = (1 - world.gamma) * world.mu @ V
    check("certificate: least weighted cost less the budgets', against value iteration",
          abs(least - weights @ limit - excess), IDENTITY)
    check("certificate: least weighted excess of any policy", excess, at_least=0.03)
    for i in range(2):
        assert world.optimum(np.where(np.arange(2) == i, limit, np.inf)).cost[i] <= 0.05 + 1e-9
    alone, excess = world.least_excess(np.array([np.inf, -0.1]))
    assert alone == pytest.approx([0, 1]) and excess >= 0.1
    with pytest.raises(ValueError, match=r"with weights \[0. 1.\]"):
        world.optimum(np.array([np.inf, -0.1]))
    check("  control: certificate of budgets that can be met", world.least_excess()[1], at_most=-0.01)


# ----------------------------------------------------------------- zero budgets are one, of the sum (A4 zero)


def test_zero_budgets_are_one_budget_for_any_weighted_sum():
    """The corridor without slip and 20 Garnets of two sparse costs, one action of which is free, budgets of
    0: the optimum with all budgets and with that of a weighted sum. SB-TRPO on sums with weights (1, 1) and
    (10, 1): other paths, the same end. Control: a positive budget of the sum lets one cost take the other's
    share."""
    rng, gap, ends, tried = np.random.default_rng(65), 0.0, [], 0
    worlds = [corridor((0, 0), slip=0.0)]
    for world in garnets(20):
        costs = (rng.random((2, *world.r.shape)) < 0.3).astype(float)
        costs[:, :, 0] = 0  # an action that is free everywhere
        worlds.append(replace(world, c=costs, limit=np.zeros(2)))
    for world in worlds:
        weights = 10.0 ** rng.uniform(-1, 1, 2)
        total = replace(world, c=np.tensordot(weights, world.c, 1), limit=0.0)
        gap, tried = max(gap, abs(world.optimum().value - total.optimum().value)), tried + 1
    check("zero budgets: optimum with all - with that of a weighted sum", gap, LP, supports="A4 zero",
          cases=tried)
    paths = []
    for weights in ([1.0, 1.0], [10.0, 1.0]):
        world = replace(worlds[0], c=np.tensordot(weights, worlds[0].c, 1), limit=0.0)
        theta, path = train_exactly(world, safety_biased_step, 0.75, 300, until=reached(world))
        ends.append([abs(world.optimum().value - path[-1, 0]), *(world.J(theta, c) for c in worlds[0].c)])
        paths.append(path[5, 0])
    check("zero budgets, SB-TRPO on two weighted sums: gap and costs in the end", np.max(ends), 1e-3,
          supports="A4 zero")
    check("  the paths differ: J_r after 5 steps", abs(paths[0] - paths[1]), at_least=1e-3)
    world = corridor()
    total = replace(world, c=world.c.sum(axis=0), limit=world.limit.sum())
    check("  control: a budget of .45 for the sum: J_1 - .3",
          dot(total.optimum().occupancy, world.c[0]) - 0.3, at_least=0.05)


# ------------------------------------------------------------------------------- sTRPO: a controller each


def test_each_cost_has_the_controller_that_it_would_have_alone():
    """lambda_i of 30 epochs of two random costs, from the first, which knows no memory: bit for bit those of
    two controllers apart. Control: one controller of the sum is another."""
    rng, memory, alone, total = np.random.default_rng(66), np.full(2, np.nan), [np.full(2, np.nan)] * 2, None
    limits, gains, differs = np.array([25.0, 5.0]), (0.05, 0.005, 0.01), 0.0
    total = np.full(2, np.nan)
    for costs in rng.uniform(0, 60, size=(30, 2)):
        found, memory = strpo.pid_multiplier(memory, costs, limits, gains)
        for i in range(2):
            one, alone[i] = strpo.pid_multiplier(alone[i], costs[i], limits[i], gains)
            assert one == found[i] and np.array_equal(alone[i], memory[:, i])
        of_sum, total = strpo.pid_multiplier(total, costs.sum(), limits.sum(), gains)
        differs = max(differs, np.abs(found - of_sum).max())
    check("  control: a controller of the sum: |lambda - lambda_i| (largest)", differs, at_least=0.1)
