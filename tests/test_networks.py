"""What the three scripts share, word for word: networks, Fisher products, conjugate gradients, the KL,
advantages and critics."""
import ast
import functools
import itertools
import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from autograd import hessian, jacobian, make_ggnvp

import ctrpo
import sbtrpo
from conftest import ROOT, check
from ctrpo import barrier_step
from problems import (
    IDENTITY, POLICIES, UNSCALED, dense, n_step_advantages, network, observed_order,
    optimal_safety_biased_step, random_problem)
from sbtrpo import safety_biased_step


# ----------------------------------------------------------------------------------- networks: Fisher, CG, KL


def all_actions(policy, pi) -> list:
    """[(action (n, ...), weight (n,))]: every action, or the Gauss-Hermite nodes exact to degree 5."""
    if policy.discrete:
        return [(np.full(len(pi), a), np.exp(pi[:, a])) for a in range(pi.shape[1])]
    (mean, log_std), ones = np.split(pi, 2, axis=1), np.ones(len(pi))
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    return [(mean + np.exp(log_std) * nodes[[i, j]], weights[i] * weights[j] * ones)
            for i in range(3) for j in range(3)]


def gauss_newton(policy, theta, observations) -> np.ndarray:
    """J^T M J, dense: J the Jacobian of the network's outputs, M diag(p) - p p^T or diag(std^-2) in each
    state; a log std contributes 2 to its own diagonal element."""
    def outputs(theta):
        return sbtrpo.network(sbtrpo.unflatten(theta, policy.sizes)[0], observations)

    J, F = jacobian(outputs)(theta), np.zeros((theta.size, theta.size))  # J: (n, outputs, parameters)
    for J_i, logits in zip(J, outputs(theta)):
        p, log_std = np.exp(logits) / np.exp(logits).sum(), theta[-2:]
        M = np.diag(p) - np.outer(p, p) if policy.discrete else np.diag(np.exp(-2 * log_std))
        F += J_i.T @ M @ J_i / len(J)
    if not policy.discrete:
        F[-2:, -2:] += 2 * np.eye(2)
    return F


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.filterwarnings("error")
def test_gradients_of_flat_units_are_zero_without_a_warning(policy):
    """tanh' as 1 / cosh^2 overflows where an input is beyond 355, or 44 in float32: the slope there is 0.
    Where all units of the first layer are flat, the last bias or the log std has a gradient still."""
    theta, observations = network(policy)
    actions = np.zeros(len(observations), int) if policy.discrete else np.ones((len(observations), 2))
    gradient_of, _ = sbtrpo.policy_gradient(policy, theta, 1e6 * np.sign(observations), actions)
    slopes = gradient_of(np.ones(len(actions)))
    (W, b), *_ = sbtrpo.unflatten(slopes, policy.sizes)[0]
    assert np.all(W == 0) and np.all(b == 0) and np.any(slopes != 0)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_fisher_product_is_exact(policy):
    """(F + damping) v against three oracles: the dense J^T M J; the Hessian of the mean KL by autograd; and
    E[score score^T], over every action (exact quadrature for the Gaussian). Control: with damping."""
    theta, observations = network(policy)
    n, size, pi = len(observations), theta.size, sbtrpo.distributions(policy, theta, observations)
    F = dense(sbtrpo.fisher_product(policy, theta, observations, 0.0), size)

    def kl(new):
        return sbtrpo.mean_kl(policy, pi, sbtrpo.distributions(policy, new, observations))

    covariance = np.zeros((size, size))
    for action, weight in all_actions(policy, pi):
        for i in range(n):
            score, _ = sbtrpo.policy_gradient(policy, theta, observations[[i]], action[[i]])
            covariance += weight[i] / n * np.outer(*[score(np.ones(1))] * 2)
    oracles = {"dense J^T M J": gauss_newton(policy, theta, observations),
               "Hessian of mean KL (autograd)": hessian(kl)(theta), "covariance of the score": covariance}
    for name, oracle in oracles.items():
        check(f"Fisher product = {name}", np.abs(F - oracle).max(), at_most=IDENTITY)
    damped = dense(sbtrpo.fisher_product(policy, theta, observations, 0.3), size)
    check("damping adds to the diagonal", np.abs(damped - F - 0.3 * np.eye(size)).max(), at_most=IDENTITY)
    check("  control: the damped product differs from all three", np.abs(damped - F).max(), at_least=0.2)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_fisher_product_of_many_states_is_the_three_lines_of_autograd(policy, monkeypatch):
    """5,000 states, three parts: J^T M J, J the Jacobian of distributions. One, two or seven threads give the
    same bits. Controls: a sum of other parts rounds differently, and one part alone is another product."""
    theta, observations = network(policy, 5000)
    v = np.random.default_rng(1).normal(size=theta.size)
    old = sbtrpo.distributions(policy, theta, observations)
    product = make_ggnvp(lambda theta: sbtrpo.distributions(policy, theta, observations),
                         lambda new: sbtrpo.mean_kl(policy, old, new))(theta)
    expected, found = product(v), []
    for threads in (1, 2, 7):
        monkeypatch.setattr(sbtrpo, "THREADS", ThreadPoolExecutor(threads))
        found.append(sbtrpo.fisher_product(policy, theta, observations, 0.0)(v))
        sbtrpo.THREADS.shutdown()
    scale = np.abs(expected).max()
    gap = np.abs(found[0] - expected).max() / scale
    check("Fisher product of 5,000 states = autograd's [relative]", gap, at_most=IDENTITY)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    monkeypatch.setattr(sbtrpo, "THREADS", ThreadPoolExecutor(1))
    other = sbtrpo.fisher_product(policy, theta, np.roll(observations, 700, axis=0), 0.0)(v)
    part = sbtrpo.fisher_product(policy, theta, observations[:1667], 0.0)(v)
    assert not np.array_equal(found[0], other)
    gap = np.abs(part - expected).max() / scale
    check("  control: of the first part alone [relative]", gap, at_least=1e-3)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_mean_kl_is_the_expected_log_ratio(policy):
    """E_old[log old - log new] over every action, summed over action dimensions, averaged over states;
    arguments old, new; its quadratic model, by the Fisher product, errs by order 3. Control: the arguments
    exchanged."""
    theta, observations = network(policy)
    other, _ = network(policy, seed=1)
    old, new = (sbtrpo.distributions(policy, t, observations) for t in (theta, other))
    ratio = 0.0
    for action, weight in all_actions(policy, old):
        logs = [sbtrpo.log_probabilities(policy, each, action) for each in (old, new)]
        ratio += np.mean(weight * (logs[0] - logs[1]))
    kl = sbtrpo.mean_kl(policy, old, new)
    check("mean KL = expected log ratio", abs(kl - ratio), at_most=IDENTITY)
    check("  control: KL(new, old) differs (relative, least)",
          abs(sbtrpo.mean_kl(policy, new, old) / kl - 1), at_least=1e-3)
    step = 0.1 * (other - theta)
    product = sbtrpo.fisher_product(policy, theta, observations, 0.0)

    def error(t):
        moved = sbtrpo.distributions(policy, theta + t * step, observations)
        return abs(sbtrpo.mean_kl(policy, old, moved) - t * t * step @ product(step) / 2)

    order = observed_order(error, (0.2, 0.1))
    check("network KL against its quadratic model: |observed order - 3|", abs(order - 3), at_most=0.25)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_policy_gradient_weighs_the_scores(policy):
    """sum_i w_i grad log pi(a_i|s_i), against central differences of sum_i w_i log pi(a_i|s_i)."""
    theta, observations = network(policy)
    rng = np.random.default_rng(3)
    weights = rng.normal(size=len(observations))
    actions = rng.integers(2, size=len(weights)) if policy.discrete else rng.normal(size=(len(weights), 2))

    def value(theta):
        pi = sbtrpo.distributions(policy, theta, observations)
        return weights @ sbtrpo.log_probabilities(policy, pi, actions)

    differences = [(value(theta + e) - value(theta - e)) / 2e-5 for e in 1e-5 * np.eye(theta.size)]
    gradient, _ = sbtrpo.policy_gradient(policy, theta, observations, actions)
    worst = np.abs(gradient(weights) - differences).max()
    check("policy gradient = central differences", worst, at_most=1e-7)


