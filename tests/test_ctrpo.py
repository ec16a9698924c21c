"""C-TRPO: its barriers and step, surrogate, bounds and safety, C-NPG as its flow, and whole exact runs."""
import functools
import itertools
import math
import warnings
from collections import deque
from dataclasses import replace

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian, jacobian
from scipy.integrate import solve_ivp
from scipy.linalg import null_space
from scipy.special import lambertw

import ctrpo
from conftest import check, slow
from ctrpo import barrier_divergence, barrier_step
from problems import (
    BARRIERS, IDENTITY, POLICIES, barrier_training, both_barriers, cases, dense, dot, first_order,
    garnets, logits, network, observed_order, plane, random_problem, random_world, reached, safe_starts)
from tabular_cmdp import TabularCMDP, cpo_step, garnet, hazard_grid, log_policy, two_state


# ------------------------------------------------------- C-TRPO: barrier, step and their limits (A2, B14, C9)


def inverse_divergence(value: float, margin: float, barrier: str) -> float:
    """The a > 0 with Psi(a) = value, by Lambert's W; for x log x never beyond the boundary a = m."""
    if barrier == "log":
        return margin * (1 + lambertw(-math.exp(-1 - value), 0).real)
    if value >= margin:
        return margin
    return margin * (1 - math.exp(1 + lambertw((value / margin - 1) / math.e, -1).real))


@both_barriers
def test_barrier_divergence_is_a_bregman_divergence(barrier):
    """Psi(a) = phi(m - a) - phi(m) + phi'(m) a for a < m; its inverse by Lambert's W; its second derivative
    at 0, by differences, phi''(m). Margins from .01 to 100."""
    rng, (phi, slope, bend) = np.random.default_rng(20), BARRIERS[barrier]
    definition = inverse = second = 0.0
    for _ in range(1000):
        m, share = 10 ** rng.uniform(-2, 2), 1 - 10 ** rng.uniform(-6, 0.7)
        value, unit = barrier_divergence(share * m, m, barrier), m if barrier == "xlogx" else 1.0
        expected = phi(m - share * m) - phi(m) + slope(m) * share * m
        definition = max(definition, abs(value - expected) / unit)
        back = inverse_divergence(value, m, barrier)
        inverse = max(inverse, abs(back / m - share) * abs(share) if share > 0 else 0)
        h = 1e-4 * m
        curve = sum(barrier_divergence(a, m, barrier) for a in (h, -h)) / h**2
        second = max(second, abs(curve / bend(m) - 1))
    check(f"Psi, {barrier}: its definition [1, m]", definition, at_most=IDENTITY)
    check(f"Psi, {barrier}: its inverse, times the share of the margin [m]", inverse, at_most=1e-9)
    check(f"Psi, {barrier}: second derivative at 0 = phi''(m) [relative]", second, at_most=1e-7)


def bregman(potential, first, second) -> float:
    """D(first, second) = potential(first) - potential(second) - grad potential(second).(first - second)."""
    return potential(first) - potential(second) - dot(grad(potential)(second), first - second)


def test_the_two_terms_of_the_divergence_have_opposite_orders():
    """Sum d_old KL(old, new), the shipped KL state by state, is D_Phi(rho_old, rho_new) of Phi = sum rho log
    (rho / d); the shipped barrier is D_phi(m_new, m_old). Random policies of all worlds, margin 1.5 times the
    change of J_c. With the terms' orders exchanged D differs, along shipped steps by order 3: the step, which
    knows the Hessian, is the same. At the boundary D_phi(m_old, m_new) is infinite for x log x, too, as log
    (m_old / m_new), where D_phi(m_new, m_old) is m_old. Control: each term in the other order."""
    def Phi(rho):
        return anp.sum(rho * anp.log(rho / anp.sum(rho, axis=1, keepdims=True)))

    errors, others, orders, tried = np.zeros(3), np.full(3, np.inf), {"KL": [], "log": [], "xlogx": []}, 0
    for i, (world, old) in enumerate(cases(10)):
        new, d = old + np.random.default_rng([94, i]).normal(size=old.shape), world.state_occupancy(old)
        policy = ctrpo.Policy(old.shape, True)
        log_old, log_new = log_policy(old), log_policy(new)
        kl = sum(d[s] * ctrpo.mean_kl(policy, log_old[[s]], log_new[[s]]) for s in range(len(d)))
        rho, rho_new = world.occupancy(old), world.occupancy(new)
        change = world.J(new, world.c) - world.J(old, world.c)
        m = 1.5 * abs(change)
        found, exact, exchanged = [kl], [bregman(Phi, rho, rho_new)], [bregman(Phi, rho_new, rho)]
        for barrier, (phi, *_) in BARRIERS.items():
            found.append(barrier_divergence(change, m, barrier))
            exact.append(bregman(phi, m - change, m))
            exchanged.append(bregman(phi, m, m - change))
        errors = np.maximum(errors, np.abs(np.subtract(found, exact)))
        others, tried = np.minimum(others, np.abs(np.divide(exchanged, found) - 1)), tried + 1
        step, _ = barrier_step(*first_order(world, old), 0.1, 0.1, 0.1)
        step = step.reshape(old.shape)

        def of_kl(t, world=world, old=old, rho=rho, step=step):
            near = world.occupancy(old + t * step)
            return abs(bregman(Phi, rho, near) - bregman(Phi, near, rho))

        orders["KL"].append(observed_order(of_kl))
        for barrier, (phi, *_) in BARRIERS.items():
            def of_margin(t, world=world, old=old, step=step, phi=phi):
                m = 0.1 - (world.J(old + t * step, world.c) - world.J(old, world.c))
                return abs(bregman(phi, 0.1, m) - bregman(phi, m, 0.1))

            orders[barrier].append(observed_order(of_margin))
    for name, error, other in zip(orders, errors, others):
        check(f"divergence, {name}: shipped - Bregman's of that order", error, at_most=IDENTITY,
              supports="A2 orders", cases=tried)
        check(f"  control: {name}: in the other order (least) [relative]", other, at_least=1e-3)
        check(f"divergence, {name}: what an exchange changes: |observed order - 3|",
              abs(np.median(orders[name]) - 3), at_most=0.15, supports="A2 orders")
    for share in (1e-10, 1e-100, 1e-300):  # of the margin that is left
        reverse = bregman(BARRIERS["xlogx"][0], 1.0, share)
        check("x log x, other order, near the boundary: |D / (log (m_old / m_new) - 1) - 1|",
              abs(reverse / (-math.log(share) - 1) - 1), at_most=1e-8, supports="A2 orders")
    shipped = barrier_divergence(1 - 1e-13, 1.0, "xlogx")
    check("x log x, as it is, near the boundary: |D / m - 1|", abs(shipped - 1), 1e-11, supports="A2 orders")


def test_only_one_of_the_barriers_is_infinite_at_the_boundary():
    """C9: 'the divergence tends to infinity at the threshold' holds for -log x; for x log x its limit is m. A
    policy on the boundary, or beyond it, is outside of the trust region with both."""
    for m in (1e-300, 1e-6, 1.0, 1e150):
        nearly = m * (1 - 1e-13)
        log, xlogx = (barrier_divergence(nearly, m, barrier) for barrier in ("log", "xlogx"))
        name, error = "x log x just inside the boundary: |Psi / m - 1|", abs(xlogx / m - 1)
        check(f"erratum: {name}", error, at_most=1e-11, refutes="C9 printed", cases=1)
        check(f"corrected: {name}", error, at_most=1e-11, supports="C9 corrected", cases=1)
        check("corrected: -log x near the boundary", log, at_least=28, supports="C9 corrected", cases=1)
        growth = [barrier_divergence(m * (1 - 10.0**-k), m, "log") + 1 - k * math.log(10)
                  for k in range(3, 13)]
        check("corrected: -log x at m (1 - 10^-k), k = 3 to 12: |Psi + 1 - k log 10|",
              np.abs(growth).max(), at_most=2e-3, supports="C9 corrected")
        assert all(barrier_divergence(a, m, barrier) == math.inf
                   for barrier in BARRIERS for a in (m, 2 * m, math.inf, math.nan))


