"""The exact world: its identities, its golden figures, and its episodes as an environment's.

Golden figures come from a program that shares no line with this project; they are met to the digits given.
"""
import itertools
import math
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from autograd import hessian, jacobian
from gymnasium.utils.env_checker import check_env

import sbtrpo
from conftest import ROOT, check
from problems import (
    GOLDEN, IDENTITY, IDS, LP, cases, dot, first_order, garnets, logits, optimal_safety_biased_step,
    units, worlds)
from sbtrpo import safety_biased_step
from tabular_cmdp import hazard_grid, two_state


# -------------------------------------------------------------------------------------------- the exact world


def test_policy_gradient_theorem():
    """g = d pi A for softmax logits, against autograd through the linear solve of J."""
    worst = 0.0
    for world, theta in cases():
        for f in (world.r, world.c):
            error = world.gradient(theta, f) - world.gradient_by_autograd(theta, f)
            worst = max(worst, np.abs(error).max())
    check("policy gradient = occupancy * advantage (autograd)", worst, at_most=IDENTITY)


def test_fisher_is_the_hessian_of_the_mean_kl():
    """At new = old, with the state weights of old held fixed; autograd twice through the KL."""
    worst = 0.0
    for world, theta in cases(8):
        second = hessian(lambda new, world=world, theta=theta: world.kl(theta, new))(theta)
        worst = max(worst, np.abs(second.reshape(theta.size, -1) - world.fisher(theta)).max())
    check("Fisher matrix = Hessian of mean KL(old, new) (autograd)", worst, at_most=IDENTITY)


def test_fisher_is_the_pullback_of_conditional_entropy():
    """F = J^T H J, with J = d occupancy / d theta and H the Hessian of sum rho log(rho / d) in the
    occupancy."""
    worst = 0.0
    for world, theta in cases(8):
        J = jacobian(world.occupancy)(theta).reshape(theta.size, theta.size)
        rho, d, A = world.occupancy(theta).ravel(), world.state_occupancy(theta), theta.shape[1]
        H = np.diag(1 / rho) - np.kron(np.diag(1 / d), np.ones((A, A)))
        worst = max(worst, np.abs(J.T @ H @ J - world.fisher(theta)).max())
    check("Fisher matrix = pullback of the conditional entropy", worst, at_most=IDENTITY)


def test_fisher_times_advantage_is_the_gradient():
    """F A_f = g_f in every gauge: the advantage itself and the row-centred direction."""
    worst = 0.0
    for world, theta in cases():
        for f in (world.r, world.c):
            for x in (world.advantage(theta, f), world.natural_direction(theta, f)):
                error = world.fisher(theta) @ x.ravel() - world.gradient(theta, f).ravel()
                worst = max(worst, np.abs(error).max())
    check("Fisher * advantage = gradient", worst, at_most=IDENTITY)


def test_pseudo_inverse_direction_is_the_row_centred_advantage():
    """x = F^+ g without inverting anything; every state visited (d > 0). Control: the uncentred advantage."""
    worst, uncentred = 0.0, []
    for world, theta in cases():
        for f in (world.r, world.c):
            inverse = np.linalg.pinv(world.fisher(theta), 1e-10, hermitian=True)
            x = inverse @ world.gradient(theta, f).ravel()
            scale = np.abs(x).max()
            worst = max(worst, np.abs(x - world.natural_direction(theta, f).ravel()).max() / scale)
            uncentred.append(np.abs(x - world.advantage(theta, f).ravel()).max() / scale)
    check("pinv(F) g = row-centred advantage [relative]", worst, at_most=IDENTITY)
    check("  control: the uncentred advantage differs (largest)", max(uncentred), at_least=0.1)


def test_performance_difference_lemma():
    """J(new) - J(old) = E_{occupancy of new}[A_old]; any two policies. Control: the state weights of old."""
    worst, control = 0.0, 0.0
    for world, old in cases():
        new = logits(world, 1000)
        for f in (world.r, world.c):
            gain = world.J(new, f) - world.J(old, f)
            worst = max(worst, abs(gain - dot(world.occupancy(new), world.advantage(old, f))))
            control = max(control, abs(gain - world.surrogate(old, new, f)))
    check("performance-difference lemma", worst, at_most=IDENTITY)
    check("  control: with the states of the old policy it fails (largest)", control, at_least=0.01)