def test_share_kept_of_rough_solves_is_no_praise(monkeypatch):
    """Two solutions that make a cosine of -3: 2 c / (1 + c) would be 3, more than all. Control: of 1/2."""
    monkeypatch.setattr(sbtrpo, "fisher_product", lambda *arguments: None)
    one, ones = np.array([1.0, 0.0]), np.ones(2)
    for across, kept in ((-3.0, -math.inf), (0.5, 2 / 3)):
        monkeypatch.setattr(sbtrpo, "conjugate_gradients", lambda product, g, iterations, across=across: (
            np.where(g == 1, 1.0, across), 0.0))
        assert pytest.approx(kept) == sbtrpo.share_kept(
            sbtrpo.Config(), None, None, np.zeros((2, 1)), lambda weights: one, np.ones(2, int), ones, ones)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_kept_is_of_the_cosine_of_two_halves(policy):
    """2 c / (1 + c), with c the cosine of the gradients of every other episode and of the rest in the metric
    of the dense F^-1. Two equal halves keep all, a single episode or one without a gradient says nothing.
    Control: halves of the steps instead of the episodes."""
    theta, observations = network(policy)
    rng, n = np.random.default_rng(4), len(observations)
    actions = rng.integers(2, size=n) if policy.discrete else rng.normal(size=(n, 2))
    lengths = np.array([1, 2, n - 3])
    second = (np.arange(n) >= 1) & (np.arange(n) < 3)  # the steps of episode 1
    config = sbtrpo.Config(damping=0.1, cg_iterations=200)
    inverse = np.linalg.inv(dense(sbtrpo.fisher_product(policy, theta, observations, 0.1), theta.size))

    def kept(weights, lengths, observations=observations, actions=actions):
        gradient, _ = sbtrpo.policy_gradient(policy, theta, observations, actions)
        return sbtrpo.share_kept(config, policy, theta, observations, gradient, lengths, weights,
                                 gradient(weights / len(weights)))

    def by_hand(weights, second):
        gradient, _ = sbtrpo.policy_gradient(policy, theta, observations, actions)
        one, other = gradient(np.where(second, 0.0, weights)), gradient(np.where(second, weights, 0.0))
        c = one @ inverse @ other / math.sqrt((one @ inverse @ one) * (other @ inverse @ other))
        return 2 * c / (1 + c)

    weights = 1 + rng.random(n)
    check("Misc/kept = 2 c / (1 + c), dense", abs(kept(weights, lengths) - by_hand(weights, second)), 1e-6)
    of_steps = by_hand(weights, np.arange(n) % 2 == 1)
    check("  control: halves of the steps", abs(kept(weights, lengths) - of_steps), at_least=1e-3)
    twice = kept(np.tile(weights, 2), np.array([n, n]), np.tile(observations, (2, 1)),
                 np.concatenate([actions, actions]))
    check("Misc/kept of two equal halves: |1 - kept|", abs(1 - twice), at_most=1e-6)
    assert math.isnan(kept(weights, np.array([n]))) and math.isnan(kept(weights, ()))
    assert math.isnan(kept(np.where(second, weights, 0.0), lengths))


