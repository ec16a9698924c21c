"""Theorems of SB-TRPO on exact worlds, whole exact runs, and the bounds and steps of TRPO and CPO."""
import functools
import itertools
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq, linprog

import sbtrpo
from conftest import check
from problems import (
    IDENTITY, bandit, cases, dot, first_order, gains, garnets, logits, observed_order,
    optimal_safety_biased_step, plane, random_problem, random_world, reached, shift_of_states,
    train_exactly, units)
from sbtrpo import safety_biased_step
from tabular_cmdp import TabularCMDP, cpo_step, garnet, hazard_grid, log_policy, trpo_step, two_state


# ---------------------------------------------- the idealised update (B1), and the orders of the local models


def policies_in_reach(world, old, delta, angles, shares):
    """(policies (n, 2, 2), J_r (n,), J_c (n,)) of a two-state world with KL(old || new) <= delta,
    on rays from old, which is the last; the end of a ray by bisection, as the KL rises along it.
    Coordinates: t of p = sin(t)^2, in which the Fisher metric is 4 d; p from 1e-16 on."""
    d, pi = world.state_occupancy(old), np.exp(log_policy(old))
    turn = 2 * np.pi * np.arange(angles) / angles
    rays = np.stack([np.cos(turn), np.sin(turn)], axis=1) * np.sqrt(delta / 2 / d)
    start = np.arctan2(np.sqrt(pi[:, 0]), np.sqrt(pi[:, 1]))

    def policies(lengths):
        t = np.clip(start + lengths[..., None] * rays, 1e-8, np.pi / 2 - 1e-8)
        return np.stack([np.sin(t) ** 2, np.cos(t) ** 2], axis=-1)

    low, high = np.zeros(angles), np.full(angles, 4 / math.sqrt(delta))
    for _ in range(50):
        middle = (low + high) / 2
        inside = np.sum(d[:, None] * pi * np.log(pi / policies(middle)), axis=(1, 2)) <= delta
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    new = np.append(policies(shares[:, None] * low).reshape(-1, 2, 2), pi[None], axis=0)
    transitions = np.eye(2) - world.gamma * np.einsum("nsa,sat->nts", new, world.P)
    mu = np.tile(world.mu[:, None], (len(new), 1, 1))
    d_new = (1 - world.gamma) * np.linalg.solve(transitions, mu)
    return new, *(np.sum(d_new * new * f, axis=(1, 2)) for f in (world.r, world.c))


def idealised_update(policies, reward, cost, beta) -> int:
    """Lemma 4.1, by brute force: which policy in reach has the most J_r of those with J_c(new) <=
    J_c(old) - beta (J_c(old) - c*), c* the least in reach; the last one is old."""
    allowed = np.flatnonzero(cost <= cost[-1] - beta * (cost[-1] - cost.min()) + 1e-15)
    return allowed[np.argmax(reward[allowed])]


@functools.cache
def idealised_changes() -> list:
    """(world, old, delta, beta, rise of J_r, rise of J_c) of idealised updates: 30 random CMDPs and
    policies of two states and two actions, delta = .01 and 1e-4, beta = .25, .75, 1."""
    rng, found = np.random.default_rng(80), []
    for _ in range(30):
        P, mu = rng.dirichlet(np.ones(2), size=(2, 2)), rng.dirichlet(np.ones(2))
        world = TabularCMDP(P, *rng.random((2, 2, 2)), 0.9, mu, np.inf)
        old = rng.normal(size=(2, 2))
        for delta in (0.01, 1e-4):
            reach = policies_in_reach(world, old, delta, 4000, np.linspace(0.1, 1, 10))
            _, reward, cost = reach
            for beta in (0.25, 0.75, 1.0):
                k = idealised_update(*reach, beta)
                found.append((world, old, delta, beta, reward[k] - reward[-1], cost[k] - cost[-1]))
    return found


def test_shipped_step_is_the_idealised_update_to_first_order():
    """B1: the changes of J_r and J_c by the optimal step, and of J_c by the convex one, differ from
    those of the idealised update by the order of sqrt(delta), in units of the best changes; and
    what the line search, with the exact KL, leaves of the step keeps .75 of the idealised cost
    decrease; its next smaller fraction is .8. Controls: the convex step earns less, at any delta;
    without its constraint the update raises the cost."""
    errors, kept, less, rising = {}, np.inf, 0.0, 0.0
    steps = {"optimal": optimal_safety_biased_step, "convex": safety_biased_step}
    for world, old, delta, beta, reward, cost in idealised_changes():
        vectors = first_order(world, old, delta)
        best = np.array(units(*vectors, delta)[:2])
        for name, update in steps.items():
            new = old + update(*vectors, delta, beta)[0].reshape(2, 2)
            changes = [world.J(new, f) - world.J(old, f) for f in (world.r, world.c)]
            missed = np.subtract((reward, cost), changes) / best
            error = np.abs(missed if name == "optimal" else missed[1:]).max()
            errors[name, beta, delta] = max(errors.get((name, beta, delta), 0.0), error)
            if delta < 0.01:
                less = max(less, missed[0])
                new = train_exactly(world, update, beta, 1, theta=old, delta=delta)[0]
                kept = min(kept, (world.J(new, world.c) - world.J(old, world.c)) / cost)
        _, rewards, costs = policies_in_reach(world, old, delta, 40, np.ones(1))
        rising = max(rising, (costs[np.argmax(rewards)] - costs[-1]) / best[1])
    for name in steps:
        orders = [2 * math.log(errors[name, beta, 0.01] / errors[name, beta, 1e-4], 100)
                  for beta in (0.25, 0.75, 1.0)]
        check(f"idealised update - {name} step: |observed order in sqrt(delta) - 1|",
              np.abs(np.subtract(orders, 1)).max(), at_most=0.25, supports="B1",
              cases=180 * (name == "optimal"))  # both steps are compared with the same updates
        check(f"idealised update - {name} step, delta = 1e-4 [best changes]",
              max(errors[name, beta, 1e-4] for beta in (0.25, 0.75, 1.0)), at_most=0.03,
              supports="B1")
    check("idealised update: its cost decrease that an accepted step keeps", kept,
          at_least=0.75, supports="B1")
    check("  control: reward that the convex step leaves, delta = 1e-4 [best]", less, at_least=0.3)
    check("  control: most reward, whatever the cost: rise of J_c [best]", rising, at_least=0.5)


