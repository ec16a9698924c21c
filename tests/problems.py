"""What several files of tests are about: worlds, policies, random problems, and exact training on them."""
import functools
import math
from dataclasses import replace

import autograd.numpy as anp
import numpy as np
import pytest
from hypothesis import strategies as st

import ctrpo
import sbtrpo
from ctrpo import barrier_divergence, barrier_step
from sbtrpo import safety_biased_step
from tabular_cmdp import TabularCMDP, garnet, hazard_grid, log_policy, two_state

IDENTITY, GOLDEN, LP = 1e-10, 1e-9, 1e-8  # tolerances: float64 identities, golden figures, linear programs

optimal_safety_biased_step = functools.partial(safety_biased_step, update="optimal")


@functools.cache
def garnets(n: int, sparse_cost: bool = False) -> list[TabularCMDP]:
    return [garnet(seed, sparse_cost) for seed in range(n)]


def worlds() -> list[TabularCMDP]:
    return [two_state(), hazard_grid("A"), hazard_grid("C"), *garnets(20)]


def bandit(r, c=None, gamma: float = 0.5) -> TabularCMDP:
    """One state, whose actions have rewards r and costs c; no costs if c is None."""
    r = np.array([r], float)
    return TabularCMDP(np.ones((1, len(r[0]), 1)), r, 0 * r if c is None else np.array([c], float), gamma,
                       np.ones(1), np.inf)


def logits(world: TabularCMDP, seed: int = 0) -> np.ndarray:
    """A random policy, theta ~ N(0, 1)."""
    return np.random.default_rng([7, seed]).normal(size=world.r.shape)


def cases(n: int = 20):
    """(world, theta): the hand-made worlds and n Garnets, each at a random policy."""
    return [(world, logits(world, i)) for i, world in enumerate([*worlds()[:3], *garnets(n)])]


def dot(a, b) -> float:
    return float(np.sum(a * b))


def first_order(world: TabularCMDP, theta: np.ndarray, delta: float = 0.01) -> tuple:
    """(g_r, x_r, g_c, x_c) flattened, as an update takes them.

    A gradient counts as zero when the best step changes its objective by less than 1e-8 of the largest reward
    or cost. Exact runs exhaust the cost; rounding then leaves g.x near 1e-17, of either sign, and a best
    change of 1e-9 that means nothing (see `test_exhausted_cost_leaves_the_reward_step`)."""
    vectors = []
    for f in (world.r, world.c):
        g, x = world.gradient(theta, f).ravel(), world.natural_direction(theta, f).ravel()
        significant = 2 * delta * (g @ x) > (1e-8 * np.abs(f).max()) ** 2
        vectors += [g * significant, x * significant]
    return tuple(vectors)


def random_problem(rng, n: int = 6) -> tuple:
    """Metric F (random SPD) and (g_r, x_r, g_c, x_c) with normal gradients."""
    B = rng.normal(size=(n, n))
    F = B @ B.T + 0.1 * np.eye(n)
    g_r, g_c = rng.normal(size=(2, n))
    return F, (g_r, np.linalg.solve(F, g_r), g_c, np.linalg.solve(F, g_c))


def random_world(rng) -> TabularCMDP:
    """1 to 5 states, 2 to 4 actions, half of them with deterministic transitions; gamma from .3 to .99."""
    S, A = rng.integers(1, 6), rng.integers(2, 5)
    P = np.eye(S)[rng.integers(S, size=(S, A))]
    P = rng.dirichlet(np.ones(S), size=(S, A)) if rng.random() < 0.5 else P
    gamma = rng.choice([0.3, 0.5, 0.7, 0.9, 0.99])
    return TabularCMDP(P, *rng.random((2, S, A)), gamma, rng.dirichlet(np.ones(S)), np.inf)