def test_conjugate_gradients_solve_and_report_their_residual():
    """n iterations solve an n-dimensional SPD system; the residual returned is the true one; any scale."""
    rng, solved, reported = np.random.default_rng(5), 0.0, 0.0
    for _ in range(50):
        F, (b, x, _, _) = random_problem(rng, 8)
        for scale in (1e-300, 1.0, 1e150):
            for iterations in (3, 40):
                found, residual = sbtrpo.conjugate_gradients(lambda v, F=F: F @ v, scale * b, iterations)
                true = np.linalg.norm(b - F @ (found / scale)) / np.linalg.norm(b)
                reported = max(reported, abs(true - residual))
            solved = max(solved, np.abs(found / scale - x).max() / np.abs(x).max())
    check("conjugate gradients: relative error of the solution", solved, at_most=1e-8)
    check("conjugate gradients: reported residual - true residual", reported, at_most=IDENTITY)
    for A, b in ((1.0, np.zeros(3)), (0.0, np.ones(3))):  # nothing to solve; no solution
        assert not sbtrpo.conjugate_gradients(lambda v, A=A: A * v, b, 5)[0].any()


def best_of_krylov_space(F, g, n: int, delta: float) -> float:
    """Largest g.s of s in the span of g, F g, ..., F^(n-1) g with s.F s / 2 <= delta, by a dense solve in an
    orthonormal basis."""
    basis = [g / np.linalg.norm(g)]
    for _ in range(n - 1):
        new = F @ basis[-1]
        for _ in range(2):  # twice is enough
            new = new - np.transpose(basis) @ (np.array(basis) @ new)
        basis.append(new / np.linalg.norm(new))
    K = np.transpose(basis)
    return math.sqrt(2 * delta * (K.T @ g) @ np.linalg.solve(K.T @ F @ K, K.T @ g))