def test_linear_program_is_the_best_policy():
    """The LP's policy, evaluated exactly, attains the LP's value and cost; and strong duality: the best
    policy for r - dual * c without a budget is worth value - dual * limit."""
    attained, duality = 0.0, 0.0
    for world in worlds():
        best = world.optimum()
        with np.errstate(divide="ignore"):
            theta = np.log(best.policy)
        reward, cost = world.J(theta, world.r), world.J(theta, world.c)
        attained = max(attained, abs(reward - best.value), abs(cost - best.cost))
        lagrangian = world.optimum(np.inf, world.r - best.dual * world.c).value
        duality = max(duality, abs(lagrangian - (best.value - best.dual * world.limit)))
    check("LP optimum is attained by its policy", attained, at_most=LP)
    check("LP strong duality (Lagrangian without budget)", duality, at_most=LP)


def test_impossible_budget_is_refused():
    with pytest.raises(ValueError, match="No policy of this world"):
        two_state().optimum(limit=0.001)
    with pytest.raises(ValueError, match="must not contain values"):
        two_state().optimum(limit=np.nan)


def test_optimum_has_the_units_of_its_rewards_and_costs():
    """From 1e-12 to 1e12; the solver's tolerances are absolute. A discount too near 1 for it is refused,
    and an impossible budget at every scale."""
    world, worst = two_state(), 0.0
    value, cost, dual = (best := world.optimum()).value, best.cost, best.dual
    for scale in 10.0 ** np.arange(-12, 13, 3):
        scaled = replace(world, c=scale * world.c, limit=scale * world.limit).optimum()
        richer = replace(world, r=scale * world.r).optimum()
        found = [scaled.value, scaled.cost / scale, scaled.dual * scale, richer.value / scale, richer.cost,
                 richer.dual / scale]
        worst = max(worst, np.abs(np.subtract(found, [value, cost, dual] * 2)).max())
        with pytest.raises(ValueError, match="No policy of this world"):
            replace(world, c=scale * world.c).optimum(limit=0.001 * scale)
        _, excess = replace(world, c=scale * world.c).least_excess(0.001 * scale)
        worst = max(worst, abs(excess / scale - world.least_excess(0.001)[1]))
    check("linear programs with rewards or costs times 1e-12 to 1e12", worst, at_most=LP)
    with pytest.raises(ArithmeticError, match="too near 1"):
        replace(world, gamma=1 - 1e-9).optimum()


# --------------------------------------------------------------------------------------------- golden figures


def test_golden_two_state():
    """Uniform policy, delta = .01, beta = .75."""
    world, theta = two_state(), np.zeros((2, 2))
    g_r, x_r, g_c, x_c = vectors = first_order(world, theta)
    _, _, rho = units(*vectors, 0.01)
    measured = [world.J(theta, world.r), world.J(theta, world.c), *world.state_occupancy(theta),
                g_r @ x_r, g_r @ x_c, g_c @ x_c]
    golden = [0.735, 0.26385, 0.53, 0.47, 0.745375, 0.38032625, 0.2428277375]
    step, info = safety_biased_step(*vectors, 0.01, 0.75)
    measured += [info["mu"], *step]
    golden += [0.8680016738, 0.0444954031, -0.0444954031, -0.1478258578, 0.1478258578]
    step, _ = optimal_safety_biased_step(*vectors, 0.01, 0.75)
    measured += [*step]
    golden += [0.1583947288, -0.1583947288, -0.1194213731, 0.1194213731]
    worst = np.abs(np.subtract(measured, golden)).max()
    check("two states: golden values of J, d, q, r, s and both steps", worst, at_most=GOLDEN)
    check("two states: golden rho (7 digits printed)", abs(rho - 0.8939634), at_most=5e-8)