def test_idealised_update_raises_reward_where_aligned_and_ends_at_the_least_cost():
    """B1: where rho <= 0 and beta < 1 the reward rises, at delta = .01; for small delta it rises if
    and only if rho < sqrt(1 - beta^2), cases in which the first-order change is 3% of the best or
    more; and the update ends at the least cost of all policies, two states, from four starts. That
    it never raises J_c is its own constraint. Control: from the same starts the shipped steps, beta
    = .25, can end at a costly vertex, where no gradient is left (C1)."""
    least, aligned, wrong, rising, falling = np.inf, 0, 0, 0, 0
    for world, old, delta, beta, reward, _ in idealised_changes():
        best, _, rho = units(*first_order(world, old, delta), delta)
        expected = 1.0 if rho <= -beta else -beta * rho + math.sqrt((1 - beta**2) * (1 - rho**2))
        if delta == 0.01 and rho <= 0 and beta < 1:
            least, aligned = min(least, reward / best), aligned + 1
        if delta < 0.01 and abs(expected) > 0.03:
            wrong += (reward > 0) != (rho < math.sqrt(1 - beta**2))
            rising, falling = rising + (expected > 0), falling + (expected < 0)
    check("idealised update: reward gain where rho <= 0, beta < 1 [best gain]", least, at_least=0.5,
          supports="B1")
    check("idealised update: exceptions to 'reward rises iff rho < sqrt(1 - beta^2)'", wrong,
          at_most=0, supports="B1")
    check("  aligned cases", aligned, at_least=20)
    check("  cases where it rises or falls, the rarer", min(rising, falling), at_least=10)
    world, longest, above = two_state(), 0, 0.0
    cheapest = world.optimum(np.inf, -world.c).cost
    for beta, start in itertools.product((0.25, 0.75, 1.0), range(4)):
        theta = logits(world, start)
        for updates in range(151):
            if world.J(theta, world.c) < cheapest + 1e-4:
                break
            found = policies_in_reach(world, theta, 0.02, 360, np.linspace(0.2, 1, 5))
            theta = np.log(found[0][idealised_update(*found, beta)])
        longest = max(longest, updates)
    for start in range(4):
        _, path = train_exactly(world, optimal_safety_biased_step, 0.25, 60,
                                theta=logits(world, start), delta=0.02)
        above = max(above, path[-1, 1] - cheapest)
    check("idealised update: updates until 1e-4 from the least cost", longest, at_most=120,
          supports="B1", cases=12)
    check("  control: shipped step, beta = .25: J_c above the least at the end", above,
          at_least=0.1)


def policies_in_largest_kl(world, old, delta, shares):
    """As `policies_in_reach`, but with max_s KL(old || new) <= delta: all pairs of probabilities, `shares` of
    the way to the end of each state's interval, either way; the ends by bisection; old is the last."""
    pi, sign = np.exp(log_policy(old)), np.array([[-1.0], [1.0]])
    start = np.arctan2(np.sqrt(pi[:, 0]), np.sqrt(pi[:, 1]))  # p = sin(t)^2, as there

    def policies(t):
        t = np.clip(t, 1e-8, np.pi / 2 - 1e-8)
        return np.stack([np.sin(t) ** 2, np.cos(t) ** 2], axis=-1)

    low, high = np.zeros((2, 2)), np.full((2, 2), np.pi / 2)  # (way, state)
    for _ in range(60):
        middle = (low + high) / 2
        inside = np.sum(pi * np.log(pi / policies(start + sign * middle)), axis=-1) <= delta
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    below, above = start - shares[::-1, None] * low[0], start + shares[:, None] * low[1]
    ways = np.concatenate([below, start[None], above])
    t = np.stack(np.meshgrid(*ways.T, indexing="ij"), axis=-1).reshape(-1, 2)
    new = np.append(policies(t), pi[None], axis=0)
    transitions = np.eye(2) - world.gamma * np.einsum("nsa,sat->nts", new, world.P)
    d = (1 - world.gamma) * np.linalg.solve(transitions, np.tile(world.mu[:, None], (len(new), 1, 1)))
    return new, *(np.sum(d * new * f, axis=(1, 2)) for f in (world.r, world.c))


def largest_kl(old, new) -> float:
    """max_s KL(old || new); new holds logits."""
    return np.sum(np.exp(log_policy(old)) * (log_policy(old) - log_policy(new)), axis=1).max()


def best_of_the_box(world, old, delta, beta) -> tuple:
    """(rise of J_r, best rise, best fall of J_c) to first order, where each state has its own trust region:
    max G_r.u subject to G_c.u <= -beta (best fall), |u_s| <= sqrt(2 delta): a linear program. Two actions:
    u_s is the change of p_s over sqrt(p_s (1 - p_s)), G_s = dJ / du_s = g_s0 / sqrt(p_s (1 - p_s))."""
    pi = np.exp(log_policy(old))
    G_r, G_c = (world.gradient(old, f)[:, 0] / np.sqrt(pi[:, 0] * pi[:, 1]) for f in (world.r, world.c))
    radius = math.sqrt(2 * delta)
    best_r, best_c = radius * np.abs(G_r).sum(), radius * np.abs(G_c).sum()
    found = linprog(-G_r / best_r, [G_c / best_c], [-beta + 1e-12], bounds=(-radius, radius))
    assert found.success
    return -found.fun * best_r, best_r, best_c