def test_few_iterations_find_the_best_step_of_their_krylov_space():
    """Shipped Fisher product, conjugate gradients and steps, 200 samples of six networks, damping 1e-4, 5
    iterations. Each step is the best of its Krylov space, and its KL is delta; the convex step has at most
    that KL, and keeps beta of the best decrease of that space. Controls: with an exact solve the best step
    gains more; the optimal step, whose length takes g_r.x_c = g_c.x_r for granted, has more KL, which the
    line search takes back; and in three dimensions one iteration breaks Cauchy-Schwarz, |rho| <= 1."""
    delta, beta, n = 0.01, 0.75, 5
    best = kl = convex = kept = 0.0
    further, longest, tried = np.inf, 0.0, 0
    for seed, policy in itertools.product(range(2), POLICIES):
        (theta, observations), rng = network(policy, 200, seed), np.random.default_rng(93 + seed)
        old = sbtrpo.distributions(policy, theta, observations)
        actions = (rng.integers(2, size=200) if policy.discrete
                   else old[:, :2] + np.exp(old[:, 2:]) * rng.normal(size=(200, 2)))
        gradient, _ = sbtrpo.policy_gradient(policy, theta, observations, actions)
        rewards = rng.normal(size=200)
        gradients = [gradient(each / 200) for each in (rewards, rewards + rng.normal(size=200))]
        product = sbtrpo.fisher_product(policy, theta, observations, 1e-4)
        F, vectors, spaces = dense(product, theta.size), [], []
        for g in gradients:
            x, _ = sbtrpo.conjugate_gradients(product, g, n)
            step, _ = sbtrpo.steepest_step(g, x, delta)
            vectors += [g, x]
            spaces.append(best_of_krylov_space(F, g, n, delta))
            best, tried = max(best, abs(g @ step / spaces[-1] - 1)), tried + 1
            kl = max(kl, abs(step @ F @ step / 2 / delta - 1))
            further = min(further, math.sqrt(2 * delta * g @ np.linalg.solve(F, g)) / spaces[-1])
        step, info = safety_biased_step(*vectors, delta, beta)
        assert abs(info["rho"]) < 1
        convex = max(convex, step @ F @ step / 2 / delta - 1)
        kept = max(kept, abs(vectors[2] @ step / spaces[1] + beta))
        step, _ = optimal_safety_biased_step(*vectors, delta, beta)
        longest = max(longest, step @ F @ step / 2 / delta)
    row = "CG"
    check("5 iterations: gain over the best of the Krylov space, less 1", best, 1e-8, supports=row,
          cases=tried)
    check("5 iterations: KL / delta - 1", kl, at_most=1e-8, supports=row)
    check("5 iterations: KL of the convex step / delta - 1", convex, at_most=1e-8, supports=row)
    check("5 iterations: share of the Krylov space's best decrease, - beta", kept, at_most=1e-8, supports=row)
    check("5 iterations: best gain over the best of the Krylov space (least)", further,
          at_least=1.05, supports=row)
    check("  control: 5 iterations: KL of the optimal step (largest) [delta]", longest, at_least=1.2)
    metric, g_r, g_c = np.array([1.0, 1e-4, 1.0]), np.array([0.0, 1, 0]), np.array([1.0, 1, 0])
    rho = {}
    for iterations in (1, 3):
        x_r, x_c = (sbtrpo.conjugate_gradients(lambda v: metric * v, g, iterations)[0] for g in (g_r, g_c))
        rho[iterations] = g_c @ x_r / math.sqrt(g_r @ x_r * (g_c @ x_c))
    check("rho of one iteration", rho[1], at_least=10, supports=row, cases=1)
    check("  corrected: |rho| of three, which are exact", abs(rho[3]), at_most=1.0)