def test_golden_linear_programs():
    """Best values, policies and duals of the hand-made worlds and of three Garnets, to 7 digits or more."""
    small, grid = two_state(), hazard_grid("A")
    eight = [(small.optimum().value, 1.1031903190), (grid.optimum(0.0).value, 0.1018665597)]
    limits, values = (0.41341171, 0.27318384, 0.28989998), (0.80804180, 0.66175821, 0.67418455)
    for world, b, value in zip(garnets(3), limits, values, strict=True):
        eight += [(world.limit, b), (world.optimum().value, value)]
    free = small.optimum(np.inf)
    short = [(small.optimum(0.1).value, 0.9821782), (small.optimum().policy[1, 0], 0.9271402),
             (free.value, 1.84), (free.cost, 0.92), (small.optimum(np.inf, -small.c).cost, 0.0048421),
             (grid.optimum(0.02).value, 0.1038259), (grid.optimum(0.1).value, 0.1116635),
             (grid.optimum(np.inf).value, 0.1602159), (hazard_grid("C").optimum(0.1).value, 0.1116635)]
    check("linear programs: golden values, 8 digits", max(abs(a - b) for a, b in eight), at_most=LP)
    check("linear programs: golden values, 7 digits", max(abs(a - b) for a, b in short), at_most=1e-7)
    check("linear programs: golden dual of the grid", abs(grid.optimum(0.02).dual - 0.097969), at_most=5e-7)


def test_golden_uniform_policies():
    """Rewards and costs at theta = 0."""
    grid = hazard_grid("A")
    theta = np.zeros(grid.r.shape)
    worst = max(abs(w.J(np.zeros(w.r.shape), w.r) - J) for w, J in
                zip(garnets(3), (0.54050906, 0.39537488, 0.42807187), strict=True))
    check("Garnets: golden reward of the uniform policy", worst, at_most=LP)
    worst = max(abs(grid.J(theta, grid.r) - 0.0065057), abs(grid.J(theta, grid.c) - 0.2430970))
    check("grid: golden reward and cost of the uniform policy (7 digits)", worst, at_most=1e-7)
    _, _, rho = units(*first_order(grid, theta), 0.01)
    check("grid: golden rho (4 digits)", abs(rho - 0.1077), at_most=5e-5)


def test_golden_damping():
    """Grid A, uniform policy: the largest eigenvalue of F is .072, so that a damping of .1 turns the natural
    gradient of the reward, and 1e-4, the scripts' default, hardly: cosines with F^+ g, in the F metric."""
    world = hazard_grid("A")
    theta = np.zeros(world.r.shape)
    F, g = world.fisher(theta), world.gradient(theta, world.r).ravel()
    x = world.natural_direction(theta, world.r).ravel()
    largest = np.linalg.eigvalsh(F)[-1]
    check("grid: golden largest eigenvalue of F (3 digits)", abs(largest - 0.072), at_most=5e-4)
    for damping, golden, digit in ((0.1, 0.76, 0.01), (0.01, 0.927, 1e-3), (1e-3, 0.995, 1e-3),
                                   (1e-4, 0.9999, 1e-4)):
        y = np.linalg.solve(F + damping * np.eye(len(F)), g)
        cosine = x @ F @ y / math.sqrt((x @ F @ x) * (y @ F @ y))
        check("grid: golden cosine of damped directions [last digit]", abs(cosine - golden) / digit,
              at_most=0.55)


# --------------------------------------------------------------------------------- the worlds as environments