def test_idealised_update_in_the_largest_kl():
    """B1 with max_s KL(old || new) <= delta, as the lemma has it: 30 random CMDPs of two states, delta = .01
    and 1e-4. Its changes of J_r and J_c are those of a linear program, but for the order of sqrt(delta): J_r
    rises where that says so. The mean KL is the looser region: asked for the same decrease, the shipped
    optimal step earns no less. From four starts, two states, J_c never rises, by its own constraint, and ends
    at the least of all policies. Controls: updates of the mean KL leave the region; asked for beta of their
    own best decrease, which is more, the shipped step can earn less."""
    errors, wrong, rising, falling, ahead, control, outside = {}, 0, 0, 0, np.inf, np.inf, 0.0
    for world, old, delta, beta, *_ in idealised_changes():
        reach = policies_in_largest_kl(world, old, delta, np.linspace(0.02, 1, 50))
        k = idealised_update(*reach, beta)
        rise, best_r, best_c = best_of_the_box(world, old, delta, beta)
        changes = (reach[1][k] - reach[1][-1] - rise) / best_r, (reach[2][k] - reach[2][-1]) / best_c + beta
        error = max(abs(changes[0]), changes[1])  # the cost may fall by more: where step_r lets it
        errors[beta, delta] = max(errors.get((beta, delta), 0.0), error)
        vectors = first_order(world, old, delta)
        share = beta * best_c / units(*vectors, delta)[1]  # the box's demand, for the mean KL's step
        step, info = optimal_safety_biased_step(*vectors, delta, share)
        ahead = min(ahead, (info["reward_change"] - rise) / best_r)
        _, own = optimal_safety_biased_step(*vectors, delta, beta)
        control = min(control, (own["reward_change"] - rise) / best_r)
        if delta < 0.01 and abs(rise) > 0.03 * best_r:
            wrong += (reach[1][k] > reach[1][-1]) != (rise > 0)
            rising, falling = rising + (rise > 0), falling + (rise < 0)
        elif delta == 0.01 and beta == 0.75:
            wide = policies_in_reach(world, old, delta, 400, np.ones(1))
            outside = max(outside, largest_kl(old, np.log(wide[0][idealised_update(*wide, beta)])) / delta)
    orders = [2 * math.log(errors[beta, 0.01] / errors[beta, 1e-4], 100) for beta in (0.25, 0.75, 1.0)]
    row = "B1"
    check("idealised update, largest KL - linear program: |observed order in sqrt(delta) - 1|",
          np.abs(np.subtract(orders, 1)).max(), at_most=0.25, supports=row, cases=180)
    check("idealised update, largest KL - linear program, delta = 1e-4 [best changes]",
          max(errors[beta, 1e-4] for beta in (0.25, 0.75, 1.0)), at_most=0.04, supports=row)
    check("idealised update, largest KL: exceptions to 'J_r rises iff the program's does'", wrong, at_most=0,
          supports=row)
    check("  largest KL: cases where it rises or falls, the rarer", min(rising, falling), at_least=10)
    check("shipped step, same decrease: reward ahead of the largest KL's (least) [best]", ahead,
          at_least=-1e-9, supports=row)
    check("  control: asked for beta of its own best: ahead (least) [best]", control, at_most=-0.02)
    check("  control: largest KL of an update of the mean KL [delta]", outside, at_least=1.5)
    world, longest, rose = two_state(), 0, -np.inf
    cheapest = world.optimum(np.inf, -world.c).cost
    for beta, start in itertools.product((0.25, 0.75, 1.0), range(4)):
        theta, updates = logits(world, start), 0
        while world.J(theta, world.c) > cheapest + 1e-4 and updates < 151:
            new, reward, cost = policies_in_largest_kl(world, theta, 0.02, np.linspace(0.1, 1, 10))
            k = idealised_update(new, reward, cost, beta)
            rose, updates = max(rose, cost[k] - cost[-1]), updates + 1
            theta = np.log(new[k])
        longest = max(longest, updates)
    check("idealised update, largest KL: updates until 1e-4 from the least cost", longest, at_most=130,
          supports=row, cases=12)
    check("idealised update, largest KL: rise of J_c in an update", rose, at_most=1e-14, supports=row)


def model_errors(world, theta, step) -> dict:
    """{model: fraction of the step -> its error}, for the cost and the KL along theta + fraction * step."""
    F, g, f = world.fisher(theta), world.gradient(theta, world.c), world.c
    square = step.ravel() @ F @ step.ravel()

    def gain(t):
        return world.J(theta + t * step, f) - world.J(theta, f)

    return {"surrogate": lambda t: abs(gain(t) - world.surrogate(theta, theta + t * step, f)),
            "linear": lambda t: abs(gain(t) - t * dot(g, step)),
            "kl": lambda t: abs(world.kl(theta, theta + t * step) - t * t * square / 2)}


def test_orders_of_the_local_models():
    """Along shipped steps of 40 Garnets, delta = .1: the surrogate, and the linear model, are exact to first
    order (errors of order 2), the quadratic KL to second (order 3). Medians."""
    orders = {"surrogate": [], "linear": [], "kl": []}
    for world, theta in cases(40)[3:]:
        step = safety_biased_step(*first_order(world, theta), 0.1, 0.5)[0].reshape(theta.shape)
        for name, error in model_errors(world, theta, step).items():
            orders[name].append(observed_order(error))
    for name, order in (("surrogate", 2), ("linear", 2), ("kl", 3)):
        check(f"{name} model: |observed order - {order}|", abs(np.median(orders[name]) - order), at_most=0.15)


# ---------------------------------------------------- what the paper adds to Eq. 4, and what beta = 1 is (A1)


def guarded_step(g_r, x_r, g_c, x_c, delta, beta, kappa):
    """The paper's Eq. 4, kappa in the denominator, on the shipped step_r and step_c."""
    step_r, _ = safety_biased_step(g_r, x_r, 0 * g_c, 0 * x_c, delta, beta)
    step_c, _ = safety_biased_step(0 * g_r, 0 * x_r, g_c, x_c, delta, beta)
    needed, difference = g_c @ step_r - beta * (g_c @ step_c), g_c @ (step_r - step_c)
    mu = min(1, max(0, needed / (difference + kappa)))
    return (1 - mu) * step_r + mu * step_c