def test_line_search_takes_the_first_fraction_that_passes():
    """Names what the next larger fraction failed; returns the old parameters when nothing passes."""
    def search(bound, **options):
        theta, info = sbtrpo.line_search(lambda t: ("" if t[0] <= bound else "size", {"size": float(t[0])}),
                                         np.zeros(1), np.ones(1), **options)
        assert theta[0] == info["size"] == info["fraction"]  # what is reported is what is returned
        return info

    assert search(0.3, shrink=0.5) == {"size": 0.25, "fraction": 0.25, "trials": 3, "stopped_by": "size"}
    assert search(1.0) == {"size": 1.0, "fraction": 1.0, "trials": 1, "stopped_by": "nothing"}
    assert search(-1.0, trials=5) == {"size": 0.0, "fraction": 0.0, "trials": 6, "stopped_by": "size"}
    assert search(math.nan)["fraction"] == 0.0


def test_what_is_not_finite_is_refused():
    """NaN or inf in a gradient or in F^-1 times it raises Failure, and never makes a step."""
    for bad in (math.nan, math.inf):
        for position in range(4):
            vectors = [np.array([1.0, 0.5]) for _ in range(4)]
            vectors[position][1] = bad
            for update in (safety_biased_step, optimal_safety_biased_step,
                           functools.partial(barrier_step, margin=1.0)):
                failure = (sbtrpo.Failure, ctrpo.Failure)
                with np.errstate(invalid="ignore"), pytest.raises(failure, match="not finite"):
                    update(*vectors, 0.01, 0.75)


def test_steps_refuse_what_they_do_not_know():
    """A margin that is used up, but for recovery; an update of another name; a beta beyond its range."""
    g, x = np.array([1.0, 0.5]), np.array([0.5, 1.0])
    for margin in (0.0, -1.0, math.nan):
        with pytest.raises(ctrpo.Failure, match="only recovery"):
            barrier_step(g, g, x, x, 0.01, 0.1, margin)
        assert barrier_step(g, g, x, x, 0.01, 0.1, margin, recovery=True)[1]["cost_change"] < 0
    for wrong in ({"beta": 1.5}, {"beta": 0.0}, {"beta": 0.75, "update": "convx"}):
        with pytest.raises(sbtrpo.Failure, match="is not convex or optimal"):
            safety_biased_step(g, g, x, x, 0.01, **wrong)


# ------------------------------------------------------------------------------------- advantages and critics