def gains(world, old, new, f) -> tuple:
    """J_f(new) - J_f(old), the surrogate, and eps = max_s |E_new A_f(s, .)|; J unnormalised, as printed."""
    mean = np.sum(np.exp(log_policy(new)) * world.advantage(old, f), axis=1)
    J = [world.J(theta, f) / (1 - world.gamma) for theta in (old, new)]
    return J[1] - J[0], world.surrogate(old, new, f), np.abs(mean).max()


def shift_of_states(gamma: float, delta: float, eps: float) -> float:
    """sqrt(2 delta) gamma eps / (1 - gamma)^2."""
    return math.sqrt(2 * delta) * gamma * eps / (1 - gamma) ** 2


def plane(rho: float) -> tuple:
    """(g_r, x_r, g_c, x_c) in the Euclidean plane with q = s = 1 and the given cosine."""
    g_r, g_c = np.array([1.0, 0]), np.array([rho, math.sqrt(1 - rho**2)])
    return g_r, g_r, g_c, g_c


def units(g_r, x_r, g_c, x_c, delta: float) -> tuple[float, float, float]:
    """sqrt(2 delta q), sqrt(2 delta s), rho."""
    q, r, s = g_r @ x_r, g_r @ x_c, g_c @ x_c
    return math.sqrt(2 * delta * q), math.sqrt(2 * delta * s), r / math.sqrt(q * s)


def train_exactly(world, update, beta, iterations, limit=None, theta=None, delta=0.01, until=None) -> tuple:
    """Iterates the shipped update and line search on exact quantities; returns theta and the path [(J_r,
    J_c)].

    A step is accepted if its exact KL is at most delta and its surrogate cost does not rise, or not above the
    margin b - J_c that is left of a budget. Stops early when `until(J_r, J_c)`."""
    theta = np.zeros(world.r.shape) if theta is None else theta
    path = [(world.J(theta, world.r), world.J(theta, world.c))]
    for _ in range(iterations):
        if until and until(*path[-1]):
            break
        old, excess = theta, None if limit is None else path[-1][1] - limit
        step, _ = update(*first_order(world, old, delta), delta, beta, excess)
        margin = max(0.0, -(excess or 0.0)) + 1e-12

        def judge(new, old=old, margin=margin):
            kl, cost = world.kl(old, new), world.surrogate(old, new, world.c)
            return "kl" if kl > delta else "cost" if cost > margin else "", {}

        theta, _ = sbtrpo.line_search(judge, old, step.reshape(old.shape))
        path.append((world.J(theta, world.r), world.J(theta, world.c)))
    return theta, np.array(path)


@st.composite
def problems(draw):
    """Unit problem (F, g_r, x_r, g_c, x_c) with F SPD of condition <= 1e4, and scales of the two
    gradients."""
    n = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    F = Q @ np.diag(10.0 ** rng.uniform(-2, 2, n)) @ Q.T
    g_r, g_c = rng.normal(size=(2, n))
    alike = draw(st.sampled_from([None, None, 0.0, 1e-12, 1e-9, 1e-7, 1e-6, 1e-5, 1e-3]))
    if alike is not None:  # parallel or antiparallel up to this much
        g_c = draw(st.sampled_from([-1, 1])) * g_r + alike * g_c
    scales = [10.0 ** draw(st.sampled_from([-300, -150, -20, 0, 20, 150])) for _ in range(2)]
    return F, g_r, np.linalg.solve(F, g_r), g_c, np.linalg.solve(F, g_c), *scales


def observed_order(error, fractions=(0.02, 0.01)) -> float:
    """log-log slope of error(fraction), which tends to the order of convergence as the fractions shrink."""
    return math.log(error(fractions[0]) / error(fractions[1])) / math.log(fractions[0] / fractions[1])

BARRIERS = {  # phi, phi', phi''
    "log": (lambda x: -anp.log(x), lambda x: -1 / x, lambda x: 1 / x**2),
    "xlogx": (lambda x: x * anp.log(x), lambda x: anp.log(x) + 1, lambda x: 1 / x)}

both_barriers = pytest.mark.parametrize("barrier", BARRIERS)