def test_kappa_in_the_denominator_costs_a_share_of_the_decrease():
    """With k = kappa / best decrease, mu = (beta + rho) / (1 + rho + k), so that the step misses the share k
    (beta + rho) / (1 + rho + k) of the best decrease: kappa at most, but all that step_r does not do by
    itself as the gradient vanishes. Along a run of the shipped step on the grid, beta = .75, it grows as the
    cost goes. Control: the shipped step, without kappa, misses nothing."""
    rng, delta, law, beyond, control, tried = np.random.default_rng(92), 0.01, 0.0, -np.inf, 0.0, 0
    for _ in range(1000):
        _, (g_r, x_r, g_c, x_c) = random_problem(rng)
        beta, scale, kappa = rng.uniform(0.05, 1), 10 ** rng.uniform(-8, 0), 10 ** rng.uniform(-10, -3)
        vectors = g_r, x_r, scale * g_c, scale * x_c
        _, best, rho = units(*vectors, delta)
        if rho > -beta:
            missed = beta + vectors[2] @ guarded_step(*vectors, delta, beta, kappa) / best
            k, tried = kappa / best, tried + 1
            law = max(law, abs(missed - k * (beta + rho) / (1 + rho + k)))
            beyond = max(beyond, missed / k - 1)
    row = "A1 kappa corrected"
    check("kappa: share missed - k (beta + rho) / (1 + rho + k)", law, 1e-9, supports=row, cases=tried)
    check("kappa: decrease missed over kappa, less 1", beyond, at_most=1e-6, supports=row)
    world, theta, steps = hazard_grid("A"), np.zeros((10, 5)), 0
    missed = {1e-8: 0.0, 1e-6: 0.0, 1e-4: 0.0}
    while (vectors := first_order(world, theta))[2].any():
        best = units(*vectors, delta)[1]
        for kappa in missed:
            share = 0.75 + vectors[2] @ guarded_step(*vectors, delta, 0.75, kappa) / best
            missed[kappa] = max(missed[kappa], share)
        control = max(control, 0.75 + vectors[2] @ safety_biased_step(*vectors, delta, 0.75)[0] / best)
        theta, _ = train_exactly(world, safety_biased_step, 0.75, 1, theta=theta)
        steps += 1
    for (kappa, share), least in zip(missed.items(), (1e-3, 0.1, 0.7)):
        check(f"erratum: share of the best decrease missed on the grid, kappa = {kappa:.0e}", share,
              at_least=least, refutes="A1 kappa printed", cases=steps)
    check("  control: missed without kappa", control, at_most=1e-9)


def test_full_bias_is_cpo_only_where_the_excess_is_out_of_reach():
    """beta = 1, rho > -1: the shipped step is step_c, and so is CPO's recovery, where J_c - b >= sqrt(2 delta
    s). Elsewhere CPO takes as much cost as it may: the cosine of its step and step_c is max(f, -rho), f the
    excess over sqrt(2 delta s). On the grid, b = 0, two runs are equal until f < 1, and then CPO's earns
    more."""
    rng, delta, equal, apart, lengths, reached = np.random.default_rng(90), 0.01, 0.0, 0.0, [], 0
    for _ in range(1000):
        F, vectors = random_problem(rng)
        f, (_, best, rho) = rng.uniform(0, 2), units(*vectors, delta)
        step, info = cpo_step(*vectors, delta, f * best)
        difference = step - safety_biased_step(*vectors, delta, 1.0)[0]
        length = math.sqrt(difference @ F @ difference / 2 / delta)
        assert info["feasible"] == (f < 1)
        if f >= 1:
            equal, reached = max(equal, length), reached + 1
        else:
            apart = max(apart, abs(length - math.sqrt(2 - 2 * max(f, -rho))))
            lengths.append(length)
    row = "A1 CPO corrected"
    check("beta = 1, out of reach: step - CPO's [radius]", equal, at_most=1e-9, supports=row, cases=reached)
    check("beta = 1, within reach: distance of the steps - closed form [radius]", apart, at_most=1e-6,
          supports=row, cases=len(lengths))
    check("erratum: beta = 1, within reach: distance of the steps, median [radius]", np.median(lengths),
          at_least=0.5, refutes="A1 CPO printed", cases=len(lengths))

    def cpo(*arguments):
        *vectors, radius, _, excess = arguments
        return cpo_step(*vectors, radius, excess)

    world = hazard_grid("A")
    ours = train_exactly(world, safety_biased_step, 1.0, 16)[1]
    theirs = train_exactly(world, cpo, 1.0, 16, limit=0.0)[1]
    theta, reach = np.zeros((10, 5)), 0  # updates until the excess comes into reach
    while world.J(theta, world.c) >= units(*first_order(world, theta), delta)[1]:
        theta, _ = train_exactly(world, safety_biased_step, 1.0, 1, theta=theta)
        reach += 1
    check("beta = 1, grid: updates until the excess comes into reach", reach, at_least=3)
    check("beta = 1, grid: run - CPO's until then", np.abs(ours - theirs)[: reach + 1].max(), at_most=1e-12,
          supports=row, cases=reach)
    check("erratum: beta = 1, grid: reward by which CPO's run leads", (theirs - ours)[:, 0].max(),
          at_least=0.03, refutes="A1 CPO printed")


# ------------------------------------------------------------------------------------------- whole exact runs


def test_safety_bias_ends_safe_and_productive_on_the_grid():
    """Uniform start, delta = .01, budget 0; iterations are no more than an independent program needs.
    The count depends on how the vanishing cost gradient is treated; the end does not. Control: cost only is
    safe and useless."""
    world, best = hazard_grid("A"), hazard_grid("A").optimum().value
    for name, update, beta, known in (("convex .5", safety_biased_step, 0.5, 29),
                                      ("convex .75", safety_biased_step, 0.75, 41),
                                      ("convex .9", safety_biased_step, 0.9, 83),
                                      ("optimal .75", optimal_safety_biased_step, 0.75, 20)):
        _, path = train_exactly(world, update, beta, 100, until=reached(world))
        check(f"grid, {name}: iterations until 1e-3 from the optimum", len(path) - 1, at_most=known)
    path = train_exactly(world, safety_biased_step, 0.75, 100)[1]
    check("grid, convex .75: gap to the optimum after 100 iterations", best - path[-1, 0], at_most=1e-6)
    check("grid, convex .75: cost after 100 iterations", path[-1, 1], at_most=1e-6)
    check("grid, convex .75: largest cost increase in an iteration", np.diff(path[:, 1]).max(), at_most=1e-12)

    def cost_only(g_r, x_r, *rest):
        return safety_biased_step(0 * g_r, 0 * x_r, *rest)

    useless = train_exactly(world, cost_only, 1.0, 100)[1][-1]
    check("  control: cost only ends safe ...", useless[1], at_most=1e-6)
    check("  ... and far from the optimum (gap)", best - useless[0], at_least=0.09)