@pytest.mark.parametrize("name", IDS)
def test_environment_keeps_the_gymnasium_contract(name):
    """Gymnasium's own checker; and the same seed gives the same episode."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(f"tabular_cmdp:{name}").unwrapped)
    state = sbtrpo.initial_state(config := sbtrpo.Config(task=f"tabular_cmdp:{name}", hidden=(4,)))
    once, again, other = (sbtrpo.run_episode(config.task, seed, 5, sbtrpo.make_actor(state))
                          for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(once, again))
    assert not np.array_equal(once.observations, other.observations)  # control


def gradient_errors(config, actor, episodes, exact) -> list:
    """[|sampled - exact| of reward and cost gradient, largest over parameters], in standard errors of the
    ratio (sum over steps of grad log pi * A) / steps, from 60 groups of episodes."""
    batch, state = sbtrpo.make_batch(episodes, actor), {"sizes": np.array(actor.policy.sizes), "epoch": 0}
    *advantages, _ = sbtrpo.estimate_advantages(config, batch, state)
    inputs, actions = batch.observations.astype(float), batch.actions
    ends = np.cumsum(batch.lengths)[np.linspace(0, len(episodes) - 1, 61).astype(int)]
    errors = []
    for advantage, g in zip(advantages, exact):
        residuals = []
        for steps in (slice(a, b) for a, b in zip(ends, ends[1:])):
            gradient, _ = sbtrpo.policy_gradient(actor.policy, actor.theta, inputs[steps], actions[steps])
            residuals.append(gradient(advantage[steps]) - len(actions[steps]) * g)
        deviation = np.std(residuals, axis=0) * math.sqrt(len(residuals)) + 1e-9
        errors.append(np.abs(np.sum(residuals, axis=0) / deviation).max())
    return errors


@pytest.mark.parametrize("name", IDS)
def test_sampled_gradients_are_the_exact_ones(name):
    """Shipped sampler and estimators against the exact gradient of the normalised J, chained through the
    network. Ending with probability 1 - gamma is the discount, so the estimators use discount 1. 30,000
    steps, 6 standard errors. Control: discount 0."""
    world, config = IDS[name](), sbtrpo.Config(task=f"tabular_cmdp:{name}", hidden=(6,), discount=1.0)
    state, sizes = sbtrpo.initial_state(config), (len(world.mu), 6, world.r.shape[1])
    state["theta"] = state["theta"] + 0.4 * np.random.default_rng(11).normal(size=state["theta"].size)
    actor = sbtrpo.make_actor(state)
    with ThreadPoolExecutor(1) as executor:
        _, episodes = sbtrpo.collect(executor, config, actor, 0, 30_000)

    def table(theta):
        return sbtrpo.network(sbtrpo.unflatten(theta, sizes)[0], np.eye(sizes[0]))

    logits, J = table(actor.theta), jacobian(table)(actor.theta)
    exact = [np.tensordot(world.gradient(logits, f), J, 2) for f in (world.r, world.c)]
    for advantage in ("mc", "time"):
        errors = gradient_errors(replace(config, advantage=advantage), actor, episodes, exact)
        check(f"sampled gradients, advantage {advantage} [standard errors]", max(errors), at_most=6)
    myopic = gradient_errors(replace(config, discount=0.0), actor, episodes, exact)
    check("  control: what one step brings, instead of returns", min(myopic), at_least=8)
    costs = np.array([episode.costs.sum() for episode in episodes])
    error = np.mean(costs) - world.J(logits, world.c) / (1 - world.gamma)
    error = abs(error) / (np.std(costs) / math.sqrt(len(costs)))
    check("sampled cost per episode [standard errors]", error, at_most=6)


def test_error_of_a_sampled_gradient_follows_the_noise_law():
    """Two states, uniform policy, episodes sampled and estimated as in training (studies/noise.py). With
    512 episodes of 60 steps the noise scales n* are the golden ones, within 15%. With 4,096 that
    end at random, batches of 64 have the root mean square error sqrt(n* / n), within 20%, and get a share 1 /
    sqrt(1 + n* / n) of the best cost decrease, within .06. Control: n* of another baseline is off."""
    sys.path.append(str(ROOT / "studies"))
    import noise
    fixed, case = noise.Case("TwoState-v0", 0, 512, length=60), noise.Case("TwoState-v0", 0, 4096)
    for baseline, golden in (("mc", 4.4), ("time", 0.6), ("value", 0.5)):
        scale = fixed.noise_scale(baseline)[1]["noise_scale"]
        check("noise scale of 60 steps: |n* / golden - 1|", abs(scale / golden - 1), at_most=0.15)
        law = math.sqrt(case.noise_scale(baseline)[1]["noise_scale"] / 64)
        batches = [case.judge(case.episodes[i : i + 64], baseline) for i in range(0, 4096, 64)]
        error = math.sqrt(np.mean([batch["cost_error"] ** 2 for batch in batches]))
        check("noise law, 64 episodes: |rms error / sqrt(n* / n) - 1|", abs(error / law - 1), at_most=0.2)
        share = np.mean([batch["cost_share"] for batch in batches]) - 1 / math.sqrt(1 + law**2)
        check("noise law, 64 episodes: |share of the best cost decrease - law|", abs(share), at_most=0.06)
    other = math.sqrt(case.noise_scale("mc")[1]["noise_scale"] / 64)
    check("  control: the same error against n* of no baseline", abs(error / other - 1), at_least=0.2)


@pytest.fixture(scope="module")
def grid_case():
    """The grid, uniform policy, and 6,144 episodes that end at random (studies/noise.py)."""
    sys.path.append(str(ROOT / "studies"))
    import noise
    case = noise.Case("HazardGrid-v0", 0, 6144)
    case.config = replace(case.config, advantage="time")
    return case


def steps_of_batches(case, size: int, most: int = 128) -> np.ndarray:
    """Of disjoint batches: the decrease of J_c that the shipped step promises, what is true of it to first
    order, what the batch's own surrogate says of it, and Misc/kept."""
    found = []
    for start in range(0, min(len(case.episodes), most * size), size):
        batch = sbtrpo.make_batch(case.episodes[start : start + size], case.actor)
        rewards, costs, _ = sbtrpo.estimate_advantages(case.config, batch, case.state)
        theta, info = sbtrpo.update_policy(case.config, case.policy, case.parameters, batch.observations,
                                           batch.actions, rewards, costs, None, batch.lengths)
        step = theta - case.parameters
        logits = case.table(step) + step[case.theta.size :]  # an action's bias is in all its logits
        found.append((-info["fraction"] * info["cost_change"], -np.sum(case.exact[1] * logits),
                      -info["surrogate_cost"], info["kept"]))
    return np.array(found)