def barrier_training(world, barrier, beta, iterations, theta=None, delta=0.01, limit=None, hysteresis=0.8,
                     exact=False, until=None) -> tuple:
    """Iterates the shipped step and line search on exact quantities; returns theta and rows (J_r,
    J_c, whether it was recovery). A step is accepted if KL + beta Psi(a) <= delta, with a the
    surrogate or, if `exact`, the true change of J_c, and the surrogate reward does not fall; if
    `exact` is None, a = 0, and Psi is left out; in recovery if KL <= delta and the surrogate cost
    does not rise. Recovery, also at the start, ends when J_c < hysteresis * limit. Stops when
    `until`."""
    limit = world.limit if limit is None else limit
    theta = np.zeros(world.r.shape) if theta is None else theta
    path, recovery = [(world.J(theta, world.r), world.J(theta, world.c), True)], True
    for _ in range(iterations):
        old, J_c = theta, path[-1][1]
        if until and until(*path[-1][:2]):
            break
        recovery = J_c >= limit * (hysteresis if recovery else 1)
        margin = 0.0 if recovery else limit - J_c
        vectors = first_order(world, old, delta)
        step, _ = barrier_step(*vectors, delta, beta, margin, barrier, recovery)

        def judge(new, old=old, J_c=J_c, margin=margin):
            change = world.J(new, world.c) - J_c if exact else world.surrogate(old, new, world.c)
            divergence = world.kl(old, new)
            if margin and exact is not None:
                divergence += beta * barrier_divergence(change, margin, barrier)
            worse = -world.surrogate(old, new, world.r) if margin else change
            return "divergence" if not divergence <= delta else "worse" if worse > 1e-14 else "", {}

        theta, _ = ctrpo.line_search(judge, old, step.reshape(old.shape))
        path.append((world.J(theta, world.r), world.J(theta, world.c), recovery))
    return theta, np.array(path)


@functools.cache
def safe_starts(n: int = 10) -> list:
    """Policies of the two-state world, theta ~ N(0, 1), with half the budget or less."""
    draws, world = np.random.default_rng(23).normal(size=(20 * n, 2, 2)), two_state()
    found = [theta for theta in draws if world.J(theta, world.c) < world.limit / 2][:n]
    assert len(found) == n
    return found


def reached(world, limit: float = 0.0):
    """Stop when within 1e-3 of the linear program's value, and of the budget."""
    best = world.optimum(limit).value
    return lambda J_r, J_c: J_r > best - 1e-3 and J_c < limit + 1e-3


def joint_advantage(world, theta, multiplier: float = 0.0) -> np.ndarray:
    """A_r / sigma_r - multiplier A_c / sigma_c, exact; sigma^2 under the occupancy, where both means are
    0."""
    parts = [world.advantage(theta, f) for f in (world.r, world.c)]
    A_r, A_c = (A / (math.sqrt(dot(world.occupancy(theta), A**2)) + 1e-8) for A in parts)
    return A_r - multiplier * A_c


def exclusion_vectors(world, theta, unsafe, multiplier: float = 0.0, states=None) -> tuple:
    """(g, x, phi, y) flattened, as the steps take them, exact: phi = -d (pi_u - pi), y = F^+ phi = 1 - pi_u /
    pi less its row mean; with `states`, the mean of phi is over them instead of d."""
    d, pi, pi_u = world.state_occupancy(theta)[:, None], np.exp(log_policy(theta)), np.exp(log_policy(unsafe))
    share = 1.0 if states is None else states[:, None] / d
    A, y = joint_advantage(world, theta, multiplier), share * (1 - pi_u / pi)
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (A, y))
    return (d * pi * A).ravel(), x.ravel(), (-share * d * (pi_u - pi)).ravel(), y.ravel()


def distance(weights, unsafe, theta) -> float:
    """sum_s weights(s) KL(unsafe || theta) in s."""
    log_u = log_policy(unsafe)
    return dot(weights[:, None] * np.exp(log_u), log_u - log_policy(theta))