def test_golden_rewards_of_the_first_safe_policies():
    """Grid A from the uniform policy, delta = .001: J_r where J_c first falls below .001, four digits; beta =
    1 is cost only. What makes SB-TRPO more than that is there before the cost is gone."""
    for beta, golden in ((0.5, 0.0384), (0.75, 0.0131), (1.0, 0.0027)):
        _, path = train_exactly(hazard_grid("A"), safety_biased_step, beta, 100, delta=0.001,
                                until=lambda _, cost: cost < 1e-3)
        assert path[-1, 1] < 1e-3
        check("grid: golden J_r of the first safe policy [last digit]", abs(path[-1, 0] - golden) / 1e-4,
              at_most=0.55)


def test_exhausted_cost_leaves_the_reward_step():
    """When the cost is below rounding, its gradient counts as zero and both updates return the full reward
    step. Control: without that, g.x is negative in some iteration, which no positive metric can give."""
    world, theta, products = hazard_grid("A"), None, []
    for _ in range(20):
        theta, path = train_exactly(world, safety_biased_step, 0.75, 1, theta=theta)
        products.append(dot(world.gradient(theta, world.c), world.natural_direction(theta, world.c)))
    vectors = first_order(world, theta)
    check("exhausted cost: |J_c| after 20 iterations on the grid", abs(path[-1, 1]), at_most=1e-12)
    check("exhausted cost: gradient kept", np.abs(vectors[2]).max(), at_most=0.0)
    best = math.sqrt(2 * 0.01 * (vectors[0] @ vectors[1]))
    for update in (safety_biased_step, optimal_safety_biased_step):
        step, _ = update(*vectors, 0.01, 0.75)
        check("exhausted cost: |reward gain - best| [best]", abs(vectors[0] @ step / best - 1), at_most=1e-9)
    check("  control: iterations with g.x < 0", sum(product < 0 for product in products), at_least=1)


def test_safety_bias_ends_safe_and_productive_on_sparse_garnets():
    """20 Garnets in which a policy free of cost exists, uniform start, delta = .01."""
    feasible = [world for world in garnets(24, sparse_cost=True) if world.limit == 0][:20]
    assert len(feasible) == 20
    runs = [len(train_exactly(w, safety_biased_step, 0.75, 150, until=reached(w))[1]) - 1 for w in feasible]
    missed = sum(k == 150 for k in runs)
    check("sparse Garnets, convex .75: runs that miss the optimum (of 20)", missed, at_most=0)
    check("sparse Garnets, convex .75: median iterations", float(np.median(runs)), at_most=35)


@pytest.mark.parametrize("update", [safety_biased_step, optimal_safety_biased_step])
def test_budget_is_met_in_exact_training(update):
    """Extension, budget b > 0: two states, the grid and 10 Garnets, 120 iterations of delta = .01. Once J_c
    is within 1e-5 of b, it exceeds b by second order at most; in the end it is below b, and the reward near
    the linear program's: the 2% asked for beyond J_c - b keep the line search from stopping at J_c = b."""
    name, crossed, ends, gaps = "convex" if update is safety_biased_step else "optimal", [], [], []
    for world, b in [(two_state(), 0.2), (hazard_grid("A"), 0.02), *[(w, w.limit) for w in garnets(10)]]:
        reward, cost = train_exactly(world, update, 0.75, 120, limit=b)[1].T
        assert cost.min() <= b + 1e-5
        crossed.append(cost[np.argmax(cost <= b + 1e-5):].max() - b)
        ends.append(cost[-1] - b)
        gaps.append(1 - reward[-1] / world.optimum(b).value)
    check(f"budget, {name}: J_c - b once inside [delta]", max(crossed) / 0.01, at_most=0.1)
    check(f"budget, {name}: J_c - b at the end", max(ends), at_most=0.0)
    check(f"budget, {name}: reward short of the linear program, median world", np.median(gaps), at_most=1e-3)
    check(f"budget, {name}: reward short of the linear program, worst world", max(gaps), at_most=5e-3)


def test_line_search_is_needed():
    """Full optimal steps of 40 Garnets use delta = .1 of the quadratic KL; the exact KL overshoots, that of a
    step towards a rare action six times (controls), and the line search brings it back, by construction; what
    can fail is that it takes back no more than its next fraction, .8, has to: a step keeps half of delta, and
    .65 of the cost decrease asked for."""
    overshoot, accepted, least, kept = 0.0, 0.0, np.inf, np.inf
    for world, theta in cases(40)[3:]:
        step = optimal_safety_biased_step(*first_order(world, theta, 0.1), 0.1, 0.75)[0].reshape(theta.shape)
        overshoot = max(overshoot, world.kl(theta, theta + step) / 0.1)
        new = train_exactly(world, optimal_safety_biased_step, 0.75, 1, theta=theta, delta=0.1)[0]
        kl = world.kl(theta, new) / 0.1
        asked = -0.75 * units(*first_order(world, theta, 0.1), 0.1)[1]
        accepted, least = max(accepted, kl), min(least, kl)
        kept = min(kept, (world.J(new, world.c) - world.J(theta, world.c)) / asked)
    check("exact KL of accepted steps [delta]", accepted, at_most=1.0)
    check("exact KL of accepted steps [delta], least", least, at_least=0.5)
    check("cost decrease of accepted steps [beta times the best], least", kept, at_least=0.65)
    check("  control: exact KL of full steps, largest [delta]", overshoot, at_least=1.05)
    world, rare = bandit((1, 0)), np.log([[0.01, 0.99]])
    step = sbtrpo.steepest_step(*first_order(world, rare, 0.1)[:2], 0.1)[0]
    check("  control: the same, towards a rare action [delta]", world.kl(rare, rare + step) / 0.1, at_least=5)