@pytest.mark.parametrize("size", [16, 64, 256])
def test_a_step_keeps_of_its_promise_what_the_noise_scale_says(size, grid_case):
    """The grid, uniform policy, SB-TRPO's defaults, against the exact gradient. Of what batches promise,
    their steps keep 1 / (1 + n* / n) in the mean, within .1: five iterations see less of the noise than F^+
    in n*, so that small batches keep up to twice as much; rho is .11. They miss beta of the best decrease.
    Misc/kept is right in the mean, within 4 standard errors, and these are at most .04. Control: the batch's
    own surrogate, which fails that by far."""
    promised, true, surrogate, logged = steps_of_batches(grid_case, size).T
    scale = grid_case.noise_scale("time")[1]["noise_scale"]
    kept, law = true.mean() / promised.mean(), 1 / (1 + scale / size)
    check("kept of the promise of a batch: |kept - 1 / (1 + n* / n)|", abs(kept - law), at_most=0.1,
          supports="A5", cases=len(true))
    check("kept of the promise of a batch, over 1 / (1 + n* / n) (least)", kept / law, at_least=0.5)
    check("kept of the promise of a batch, over 1 / (1 + n* / n) (most)", kept / law, at_most=2)
    best = math.sqrt(2 * grid_case.config.delta * grid_case.length2(grid_case.exact[1]))
    check("cost decrease of a batch's step, over beta of the best", true.mean() / best / 0.75, at_most=0.95,
          supports="A5")
    errors = []
    for estimate in (logged, surrogate / promised):
        spread = estimate - estimate.mean() - (true - kept * promised) / promised.mean()
        errors.append(spread.std(ddof=1) / math.sqrt(len(true)))
    check("Misc/kept: standard error of its mean", errors[0], at_most=0.04)
    check("Misc/kept, off the true share [standard errors]", abs(logged.mean() - kept) / errors[0], at_most=4)
    naive = abs(np.mean(surrogate / promised) - kept)
    check("  control: the batch's own surrogate [standard errors]", naive / errors[1], at_least=8)


def kept_of_drawn_gradients(rho: float, beta: float, update: str, noises=(3.0, 0.0), kappa=0.0) -> float:
    """True over promised decrease, of 2,000 shipped steps in 240 dimensions, F = I: the gradients of cost and
    reward are drawn with noises of n* / n, which have the cosine kappa; rho is the true gradients' cosine."""
    rng, g_c = np.random.default_rng(90), np.eye(240)[0]
    g_r = rho * g_c + math.sqrt(1 - rho**2) * np.eye(240)[1]
    noise, other = rng.normal(size=(2, 2000, 240)) / math.sqrt(240)
    costs = g_c + math.sqrt(noises[0]) * noise
    rewards = g_r + math.sqrt(noises[1]) * (kappa * noise + math.sqrt(1 - kappa**2) * other)
    steps = np.array([sbtrpo.safety_biased_step(r, r, c, c, 0.01, beta, update=update)[0]
                      for r, c in zip(rewards, costs)])
    return float(np.sum(steps @ g_c) / np.sum(steps * costs))