def test_advantages_are_the_weighted_n_step_advantages():
    """Terminated and truncated episodes of 1 to 12 steps; with V = 0 and lambda = 1, nothing but returns is
    left: a double sum. Control: a truncated episode counted as terminated."""
    rng, worst, returns, control = np.random.default_rng(6), 0.0, 0.0, 0.0
    for length in range(1, 13):
        rewards, values = rng.normal(size=length), rng.normal(size=length + 1)
        discount, gae_lambda = rng.uniform(size=2)
        for ended in (False, True):
            naive = n_step_advantages(rewards, values, ended, discount, gae_lambda)
            seen, actions = np.zeros((length + 1, 2)), np.zeros(length, int)
            batch = sbtrpo.make_batch([sbtrpo.Episode(seen, actions, rewards, rewards, ended)], UNSCALED)
            found = sbtrpo.gae(batch, rewards, values, discount, gae_lambda)
            worst = max(worst, np.abs(found - naive).max())
            control = max(control, np.abs(found - n_step_advantages(
                rewards, values, not ended, discount, gae_lambda)).max())
            double = [sum(discount**k * rewards[t + k] for k in range(length - t)) for t in range(length)]
            for found in (sbtrpo.gae(batch, rewards, 0 * values, discount, 1.0),
                          sbtrpo.discounted_sums(rewards, batch.lengths, discount)):
                returns = max(returns, np.abs(found - double).max())
    check("GAE = weighted n-step advantages", worst, at_most=IDENTITY)
    check("GAE with V = 0, lambda = 1, = Monte Carlo returns", returns, at_most=IDENTITY)
    check("  control: terminated taken for truncated (largest)", control, at_least=0.1)


def test_several_episodes_are_estimated_as_each_by_itself():
    """GAE of a batch of episodes of 1 to 6 steps, some terminated, is that of batches of one."""
    rng, episodes = np.random.default_rng(8), []
    for length, ended in ((3, True), (1, False), (6, False), (1, True), (4, True)):
        seen, signals = rng.normal(size=(length + 1, 2)), rng.normal(size=(2, length))
        episodes.append(sbtrpo.Episode(seen, np.zeros(length, int), *signals, ended))
    values, batch = rng.normal(size=20), sbtrpo.make_batch(episodes, UNSCALED)
    together = sbtrpo.gae(batch, batch.cost, values, 0.9, 0.8)
    alone = [sbtrpo.gae(sbtrpo.make_batch([episode], UNSCALED), episode.costs, own, 0.9, 0.8)
             for episode, own in zip(episodes, np.split(values, batch.lasts[:-1] + 1))]
    check("GAE of several episodes = of each", np.abs(together - np.concatenate(alone)).max(), 1e-12)


def test_time_baseline_is_the_mean_of_the_others_at_equal_time():
    """Of every return, the mean over the other episodes that reach its time step is subtracted; where there
    are none, 0 is left. `mc` keeps the discounted returns. Control: the two differ."""
    rng, lengths = np.random.default_rng(9), [3, 1, 5, 4]
    episodes = [sbtrpo.Episode(np.zeros((n + 1, 2)), np.zeros(n, int), *rng.normal(size=(2, n)), True)
                for n in lengths]
    state, found = {"sizes": np.array([2, 3, 2]), "epoch": 0}, {}
    for advantage in ("mc", "time"):
        config = sbtrpo.Config(advantage=advantage, discount=0.9)
        batch = sbtrpo.make_batch(episodes, UNSCALED)
        *found[advantage], _ = sbtrpo.estimate_advantages(config, batch, state)
    for k, name in enumerate(("rewards", "costs")):
        sums = [np.array([sum(0.9**k * x for k, x in enumerate(signal[t:])) for t in range(len(signal))])
                for signal in (getattr(episode, name) for episode in episodes)]
        less = []
        for i, own in enumerate(sums):
            others = sums[:i] + sums[i + 1:]
            for t, value in enumerate(own):
                now = [other[t] for other in others if len(other) > t]
                less.append(value - np.mean(now) if now else 0.0)
        check("advantage mc: returns as they are", np.abs(found["mc"][k] - np.hstack(sums)).max(), 1e-12)
        check("advantage time: less the others' mean", np.abs(found["time"][k] - less).max(), 1e-12)
        check("  control: the two differ", np.abs(np.hstack(sums) - less).max(), at_least=0.1)