def policy_towards(world, old, occupancy, delta) -> np.ndarray:
    """The policy of (1 - u) rho_old + u `occupancy`, with the largest u that KL(old, new) <= delta allows: an
    objective that is better there, is better here, as J is linear in the occupancy."""
    def new(u):
        return np.log(np.maximum((1 - u) * world.occupancy(old) + u * occupancy, 1e-300))

    def over(u):
        return world.kl(old, new(u)) - delta

    return new(1.0 if over(1.0) <= 0 else brentq(over, 0, 1))


def rests(update, beta: float) -> list:
    """(world, theta) where exact runs come to rest: 10 iterations move neither J_r nor J_c by 1e-9, within
    200. Random CMDPs of two states and two actions, and sparse Garnets, where a policy is free of cost."""
    rng, found = np.random.default_rng(91), []
    for k in range(32):
        P, mu = rng.dirichlet(np.ones(2), size=(2, 2)), rng.dirichlet(np.ones(2))
        world = TabularCMDP(P, *rng.random((2, 2, 2)), 0.9, mu, np.inf) if k < 30 else garnet(k, True)
        theta, path, iterations = rng.normal(size=world.r.shape), np.eye(2), 0
        while np.ptp(path, axis=0).max() > 1e-9 and iterations < 200:
            theta, path = train_exactly(world, update, beta, 10, theta=theta)
            iterations += 10
        if iterations < 200:
            found.append((world, theta))
    return found


def test_a_rest_of_the_shipped_step_is_optimal_or_has_lost_an_action():
    """Lemma 4.1(3): a policy that the update leaves where it is, is the best of its ball, KL <= .01. Where no
    action has A_c < 0, the shipped step rests at the least cost of all policies, and at the most reward for
    it. Where one has, it has died out: its probability is below what double precision, or the 1e-8 of
    `first_order`, lets a gradient see. There the ball holds a policy that costs less: a mixture with the
    cheapest of all. In exact arithmetic that is no rest: where some A_c < 0 the cost gradient is not 0, and a
    small enough step lowers J_c (B2)."""
    delta, gap, alive, better, optimal, lost = 0.01, 0.0, 0.0, np.inf, 0, 0
    for update, beta in itertools.product((safety_biased_step, optimal_safety_biased_step), (0.25, 0.75)):
        for world, theta in rests(update, beta):
            cost, advantage = world.J(theta, world.c), world.advantage(theta, world.c)
            assert world.state_occupancy(theta).min() > 1e-3
            cheapest = world.optimum(np.inf, -world.c)
            if advantage.min() > -1e-6:
                best = world.optimum(cost + 1e-9).value
                gap, optimal = max(gap, cost - cheapest.cost, best - world.J(theta, world.r)), optimal + 1
                continue
            alive = max(alive, np.exp(log_policy(theta))[advantage < -1e-6].max())
            new = policy_towards(world, theta, cheapest.occupancy, delta)
            assert world.kl(theta, new) <= delta * (1 + 1e-9)
            better = min(better, (cost - world.J(new, world.c)) / (cost - cheapest.cost))
            lost += 1
    row = "B1 rest"
    check("rest, no A_c < 0: what the best of all policies is ahead", gap, 1e-5, supports=row, cases=optimal)
    check("rest: probability of an action with A_c < 0", alive, at_most=1e-6, supports=row, cases=lost)
    check("rest, some A_c < 0: decrease of J_c in the ball [possible] (least)", better, at_least=1e-3,
          supports=row)
    check("  rests of the rarer kind", min(optimal, lost), at_least=5)
    check("  runs that come to rest (of 128)", optimal + lost, at_least=120)


def shared_logit() -> TabularCMDP:
    """Three states whose logits are (t, 0): from the first one action leads to the second state, the other to
    the third, and back. Reward in the first for its first action; cost in the second for the first, in the
    third for the second. J_c, as p^2 + (1 - p)^2, is least at t = 0, and its slope 0 there."""
    P = np.zeros((3, 2, 3))
    P[0, 0, 1] = P[0, 1, 2] = P[1:, :, 0] = 1
    r, c = np.zeros((2, 3, 2))
    r[0, 0] = c[1, 0] = c[2, 1] = 1
    return TabularCMDP(P, r, c, 0.5, np.eye(3)[0], np.inf)


def test_where_the_cost_gradient_is_zero_no_policy_is_cheaper_and_the_step_earns():
    """Lemma 4.1: "when no further cost decrease is locally possible, the update improves reward". For logits
    and states that are all reached, A_c = g_c / (d pi), and no policy is cheaper by more than the largest
    |A_c|: where g_c = 0 all cost the same, c = V - gamma P V. Any Garnets, and such ones, where the rounding
    that is left of g_c is taken for 0. Control: where states share logits g_c = 0 says less. There any step
    raises the cost, of second order."""
    slope = spread = moved = used = 0.0
    gained, tried = np.inf, 0
    for i, world in enumerate(garnets(100)):
        old = logits(world, i)
        largest = np.abs(world.gradient(old, world.c) / world.occupancy(old)).max()
        used = max(used, (world.J(old, world.c) - world.optimum(np.inf, -world.c).cost) / largest)
        V = np.random.default_rng([72, i]).normal(size=len(world.mu))
        world = replace(world, c=V[:, None] - world.gamma * world.P @ V)
        slope = max(slope, np.abs(world.gradient(old, world.c)).max())
        g_r, x_r, g_c, x_c = first_order(world, old)
        step, info = safety_biased_step(g_r, x_r, g_c, x_c, 0.01, 0.75)
        costs = [world.J(logits(world, 1000 + i + k), world.c) for k in range(5)]
        new = old + 0.01 * step.reshape(old.shape)
        spread = max(spread, np.ptp(costs))
        moved = max(moved, abs(world.J(new, world.c) - world.J(old, world.c)))
        gained = min(gained, (world.J(new, world.r) - world.J(old, world.r)) / (0.01 * info["best_reward"]))
        tried += 1
    row = "B1 flat"
    check("J_c - min J_c [largest |g_c| / (d pi)]", used, at_most=1, supports=row, cases=tried)
    check("  control: the same", used, at_least=0.5)
    check("g_c = 0: largest |g_c|", slope, at_most=1e-12)
    check("g_c = 0: J_c of other policies differs by", spread, at_most=1e-12, supports=row, cases=tried)
    check("g_c = 0: change of J_c by the step", moved, at_most=1e-12, supports=row)
    check("g_c = 0: reward of 1% of the step [best] (least)", gained, at_least=0.98, supports=row)
    world, rises = shared_logit(), []
    for length in (0.1, 0.05, 0.025):
        old, new = np.zeros((3, 2)), np.array([[length, 0.0]] * 3)
        rises.append(world.J(new, world.c) - world.J(old, world.c))
    slope = np.sum(world.gradient(old, world.c)[:, 0])  # of the logit that all share
    order = math.log2(rises[1] / rises[2])
    check("shared logits: slope of J_c in t", abs(slope), at_most=1e-15)
    check("  control: shared logits: rise of J_c where its slope is 0 (least)", min(rises), at_least=1e-5)
    check("  control: shared logits: |observed order of that rise - 2|", abs(order - 2), at_most=0.01)