def n_step_advantages(rewards, values, terminated, discount, gae_lambda) -> np.ndarray:
    """GAE as its paper defines it: the mean of the n-step advantages, weighted in proportion to lambda^n."""
    T, values = len(rewards), np.append(values[:-1], 0 if terminated else values[-1])
    advantages = np.zeros(T)
    for t in range(T):
        for n in range(1, T - t + 1):
            weight = gae_lambda ** (n - 1) * (1 - gae_lambda if n < T - t else 1)
            returns = sum(discount**k * rewards[t + k] for k in range(n)) + discount**n * values[t + n]
            advantages[t] += weight * (returns - values[t])
    return advantages

POLICIES = [sbtrpo.Policy(sizes, discrete) for discrete in (True, False)
            for sizes in ((3, 4, 2), (3, 5, 4, 2), (3, 4, 4, 4, 2))]


def network(policy: sbtrpo.Policy, n: int = 6, seed: int = 0) -> tuple:
    """Random parameters (all layers of order 1) and observations, float64."""
    rng = np.random.default_rng(seed)
    theta = sbtrpo.initial_parameters(policy.sizes, np.full(0 if policy.discrete else 2, -0.5), rng)
    return theta + 0.5 * rng.normal(size=theta.size), rng.normal(size=(n, policy.sizes[0]))


def dense(product, size: int) -> np.ndarray:
    return np.stack([product(e) for e in np.eye(size)], axis=1)

UNSCALED = sbtrpo.Actor(sbtrpo.Policy((2, 3, 2), True), np.zeros(0), np.zeros(2), np.ones(2))

IDS = {"TwoState-v0": two_state, "HazardGrid-v0": hazard_grid, "Garnet-v0": garnet}


def vectors_of_costs(world, theta, delta: float = 0.01) -> tuple:
    """(g_r, x_r, G, X), flat, with a row of G and X for each cost: as an update with several budgets takes
    them, and zero where `first_order` says so."""
    pairs = [first_order(replace(world, c=c), theta, delta) for c, _ in world.budgets()]
    return *pairs[0][:2], np.array([pair[2] for pair in pairs]), np.array([pair[3] for pair in pairs])


def barriers_training(world, barrier, beta, iterations, theta, delta=0.01, exact=True,
                      left_out=()) -> np.ndarray:
    """`barrier_training` with several budgets, from recovery where a budget is broken, hysteresis .8; rows
    (J_r, J_1, ..., J_m). In recovery no cost above its budget may rise by more than the step promised.
    Barriers that are `left_out` are nowhere; nor do their costs recover."""
    path, recovery = [[world.J(theta, f) for f in (world.r, *world.c)]], np.zeros(len(world.c), bool)
    for _ in range(iterations):
        old, J = theta, np.array(path[-1][1:])
        threshold = world.limit * np.where(recovery, 0.8, 1.0)
        recovery = np.greater_equal(J, threshold)
        recovery[list(left_out)], margins = False, world.limit - J
        margins[list(left_out)] = np.inf
        step, info = ctrpo.several_barriers_step(*vectors_of_costs(world, old, delta), delta, beta, margins,
                                                 barrier, recovery)

        def judge(new, old=old, J=J, margins=margins, recovery=recovery, info=info):
            changes = [world.J(new, c) - J_c if exact else world.surrogate(old, new, c)
                       for c, J_c in zip(world.c, J)]
            divergence = world.kl(old, new)
            for i, change in enumerate(changes):
                if not recovery[i] and margins[i] < np.inf:
                    divergence += beta * barrier_divergence(change, margins[i], barrier)
            promised = np.maximum(info["cost_change"], 1e-14)
            worse = (changes > promised)[recovery].any()
            if not recovery.any():
                worse = world.surrogate(old, new, world.r) < -1e-14
            return "divergence" if not divergence <= delta else "worse" if worse else "", {}

        theta, _ = ctrpo.line_search(judge, old, step.reshape(old.shape))
        path.append([world.J(theta, f) for f in (world.r, *world.c)])
    return np.array(path)