def test_critic_reaches_the_least_squares_optimum():
    """One-hot states, where the optimum is each state's mean; 300 noisy targets. Control: the start."""
    rng, sizes = np.random.default_rng(10), (6, 16, 1)
    states = rng.integers(6, size=300)
    targets = 3 * rng.normal(size=6)[states] + rng.normal(size=300)
    critic = sbtrpo.initial_parameters(sizes, [], rng)
    means = np.array([targets[states == s].mean() for s in range(6)])

    def loss(critic):
        values = sbtrpo.network(sbtrpo.unflatten(critic, sizes)[0], np.eye(6)[states])[:, 0]
        return np.mean((values - targets) ** 2)

    least, start = np.mean((targets - means[states]) ** 2), loss(critic)
    for _ in range(200):
        orders = [rng.permutation(300) for _ in range(10)]
        critic = sbtrpo.fit_critic(critic, sizes, np.eye(6)[states], targets, orders)
    check("critic: loss above the optimum after 200 fits [optimum]", loss(critic) / least - 1, at_most=1e-2)
    check("  control: loss above the optimum at the start [optimum]", start / least - 1, at_least=2)


# ------------------------------------------------------------------------- three scripts with the same words


def shared_blocks(text: str) -> dict:
    """{name: text} of what stands between `# --- shared: name ---` and `# --- end shared ---`."""
    blocks = re.findall(r"^# --- shared: ([^\n]*) ---\n(.*?)^# --- end shared ---$", text, re.S | re.M)
    assert len(blocks) == len(re.findall("^# --- (?:end )?shared", text, re.M)) / 2, "unpaired marks"
    return dict(blocks)


def test_shared_text_is_the_same_in_every_script():
    """What the scripts share is equal to the character. Control: made-up texts that differ in one."""
    scripts = [ROOT / name for name in ("sbtrpo.py", "ctrpo.py", "strpo.py")]
    first, *others = (shared_blocks(path.read_text()) for path in scripts)
    assert len(first) >= 2 and all(other == first for other in others)
    made_up = "# --- shared: a ---\nx = 1\n# --- end shared ---\ny = 2\n"
    assert shared_blocks(made_up) == shared_blocks("z\n" + made_up) == {"a": "x = 1\n"}
    assert shared_blocks(made_up) != shared_blocks(made_up.replace("x = 1", "x =  1"))
    with pytest.raises(AssertionError, match="unpaired"):
        shared_blocks(made_up.replace("# --- end shared ---", ""))


def longest_function(text: str) -> int:
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return max(node.end_lineno - node.lineno + 1 for node in functions)


def test_the_algorithm_stands_on_the_first_two_pages_of_every_script():
    """Sections 1 to 3 end by line 210; the ten sections have one order and the same names; functions have at
    most 45 lines, lines 100 columns. Control: a function of 46 lines is seen."""
    sections = []
    for name in ("sbtrpo.py", "ctrpo.py", "strpo.py"):
        text = (ROOT / name).read_text()
        lines = text.splitlines()
        end, = (i for i, line in enumerate(lines) if line.endswith("= what the algorithm stands on"))
        sections.append(re.findall(r"^# -+ (\d+\. .*)$", text, re.M))
        check(f"{name}: last line of the algorithm", end - 1, at_most=210)
        check(f"{name}: longest function [lines]", longest_function(text), at_most=45)
        check(f"{name}: longest line [columns]", max(map(len, lines)), at_most=100)
    assert sections[0] == sections[1] == sections[2] and len(sections[0]) == 10
    assert longest_function("def f():" + 45 * "\n    x = 1") == 46