def length_beyond(k, world, old, step, delta) -> float:
    return world.kl(old, old + k * step) / delta - 1


def test_a_convex_combination_of_two_steps_in_the_trust_region_is_in_it():
    """KL(old || pi) is convex in logits, so the convex step keeps delta exactly where both of its ends do.
    Ends of exact KL delta along the two best steps, weights of Eq. 2. Control: the optimal step exceeds it,
    ends of quadratic KL delta do so by themselves, and the decrease of the cost that a step predicts is
    missed in half of the cases."""
    delta, worst, used, beyond, ends, missed, tried = 0.01, -np.inf, np.inf, 0, 0, 0, 0
    for i, world in enumerate(garnets(300)):
        old = logits(world, i)
        vectors = first_order(world, old, delta)
        steps = [sbtrpo.steepest_step(vectors[0], vectors[1], delta)[0],
                 sbtrpo.steepest_step(vectors[2], -vectors[3], delta)[0]]
        scales = [brentq(length_beyond, 0.1, 10, (world, old, step.reshape(old.shape), delta))
                  for step in steps]
        convex, info = safety_biased_step(*vectors, delta, 0.75)
        optimal, _ = optimal_safety_biased_step(*vectors, delta, 0.75)
        mix = (1 - info["mu"]) * scales[0] * steps[0] + info["mu"] * scales[1] * steps[1]
        kl, of_optimal = (world.kl(old, old + step.reshape(old.shape)) / delta for step in (mix, optimal))
        worst, used, beyond = max(worst, kl), min(used, kl), beyond + (of_optimal > 1)
        ends += min(scales) < 1
        change = world.J(old + convex.reshape(old.shape), world.c) - world.J(old, world.c)
        missed, tried = missed + (change > info["cost_change"]), tried + 1
    check("convex step of two of exact KL delta: KL / delta (largest)", worst, at_most=1 + 1e-9,
          supports="B1 KL", cases=tried)
    check("  of these 300, the least KL / delta", used, at_most=0.7)
    check("  control: optimal steps of exact KL above delta (of 300)", beyond, at_least=50)
    check("  control: natural steps of exact KL above delta (of 300)", ends, at_least=50)
    check("  control: full convex steps that miss the cost decrease that they predict (of 300)", missed,
          at_least=100)


# ------------------------------------------ TRPO and CPO: the bounds that all of them rest on, steps (B4, B5)


def test_bounds_hold_for_any_two_policies():
    """B4, as printed, unnormalised J, means over states of old: what the surrogate misses of the change of J.
    TRPO, Theorem 1, with max_s TV^2 and with max_s KL; CPO, Corollaries 1 (reward) and 2 (cost) with the mean
    TV, 3 with sqrt(mean KL / 2), KL in either order. 2,000 pairs of policies, gamma = .1, .5, .9, .99. A case
    is one where a bound says more than |change of J| <= eps / (1 - gamma), which holds for any two policies.
    Control: 2/5 of CPO's bounds, or none, would not do."""
    rng, used, control = np.random.default_rng(70), 0.0, 0.0
    slack = dict.fromkeys(("TRPO", "CPO 1", "CPO 2", "CPO 3"), np.inf)
    tried = dict.fromkeys(slack, 0)
    for _ in range(2000):
        world = replace(random_world(rng), gamma=rng.choice([0.1, 0.5, 0.9, 0.99]))
        old = rng.normal(size=world.r.shape)
        new = old + 10 ** rng.uniform(-2, 0.5) * rng.normal(size=old.shape)
        (log_old, log_new), d = (log_policy(old), log_policy(new)), world.state_occupancy(old)
        pi, pi_new, unit = np.exp(log_old), np.exp(log_new), world.gamma / (1 - world.gamma) ** 2
        TV = np.abs(pi_new - pi).sum(axis=1) / 2
        KL, reverse = np.sum(pi * (log_old - log_new), axis=1), np.sum(pi_new * (log_new - log_old), axis=1)
        for f, sign, corollary in ((world.r, 1, "CPO 1"), (world.c, -1, "CPO 2")):
            rise, L, eps = gains(world, old, new, f)
            missed = -sign * (rise - L / (1 - world.gamma))
            largest = 4 * unit * np.abs(world.advantage(old, f)).max()
            bounds = {"TRPO": largest * min(TV.max() ** 2, KL.max()), corollary: 2 * unit * eps * (d @ TV),
                      "CPO 3": 2 * unit * eps * math.sqrt(min(d @ KL, d @ reverse) / 2)}
            for name, bound in bounds.items():
                slack[name] = min(slack[name], bound - missed)
                tried[name] += bound < (eps + sign * L) / (1 - world.gamma)
            used, control = max(used, missed / bounds[corollary]), max(control, missed)
    for name, least in slack.items():
        check(f"{name}, bound for any two policies: least slack", least, at_least=-1e-10,
              supports=f"B4 {name}", cases=tried[name])
    check("  control: largest share of CPO's bound that is used", used, at_least=0.4)
    check("  control: what the surrogate alone misses (largest)", control, at_least=1.0)