@both_barriers
def test_every_degenerate_row_of_the_barrier_step_is_finite(barrier):
    """In the plane, delta = .01, beta = .1: zero, orthogonal, parallel and antiparallel
    gradients; and recovery, from whatever margin: the best cost step."""
    e, zero, unit, (g_r, _, g_c, _) = np.array([1.0, 0]), np.zeros(2), math.sqrt(0.02), plane(0.3)
    w = 0.1 * BARRIERS[barrier][2](0.05)
    rows = [("g_c = 0: the reward step", (e, e, zero, zero), 0.05, unit * e),
            ("g_r = 0: stay", (zero, zero, e, e), 0.05, zero), ("both 0: stay", (zero,) * 4, 0.05, zero),
            ("r = 0: the reward step", plane(0.0), 0.05, unit * e),
            ("rho = 1: a shorter reward step", (e, e, e, e), 0.05, unit / math.sqrt(1 + w) * e),
            ("rho = -1: a shorter reward step", (e, e, -e, -e), 0.05, unit / math.sqrt(1 + w) * e),
            ("recovery, m = 0: the cost step", plane(0.3), 0.0, -unit * g_c),
            ("recovery, m < 0: the cost step", plane(0.3), -1.0, -unit * g_c),
            ("recovery, m > 0: the cost step", plane(0.3), 0.05, -unit * g_c),
            ("recovery, g_c = 0: stay", (g_r, g_r, zero, zero), -1.0, zero),
            ("recovery, g_r = 0: the cost step", (zero, zero, g_c, g_c), -1.0, -unit * g_c)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no division by zero on the way
        for name, vectors, margin, expected in rows:
            recovery = name.startswith("recovery")
            step, info = barrier_step(*vectors, 0.01, 0.1, margin, barrier, recovery)
            check(f"degenerate, {barrier}, {name}", np.abs(step - expected).max(), at_most=IDENTITY)
            assert np.isfinite([info["keep"], info["kl"], info["reward_change"]]).all()


def test_an_unknown_barrier_is_refused():
    """By the step, in recovery too, and by the divergence. Control: both names pass."""
    for barrier in (*BARRIERS, "cube", ""):
        for call in (functools.partial(barrier_divergence, 0.01, 0.05),
                     functools.partial(barrier_step, *plane(0.3), 0.01, 0.1, 0.05),
                     functools.partial(barrier_step, *plane(0.3), 0.01, 0.1, -1.0, recovery=True)):
            if barrier in BARRIERS:
                call(barrier=barrier)
                continue
            with pytest.raises(ctrpo.Failure, match=f"no barrier {barrier!r}: it is log or xlogx"):
                call(barrier=barrier)


def test_log_barrier_never_crosses_the_linear_boundary():
    """Psi's quadratic model allows w a^2 / 2 <= delta, so a = g_c.step <= m sqrt(2 delta / beta) for -log x:
    less than m if beta > 2 delta, at any margin. Random metrics. Control: x log x allows sqrt(2 delta m /
    beta), which exceeds m once m < 2 delta / beta."""
    rng, delta, shares, slack = np.random.default_rng(21), 0.01, {"log": 0.0, "xlogx": 0.0}, -np.inf
    for _ in range(3000):
        _, vectors = random_problem(rng, rng.integers(2, 8))
        margin, beta = 10 ** rng.uniform(-6, 1), 2 * delta * (1 + 10 ** rng.uniform(-3, 1))
        for barrier in BARRIERS:
            cost = vectors[2] @ barrier_step(*vectors, delta, beta, margin, barrier)[0]
            bound = math.sqrt(2 * delta / beta * (margin**2 if barrier == "log" else margin))
            shares[barrier], slack = max(shares[barrier], cost / margin), max(slack, cost / bound - 1)
    check("barrier step: cost change over its bound by w a^2 / 2 <= delta, less 1", slack, at_most=1e-9)
    check("-log x, beta > 2 delta: cost change [margin], below 1", shares["log"], at_most=1 - 1e-4)
    check("  control: x log x crosses the linear boundary [margin]", shares["xlogx"], at_least=10)


def test_a_discounted_surrogate_sees_a_tenth_of_the_change_per_episode():
    """Units: episodes of T = 1,000 steps, gamma = .99, small steps on Garnets. The cost of an episode,
    undiscounted, changes by T times the mean cost advantage per step, over the states of such episodes; and
    by T (1 - gamma) = 10 times the discounted surrogate, that mean over 1 - gamma, the release's."""
    T, gamma, ours, theirs = 1000, 0.99, [], []
    for seed in range(30):
        world = replace(garnet(seed), gamma=gamma)
        theta = np.random.default_rng(seed).normal(size=world.r.shape)
        step, _ = barrier_step(*first_order(world, theta), 1e-6, 0.1, 10.0)
        new, ends = theta + step.reshape(theta.shape), []
        for each in (theta, new):
            pi, states, cost, seen = np.exp(log_policy(each)), world.mu, 0.0, np.zeros(len(world.mu))
            for _ in range(T):
                cost, seen = cost + states @ np.sum(pi * world.c, axis=1), seen + states / T
                states = np.einsum("s,sa,sat->t", states, pi, world.P)
            ends.append((cost, seen))
        (before, seen), (after, _) = ends
        mean = seen @ np.sum(np.exp(log_policy(new)) * world.advantage(theta, world.c), axis=1)
        ours.append((after - before) / (T * mean))
        theirs.append((after - before) / (mean / (1 - gamma)))
    check("units: change per episode over T times the mean advantage, |median - 1|",
          abs(np.median(ours) - 1), at_most=0.01)
    check("  control: over the discounted surrogate, |median - 10|", abs(np.median(theirs) - 10), at_most=0.1)


def test_units_of_cost():
    """Costs in another unit, k times larger numbers: with -log x, Psi and the step are the same; with x log x
    Psi is k times larger, and the step the same with beta / k."""
    rng, psi, steps, control = np.random.default_rng(22), 0.0, 0.0, np.inf
    for _ in range(300):
        _, (g_r, x_r, g_c, x_c) = random_problem(rng)
        k, (m, beta), a = 10 ** rng.uniform(1, 3), 10 ** rng.uniform(-2, 0, size=2), rng.uniform(-1, 1)
        for barrier, factor in (("log", 1.0), ("xlogx", k)):
            once, scaled = (barrier_divergence(unit * a * m, unit * m, barrier) for unit in (1, k))
            psi = max(psi, abs(scaled / factor - once))
            step = barrier_step(g_r, x_r, g_c, x_c, 0.01, beta, m, barrier)[0]
            same = barrier_step(g_r, x_r, k * g_c, k * x_c, 0.01, beta / factor, k * m, barrier)[0]
            steps = max(steps, np.abs(step - same).max())
        wrong = barrier_step(g_r, x_r, k * g_c, k * x_c, 0.01, beta, k * m, "xlogx")[0]
        control = min(control, np.abs(step - wrong).max())
    check("units: Psi(k a, k m) = Psi(a, m), and k times that for x log x", psi, at_most=IDENTITY)
    check("units: the step of k g_c, k m with beta, and beta / k for x log x", steps, at_most=IDENTITY)
    check("  control: x log x with the same beta takes another step (least)", control, at_least=1e-9)


@both_barriers
def test_limits_of_the_barrier_step(barrier):
    """B14, in the plane, rho = .6. Quadratic step: TRPO's as beta -> 0 (order 1) and as m -> infinity (order
    phi'': 2 for -log x, 1 for x log x). Exact barrier, maximised over a: CPO's as beta -> 0, with a = m."""
    vectors, delta, radius = plane(0.6), 0.01, math.sqrt(0.02)
    trpo = radius * vectors[0]

    def far(beta, margin):
        return np.linalg.norm(barrier_step(*vectors, delta, beta, margin, barrier)[0] - trpo) / radius

    order = observed_order(lambda t: far(t, 1.0), (1e-4, 1e-6))
    check("limits: beta -> 0 is TRPO, |observed order - 1|", abs(order - 1), 1e-3, supports="B14", cases=1)
    expected = 2 if barrier == "log" else 1
    order = observed_order(lambda t: far(0.1, 1 / t), (1e-4, 1e-5))
    check("limits: m -> infinity is TRPO, |observed order - 2 (log), 1 (xlogx)|", abs(order - expected), 1e-3,
          supports="B14", cases=1)
    margin = 0.2 * radius

    def lost(a, beta, psi=barrier_divergence):  # reward of the best step of cost change a, negated
        rest = 2 * (delta - beta * psi(a, margin, barrier)) - a**2
        return -0.6 * a - 0.8 * math.sqrt(rest) if rest > 0 else abs(a)

    reach = np.linspace(-radius, radius, 100_001)  # beyond the margin, too: Psi has to exclude that
    gaps = [1 - min(reach, key=functools.partial(lost, beta=beta)) / margin for beta in (10, 1e-7)]
    without = 1 - min(reach, key=functools.partial(lost, beta=0.0, psi=lambda *_: 0.0)) / margin
    cpo = cpo_step(*vectors, delta, -margin)[1]["cost_change"] / margin
    check("limits: CPO's step takes all of the margin, |1 - a / m|", abs(1 - cpo), at_most=IDENTITY)
    check("limits: exact barrier, beta = 1e-7: |1 - a / m|, CPO's is 0", abs(gaps[1]), at_most=1e-3,
          supports="B14", cases=1)
    check("  control: Psi left out: a / m", 1 - without, at_least=2)
    check(f"  control: {barrier}, beta = 10", gaps[0], at_least=0.5)
    quadratic = vectors[2] @ barrier_step(*vectors, delta, 1e-7, margin, barrier)[0]
    check("  control: cost change of the quadratic step there [margin]", quadratic / margin, at_least=2)


# ------------------------------------------------------ C-TRPO: surrogate, bounds and safety, exactly (B6-B8)


@both_barriers
def test_surrogate_divergence_agrees_to_second_order(barrier):
    """B6, along shipped steps from random policies, budget .1 above their cost, delta = .1: the surrogate of
    the cost change errs by order 2, the divergence, as Psi'(0) = 0, by order 3 (medians). Control: without
    the linear term of Psi the order is 2."""
    orders, control, (phi, *_), m = [], [], BARRIERS[barrier], 0.1
    for world, theta in cases(40):
        cost = world.J(theta, world.c)
        step, _ = barrier_step(*first_order(world, theta), 0.1, 0.1, m, barrier)

        def changes(t, world=world, theta=theta, step=step, cost=cost):
            new = theta + t * step.reshape(theta.shape)
            return world.J(new, world.c) - cost, world.surrogate(theta, new, world.c)

        def error(psi, changes=changes):
            return lambda t: abs(np.subtract(*[psi(a) for a in changes(t)]))

        orders.append(observed_order(error(lambda a: barrier_divergence(a, m, barrier))))
        control.append(observed_order(error(lambda a: phi(m - a))))
    error, other = abs(np.median(orders) - 3), abs(np.median(control) - 2)
    check(f"surrogate divergence, {barrier}: |observed order - 3| (43 worlds)", error, at_most=0.15,
          supports="B6", cases=len(orders))
    check(f"  control: {barrier}, without phi'(m) a: |observed order - 2|", other, at_most=0.15)


def one_steps(delta: float, margins, exact: bool = False, betas=(0.01, 0.1, 1.0), gamma: float = 0.9):
    """(world, old, new, J_c(new) - J_c(old), margin, beta, barrier) of single steps from safe policies."""
    for world, old in cases(20):
        world = replace(world, gamma=gamma)
        cost = world.J(old, world.c)
        for barrier, beta, margin in itertools.product(BARRIERS, betas, margins):
            new = barrier_training(world, barrier, beta, 1, old, delta, cost + margin, 1.0, exact)[0]
            yield world, old, new, world.J(new, world.c) - cost, margin, beta, barrier


def test_cost_bound_of_a_step():
    """B7: J_c rises by Psi^-1(delta / beta) + sqrt(2 delta) gamma eps / (1 - gamma) at most, with eps = max_s
    |E_new A_c(s, .)|; both barriers, three beta, three delta, margins .001 and .1, gamma of .3 to .9. No
    step of any kind raises J_c by more than eps: a case is one of which the bound says less. Control: without
    the second term, the error of the surrogate, it fails."""
    slack, control, used, tried = np.inf, np.inf, 0.0, 0
    for delta, gamma in itertools.product((0.1, 0.01, 0.001), (0.3, 0.5, 0.7, 0.9)):
        for world, old, new, rise, margin, beta, barrier in one_steps(delta, (0.001, 0.1), gamma=gamma):
            eps = np.abs(np.sum(np.exp(log_policy(new)) * world.advantage(old, world.c), axis=1)).max()
            allowed = inverse_divergence(delta / beta, margin, barrier)
            shift = math.sqrt(2 * delta) * gamma * eps / (1 - gamma)
            control, tried = min(control, allowed - rise), tried + (allowed + shift < eps)
            slack, used = min(slack, allowed + shift - rise), max(used, (rise - allowed) / shift)
    check("C-TRPO bound on the cost of a step: least slack", slack, at_least=-1e-10, supports="B7",
          cases=tried)
    check("  control: beyond the bound without the surrogate's error", -control, at_least=1e-6)
    check("  control: share of that error's bound that is used (largest)", used, at_least=0.01)


def test_reward_bound_of_a_step():
    """B7 reward: normalised J_r falls by sqrt(2 delta) gamma eps_r / (1 - gamma) at most, for the surrogate
    reward of an accepted step does not fall. Costs are nearly the reward, margins of 1e-8 to 1e-4, so that
    it does fall; a case is a fall, of which the bound says less than eps_r. Control: share that is used."""
    rng, slack, used, tried = np.random.default_rng(26), np.inf, 0.0, 0
    for _ in range(600):
        world, delta = random_world(rng), 10 ** rng.uniform(-2, -0.5)
        world = replace(world, c=0.97 * world.r + 0.03 * world.c, gamma=rng.choice([0.3, 0.5, 0.7]))
        barrier, old = rng.choice([*BARRIERS]), rng.normal(size=world.r.shape)
        limit = world.J(old, world.c) + 10 ** rng.uniform(-8, -4)
        new = barrier_training(world, barrier, 0.1, 1, old, delta, limit, 1.0, exact=False)[0]
        fall = world.J(old, world.r) - world.J(new, world.r)
        eps = np.abs(np.sum(np.exp(log_policy(new)) * world.advantage(old, world.r), axis=1)).max()
        shift = math.sqrt(2 * delta) * world.gamma * eps / (1 - world.gamma)
        slack, used = min(slack, shift - fall), max(used, fall / shift if shift else 0.0)
        tried += fall > 1e-12 and shift < eps
    check("C-TRPO bound on the reward that a step loses: least slack", slack, at_least=-1e-10,
          supports="B7 reward", cases=tried)
    check("  control: share of that bound that is used (largest)", used, at_least=0.05)
    check("  steps that lose reward, whose bound says something", tried, at_least=5)


def test_larger_barriers_are_safer_only_where_reward_costs():
    """The plane, margin .05, delta = .01, beta of .01, .1 and 1. To first order a larger beta lets the cost
    rise by less where rho > 0. Where rho < 0 the reward step lowers the cost, and a larger beta leaves less
    of that: the barrier holds the policy where it is. The reward falls with beta in both cases."""
    for barrier, rho in itertools.product(BARRIERS, (-0.9, -0.6, -0.3, 0.3, 0.6, 0.9)):
        infos = [barrier_step(*plane(rho), 0.01, beta, 0.05, barrier)[1] for beta in (0.01, 0.1, 1.0)]
        cost = np.diff([info["cost_change"] for info in infos]) / infos[0]["best_cost"]
        reward = np.diff([info["reward_change"] for info in infos]).max()
        check("beta ten times as large: change of the reward's gain", reward, at_most=-1e-6)
        if rho < 0:
            check("erratum beta: ten times as large, rho < 0: more cost by [best decrease]", cost.min(),
                  at_least=1e-4, refutes="C11 printed", cases=2)
        else:
            check("beta ten times as large, rho > 0: more cost by [best decrease]", cost.max(), at_most=-1e-4,
                  supports="C11 corrected", cases=2)


@both_barriers
def test_the_hessian_of_the_divergence_is_fisher_plus_rank_one(barrier):
    """(3): the second derivative of D at the old policy, by autograd, with the surrogate of the cost change,
    and with the change of J_c itself, is F + beta phi''(m) g_c g_c^T: Psi has no linear term, so that the
    second derivative of J_c does not count. Control: F alone."""
    error, control, beta, m = 0.0, np.inf, 0.1, 0.05
    for world, theta in cases(10):
        S, A = world.r.shape
        rho, d, advantage = (world.occupancy(theta), world.state_occupancy(theta),
                             world.advantage(theta, world.c))

        def kl(new, world=world, theta=theta, rho=rho):
            return anp.sum(rho * (log_policy(theta) - log_policy(new)))

        def surrogate(new, d=d, advantage=advantage):
            return anp.sum(d[:, None] * anp.exp(log_policy(new)) * advantage)

        def change(new, world=world, theta=theta, S=S):
            pi = anp.exp(log_policy(new))
            P = anp.einsum("sa,sat->st", pi, world.P)
            V = anp.linalg.solve(anp.eye(S) - world.gamma * P, anp.sum(pi * world.c, axis=1))
            return (1 - world.gamma) * anp.dot(world.mu, V) - world.J(theta, world.c)

        def psi(a):
            share = a / m
            return -share - anp.log(1 - share) if barrier == "log" else a + (m - a) * anp.log(1 - share)

        g = world.gradient(theta, world.c).ravel()
        F = world.fisher(theta)
        H = F + beta * BARRIERS[barrier][2](m) * np.outer(g, g)
        for of_cost in (surrogate, change):
            D = hessian(lambda new, of_cost=of_cost, kl=kl: kl(new) + beta * psi(of_cost(new)))(theta)
            error = max(error, np.abs(D.reshape(S * A, S * A) - H).max())
            control = min(control, np.abs(D.reshape(S * A, S * A) - F).max())
    check("Hessian of D - (F + w g g^T), surrogate and exact", error, at_most=IDENTITY,
          supports="A2 Hessian", cases=20 + 2 * 3)
    check("  control: Hessian of D - F (least)", control, at_least=1e-6)


def test_violation_of_a_step_is_of_order_delta():
    """B8: steps from margins of .001, .01 and .1 delta below the budget. With the surrogate divergence some
    leave the safe set (control), by less than .1 delta, and the largest excess is proportional to delta; a
    thousand times as large where rare actions lead to a lasting cost; with the exact divergence, infinite
    outside, none does by construction, but for rounding: what can fail is that steps are taken and gain
    reward. Control: with Psi left out a third of the steps leave the safe set."""
    worst, deltas = [], np.array([0.1, 0.01, 0.001])
    for delta in deltas:
        steps = one_steps(delta, delta * np.array([0.001, 0.01, 0.1]))
        over = np.array([rise - margin for _, _, _, rise, margin, *_ in steps])
        worst.append(over.max())
        check("surrogate divergence: J_c - b after a step [delta]", over.max() / delta, at_most=0.1,
              supports="B8 surrogate", cases=len(over))
        check("surrogate divergence: share of steps that end outside (least)", np.mean(over > 1e-12),
              at_least=0.1, supports="B8 surrogate")
    order = np.polyfit(np.log(deltas), np.log(worst), 1)[0]
    check("surrogate divergence: largest excess, |observed order in delta - 1|", abs(order - 1), at_most=0.1,
          supports="B8 surrogate")
    # another constant: A -> B -> C, where it costs for ever; the action that goes on has probability p
    P, r, c = np.zeros((3, 2, 3)), np.array([[0, 0.2], [0, 1], [0, 0]]), np.zeros((3, 2))
    P[[0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1], [0, 1, 0, 2, 2, 2]] = 1
    c[2], over = 1, []
    chain = TabularCMDP(P, r, c, 0.99, mu=np.array([1.0, 0, 0]), limit=1.0)
    for p, delta in itertools.product(10.0 ** np.arange(-12, -5, 0.5), (1e-2, 1e-3, 1e-4)):
        rare = np.zeros((3, 2))
        rare[:2, 1] = math.log(p)
        limit = chain.J(rare, c) + 0.001
        new = barrier_training(chain, "log", 0.1, 1, rare, delta, limit, 1.0, exact=False)[0]
        over.append((chain.J(new, c) - limit) / delta)
    check("surrogate divergence: rare actions, gamma .99: J_c - b after a step [delta] (largest)", max(over),
          at_least=40, supports="B8 surrogate")
    margins = (1e-4, 1e-3, 1e-2)
    steps = list(one_steps(0.1, margins, exact=True))
    over = [rise - margin for _, _, _, rise, margin, *_ in steps]
    gains = [world.J(new, world.r) - world.J(old, world.r) for world, old, new, *_ in steps]
    left = [rise > margin for _, _, _, rise, margin, *_ in one_steps(0.1, margins, exact=None)]
    check("exact divergence: J_c - b after a step", max(over), 1e-12, supports="B8", cases=len(over))
    check("exact divergence: share of steps that raise J_r", np.mean(np.array(gains) > 0),
          at_least=0.9, supports="B8")
    check("  control: Psi left out: share of steps that end outside", np.mean(left), at_least=0.3)


# ------------------------------------------------------------------------------ C-NPG, the flow (B9-B13, C10)

TIMES = np.linspace(0, 60, 121)


@functools.cache
def flow(barrier: str, beta: float, start: int) -> tuple:
    return two_state().flow(safe_starts()[start], TIMES, beta, barrier)


def flow_rows(world) -> np.ndarray:
    """The S x SA matrix of Bellman's flow equations: every occupancy has the same image."""
    S, A = world.r.shape
    return np.repeat(np.eye(S), A, axis=1) - world.gamma * world.P.reshape(S * A, S).T


@both_barriers
def test_flow_stays_safe_and_follows_the_central_path(barrier):
    """B9, B10, two states, ten safe starts, beta = .01, .1, 1, 0 <= t <= 60: m > 0 by construction,
    as its log is integrated beside theta; what can fail is that it is b - J_c, here in units of m
    where m > 1e-6; and log pi_t / pi_0 - beta (phi'(m_t) - phi'(m_0)) c - t r is orthogonal to all
    changes of the occupancy. Controls: another beta; NPG from there leaves the safe set."""
    world, drift, relative, residual, control, met = two_state(), 0.0, 0.0, 0.0, 0.0, 0
    Q, _ = np.linalg.qr(flow_rows(world).T)
    for beta, start in itertools.product((0.01, 0.1, 1.0), range(10)):
        thetas, log_margins = flow(barrier, beta, start)
        assert np.isfinite(log_margins).all()
        slopes = -np.exp(-log_margins) if barrier == "log" else log_margins + 1
        for t, theta, log_margin, bend in list(zip(TIMES, thetas, log_margins, slopes - slopes[0]))[::6]:
            m, recomputed = math.exp(log_margin), world.limit - world.J(theta, world.c)
            drift = max(drift, abs(recomputed - m))
            relative = max(relative, abs(recomputed / m - 1) if m > 1e-6 else 0.0)
            moved = (log_policy(theta) - log_policy(thetas[0]) - t * world.r).ravel()
            left = [moved - factor * beta * bend * world.c.ravel() for factor in (1, 1.01)]
            left = [np.abs(each - Q @ (Q.T @ each)).max() for each in left]
            residual, control, met = max(residual, left[0]), max(control, left[1]), met + 1
    check(f"C-NPG, {barrier}: |b - J_c - m|", drift, at_most=1e-10, supports="B9", cases=met)
    check(f"C-NPG, {barrier}: |(b - J_c) / m - 1| where m > 1e-6", relative, 1e-4, supports="B9")
    check(f"C-NPG, {barrier}: central path, KKT residual", residual, 1e-8, supports="B10", cases=met)
    check("  control: KKT residual with beta 1% larger (largest)", control, at_least=1e-4)
    with pytest.raises(ValueError, match="J_c < 0.2"):  # an unsafe start
        world.flow(np.zeros((2, 2)), TIMES, 0.1, barrier)
    costs = [world.J(world.flow(theta, TIMES, 0.0)[0][-1], world.c) for theta in safe_starts()]
    check("  control: NPG from the same starts: J_c - b at t = 60 (least)", min(costs) - 0.2, at_least=0.5)


@both_barriers
def test_plain_flow_stays_safe_to_its_tolerance(barrier):
    """B9 without the log: theta alone, its velocity H^+ g_r from the shipped step, J_c recomputed;
    two states, ten safe starts, beta = .1 and 1, t <= 5. With -log x b - J_c > 0 throughout; with x
    log x, where m falls to e^-60, it is negative by the integrator's error at most, which shrinks
    with its tolerance. Control: NPG, weight 0, with the same integrator."""
    world, least = two_state(), {}

    def velocity(_, flat, beta):
        theta = flat.reshape(2, 2)
        margin = max(world.limit - world.J(theta, world.c), 1e-300)
        step, info = barrier_step(*first_order(world, theta), 0.5, beta, margin, barrier)
        return step * info["reward_change"]  # delta = .5: the step is H^+ g_r / |H^+ g_r|_H

    for beta, tolerance in ((0.1, 1e-6), (0.1, 1e-9), (1.0, 1e-6), (1.0, 1e-9), (0.0, 1e-6)):
        for theta in safe_starts():
            path = solve_ivp(velocity, (0, 5), theta.ravel(), "LSODA", np.linspace(0, 5, 51),
                             args=(beta,), rtol=tolerance, atol=tolerance / 10)
            assert path.success
            margins = [world.limit - world.J(flat.reshape(2, 2), world.c) for flat in path.y.T]
            key = tolerance if beta else "NPG"
            least[key] = min(least.get(key, np.inf), *margins)
    if barrier == "log":
        check("C-NPG, log, without the log of m: b - J_c (least)", min(least[1e-6], least[1e-9]),
              at_least=1e-3, supports="B9")
    else:
        for tolerance in (1e-6, 1e-9):
            check(f"C-NPG, xlogx, without the log of m: b - J_c, tolerance {tolerance:.0e}",
                  least[tolerance], at_least=-10 * tolerance, supports="B9")
    check("  control: NPG with the same integrator: J_c - b (largest)", -least["NPG"], at_least=0.1)


def test_flow_is_the_limit_of_small_steps():
    """C-TRPO's steps of length h, in the metric H, against the flow at equal time, sum of h / |H^+ g_r|_H:
    the error is of order h. Two states, 4 starts, both barriers, beta = .1."""
    orders = []
    for barrier, theta in itertools.product(BARRIERS, safe_starts(4)):
        errors = []
        for h in (2e-3, 1e-3):
            world, moved, elapsed = two_state(), theta, 0.0
            for _ in range(round(0.4 / h)):
                margin = world.limit - world.J(moved, world.c)
                step, info = barrier_step(*first_order(world, moved), h * h / 2, 0.1, margin, barrier)
                moved, elapsed = moved + step.reshape(2, 2), elapsed + h * h / info["reward_change"]
            exact = world.flow(theta, np.array([0.0, elapsed]), 0.1, barrier)[0][-1]
            errors.append(np.abs(moved - exact).max())
        orders.append(math.log2(errors[0] / errors[1]))
    worst = np.abs(np.subtract(orders, 1)).max()
    check("C-TRPO's small steps tend to C-NPG: |observed order - 1|", worst, at_most=0.15, supports="C-NPG",
          cases=len(orders))


def test_flow_approaches_the_optimum_as_one_over_time():
    """B11, x log x, beta = .01, .1, 1, five starts: V* - V_t <= D(rho*, rho_0) / t, where D = sum rho* log
    pi* / pi_0 + beta D_phi(0, m_0) and D_phi(0, m_0) = m_0. (For -log x it is infinite if the optimum lies on
    the boundary: nothing is claimed.) Control: an eighth of D is not enough."""
    world, worst, used, met = two_state(), -np.inf, 0.0, 0
    best = world.optimum()
    for beta, start in itertools.product((0.01, 0.1, 1.0), range(5)):
        thetas, log_margins = flow("xlogx", beta, start)
        with np.errstate(divide="ignore"):
            logs = np.where(best.occupancy > 0, np.log(best.policy), 0) - log_policy(thetas[0])
        D = dot(best.occupancy, logs) + beta * math.exp(log_margins[0])
        gaps = np.array([best.value - world.J(theta, world.r) for theta in thetas])
        shares = gaps[1:] * TIMES[1:] / D
        worst, used = max(worst, (gaps[1:] - D / TIMES[1:]).max()), max(used, shares.max())
        met += len(shares)
    check("C-NPG, x log x: V* - V_t - D / t", worst, at_most=1e-10, supports="B11", cases=met)
    check("  control: share of D / t that is used", used, at_least=1 / 8)


def test_log_barrier_approaches_the_optimum_as_one_over_time():
    """B11 says nothing of -log x with the optimum on the edge: D(rho*, rho_0) is infinite. But by the central
    path t (V* - V_t) = (log pi_t / pi_0).(rho* - rho_t) + beta (1 / m_t - 1 / m_0)(m_t - m*); the first term
    is at most KL(rho*, rho_0) = sum rho* log pi* / pi_0 by the three-point identity, the second at most beta
    (1 - sqrt(m* / m_0))^2. Two states, beta = .01, .1, 1, five starts; CMDPs with a face of optimal policies
    inside and on the edge, beta = .1 and 1. No rate is better: on the edge t (V* - V_t) tends to beta.
    Controls: KL without the second term, and half the bound, are not enough."""
    runs = [(two_state(), TIMES, beta, *flow("log", beta, start))
            for beta, start in itertools.product((0.01, 0.1, 1.0), range(5))]
    times = np.linspace(0, 60, 61)
    for seed, price, beta in itertools.product(range(2), (0.0, 1.0), (0.1, 1.0)):
        world, theta = world_with_optimal_face(seed, price)
        runs.append((world, times, beta, *world.flow(theta, times, beta, "log")))
    worst, used, without, met = -np.inf, 0.0, 0.0, 0
    for world, at, beta, thetas, log_margins in runs:
        best, m_0 = world.optimum(), math.exp(log_margins[0])
        log_best = np.log(np.where(best.occupancy > 0, best.policy, 1))
        kl = dot(best.occupancy, log_best - log_policy(thetas[0]) * (best.occupancy > 0))
        bound = kl + beta * (1 - math.sqrt(max(0.0, world.limit - best.cost) / m_0)) ** 2
        gaps = at[1:] * [best.value - world.J(theta, world.r) for theta in thetas[1:]]
        worst, used = max(worst, (gaps - bound).max()), max(used, gaps.max() / bound)
        without, met = max(without, gaps.max() / kl), met + len(gaps)
    check("C-NPG, -log x: t (V* - V_t) - bound", worst, at_most=1e-8, supports="B11 log", cases=met)
    check("  control: share of the bound that is used", used, at_least=0.5)
    check("  control: -log x: t (V* - V_t) over KL alone", without, at_least=1.5)
    late = np.array([0.0, 600.0, 6000.0])
    for start in range(2):
        world, errors = two_state(), []
        for t, theta in zip(late[1:], world.flow(flow("log", 0.1, start)[0][0], late, 0.1)[0][1:]):
            errors.append(abs(t * (world.optimum().value - world.J(theta, world.r)) / 0.1 - 1))
        check("C-NPG, -log x, edge: |t (V* - V_t) / beta - 1|, t = 6000", errors[1], at_most=1e-3,
              supports="B11 log")
        check("  control: at t = 600", errors[0], at_least=3e-4)


def test_margin_of_the_flow_decays_at_the_price_of_the_budget():
    """B13, nu the dual of the linear program: m ~ exp(-nu t / beta) for x log x, m ~ beta / (nu t) for -log
    x. Both asymptotic, so measured between t = 40 and 60, beta = .1 and 1, five starts. Control: each by the
    law of the other."""
    nu, worst, control, tried = two_state().optimum().dual, {"log": 0.0, "xlogx": 0.0}, np.inf, 0
    for barrier, beta, start in itertools.product(BARRIERS, (0.1, 1.0), range(5)):
        log_m = flow(barrier, beta, start)[1][[80, 120]]
        laws = {"log": np.diff(np.exp(np.minimum(-log_m, 700)))[0], "xlogx": -np.diff(log_m)[0]}
        errors = {law: abs(change / (20 * nu / beta) - 1) for law, change in laws.items()}
        worst[barrier], tried = max(worst[barrier], errors.pop(barrier)), tried + 1
        control = min(control, *errors.values())
    check("C-NPG, -log x: growth of 1 / m over nu / beta, less 1", worst["log"], 5e-3, supports="B13")
    check("C-NPG, x log x: fall of log m over nu / beta, less 1", worst["xlogx"], 1e-6, supports="B13",
          cases=tried)
    check("  control: each by the other's law (least)", control, at_least=0.5)


def world_with_optimal_face(seed: int, price: float) -> tuple:
    """(world, safe start): 4 states, 3 actions, of which two are optimal in every state: r = V - gamma P V +
    price c, less .5 to 1 for the third. All mixtures of the two that meet the budget are optimal, or if price
    > 0 those that exhaust it; b is in the middle between their least and largest cost."""
    rng = np.random.default_rng([24, seed])
    P, c, V = rng.dirichlet(np.ones(4), size=(4, 3)), rng.random((4, 3)), rng.normal(size=4)
    worse = np.zeros((4, 3))
    worse[:, 2] = rng.uniform(0.5, 1, size=4)
    r = V[:, None] - 0.9 * P @ V + price * c - worse
    world = TabularCMDP(P, r, c, 0.9, rng.dirichlet(np.ones(4)), np.inf)
    costs = [world.optimum(objective=sign * c - 1e3 * worse).cost for sign in (1, -1)]
    world = replace(world, limit=sum(costs) / 2)
    starts = (rng.normal(size=(4, 3)) for _ in range(1000))
    return world, next(theta for theta in starts if world.J(theta, c) < 0.98 * world.limit)


def distance_from_projection(world, rho, theta, barrier, beta, boundary: bool) -> float:
    """Newton's step at rho for the projection of theta onto the optimal face, argmin sum rho log pi / pi_0 +
    beta D_phi(m, m_0), which is strictly convex: to second order the distance from it. On the boundary
    D_phi(0, m_0) is constant."""
    (phi, slope, _), m_0 = BARRIERS[barrier], world.limit - world.J(theta, world.c)
    face = np.arange(12) % 3 < 2
    c, rows, old = world.c.ravel()[face], flow_rows(world)[:, face], log_policy(theta).ravel()[face]
    N = null_space(np.vstack([rows, c]) if boundary else rows)  # directions in the face

    def D(z):
        new = rho.ravel()[face] + N @ z
        d, m = anp.repeat(anp.sum(anp.reshape(new, (4, 2)), axis=1), 2), world.limit - c @ new
        kl = anp.sum(new * (anp.log(new / d) - old))
        return kl if boundary else kl + beta * (phi(m) - phi(m_0) - slope(m_0) * (m - m_0))

    zero = np.zeros(N.shape[1])
    return np.abs(N @ np.linalg.solve(hessian(D)(zero), grad(D)(zero))).max()


@pytest.mark.parametrize("barrier, price", [("log", 0.0), ("xlogx", 0.0), ("xlogx", 1.0)])
def test_flow_converges_to_the_projection(barrier, price):
    """B12: among all optimal policies C-NPG finds the one nearest to its start in the constrained divergence.
    Ten CMDPs of 4 states with a face of optimal policies, beta = .1; t = 80, so that the suboptimal third
    action, e^-40 of the start, is used up: nothing else is awaited. Control: the one nearest to .99 theta."""
    worst, control, tried = 0.0, np.inf, 0
    for seed in range(10):
        world, theta = world_with_optimal_face(seed, price)
        thetas, log_margins = world.flow(theta, np.array([0.0, 80.0]), 0.1, barrier)
        found = world.occupancy(thetas[-1])
        assert found[:, 2].max() < 1e-15 and (not price or log_margins[-1] < -100)  # on the face
        arguments = barrier, 0.1, price > 0
        worst, tried = max(worst, distance_from_projection(world, found, theta, *arguments)), tried + 1
        control = min(control, distance_from_projection(world, found, 0.99 * theta, *arguments))
    name = f"C-NPG, {barrier}, {'edge' if price else 'inside'}"
    check(f"{name}: distance from the projection of the start", worst, 1e-8, supports="B12", cases=tried)
    check(f"  control: {name}: from that of .99 theta (least)", control, at_least=1e-5)


def projection_in_kl(world, near, theta) -> np.ndarray:
    """argmin sum rho log pi / pi_0 over the optimal face, on the edge of the budget, by Newton's method: an
    occupancy (4, 3). `near` is any occupancy in its neighbourhood."""
    face = np.arange(12) % 3 < 2
    equations = np.vstack([flow_rows(world)[:, face], world.c.ravel()[face]])
    values, N = np.append((1 - world.gamma) * world.mu, world.limit), null_space(equations)
    point, old = near.ravel()[face], log_policy(theta).ravel()[face]
    point = point + np.linalg.lstsq(equations, values - equations @ point, rcond=None)[0]

    def D(z):
        rho = point + N @ z
        d = anp.repeat(anp.sum(anp.reshape(rho, (4, 2)), axis=1), 2)
        return anp.sum(rho * (anp.log(rho / d) - old))

    z = np.zeros(N.shape[1])
    for _ in range(8):
        z = z - np.linalg.solve(hessian(D)(z), grad(D)(z))
    assert (point + N @ z).min() > 0 and np.abs(grad(D)(z)).max() < 1e-12
    rho = np.zeros(12)
    rho[face] = point + N @ z
    return rho.reshape(4, 3)


def test_log_barrier_on_the_edge_converges_to_the_projection_in_kl():
    """-log x where every optimal policy exhausts the budget: D_phi(0, m_0) is infinite on all of the face,
    which has no projection of the start in the constrained divergence. The flow finds that in KL alone: at a
    given margin the barrier is a constant, and the margin goes as beta / (nu t). So the distance falls as 1 /
    t, measured from t = 800 to 8000, and what is extrapolated from there is nearer. Ten CMDPs of 4 states,
    beta = .1, nu = 1. Control: the nearest to .99 theta."""
    times, orders, last, ahead, control = np.array([0.0, 800, 8000]), [], 0.0, 0.0, np.inf
    for seed in range(10):
        world, theta = world_with_optimal_face(seed, 1.0)
        early, late = (world.occupancy(each) for each in world.flow(theta, times, 0.1, "log")[0][1:])
        nearest, other = (projection_in_kl(world, late, each) for each in (theta, 0.99 * theta))
        distances = [np.abs(each - nearest).max() for each in (early, late)]
        limit = (10 * late - early) / 9
        orders.append(math.log10(distances[0] / distances[1]))
        last, ahead = max(last, distances[1]), max(ahead, np.abs(limit - nearest).max())
        control = min(control, np.abs(limit - other).max())
    check("C-NPG, log, edge: distance from the projection in KL, t = 8000", last, at_most=1e-4,
          supports="B12 edge", cases=len(orders))
    check("C-NPG, log, edge: |observed order in 1 / t - 1|", np.abs(np.subtract(orders, 1)).max(),
          at_most=0.02, supports="B12 edge")
    check("C-NPG, log, edge: extrapolated limit - projection in KL", ahead, at_most=5e-6, supports="B12 edge")
    check("  control: C-NPG, log, edge: - that of .99 theta (least)", control, at_least=1e-4)


def shared_vectors(world, theta, groups) -> tuple:
    """(g_r, x_r, g_c, x_c) of logits (groups, A) that states share, state s those of groups[s]: gradients add
    up, and as the policies are equal, x is the mean of the natural directions, weighted by d. A gradient
    counts as zero as in `first_order`, where the best step, delta = .01, changes J by less than 1e-8."""
    full, vectors = theta[groups], []
    d = world.state_occupancy(full)
    for f in (world.r, world.c):
        g, x = np.zeros((2, *theta.shape))
        np.add.at(g, groups, world.gradient(full, f))
        np.add.at(x, groups, d[:, None] * world.natural_direction(full, f))
        x = x / np.bincount(groups, d)[:, None]
        significant = 0.02 * dot(g, x) > (1e-8 * np.abs(f).max()) ** 2
        vectors += [significant * g.ravel(), significant * x.ravel()]
    return tuple(vectors)


def shared_flow(world, theta, groups, times, beta, barrier) -> tuple:
    """C-NPG by the shipped step, whose direction is H^+ g_r, and the log of m beside it, as in
    TabularCMDP.flow: policies (n, S, A) and margins (n,)."""
    def velocity(_, state):
        vectors, m = shared_vectors(world, state[:-1].reshape(theta.shape), groups), math.exp(state[-1])
        step, info = barrier_step(*vectors, 0.5, beta, m, barrier)  # delta = .5: H^+ g_r / |H^+ g_r|_H
        return info["reward_change"] * np.append(step, -info["cost_change"] / m)

    start = np.append(theta, math.log(world.limit - world.J(theta[groups], world.c)))
    path = solve_ivp(velocity, (0, times[-1]), start, "LSODA", times, rtol=1e-9, atol=1e-10)
    assert path.success
    return path.y[:-1].T.reshape(-1, *theta.shape)[:, groups], np.exp(path.y[-1])


def test_flow_with_shared_logits_stays_safe_and_can_miss_the_best_of_its_class():
    """A parametrisation that is not regular, as the theorem asks for. Two states that always act alike: state
    0 pays .4 for action 1, which stays; action 0 leads to state 1, where it pays 1, costs 1, and returns. In
    its one probability J_r has two maxima, at 0 and, with b = .3, on the edge of the budget, which is worth
    less. From the right of the minimum the flow ends there, and t (V* - V_t) outgrows the bound of B11, V*
    that of the class; from the left it ends at the other. There, and from policies of Garnets whose states
    share in pairs, b - J_c stays m > 0. Controls: the vectors against a dense pseudo-inverse; a policy
    without shared logits earns more."""
    P, beta, groups, row = np.zeros((2, 2, 2)), 0.1, np.zeros(2, int), "B11 shared"
    P[0, 0, 1] = P[0, 1, 0] = P[1, 0, 0] = P[1, 1, 0] = 1
    r, c = np.array([[0, 0.4], [1, 0]]), np.array([[0.0, 0], [1, 0]])
    world = TabularCMDP(P, r, c, 0.9, np.array([1.0, 0]), 0.3)

    def one(p):
        return np.log([[p, 1 - p]])

    shares = np.linspace(1e-6, 1 - 1e-6, 2001)
    rewards, costs = ([world.J(one(p)[groups], f) for p in shares] for f in (r, c))
    best = np.max(np.where(np.less_equal(costs, world.limit), rewards, 0))
    times = {"left": np.linspace(0, 30, 7), "right": np.linspace(0, 80, 9)}
    gaps, over, drift, least = {"left": [], "right": []}, [], 0.0, np.inf
    for barrier, p in itertools.product(BARRIERS, (0.1, 0.3, 0.5, 0.7)):
        side, (phi, slope, _) = "left" if p < shares[np.argmin(rewards)] else "right", BARRIERS[barrier]
        thetas, margins = shared_flow(world, one(p), groups, times[side], beta, barrier)
        D = beta * (phi(0.3) - phi(margins[0]) - slope(margins[0]) * (0.3 - margins[0]))  # rho* costs nothing
        J_r, J_c = (np.array([world.J(theta, f) for theta in thetas]) for f in (r, c))
        gaps[side].append(best - J_r[-1])
        over += [((best - J_r) * times[side]).max() - (D - math.log(1 - p))] * (side == "right")
        drift = max(drift, np.abs(0.3 - J_c - margins).max())
        least = min(least, (0.3 - J_c).min() if barrier == "log" else np.inf)  # x log x: below rounding
    check("shared logits, from the left: gap to the best of the class (largest)", max(gaps["left"]), 1e-5)
    check("shared logits, from the right: gap to the best of the class (least)", min(gaps["right"]),
          at_least=0.03, supports=row, cases=len(gaps["right"]))
    check("shared logits, from the right: t (V* - V_t) - D(rho*, rho_0) (least)", min(over),
          at_least=0.3, supports=row)
    check("  control: what the best policy without shared logits earns more", world.optimum().value - best,
          at_least=0.04)
    pairs, worst = np.arange(10) // 2, 0.0
    members = np.kron((pairs[:, None] == np.arange(5)).astype(float), np.eye(4))  # d theta / d shared logits
    for i, world in enumerate(garnets(4)):
        theta = np.random.default_rng([96, i]).normal(size=(5, 4))
        vectors = shared_vectors(world, theta, pairs)
        inverse = np.linalg.pinv(members.T @ world.fisher(theta[pairs]) @ members, 1e-10, hermitian=True)
        for g, x, f in zip(vectors[::2], vectors[1::2], (world.r, world.c)):
            exact = members.T @ world.gradient(theta[pairs], f).ravel()
            worst = max(worst, np.abs(g - exact).max(), np.abs(x - inverse @ exact).max())
        world = replace(world, limit=world.J(theta[pairs], world.c) + 0.02)
        thetas, margins = shared_flow(world, theta, pairs, np.linspace(0, 20, 11), beta, "log")
        recomputed = world.limit - np.array([world.J(each, world.c) for each in thetas])
        drift, least = max(drift, np.abs(recomputed - margins).max()), min(least, recomputed.min())
    check("shared logits: g and x - those of a dense pseudo-inverse", worst, at_most=IDENTITY)
    check("shared logits: |b - J_c - m|", drift, at_most=1e-7, supports=row, cases=8)
    check("shared logits, log: b - J_c (least)", least, at_least=1e-3, supports=row)


def test_published_flow_code_is_not_the_flow():
    """C10, official c-npg.jl: its rank-one vector is sum c grad log eta, eta the occupancy, and not sum c
    grad eta = grad J_c. Control of B9: with either vector, Euler steps of length .2 (-log x, beta = .1) leave
    the safe set from all ten starts: invariance belongs to the flow."""
    world, cosines, equal, correct, row = two_state(), [], 0.0, 0.0, "C10 printed"
    for theta in (logits(world, seed) for seed in range(200)):
        g, eta = world.gradient(theta, world.c), world.occupancy(theta)
        published = np.tensordot(world.c, jacobian(lambda t: anp.log(world.occupancy(t)))(theta), 2)
        equal = max(equal, np.abs(world.gradient(theta, world.c / eta) - published).max())
        meant = np.tensordot(world.c, jacobian(world.occupancy)(theta), 2)
        correct = max(correct, np.abs(g - meant).max())
        cosines.append(dot(g, published) / math.sqrt(dot(g, g) * dot(published, published)))
    check("erratum: cosine of sum c grad log eta and grad J_c (least)", min(cosines), at_most=0.5,
          refutes=row, cases=len(cosines))
    check("corrected: grad J_c - sum c grad eta", correct, at_most=IDENTITY, supports="C10 corrected",
          cases=len(cosines))
    check("  sum c grad log eta = grad J_f of f = c / eta, held fixed", equal, at_most=IDENTITY)
    for vector in ("published", "correct"):
        left = []
        for theta in safe_starts():
            for _ in range(200):
                margin = world.limit - world.J(theta, world.c)
                if margin < 0:
                    break
                f = world.c / world.occupancy(theta) if vector == "published" else world.c
                vectors = (of(theta, g).ravel() for g in (world.r, f)
                           for of in (world.gradient, world.natural_direction))
                step, _ = barrier_step(*vectors, 0.01, 0.1, margin)
                theta = theta + 0.2 * step.reshape(2, 2) / np.linalg.norm(step)
            left.append(-margin)
        check(f"  control: Euler steps of equal length, {vector} vector: J_c - b", min(left), at_least=1e-9)
        check(f"  ... by no more than, {vector} vector", max(left), at_most=0.02)


# ----------------------------------------------------------------------------------- C-TRPO: whole exact runs


def iterations_to_optimum(barrier, beta, problems, most=150) -> list:
    """Until within 1e-3 of the optimum, for every (world, start); infinite if that takes `most`."""
    paths = (barrier_training(world, barrier, beta, most, theta, until=reached(world, world.limit))[1]
             for world, theta in problems)
    return [len(path) - 1 if len(path) <= most else math.inf for path in paths]


def run_problems() -> dict:
    """(world, start): two states from safe starts; 20 Garnets where .8 b can be met, from the uniform
    policy."""
    feasible = [w for w in garnets(24) if w.optimum(np.inf, -w.c).cost < 0.8 * w.limit]
    assert len(feasible) >= 20
    return {"two states": [(two_state(), theta) for theta in safe_starts()],
            "Garnets": [(world, None) for world in feasible[:20]]}


@pytest.mark.parametrize("barrier, beta, two_states, random", [  # and medians of another program
    ("log", 0.1, 19.5, 30), ("log", 1.0, 46.5, 50), ("xlogx", 10.0, 21, 32)])
def test_constrained_runs_find_the_optimum(barrier, beta, two_states, random):
    """Two states from ten safe starts, and 20 Garnets from the uniform policy; delta = .01, h = .8. The
    medians are those of an independent program, from other starts and on other Garnets."""
    for (name, problems), known in zip(run_problems().items(), (two_states, random)):
        runs = iterations_to_optimum(barrier, beta, problems)
        name = f"{name}, {barrier}, beta = {beta:g}"
        check(f"{name}: runs that miss the optimum", np.isinf(runs).sum(), at_most=0)
        check(f"{name}: |median iterations / known - 1|", abs(np.median(runs) / known - 1), at_most=0.15)


@slow
def test_x_log_x_misses_the_optimum_if_beta_is_small():
    """x log x with beta b / delta of 20 or less. An independent program, from other starts, reached the
    optimum in 4 of 10 runs, in none of 10, and in 14 of 20."""
    for name, beta, most in (("two states", 1.0, 5), ("two states", 0.01, 0), ("Garnets", 1.0, 16)):
        runs = iterations_to_optimum("xlogx", beta, run_problems()[name])
        check(f"xlogx, {name}, beta = {beta:g}: runs that reach the optimum", np.isfinite(runs).sum(), most)


def test_log_barrier_ends_at_the_optimum_of_two_states():
    """-log x, beta = .1, 60 iterations from ten safe starts. Control: x log x, beta = .01, from two."""
    world, ends, over = two_state(), {}, {}
    for barrier, beta, starts in (("log", 0.1, 10), ("xlogx", 0.01, 2)):
        paths = [barrier_training(world, barrier, beta, 60, theta)[1] for theta in safe_starts()[:starts]]
        ends[barrier] = max(world.optimum().value - path[-1, 0] for path in paths)
        over[barrier] = max(path[:, 1].max() for path in paths) - world.limit
    check("two states, log, beta = .1: gap at the end", ends["log"], at_most=1e-6)
    check("two states, log, beta = .1: J_c - b on the way", over["log"], at_most=1e-12)
    check("  control: x log x, beta = .01: gap at the end", ends["xlogx"], at_least=1e-3)
    check("  control: x log x, beta = .01: J_c - b on the way", over["xlogx"], at_least=1e-3)


def test_hysteresis_has_to_be_chosen():
    """A Garnet of least cost .82 b, -log x, beta = .1, delta = .01, from the uniform policy. h = .8: it never
    leaves recovery. h = 1: it enters with a margin of 1% of b, which then shrinks with every step, and jams
    like x log x. h = .95: it finds the optimum."""
    world = garnets(20)[19]
    best = world.optimum().value
    least = world.optimum(np.inf, -world.c).cost / world.limit
    check("the Garnet that C-TRPO misses: |least cost over b - .82|", abs(least - 0.82), at_most=5e-3)
    path = barrier_training(world, "log", 0.1, 100, hysteresis=0.8)[1]
    assert path[:, 2].all()
    check("hysteresis .8, least cost .82 b: reward missed, in recovery", best - path[-1, 0], at_least=0.1)
    path = barrier_training(world, "log", 0.1, 100, hysteresis=1.0)[1]
    check("hysteresis 1: reward missed, jammed", best - path[-1, 0], at_least=0.01)
    check("hysteresis 1: margin there", world.limit - path[-1, 1], at_most=1e-9)
    path = barrier_training(world, "log", 0.1, 100, hysteresis=0.95, until=reached(world, world.limit))[1]
    check("hysteresis .95: iterations to the optimum", len(path) - 1, at_most=40)


def test_x_log_x_jams_at_the_boundary():
    """The grid, b = .1, beta = .1, delta = .01, uniform start, h = 1: Psi(m) = m is finite, so that once m <
    delta / beta the trust region contains the boundary; the iterates land there and stop, far from the
    optimum. -log x arrives. Control: beta b / delta = 100 instead of 1."""
    world = replace(hazard_grid("A"), limit=0.1)
    best = world.optimum().value
    check("grid, b = .1, log: iterations", iterations_to_optimum("log", 0.1, [(world, None)])[0], at_most=25)
    path = barrier_training(world, "xlogx", 0.1, 100, hysteresis=1)[1]
    check("jamming: x log x, gap to the optimum after 100 iterations", best - path[-1, 0], at_least=0.03)
    check("jamming: |reward at the end - golden| (2 digits)", abs(path[-1, 0] - 0.051), at_most=5e-4)
    check("jamming: its margin", 0.1 - path[-1, 1], at_most=1e-9)
    check("jamming: what the last 50 iterations gained", path[-1, 0] - path[-51, 0], at_most=1e-3)
    far, = iterations_to_optimum("xlogx", 10.0, [(world, None)])
    check("  control: x log x, beta = 10: iterations to the optimum", far, at_most=50)


def test_without_a_budget_there_is_only_recovery():
    """b = 0: J_c < 0 never holds; on the grid the run ends safe and useless, where a safe policy is worth .1.
    The same for a budget below the least cost, two states, b = .004. Control: a small budget, b = .02."""
    world = hazard_grid("A")
    path = barrier_training(world, "log", 0.1, 100)[1]
    assert path[:, 2].all()
    check("b = 0, grid: cost at the end", path[-1, 1], at_most=1e-6)
    check("b = 0, grid: gap to the optimum at the end", world.optimum().value - path[-1, 0], at_least=0.095)
    check("b = 0: largest increase of the cost in an iteration", np.diff(path[:, 1]).max(), at_most=1e-12)
    world = replace(two_state(), limit=0.004)
    path = barrier_training(world, "log", 0.1, 60, logits(world))[1]
    assert path[:, 2].all()
    least = world.optimum(np.inf, -world.c).cost
    check("b below the least cost: cost above the least at the end", path[-1, 1] - least, at_most=1e-6)
    little, = iterations_to_optimum("log", 0.1, [(replace(hazard_grid("A"), limit=0.02), None)])
    check("  control: b = .02, grid: iterations to the optimum", little, at_most=60)


@both_barriers
def test_constrained_update_judges_the_constrained_divergence(barrier):
    """Shipped update_policy on 200 samples, Gaussian and categorical, where the best reward step exhausts the
    margin: the realised divergence is KL + beta Psi(surrogate cost), at most delta; in official units, KL / k
    + beta Psi for k action dimensions. Without a margin, recovery: the surrogate cost does not rise. Control:
    KL alone would have let a larger fraction pass."""
    wider, margins = 0, (1.0 if barrier == "log" else 0.1, 0)
    for policy, official, margin in itertools.product(POLICIES, (0, 1), margins):
        config = ctrpo.Config(barrier=barrier, official_units=official)
        ours, recovery = ctrpo.in_our_units(config, policy), not margin
        (theta, observations), rng = network(policy, 200), np.random.default_rng(25)
        old = ctrpo.distributions(policy, theta, observations)
        actions = (rng.integers(2, size=200) if policy.discrete
                   else old[:, :2] + np.exp(old[:, 2:]) * rng.normal(size=(200, 2)))
        rewards = rng.normal(size=200)
        costs = 30 * (rewards + rng.normal(size=200))
        new, info = ctrpo.update_policy(
            ours, policy, theta, observations, actions, rewards, costs, margin, recovery)
        measured = []
        for parameters in (new, theta + (new - theta) / 0.8):  # and the next larger fraction
            pi = ctrpo.distributions(policy, parameters, observations)
            before, after = (ctrpo.log_probabilities(policy, each, actions) for each in (old, pi))
            k = 2 if official and not policy.discrete else 1
            measured += [ctrpo.mean_kl(policy, old, pi) / k, np.mean((np.exp(after - before) - 1) * costs)]
        kl, cost, larger_kl, _ = measured
        D = kl + config.beta * barrier_divergence(cost, margin, barrier) if margin else kl
        check("update: constrained divergence [delta]", D / config.delta, at_most=1 + 1e-9)
        check("update: reported divergence and cost - recomputed",
              max(abs(info["realised_divergence"] / k - D), abs(info["surrogate_cost"] - cost)), at_most=1e-9)
        assert info["fraction"] > 0 and (info["surrogate_reward"] >= 0 if margin else cost <= 1e-12)
        wider += bool(margin) and info["stopped_by"] == "divergence" and larger_kl <= config.delta
    check("  control: steps that KL alone would have let go further (of 12)", wider, at_least=3)


def test_windowed_cost_is_the_releases_running_mean():
    """The release's own way: a deque of 50 costs, its mean noted at the end of each episode, J_c the mean of
    the epoch's notes. Five epochs of 1 to 80 episodes, the last costs handed on. Window 1: its mean."""
    rng = np.random.default_rng(0)
    running, before, alone, gaps = deque(maxlen=50), [], [], []
    for episodes in (1, 30, 80, 7, 12):
        costs, notes = rng.exponential(size=episodes), []
        for cost in costs:
            running.append(cost)
            notes.append(np.mean(running))
        J_c, before = ctrpo.windowed_cost(costs, before, 50)
        own, alone = ctrpo.windowed_cost(costs, alone, 1)
        gaps += [abs(J_c - np.mean(notes)), abs(own - costs.mean())]
    check("C-TRPO: J_c over a window - the release's", max(gaps), at_most=1e-12)
    check("  control: J_c of the last epoch alone", abs(own - J_c), at_least=1e-3)


@both_barriers
def test_official_units_are_the_metric_of_the_release(barrier):
    """Shipped update_policy with --official-units 1 on 200 samples, Gaussian policies of k = 2 action
    dimensions, as many CG iterations as parameters: the direction of its step solves the release's own system
    densely, (F / k + damping I + beta phi''(m) g_c g_c^T) y = g_r. Control: damping F, and not F / k."""
    config = ctrpo.Config(barrier=barrier, official_units=1, damping=0.1, cg_iterations=200)
    worst, control = 0.0, 1.0
    assert ctrpo.in_our_units(config, POLICIES[0]) == config  # a categorical policy has one action
    for policy in (policy for policy in POLICIES if not policy.discrete):
        (theta, observations), rng = network(policy, 200), np.random.default_rng(25)
        old = ctrpo.distributions(policy, theta, observations)
        actions = old[:, :2] + np.exp(old[:, 2:]) * rng.normal(size=(200, 2))
        rewards = rng.normal(size=200)
        costs, margin = 30 * (rewards + rng.normal(size=200)), 3.0
        ours = ctrpo.in_our_units(config, policy)
        new, info = ctrpo.update_policy(
            ours, policy, theta, observations, actions, rewards, costs, margin, recovery=False)
        assert info["fraction"] > 0
        gradient, _ = ctrpo.policy_gradient(policy, theta, observations, actions)
        g_r, g_c = gradient(rewards / 200), gradient(costs / 200)
        F = dense(ctrpo.fisher_product(policy, theta, observations, 0.0), theta.size)
        w = config.beta / (margin**2 if barrier == "log" else margin)
        misses = []
        for damping in (config.damping, config.damping / 2):
            y = np.linalg.solve(F / 2 + damping * np.eye(theta.size) + w * np.outer(g_c, g_c), g_r)
            misses.append(1 - y @ (new - theta) / np.linalg.norm(y) / np.linalg.norm(new - theta))
        worst, control = max(worst, misses[0]), min(control, misses[1])
    check("official units: 1 - cosine with the dense solve of the release", worst, at_most=1e-9)
    check("  control: damping half as large", control, at_least=1e-5)