def test_what_a_step_keeps_depends_on_the_cosine_of_the_gradients():
    """With k = 1 / sqrt(1 + n* / n), the batch's gradient of the cost has length 1 / k, cosine k with the
    true one, and k rho with the reward's, if that is exact. A step promises beta / k; what is true of that is
    mu k, less (1 - mu) rho of its part of step_r. So it keeps, if k rho > -beta, by (2) k^2 (1 + rho (k -
    (1 - beta) / k) / beta) / (1 + k rho), and by (3) k^2 (1 + w rho (k - 1 / k) / beta), w^2 = (1 - beta^2) /
    (1 - k^2 rho^2): k^2 where rho is 0 or beta 1. Control: not k^2 elsewhere; the cost may even rise."""
    k, rows = 0.5, itertools.product((-0.9, -0.5, 0.0, 0.5, 0.9), (0.5, 0.75, 1.0), ("convex", "optimal"))
    error, near, control, least = 0.0, 0.0, np.inf, np.inf
    for rho, beta, update in rows:
        law = k**2 * (1 + rho * (k - (1 - beta) / k) / beta) / (1 + k * rho)
        if update == "optimal":
            w = math.sqrt((1 - beta**2) / (1 - (k * rho) ** 2))
            law = k**2 * (1 + w * rho * (k - 1 / k) / beta)
        kept = kept_of_drawn_gradients(rho, beta, update)
        error, least = max(error, abs(kept - law)), min(least, kept)
        if rho == 0 or beta == 1:
            near = max(near, abs(kept - k**2))
        else:
            control = min(control, abs(kept - k**2))
    check("kept of drawn gradients: |kept - the law with rho|", error, at_most=0.01, supports="A5",
          cases=60000)
    check("kept of drawn gradients, rho 0 or beta 1: |kept - 1 / (1 + n* / n)|", near, at_most=0.01,
          supports="A5")
    check("  control: the same, other rho and beta (least)", control, at_least=0.02)
    check("  control: kept, other rho and beta (least)", least, at_most=-0.05)


def test_what_a_step_keeps_depends_on_the_cosine_of_the_noises():
    """Both gradients drawn, k_c = 1 / sqrt(1 + n*_c / n), k_r alike, and kappa the cosine of their noises,
    which come from the same episodes: the batch sees the cosine r = k_c k_r rho + kappa sqrt((1 - k_c^2) (1 -
    k_r^2)). Its step is w of its step_r and mu of its step_c, by (2) or (3) of r. True of step_c is k_c, of
    step_r k_r rho, so it keeps k_c (mu k_c - w k_r rho) / (mu - w r), if r > -beta. Control: rho = 0, where 1
    / (1 + n* / n) = .25 holds for kappa = 0 alone."""
    rng, error, control = np.random.default_rng(96), 0.0, {}
    settings = [(0.0, kappa, 3.0, 3.0, 0.75, update) for kappa in (-0.5, 0.0, 0.5)
                for update in ("convex", "optimal")]
    while len(settings) < 30:
        rho, kappa = rng.uniform(-0.9, 0.9, size=2)
        noises, beta = 10 ** rng.uniform(-1, 1, size=2), rng.uniform(0.3, 0.95)
        settings.append((rho, kappa, *noises, beta, rng.choice(["convex", "optimal"])))
    tried = 0
    for rho, kappa, noise_c, noise_r, beta, update in settings:
        k_c, k_r = 1 / math.sqrt(1 + noise_c), 1 / math.sqrt(1 + noise_r)
        r = k_c * k_r * rho + kappa * math.sqrt((1 - k_c**2) * (1 - k_r**2))
        if r < 0.1 - beta:
            continue
        w, mu = (sbtrpo.convex_weights(r, beta) if update == "convex"
                 else sbtrpo.optimal_weights(r, beta, 1 - r**2))
        law = k_c * (mu * k_c - w * k_r * rho) / (mu - w * r)
        kept = kept_of_drawn_gradients(rho, beta, update, (noise_c, noise_r), kappa)
        error, tried = max(error, abs(kept - law)), tried + 1
        if rho == 0:
            control[kappa] = max(control.get(kappa, 0.0), abs(kept - 0.25))
    check("kept of drawn gradients: |kept - the law with kappa|", error, at_most=0.015, supports="A5",
          cases=2000 * tried)
    check("kept of drawn gradients, rho = kappa = 0: |kept - 1 / (1 + n* / n)|", control.pop(0.0), 0.01,
          supports="A5")
    check("  control: rho = 0, kappa = .5 or -.5 (least)", min(control.values()), at_least=0.05)