def test_cpo_steps_keep_their_worst_case():
    """B5, CPO's Propositions 1 and 2, unnormalised J: random CMDPs, policies within the budget by 1e-4 to .1,
    or 1e-8 to .1 in two thirds of them, where the cost is nearly the reward, so that rewards do fall; delta
    .001 to 1, but such that sqrt(2 delta) gamma < 1 - gamma, for any change is at most eps / (1 - gamma);
    steps end where the exact KL is at most delta, the surrogate reward does not fall and that of the cost
    stays within the budget. Control: how much of the bounds is used."""
    rng, slack, worst, used = np.random.default_rng(71), np.inf, -np.inf, -np.inf
    taken, tried, falls = 0, 0, 0
    for case in range(1500):
        world, delta, margin = random_world(rng), 10 ** rng.uniform(-3, 0), 10 ** rng.uniform(-4, -1)
        delta = min(delta, 0.4 * (1 / world.gamma - 1) ** 2)
        if case % 3:
            world, margin = replace(world, c=0.9 * world.r + 0.1 * world.c), 10 ** rng.uniform(-8, -1)
        old = rng.normal(size=world.r.shape)
        step, info = cpo_step(*first_order(world, old, delta), delta, -margin)
        assert info["feasible"]

        def judge(new, world=world, old=old, delta=delta, margin=margin):
            reward, cost = (world.surrogate(old, new, f) for f in (world.r, world.c))
            failed = "reward" if reward < -1e-14 else "cost" if cost > margin else ""
            return "kl" if world.kl(old, new) > delta else failed, {}

        new, found = sbtrpo.line_search(judge, old, step.reshape(old.shape))
        changes, _, eps = np.transpose([gains(world, old, new, f) for f in (world.r, world.c)])
        beyond = np.array([-changes[0], changes[1] - margin / (1 - world.gamma)])
        allowed = np.array([shift_of_states(world.gamma, delta, each) for each in eps])
        slack, worst = np.minimum(slack, allowed - beyond), np.maximum(worst, beyond)
        used = np.maximum(used, beyond / allowed)
        taken, tried, falls = taken + (found["fraction"] > 0), tried + 1, falls + (beyond > 1e-12)
    for i, what in enumerate(("reward lost", "J_c - b")):
        check(f"CPO, Proposition {i + 1}, {what}: least slack", slack[i], at_least=-1e-10,
              supports=f"B5 CPO {i + 1}", cases=falls[i])
        check(f"  control: {what} of a step (largest)", worst[i], at_least=1e-3)
        check(f"  control: {what}: share of the bound that is used (largest)", used[i], at_least=0.05)
    check("  share of steps that move", taken / tried, at_least=0.95)


def test_steps_of_trpo_and_cpo_agree_with_independent_solvers():
    """TRPO's step is the shipped steepest step. Of CPO's dual only nu is unknown, as the steepest steps for
    g_r - nu g_c cost the less the larger nu: bisection, where nu = 0 breaks a budget that can be met. Where
    it cannot, the steepest cost step. And SB-TRPO's optimal step, where it asks for the same. Control: 2
    nu."""
    rng, delta, errors, control = np.random.default_rng(72), 0.01, np.zeros(4), 0.0
    branches = np.zeros(3, int)  # budget idle, active, out of reach

    def length(F, step):
        return math.sqrt(step @ F @ step / 2 / delta)

    for _ in range(500):
        F, vectors = random_problem(rng)
        (g_r, x_r, g_c, x_c), (_, best, _) = vectors, units(*vectors, delta)
        excess = rng.uniform(-1.5, 1.5) * best
        step, info = cpo_step(*vectors, delta, excess)

        def steepest(nu, g_r=g_r, x_r=x_r, g_c=g_c, x_c=x_c):
            return sbtrpo.steepest_step(g_r - nu * g_c, x_r - nu * x_c, delta)[0]

        def over(nu, g_c=g_c, excess=excess, steepest=steepest):
            return excess + g_c @ steepest(nu)

        branch = 2 if excess > best else int(over(0) > 0)
        nu = brentq(over, 0, 1e9, xtol=1e-15, rtol=1e-14) if branch == 1 else 0.0
        expected = -sbtrpo.steepest_step(g_c, x_c, delta)[0] if branch == 2 else steepest(nu)
        assert info["feasible"] == (branch < 2) and (info["nu"] == math.inf) == (branch == 2)
        branches[branch] += 1
        optimal, _ = optimal_safety_biased_step(*vectors, delta, beta := rng.uniform(0.05, 0.95))
        errors = np.maximum(errors, [
            length(F, trpo_step(*vectors, delta)[0] - steepest(0)), length(F, step - expected),
            abs(info["nu"] - nu) / (1 + nu) if branch < 2 else 0,
            length(F, cpo_step(*vectors, delta, beta * best)[0] - optimal)])
        control = max(control, length(F, step - steepest(2 * nu)) if branch == 1 else 0)
    for name, error in zip(("TRPO's step - steepest step", "CPO's step - that of bisection", "nu - that of "
                            "bisection", "CPO's step - SB-TRPO's optimal one, same demand"), errors):
        check(f"{name} [radius, 1 + nu]", error, at_most=1e-7)
    check("  CPO: cases of the rarest of its three branches", branches.min(), at_least=50)
    check("  control: CPO with 2 nu [radius]", control, at_least=0.1)


def test_every_degenerate_row_of_the_cpo_step_is_finite():
    """In the plane, delta = .01, best change .1414: zero, parallel, antiparallel gradients; no warning."""
    e, zero, unit = np.array([1.0, 0]), np.zeros(2), math.sqrt(0.02)
    rows = [("g_c = 0: TRPO's step", (e, e, zero, zero), 1.0, unit * e), ("both 0", (zero,) * 4, 1.0, zero),
            ("g_r = 0: back to the budget", (zero, zero, e, e), 0.5 * unit, -0.5 * unit * e),
            ("g_r = 0, within: stay", (zero, zero, e, e), -0.5 * unit, zero),
            ("parallel: as far as the budget", (e, e, e, e), -0.5 * unit, 0.5 * unit * e),
            ("antiparallel: TRPO's step", (e, e, -e, -e), 0.5 * unit, unit * e),
            ("excess = best: the cost step", plane(0.3), unit, -unit * plane(0.3)[2])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no division by zero on the way
        for name, vectors, excess, expected in rows:
            error = np.abs(cpo_step(*vectors, 0.01, excess)[0] - expected).max()
            check(f"degenerate, CPO, {name}", error, at_most=IDENTITY)
