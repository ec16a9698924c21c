# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#   "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#   "threadpoolctl==3.6.0"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#   "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""SB-TRPO: Safety-Biased Trust Region Policy Optimisation (arXiv 2512.23770), in one file.

The idea in one sentence: every step keeps a fraction beta of the best possible cost decrease, and
otherwise leans towards reward as far as that allows; there is no recovery.

    step_r = +sqrt(2 delta / g_r.x_r) x_r      the best reward step in the trust region
    step_c = -sqrt(2 delta / g_c.x_c) x_c      the best cost step in the trust region
    step   = (1 - mu) step_r + mu step_c       with the smallest mu in [0, 1] such that
    g_c.step <= beta g_c.step_c                                                          (1)

where x = F^-1 g is the natural gradient. Let rho = g_c.x_r / sqrt(g_r.x_r g_c.x_c) be the cosine of
g_r and g_c in the F^-1 metric: rho > 0 says that what earns also costs. In units of the best cost
decrease, step_c changes the cost by -1, step_r by rho; (1) reads (1 - mu) rho - mu <= -beta, and

    mu     = max(0, (beta + rho) / (1 + rho))                                            (2)

`--update optimal` takes, of all steps in the trust region that meet (1), the one that earns most:
step_r if that meets (1), else k step_r + mu step_c with equality in (1), mu = beta + k rho. (A part
at right angles to both would change neither objective.) In the Fisher metric, in units of the
radius, step_r and step_c have length 1 and cosine -rho. So the step has squared length k^2 -
2 k mu rho + mu^2 = k^2 (1 - rho^2) + beta^2, and earns k - mu rho = k (1 - rho^2) - beta rho of the
best gain: most where it fills the radius, at

    k      = sqrt((1 - beta^2) / (1 - rho^2))                                            (3)

A batch is a number of whole episodes of one policy, `--batch-steps` steps or a little more. On it,
a line search shortens the step until the mean KL(old || new) is at most delta and the surrogate
cost, mean of (pi_new / pi_old - 1) A_c, does not rise (with a budget: by no more than is left), or
the policy stays. It does not look at the reward, which a step may give up on purpose: where rho >
1 - beta, (2) loses reward. Nor is the true cost checked: only the next batch tells.

Differs from the paper in
 1. No constant guards the division in (2): beta <= 1, so where beta + rho > 0, so is 1 + rho.
 2. `--update optimal` is beyond the paper.
 3. `--cost-limit b` > 0, a budget: (1) asks for a decrease of J_c - b, per step, plus 2% of the
    best, and for beta of the best at most; if negative, the cost may rise. b = 0: the paper.
 4. The baseline of a return is the other episodes' mean at that time (`--advantage mc`: none, as we
    read the paper).
 5. Conjugate gradients stop after 5 iterations, against noise; the damping is 1e-4.

symbol    name in code               shape       meaning, unit (p parameters, n steps a batch)
theta     theta                      (p,)        policy parameters: weights and biases, then log std
g_r, g_c  reward_, cost_gradient     (p,)        advantage per step: batch mean of grad log pi * A
x_r, x_c  reward_, cost_direction    (p,)        F^-1 g, by conjugate gradients
F         fisher                     (p,)->(p,)  nats: Hessian of the mean KL, plus damping
rho       rho                        scalar      cosine of g_r and g_c in the F^-1 metric
mu, beta  mu, beta                   scalar      weight of step_c; fraction of the best decrease
delta     delta                      scalar      nats: mean KL(old || new) over the batch's states
J_c, b    mean_cost, cost_limit      scalar      undiscounted cost per episode
A         reward_, cost_advantages   (n,)        discounted return to go, less a baseline

Sections 1 to 3 are the algorithm. The rest is what it stands on, bottom up; options come last.
"""

import argparse, concurrent.futures, contextlib, copy, csv, dataclasses, functools, io, itertools
import importlib.metadata, importlib.util, json, logging, math, multiprocessing.resource_tracker
import os, platform, random, re, signal, sys, threading, time, unittest.mock, zipfile, zlib
from pathlib import Path
from typing import NamedTuple

try:
    import filelock, gymnasium, loky, threadpoolctl
    import autograd.numpy as anp
    import numpy as np
    from autograd import make_vjp
    from gymnasium import spaces
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"{error}: start this with `uv run`, or install what its first lines name.")

# ----------------------------------------------------------------------------- 1. the step
def convex_weights(rho, beta):
    """(1 - mu, mu), eq. (2)."""
    if rho <= -beta:  # step_r meets (1) by itself
        return 1.0, 0.0
    mu = (beta + rho) / (1 + rho)
    return 1 - mu, mu

def optimal_weights(rho, beta, sine2):
    """(k, beta + k rho), eq. (3); sine2 = 1 - rho^2."""
    if rho <= -beta:
        return 1.0, 0.0
    if sine2 <= 1e-12:  # parallel: many steps solve it, and this is the shortest
        return 0.0, beta
    k = math.sqrt((1 - beta**2) / sine2)
    return k, beta + k * rho

def safety_biased_step(reward_gradient, reward_direction, cost_gradient, cost_direction,
                       delta, beta, excess=None, update="convex"):
    """The SB-TRPO step, eq. (2) or (3), from gradients g and x = F^-1 g, in O(p); Update 3 and
    Eq. 4 of the paper.

    To first order KL <= delta and g_c.step <= -required, which is beta times the best decrease.
    With a budget, excess = J_c - b per step, as g_c is, required is at most excess plus 2% of the
    best: without this room, curvature would stop the line search at J_c = b. Where g_c is 0 to the
    bit, the step is step_r; where g_r is and cost has to fall, step_c. Also returns its promise."""
    if update not in ("convex", "optimal") or not 0 < beta <= 1:
        raise Failure(f"{update=} is not convex or optimal, or {beta=} not in (0, 1].")
    # per_best @ step: the change of an objective, in units of the best step's
    step_r, per_best_r = steepest_step(reward_gradient, reward_direction, delta)
    step_c, per_best_c = steepest_step(cost_gradient, -cost_direction, delta)
    rho = float(per_best_c @ step_r)
    # 1 - rho^2, but without cancellation where rho is near 1 or -1
    sine2 = max(0.0, float((per_best_r - rho * per_best_c) @ (step_r + rho * step_c)))
    best_reward, best_cost = float(reward_gradient @ step_r), float(-cost_gradient @ step_c)
    if excess is not None and best_cost > 0:
        beta = min(excess / best_cost + 0.02, beta)  # negative: the cost may rise
    if best_cost == 0:
        weight_r, mu = 1.0, 0.0
    elif best_reward == 0 and beta > 0:  # nothing to earn: all of the trust region goes to cost
        weight_r, mu = 0.0, 1.0
    elif update == "convex" or beta <= -1:  # (3) is for beta^2 < 1
        weight_r, mu = convex_weights(rho, beta)
    else:
        weight_r, mu = optimal_weights(rho, beta, sine2)
    step = weight_r * step_r + mu * step_c
    kl = delta * (weight_r**2 * sine2 + (mu - weight_r * rho) ** 2)
    return step, {"mu": mu, "rho": rho, "required": beta * best_cost, "kl": kl,
                  "best_reward": best_reward, "best_cost": best_cost,
                  "reward_change": float(reward_gradient @ step),
                  "cost_change": float(cost_gradient @ step)}

# -------------------------------------------------------------- 2. the update from a batch
def update_policy(config, policy, theta, observations, actions,
                  reward_advantages, cost_advantages, excess, lengths=()):
    """Gradients, natural gradients, step, line search: new parameters, and what was measured.
    excess: J_c - b per step, None for no budget; lengths: the episodes' steps, for Misc/kept."""
    gradient_of, old_log_probs = policy_gradient(policy, theta, observations, actions)
    reward_gradient = gradient_of(reward_advantages / len(actions))
    cost_gradient = gradient_of(cost_advantages / len(actions))
    fisher = fisher_product(policy, theta, observations, config.damping)
    solve = functools.partial(conjugate_gradients, fisher, iterations=config.cg_iterations)
    reward_direction, reward_residual = solve(reward_gradient)
    cost_direction, cost_residual = solve(cost_gradient)
    step, info = safety_biased_step(
        reward_gradient, reward_direction, cost_gradient, cost_direction,
        config.delta, config.beta, excess, config.update)
    info |= {"reward_residual": reward_residual, "cost_residual": cost_residual}
    info["kept"] = share_kept(config, policy, theta, observations, gradient_of, lengths,
                              cost_advantages, cost_gradient)

    old = distributions(policy, theta, observations)
    allowed_rise = np.finfo(old.dtype).eps * np.abs(cost_advantages).max()  # rounding
    if excess is not None:
        allowed_rise += max(0.0, -excess)  # what is left of the budget

    def judge(candidate):
        new = distributions(policy, candidate, observations)
        log_ratios = log_probabilities(policy, new, actions) - old_log_probs
        gains = np.expm1(log_ratios.astype(float))  # pi_new / pi_old - 1
        kl, reward = float(mean_kl(policy, old, new)), float(np.mean(gains * reward_advantages))
        cost, failed = float(np.mean(gains * cost_advantages)), ""
        if not kl <= config.delta:  # "not <=": NaN fails, too
            failed = "kl"
        elif not cost <= allowed_rise:
            failed = "cost"
        return failed, {"realised_kl": kl, "surrogate_reward": reward, "surrogate_cost": cost}

    theta, found = line_search(judge, theta, step)
    return theta, info | found

# ------------------------------------------------------------------ 3. the training loop
def train(config, run, state):
    """The paper's Algorithm 1: collect, estimate, update, save, until total_steps are done."""
    executor = make_executor(config)  # collect gives another one back, if a worker has died
    try:
        if not state["moments"].any():  # a new run: first the scale of the observations
            executor, state = warm_up(executor, config, state)
        while state["steps"] < config.total_steps:
            started, actor = time.perf_counter(), make_actor(state)
            # batches grow by --batch-growth in a million steps
            wanted = round(config.batch_growth ** (state["steps"] / 1e6) * config.batch_steps)
            executor, episodes = collect(
                executor, config, actor, state["next_episode"], wanted, state["EpLen"])
            collected, metrics = time.perf_counter(), episode_metrics(episodes, config.costs)

            # n steps: observations (n, size), actions (n, d) or (n,), advantages (n,)
            batch = make_batch(episodes, actor)
            reward_advantages, cost_advantages, fits = estimate_advantages(config, batch, state)
            critics = in_workers(executor, fits)  # while the policy is updated here
            mean_cost, excess = metrics["EpCost"], None
            if config.cost_limit > 0:  # per step, as the cost gradient is
                excess = (mean_cost - config.cost_limit) / metrics["EpLen"]
            theta, info = update_policy(
                config, actor.policy, state["theta"], batch.observations, batch.actions,
                reward_advantages, cost_advantages, excess, batch.lengths)

            metrics["EpCostRegret"] = state["regret"] + max(0.0, mean_cost - config.cost_limit)
            state = advance(state, batch, theta, critics(), metrics["EpCostRegret"])
            log(run, config, state, metrics, info, started, collected)
    finally:
        stop(executor)
    return state

# =========================================================== what the algorithm stands on
# --- shared: tools ---
class Failure(Exception):
    """Ends a run: one sentence that says what was wrong, where, and what to do."""

class Diverged(Failure):
    """The policy or a critic is not finite: to resume would not help."""

WEIGHTS, CRITICS, EPISODE = 2, 3, 4  # purposes of random streams; evaluation has 1
WARM_UP, UNSAFE = 2**41, 2**40  # first episode of the warm-up, of sTRPO's unsafe policy
LEAST_STD = 1e-3  # of an observation

THREADS = concurrent.futures.ThreadPoolExecutor(2)  # no bit depends on how many
TURN = threading.Lock()  # threads of a Dask worker share global random numbers

def stream(seed, purpose, index=0):
    """A generator for each purpose and index: numpy keeps a spawn key apart from the seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, index)))

def episode_name(index):
    if index >= WARM_UP:
        return f"episode {index - WARM_UP} of the warm-up"
    if index >= UNSAFE:
        return f"episode {index - UNSAFE} of the unsafe policy"
    return f"episode {index}"

# --------------------------------------------------------------------- 4. trust region
def steepest_step(gradient, direction, delta):
    """sqrt(2 delta / |g.x|) x, the step of KL delta along x, which is F^-1 g or -F^-1 g; and g over
    sqrt(2 delta |g.x|): of any step, its change in units of the best. For gradients of 1e-300 to
    1e150; both 0 for g = 0."""
    scale = max(np.abs(gradient).max(), 1e-300)
    g, x = gradient / scale, direction / scale
    best = math.sqrt(2 * delta * abs(float(g @ x)))
    if best == 0:
        return np.zeros_like(g), np.zeros_like(g)
    if not math.isfinite(best):
        raise Diverged("a policy gradient, or F^-1 times it, is not finite: rewards or costs are "
                       "too large, or --initial-std is too large or too small")
    return 2 * delta / best * x, g / best

def conjugate_gradients(product, b, iterations):
    """x with A x = b, for symmetric positive definite A given as v -> A v; and |b - A x| / |b|."""
    scale = max(np.abs(b).max(), 1e-300)
    x, r, p = np.zeros_like(b), b / scale, b / scale
    rr = start = float(r @ r)
    for _ in range(iterations):
        if rr <= 1e-20 * start:
            break
        Ap = product(p)
        curvature = float(p @ Ap)
        if curvature == 0:  # A does not see p: there is no solution
            break
        x = x + rr / curvature * p
        r = r - rr / curvature * Ap
        rr, previous = float(r @ r), rr
        p = r + rr / previous * p
    return scale * x, math.sqrt(rr / start) if start else 0.0

def line_search(judge, theta, step, shrink=0.8, trials=60):
    """theta + shrink^i step of the least i to pass judge: theta -> (what failed, measured), or else
    theta; and what was measured there, with stopped_by: what the next larger step failed."""
    stopped_by = "nothing"
    for trial, fraction in enumerate([*shrink ** np.arange(trials), 0.0]):
        failed, measured = judge(theta + fraction * step)
        if not failed or fraction == 0:
            break
        stopped_by = failed
    measured |= {"trials": trial + 1, "fraction": float(fraction), "stopped_by": stopped_by}
    return theta + fraction * step, measured

# --------------------------------------------------------------------------- 5. policy
class Policy(NamedTuple):
    sizes: tuple[int, ...]  # tanh layers from the size of an observation to that of an action
    discrete: bool  # whether the head is categorical; otherwise it is Gaussian

def initial_parameters(sizes, log_std, rng, last=0.01):
    """Weights uniform in +-1/sqrt(fan in), the last layer's times `last`; biases 0; the log std."""
    parts = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        parts.append(rng.uniform(-1, 1, fan_in * fan_out) / math.sqrt(fan_in))
        parts.append(np.zeros(fan_out))
    parts[-2] *= last
    return np.concatenate([*parts, log_std])

def unflatten(theta, sizes):
    """[(W, b) of every layer], as views; and what is left of theta: the log std."""
    layers, start = [], 0
    for fan_in, fan_out in itertools.pairwise(sizes):
        middle = start + fan_in * fan_out
        W = theta[start:middle].reshape(fan_in, fan_out)
        start = middle + fan_out
        layers.append((W, theta[middle:start]))
    return layers, theta[start:]

def layer_inputs(layers, observations):
    """What each layer of a network is given: observations, then tanh of the layer before."""
    inputs = [observations]
    for W, b in layers[:-1]:
        inputs.append(anp.tanh(inputs[-1] @ W + b))
    return inputs

def network(layers, observations):
    W, b = layers[-1]
    return layer_inputs(layers, observations)[-1] @ W + b

def backwards(layers, gradients, inputs, slope):
    """Fills gradients, views as layers are, with those of sum(slope * network(layers, inputs[0]));
    written out, for autograd takes four times as long."""
    for (W, _), (dW, db), h in zip(layers[::-1], gradients[::-1], inputs[::-1]):
        dW[:], db[:] = h.T @ slope, slope.sum(axis=0)
        if h is not inputs[0]:
            slope = slope @ W.T * (1 - h * h)

def distributions(policy, theta, observations):
    """pi(.|s) in rows, as precise as observations: log probabilities (n, d) of d indices, or mean
    and log std (n, 2d) of d dimensions."""
    layers, log_std = unflatten(theta.astype(observations.dtype), policy.sizes)
    outputs = network(layers, observations)
    if policy.discrete:
        outputs = outputs - anp.max(outputs, axis=1, keepdims=True)
        return outputs - anp.log(anp.sum(anp.exp(outputs), axis=1, keepdims=True))
    return anp.concatenate([outputs, anp.zeros_like(outputs) + log_std], axis=1)

def log_probabilities(policy, pi, actions):
    """log pi(a|s), (n,), of indices (n,), or of Gaussian actions (n, d), summed over d."""
    if policy.discrete:
        return pi[np.arange(len(actions)), actions]
    mean, log_std = anp.split(pi, 2, axis=1)
    z = (actions - mean) * anp.exp(-log_std)
    return anp.sum(-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi), axis=1)

def mean_kl(policy, old, new):
    """Mean over states of KL(old || new), summed over action dimensions [nats]."""
    if policy.discrete:
        # exp(new) - exp(old) sums to 0, but makes the Hessian in log probabilities diag(p)
        return anp.mean(anp.sum(np.exp(old) * (old - new - 1) + anp.exp(new), axis=1))
    mean, log_std = np.split(old, 2, axis=1)
    new_mean, new_log_std = anp.split(new, 2, axis=1)
    ratio = (np.exp(2 * log_std) + (mean - new_mean) ** 2) * anp.exp(-2 * new_log_std)
    return anp.mean(anp.sum(new_log_std - log_std + (ratio - 1) / 2, axis=1))

quiet = np.errstate(over="ignore")  # tanh' is 1 / cosh^2: 0 where that is beyond float32

def policy_gradient(policy, theta, observations, actions):
    """weights (n,) -> sum_i weights_i grad log pi(a_i|s_i); and log pi(a_i|s_i), (n,)."""
    def log_pi(theta):
        return log_probabilities(policy, distributions(policy, theta, observations), actions)

    product, log_probs = make_vjp(log_pi)(theta)
    return quiet(lambda weights: product(weights.astype(log_probs.dtype))), log_probs

def fisher_part(policy, theta, v, inputs, old):
    """The sum over some states of J^T M J v, given the layers' inputs and the distributions there.
    J is the Jacobian of outputs and log std, M the Hessian of KL(old || new) in these."""
    product = np.zeros_like(v)
    layers, log_std = unflatten(theta, policy.sizes)
    tangents, log_std_tangent = unflatten(v, policy.sizes)
    gradients, log_std_gradient = unflatten(product, policy.sizes)  # views
    dW, db = tangents[0]
    change = inputs[0] @ dW + db  # J v, from layer to layer
    for (W, _), (dW, db), h in zip(layers[1:], tangents[1:], inputs[1:]):
        change = (change * (1 - h * h)) @ W + h @ dW + db
    if policy.discrete:
        p = np.exp(old)
        slope = p * (change - np.sum(p * change, axis=1, keepdims=True))
    else:
        slope = change * np.exp(-2 * log_std)
    log_std_gradient[:] = 2 * len(change) * log_std_tangent
    backwards(layers, gradients, inputs, slope)
    return product

def fisher_product(policy, theta, observations, damping):
    """v -> (F + damping I) v; F = J^T M J in the mean over states, in parts of 2,048, which fit
    into a cache. Threads share the parts; the sum has one order."""
    theta = theta.astype(observations.dtype)
    layers, _ = unflatten(theta, policy.sizes)
    parts = np.array_split(observations, math.ceil(len(observations) / 2048))
    inputs = [layer_inputs(layers, states) for states in parts]
    old = [distributions(policy, theta, states) for states in parts]

    def product(v):
        part = functools.partial(fisher_part, policy, theta, v.astype(theta.dtype))
        return sum(THREADS.map(part, inputs, old)) / len(observations) + damping * v

    return product

def share_kept(config, policy, theta, observations, gradient_of, lengths, weights, whole):
    """What fresh episodes will confirm of the promise g.step of a step along F^-1 g, 1 / (1 + n* /
    n), estimated from the same batch: 2 c / (1 + c), with c the cosine in the F^-1 metric of the
    gradients of two halves of its episodes; whole is their mean gradient, F of some 300 states. One
    estimate is rough: take the median of twenty. NaN for less than two episodes, or where a half
    has no gradient; -inf where rough solves make c -1 or less."""
    if len(lengths) < 2:
        return math.nan
    first = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
    one = gradient_of(np.where(first, weights, 0.0) / len(weights))
    other = whole - one
    fisher = fisher_product(policy, theta, observations[:: len(first) // 300 + 1], config.damping)
    x, y = (conjugate_gradients(fisher, g, config.cg_iterations)[0] for g in (one, other))
    squares = (one @ x) * (other @ y)
    if not squares > 0:
        return math.nan
    cosine = (one @ y + other @ x) / 2 / math.sqrt(squares)
    return float(2 * cosine / (1 + cosine)) if cosine > -1 else -math.inf

# ---------------------------------------------------------- 6. advantages and critics
class Batch(NamedTuple):
    """The n steps of some episodes, one after the other."""
    raw: np.ndarray  # (n + episodes, size): T + 1 observations an episode, as they came
    inputs: np.ndarray  # the same, normalised; float32
    lasts: np.ndarray  # (episodes,) rows of both that have no action
    observations: np.ndarray  # (n, size): inputs without these
    actions: np.ndarray  # (n, d), or (n,) indices
    reward: np.ndarray  # (n,)
    cost: np.ndarray  # (n,), or (n, names) with --costs
    lengths: np.ndarray  # (episodes,): T
    terminated: np.ndarray  # (episodes,): if not, truncated

def make_batch(episodes, actor):
    raw, actions, reward, cost = map(np.concatenate, list(zip(*episodes))[:4])
    lengths = np.array([len(episode.costs) for episode in episodes])
    lasts = np.cumsum(lengths + 1) - 1
    inputs = actor.normalise(raw).astype(np.float32)
    if not actor.policy.discrete:
        actions = actions.astype(np.float32)
    terminated = np.array([episode.terminated for episode in episodes])
    observations = np.delete(inputs, lasts, axis=0)
    return Batch(raw, inputs, lasts, observations, actions, reward, cost, lengths, terminated)

def discounted_sums(values, lengths, discount):
    """y[t] = values[t] + discount y[t + 1], within each episode: backwards, in all at once."""
    sums, order = np.array(values, float), np.argsort(-lengths)  # the longest first
    lasts = np.cumsum(lengths)[order] - 1
    longer = np.searchsorted(-lengths[order], -np.arange(lengths.max()))  # than 0, 1, ... steps
    for left in range(1, lengths.max()):  # steps to the last
        rows = lasts[: longer[left]] - left
        sums[rows] += discount * sums[rows + 1]
    return sums

def gae(batch, signal, values, discount, gae_lambda):
    """sum_k (discount lambda)^k (r + discount V' - V)[t + k], given V of T + 1 observations; of the
    last one it counts where an episode was truncated, not where it terminated."""
    following = np.delete(values, batch.lasts - batch.lengths)
    following[np.cumsum(batch.lengths)[batch.terminated] - 1] = 0
    residuals = signal + discount * following - np.delete(values, batch.lasts)
    return discounted_sums(residuals, batch.lengths, discount * gae_lambda)

def times(lengths):
    """(n,): 0, 1, ... T - 1 of each episode."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)

def less_the_others(returns, lengths):
    """Returns less the mean of the other episodes at equal time; 0 where no other is as long."""
    t = times(lengths)
    count, total = np.bincount(t)[t], np.bincount(t, returns)[t]
    return np.where(count > 1, returns - (total - returns) / np.maximum(count - 1, 1), 0.0)

def with_signal(advantages, signal, returns, lengths):
    """Advantages, but 0 where they are below the rounding of the returns; and everywhere, if at
    equal time all episodes have equal returns (one alone: a constant signal): no action has made a
    difference, whatever a critic says, and a natural step would follow rounding."""
    rounding = max(1e-12, 1e-16 * len(lengths)) * np.abs(returns).max()  # of sums over episodes
    contrast = signal - signal.mean()
    if len(lengths) > 1:
        alone = times(lengths) >= np.sort(lengths)[-2]  # no other episode is as long
        contrast = np.where(alone, contrast, less_the_others(returns, lengths))
    if np.abs(contrast).max() <= rounding:
        return np.zeros_like(advantages)
    return np.where(np.abs(advantages) <= rounding, 0.0, advantages)  # NaN stays

def fit_critic(critic, sizes, inputs, targets, orders, slope=np.subtract):
    """Passes of Adam over minibatches of 256, in each of orders, permutations of the rows.
    slope(outputs, targets) is the loss's; by default least squares'."""
    threadpoolctl.threadpool_limits(1, "blas")  # as make_executor does: the same bits
    critic, targets = critic.astype(np.float32), targets.astype(np.float32)[:, None]
    gradient, mean, square = np.zeros((3, len(critic)), np.float32)
    layers, gradients = unflatten(critic, sizes)[0], unflatten(gradient, sizes)[0]  # views
    batches = [np.array_split(order, math.ceil(len(order) / 256)) for order in orders]
    for t, rows in enumerate(itertools.chain(*batches), start=1):
        given, (W, b) = layer_inputs(layers, inputs[rows]), layers[-1]
        error = slope(given[-1] @ W + b, targets[rows]) / len(rows)
        backwards(layers, gradients, given, error)
        mean += 0.1 * (gradient - mean)
        square += 0.001 * (gradient**2 - square)
        rate = 2e-3 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        critic -= rate * mean / (np.sqrt(square) + 1e-8)
    if not np.isfinite(critic).all():
        raise Diverged("a critic is not finite: rewards or costs are too large for it")
    return critic.astype(float)

def fit_to(batch, critic, sizes, targets, rng, slope=np.subtract):
    """fit_critic with its arguments. rng is used up here: the call gives the same bits anywhere."""
    orders = [rng.permutation(len(targets)) for _ in range(10)]
    return functools.partial(fit_critic, critic, sizes, batch.observations, targets, orders, slope)

def by_budget(config, costs):
    """Costs (n,) or (n, names) of steps or episodes: the sum (n,), or of each budget, in rows."""
    if np.ndim(config.cost_limit):
        return costs.T
    return costs if costs.ndim == 1 else costs.sum(axis=1)

def budget_names(config):
    return [f"cost_{name}" for name in config.costs] if np.ndim(config.cost_limit) else ["cost"]

def estimate_advantages(config, batch, state):
    """Advantages of reward, (n,), and of cost, (n,) or, with several budgets, (budgets, n); and
    functions that fit critics to this batch, for the next:
    mc    discounted return to go
    time  the same, less the mean of the other episodes at equal time
    gae   generalised advantage estimation with a critic for each, less the batch mean"""
    sizes, advantages, fits = (*state["sizes"][:-1].tolist(), 1), [], {}
    rng = stream(config.seed, CRITICS, state["epoch"])
    costs = zip(budget_names(config), np.atleast_2d(by_budget(config, batch.cost)))
    for name, signals in (("reward", batch.reward), *costs):
        returns = estimate = discounted_sums(signals, batch.lengths, config.discount)
        if config.advantage == "time":
            estimate = less_the_others(returns, batch.lengths)
        if config.advantage == "gae":
            critic = state[f"{name}_critic"]
            values = network(unflatten(critic, sizes)[0], batch.inputs)[:, 0]
            estimate = gae(batch, signals, values, config.discount, config.gae_lambda)
            targets = estimate + np.delete(values, batch.lasts)
            fits[f"{name}_critic"] = fit_to(batch, critic, sizes, targets, rng)
            estimate = estimate - estimate.mean()
        advantages.append(with_signal(estimate, signals, returns, batch.lengths))
    reward, *costs = advantages
    cost = np.array(costs) if np.ndim(config.cost_limit) else costs[0]
    return reward, cost, fits

# ------------------------------------------------------------------------ 7. episodes
@functools.lru_cache
def safety_gymnasium():
    """safety-gymnasium 1.0.0; with fast_safety_gymnasium.py beside this file: same bits, sooner."""
    if importlib.util.find_spec("fast_safety_gymnasium"):
        importlib.import_module("fast_safety_gymnasium")
        return importlib.import_module("safety_gymnasium")
    import mujoco

    dataclass, robotics = dataclasses.dataclass, "gymnasium_robotics.envs.multiagent_mujoco"
    compile_model = mujoco.MjModel.from_xml_string
    textures = re.compile(r'<texture\b[^>]*?(/>|></texture>)|\stexture="[^"]*"')

    def dataclass_with_arrays(cls=None, **options):  # Python 3.11 refuses arrays as defaults
        for name, value in list(vars(cls or object).items()):  # none is given beside options
            if isinstance(value, np.ndarray):
                setattr(cls, name, dataclasses.field(default_factory=value.copy))
        return dataclass(cls, **options)

    sys.modules[f"{robotics}.mujoco_multi"] = unittest.mock.MagicMock()
    with unittest.mock.patch.object(dataclasses, "dataclass", dataclass_with_arrays):
        package = importlib.import_module("safety_gymnasium")
    # only a picture needs textures; to decode them took a second of each reset
    mujoco.MjModel.from_xml_string = staticmethod(lambda xml: compile_model(textures.sub("", xml)))
    return package

class CostInInfo(gymnasium.Wrapper):
    """Below all other wrappers, which know five values: the cost, third of six, goes into info."""
    def step(self, action):
        observation, reward, *cost, terminated, truncated, info = self.env.step(action)
        if not isinstance(info, dict):
            raise TypeError(f"info, the last value of step, is {info!r}; a cost may be the third")
        if cost:
            info = info | {"cost": cost[0]}
        return observation, reward, terminated, truncated, info

    @property
    def spec(self):  # whose wrappers gymnasium compares with those registered
        return self.env.spec

def make_env(task, **rendering):
    """An environment, reset, whose actions to_action knows; a module of yours may register it."""
    package, reason = None, "it is not installed"
    if importlib.util.find_spec("safety_gymnasium"):
        try:  # first, so that a module that imports it finds it mended
            package = safety_gymnasium()
        except Exception as error:  # beside packages that it is not for
            reason = error
    try:
        module, _, name = task.rpartition(":")
        if module:
            importlib.import_module(module)
        if package and name in package.utils.registration.safe_registry:
            env = CostInInfo(package.make(name, disable_env_checker=True, **rendering))
        else:
            spec = copy.deepcopy(gymnasium.spec(name))
            spec.autoreset = False  # would hide the last observation of an episode, and its cost
            create = spec.entry_point
            if not callable(create):
                create = gymnasium.envs.registration.load_env_creator(create)
            spec.entry_point = lambda **options: CostInInfo(create(**options))
            env = gymnasium.make(spec, disable_env_checker=True, **rendering)
        spaces.flatdim(env.observation_space)
        env.reset(seed=0)  # the first episode after `make` differs in its last bits
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            text += f"; modules are looked for in {Path(__file__).parent} and on PYTHONPATH"
        if isinstance(error, gymnasium.error.UnregisteredEnv):
            text += " One that a module of yours registers is MODULE:EnvId."
            if not package:
                text += f" safety_gymnasium cannot be used: {reason}."
        raise Failure(f"--task {task} cannot be made: {text}") from None
    if not spaces.flatdim(env.observation_space):
        raise Failure(f"--task {task} has observations without any number.")
    if not isinstance(env.action_space, (spaces.Box, spaces.Discrete)):
        raise Failure(f"--task {task} has actions in {env.action_space}, not in a Box or Discrete.")
    return env

def close(env):
    """After this nothing is asked of it: a viewer that fails to close, say, ends no run."""
    with contextlib.suppress(Exception):
        env.close()

def seed_all(seed):
    """For environments that draw random numbers of their own, made or played."""
    modules = list(sys.modules.items()) if "distributed" in sys.modules else []
    for name, module in modules:
        if name.split(".")[0] in ("dask", "distributed") and vars(module).get("random") is random:
            module.random = random.Random()  # else Dask's threads draw of the environment's
    np.random.seed(seed)
    random.seed(seed)

@functools.lru_cache
def env_of_thread(task, thread):
    """Made once in each worker, for one thread of it, and closed when the worker ends."""
    threadpoolctl.threadpool_limits(1, "blas")
    seed_all(0)
    env = make_env(task)
    multiprocessing.util.Finalize(None, close, [env], exitpriority=0)  # before threads are joined
    return env

def to_action(space, output):
    """What a policy's output, index or (d,), means in an action space: a new member of it. Numbers
    with two finite bounds are mapped from [-1, 1] to these; all are clipped, whole ones rounded."""
    if isinstance(space, spaces.Discrete):
        return int(output) + int(space.start)
    numbers = np.array(output, np.longdouble)  # exact for all types of Box
    low, high = space.low.ravel().astype(np.longdouble), space.high.ravel().astype(np.longdouble)
    two = (space.bounded_below & space.bounded_above).ravel()
    numbers[two] = (1 - numbers[two]) / 2 * low[two] + (1 + numbers[two]) / 2 * high[two]
    numbers = np.minimum(np.maximum(numbers, low), high)
    if np.issubdtype(space.dtype, np.integer):
        numbers = np.rint(numbers)
    return numbers.astype(space.dtype).reshape(space.shape)

def to_vector(space, observation):
    """An observation as a vector of its own memory; what the space does not have is refused."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space)
        return np.concatenate([to_vector(each, observation[name]) for name, each in named])
    if not isinstance(space, spaces.Box):
        if not space.contains(observation):
            raise ValueError(f"an observation is {observation!r}, but its space {space}")
        vector = spaces.flatten(space, observation).astype(float)
    elif np.shape(observation) == space.shape:
        vector = np.array(observation, float).ravel()
    else:
        shape = np.shape(observation)
        raise ValueError(f"an observation has shape {shape}, but its space {space.shape}")
    if not (np.abs(vector) < 1e100).all():  # their squares are added; NaN fails, too
        raise ArithmeticError(f"not finite, or above 1e100: {observation=}")
    return vector

def number(name, value, least=-math.inf):
    """The only number of an array, or the number that it is: finite, and at least `least`."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"the {name} is {value!r}, but must be one number")
    found = array.item()
    if not math.isfinite(found):
        raise ArithmeticError(f"the {name} is {found}, not finite")
    if found < least:
        raise ValueError(f"the {name} is {found}, less than {least}")
    return found

def step_cost(info, names):
    """A number, info["cost"]; with --costs an array, of info["cost_NAME"], or of a dict's keys. One
    below 0 would hide another: an episode is safe if its costs sum to 0."""
    given = info.get("cost")
    if isinstance(given, dict):
        named = given
    elif names or given is None:
        named = {key[5:]: info[key] for key in map(str, info) if key.startswith("cost_")}
    else:
        return number("cost", given, least=0)
    known = ", ".join(map(str, named)) or "none"
    if not names:
        raise ValueError("this step has no single cost: a number, 0 for none, in info['cost'] or "
                         f"as the third of six values; for --costs: {known}")
    if not set(names) <= set(named):
        raise ValueError(f"this step has not all of {', '.join(names)}; for --costs: {known}")
    return np.array([number(f"cost {name}", named[name], least=0) for name in names], float)

def env_step(env, output, costs=()):
    """(observation, reward, cost, terminated, truncated) after the action that is meant."""
    observation, reward, terminated, truncated, info = env.step(to_action(env.action_space, output))
    observation = to_vector(env.observation_space, observation)
    return observation, number("reward", reward), step_cost(info, costs), terminated, truncated

class Episode(NamedTuple):
    observations: np.ndarray  # (T + 1, size), as the environment gave them
    actions: np.ndarray  # (T, d) or (T,) indices: outputs of the policy, see to_action
    rewards: np.ndarray  # (T,)
    costs: np.ndarray  # (T,), or (T, names) with --costs
    terminated: bool  # if not, the episode was truncated

class Actor(NamedTuple):
    """A policy as workers need it: float64, one row at a time: the same bits in every process."""
    policy: Policy
    theta: np.ndarray  # (p,)
    mean: np.ndarray  # (size,), of observations
    std: np.ndarray  # (size,)

    def normalise(self, observations):
        return ((observations - self.mean) / self.std).clip(-10, 10)

    def acting(self, rng):
        """observation -> a sampled action; if rng is None, the mean or the most likely one."""
        layers, log_std = unflatten(self.theta, self.policy.sizes)
        std = np.exp(log_std)

        def act(observation):
            output = network(layers, self.normalise(observation))
            if rng is not None and self.policy.discrete:  # with Gumbel noise, the largest
                output = output + rng.gumbel(size=len(output))
            elif rng is not None:
                output = output + std * rng.standard_normal(len(output))
            if not np.isfinite(output).all():
                raise Diverged(f"policy not finite: {output}; start anew, with smaller steps")
            return np.argmax(output) if self.policy.discrete else output

        return act

def run_episode(task, seed, index, actor, costs=()):
    """Episode `index` of the run: the same bits in any process, and after any other episodes."""
    rng, steps = stream(seed, EPISODE, index), []
    with TURN:
        try:
            env, act = env_of_thread(task, threading.get_ident()), actor.acting(rng)
            start = int(rng.integers(2**32))
            seed_all(start)
            observations = [to_vector(env.observation_space, env.reset(seed=start)[0])]
            seen, known = observations[0].size, actor.mean.size
            if seen != known:
                raise ValueError(f"an observation has {seen} numbers, and the policy takes {known}")
            terminated = truncated = False
            while not (terminated or truncated):
                action = act(observations[-1])
                observation, reward, cost, terminated, truncated = env_step(env, action, costs)
                steps.append((action, reward, cost))
                observations.append(observation)
                if len(steps) % 100_000 == 0:
                    text = f"{episode_name(index)} has {len(steps):,} steps and goes on"
                    print(text, file=sys.stderr)
            return Episode(np.array(observations), *map(np.array, zip(*steps)), bool(terminated))
        except (Exception, SystemExit) as error:
            kind = Diverged if isinstance(error, Diverged) else Failure
            where = f"{task}, seed {seed}, {episode_name(index)}, step {len(steps)}"
            raise kind(f"{where}: {type(error).__name__}: {error}") from error

# ------------------------------------------------------------------------- 8. workers
def guard_worker(parent):
    """A worker leaves Ctrl-C to its parent; it ends when its parent has ended, in whatever way, and
    has ten seconds to close its environments."""
    def end_with_parent():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    multiprocessing.util.Finalize(None, signal.alarm, [10], exitpriority=1)  # before they close
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()

def make_executor(config):
    """Processes on this machine, or a Dask cluster; both are executors as in concurrent.futures."""
    threadpoolctl.threadpool_limits(1, "blas")  # the same bits wherever, and however started
    if not config.scheduler:
        executor = loky.ProcessPoolExecutor(  # in each, sets of strings have one order
            config.workers, initializer=guard_worker, initargs=(os.getpid(),),
            env={"PYTHONHASHSEED": "0"})
        multiprocessing.resource_tracker.ensure_running()  # its start would unblock Ctrl-C
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # workers inherit that
        executor.submit(int)  # starts the workers
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return executor
    from distributed import Client

    for name in ("client", "batched"):  # collect says what was lost
        logging.getLogger(f"distributed.{name}").setLevel("CRITICAL")
    try:
        client = Client(config.scheduler)
    except (TypeError, ValueError) as error:
        raise Failure(f"--scheduler {config.scheduler}: {error}.") from None
    try:
        client.upload_file(__file__)
    except Exception as error:  # of the worker's
        text = f"a worker cannot load {Path(__file__).name}: {type(error).__name__}: {error}"
        raise Failure(f"--scheduler {config.scheduler}: {text}") from None
    return client.get_executor()

def stop(executor):
    """After a failure at once, whatever the environments do; else they are closed."""
    if isinstance(executor, loky.ProcessPoolExecutor):
        executor.shutdown(wait=True, kill_workers=sys.exc_info()[0] is not None)
    else:
        executor.shutdown(wait=False)

def result_of(job, name):
    """What a job returns; says every minute that it is waited for."""
    waited = 0
    while not concurrent.futures.wait([job], timeout=60).done:
        waited += 1
        print(f"waiting for {name}, {waited} min", file=sys.stderr)
    return job.result()

def collect(executor, config, actor, first, size, usual=1000, attempt=1):
    """Episodes first, first + 1, ... in this order, to the one that reaches `size` steps; and the
    executor, another one if a worker has died: then all start anew. usual: steps of an episode of
    the batch before; what is planned follows it, and no result."""
    run = functools.partial(run_episode, config.task, config.seed, actor=actor, costs=config.costs)
    usual = max(1000, usual)  # rather too many than too few
    episodes, jobs, planned, steps, length = [], [], first, 0, usual
    least = 2 if config.advantage == "time" else 1  # "time" compares episodes
    try:
        while steps < size or len(episodes) < least:
            more = max(math.ceil((size - steps) / length), least - len(episodes))
            wanted = first + len(episodes) + more
            while planned < wanted:  # short episodes share a job
                indices = range(planned, min(wanted, planned + math.ceil(500 / length)))
                jobs.append(executor.submit(list, map(run, indices)))
                planned = indices.stop
            played = result_of(jobs.pop(0), episode_name(first + len(episodes)))
            episodes += played
            steps += sum(len(episode.costs) for episode in played)
            length = (steps + usual) / (len(episodes) + 1)
    except BaseException as error:
        stop(executor)  # which the caller does not know, if it is another
        if isinstance(error, concurrent.futures.CancelledError):
            raise Failure(f"the scheduler {config.scheduler} has gone.") from None
        if type(error).__name__ not in ("TerminatedWorkerError", "KilledWorker"):  # loky's, Dask's
            raise
        if attempt == 4 or config.scheduler:  # Dask has tried as often by itself
            next_one = episode_name(first + len(episodes))
            text = f"workers died four times, at {next_one} or soon after"
            raise Failure(f"{text}: {' '.join(re.findall('{.*}', str(error)))}") from None
        return collect(make_executor(config), config, actor, first, size, usual, attempt + 1)
    for job in jobs:
        job.cancel()
    ends = np.cumsum([len(episode.costs) for episode in episodes])
    return executor, episodes[: max(least, np.searchsorted(ends, size) + 1)]

def in_workers(executor, functions):
    """Has workers call {name: function} while this process goes on; returns a function that waits
    for {name: what was returned}. What a worker or scheduler fails to return is computed here:
    collect, which needs them as well, will say what is wrong with them."""
    jobs = {}
    with contextlib.suppress(Exception):
        jobs = {name: executor.submit(functions[name]) for name in functions}

    def result(name):
        try:
            return result_of(jobs[name], name)
        except Exception:
            return functions[name]()

    return lambda: {name: result(name) for name in functions}

# ----------------------------------------------------------------- 9. what a run leaves
def episode_metrics(episodes, names=()):
    """Raw means over episodes, undiscounted; one is safe if its cost, the sum of --costs, is 0."""
    reward, cost = np.array([[each.rewards.sum(), each.costs.sum()] for each in episodes]).T
    length = np.mean([len(episode.costs) for episode in episodes])
    each_cost = np.mean([episode.costs.sum(axis=0) for episode in episodes], axis=0)
    return {"EpRet": reward.mean(), "EpCost": cost.mean(), "EpLen": length,
            "SafetyProbability": (cost == 0).mean(), "SafeReward": (reward * (cost == 0)).mean(),
            **{f"EpCost_{name}": mean for name, mean in zip(names, np.atleast_1d(each_cost))}}

def initial_state(config):
    """All that a run needs to go on where it stood: the content of checkpoint.npz."""
    env, rng = make_env(config.task), stream(config.seed, WEIGHTS)
    if config.costs:  # a name that the environment lacks ends a run before it has a folder
        try:
            step_cost(env.step(env.action_space.sample())[-1], config.costs)
        except (Exception, SystemExit) as error:  # of the environment, too
            raise Failure(f"{config.task}: {type(error).__name__}: {error}") from None
    close(env)
    if env.spec.max_episode_steps is None:
        print(f"{config.task} is registered without max_episode_steps: its episodes have to end by "
              "themselves.", flush=True)
    discrete = isinstance(env.action_space, spaces.Discrete)
    size, actions = spaces.flatdim(env.observation_space), spaces.flatdim(env.action_space)
    sizes, log_std = (size, *config.hidden, actions), np.full(actions, math.log(config.initial_std))
    theta = initial_parameters(sizes, [] if discrete else log_std, rng)
    state = {"sizes": np.array(sizes), "discrete": discrete, "theta": theta}
    for kind, outputs in CRITIC_OUTPUTS.items():  # a critic says 0 until it has learned
        for name in budget_names(config) if kind == "cost" else [kind]:
            state[f"{name}_critic"] = initial_parameters((*sizes[:-1], outputs), [], rng, last=0.0)
    state["moments"] = np.zeros((3, size))  # of observations: count, mean, squared deviations
    state |= {"epoch": 0, "steps": 0, "next_episode": 0, "EpLen": 1000, "regret": 0.0, **MEMORY}
    return state | {"progress": b""}  # progress.csv, in here so that it is of the same epoch

def make_actor(state):
    """The policy; observations are scaled by mean and std of all so far (0 and 1 before these)."""
    count, mean, squares = state["moments"]
    std = np.ones_like(mean)
    if count[0] > 0:
        std = np.maximum(np.sqrt(squares / count), LEAST_STD)
    policy = Policy(tuple(state["sizes"].tolist()), state["discrete"])
    return Actor(policy, state["theta"], mean, std)

def with_moments(state, raw):
    """The state with these observations counted (Chan et al. 1983)."""
    count, mean, squares = state["moments"]
    new, new_mean = len(raw), raw.mean(axis=0)
    total, shift = count + new, new_mean - mean
    squares = squares + ((raw - new_mean) ** 2).sum(axis=0) + shift**2 * count * new / total
    return state | {"moments": np.array([total, mean + shift * new / total, squares])}

def warm_up(executor, config, state):
    """The first mean and std: of a batch in which nothing is learned, whose steps do not count."""
    executor, episodes = collect(executor, config, make_actor(state), WARM_UP, config.batch_steps)
    raw = np.concatenate([each.observations for each in episodes])
    return executor, with_moments(state, raw) | {"EpLen": len(raw) / len(episodes) - 1}

def advance(state, batch, theta, critics, regret):
    """The state after an epoch. First layers absorb the new scaling of the observations: policy and
    critics stay the functions that they were, but where observations are clipped. The weights of an
    input that was constant until now stay: the least std says nothing of its scale."""
    before, state = make_actor(state), with_moments(state, batch.raw) | critics
    state |= {"theta": theta, "regret": regret, "epoch": state["epoch"] + 1,
              "steps": state["steps"] + len(batch.cost),
              "EpLen": len(batch.cost) / len(batch.lengths),
              "next_episode": state["next_episode"] + len(batch.lengths)}
    after = make_actor(state)
    std = np.where(before.std > LEAST_STD, before.std, after.std)
    for name in [name for name in state if name == "theta" or name.endswith("_critic")]:
        state[name] = state[name].copy()
        W, b = unflatten(state[name], after.policy.sizes[:2])[0][0]  # views
        b += (after.mean - before.mean) / std @ W
        W *= (after.std / std)[:, None]
    return state

def write(path, data, previous=None):
    """Old or new content is there at every moment, whole; the old one stays as `previous`."""
    new = path.with_name(f"{path.name}.tmp")
    try:
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise Failure(f"{path} cannot be written: {error.strerror}.") from None

def checksum(state):
    """Of names and contents: the checksums of npz files do not see a lost array."""
    crc = 0
    for name in sorted(state):
        crc = zlib.crc32(name.encode() + np.asarray(state[name]).tobytes(), crc)
    return crc

def save(run, config, state, row=None):
    """checkpoint.npz and progress.csv. With a row, of a new epoch, the checkpoint before stays as
    checkpoint.previous.npz; without, config.json is written, too: packages and options."""
    if row:
        owner, gone = run / "owner", state["epoch"] > 1 and not (run / "config.json").exists()
        if gone or (owner.exists() and owner.read_text() != this_process()):
            raise Failure(f"{run} was deleted, or another run lies there now.")
        text = state["progress"].decode() or ",".join(row) + "\n"
        names = text.partition("\n")[0].split(",")
        values = [str(row.get(name, math.nan)) for name in names]  # an older run: other columns
        state["progress"] = (text + ",".join(values) + "\n").encode()
    buffer = io.BytesIO()
    np.savez(buffer, checksum=checksum(state), **state)
    run.mkdir(parents=True, exist_ok=True)
    previous = run / "checkpoint.previous.npz" if row else None
    write(run / "checkpoint.npz", buffer.getvalue(), previous)
    write(run / "progress.csv", state["progress"])
    if row and (run / "config.json").exists():
        return
    about = {"algorithm": ALGORITHM, "python": sys.version}  # last: now it can be resumed
    for package in ("numpy", "autograd", "gymnasium", "mujoco"):
        with contextlib.suppress(ImportError):  # it may be missing
            about[package] = importlib.metadata.version(package)
    about["config"] = dataclasses.asdict(config)
    write(run / "config.json", json.dumps(about, indent=1).encode())

def log(run, config, state, metrics, info, started, collected):
    """Saves the state with a row of progress.csv, named as SafePO's; and says where the run is."""
    row = {"Train/Epoch": state["epoch"], "Train/TotalSteps": state["steps"]}
    row |= {f"Metrics/{name}": value for name, value in metrics.items()}
    row |= {"Train/KL": info.pop("realised_kl"), "Misc/AcceptanceStep": info.pop("trials")}
    for name, value in info.items():
        if np.ndim(value):  # of each budget
            row |= {f"Misc/{name}_{cost}": each for cost, each in zip(config.costs, value)}
        else:
            row[f"Misc/{name}"] = value
    rollout, update = collected - started, time.perf_counter() - collected
    row |= {"Time/Total": rollout + update, "Time/Rollout": rollout, "Time/Update": update}
    save(run, config, state, row)
    text = ("{Train/TotalSteps:>11,} steps: return {Metrics/EpRet:.4g}, cost {Metrics/EpCost:.4g}, "
            "safe {Metrics/SafetyProbability:.2f}").format_map(row)
    named = [f", {name} {metrics[f'EpCost_{name}']:.4g}" for name in config.costs]
    print(text, *named, sep="", flush=True)

def run_folder(path):
    """The folder of a run, given it or its checkpoint."""
    return Path(path).parent if Path(path).name == "checkpoint.npz" else Path(path)

def load_run(run):
    """Config and newest undamaged state of the run in this folder."""
    try:
        about = json.loads((run / "config.json").read_text())
        if about.get("algorithm", ALGORITHM) != ALGORITHM:
            raise Failure(f"it is a run of {about['algorithm']}.py, not of {ALGORITHM}.py")
        config = Config(**about["config"])
    except (Failure, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        text = str(error).rstrip(".")
        raise Failure(f"{run} holds no run that can be resumed: config.json: {text}.") from None
    for path in (run / "checkpoint.npz", run / "checkpoint.previous.npz"):
        try:
            if path.exists() and not zipfile.is_zipfile(path):
                raise ValueError("it is damaged or cut off")
            with np.load(path) as arrays:
                state = dict(arrays)
            if state.pop("checksum") != checksum(state):
                raise ValueError("its checksum does not fit")
            found = {name: a if a.ndim else a.item() for name, a in state.items()}
            return config, {"EpLen": 1000} | found  # older ones have none
        except Exception as error:  # damage has many faces
            print(f"{path} cannot be used: {error}", file=sys.stderr)
    raise Failure(f"{run} holds no run that can be resumed; start anew under another --experiment.")

def load_policy(run, rng=None):
    """observation -> an action of a run's policy, as its environment takes it: the mean (the most
    likely one, if discrete), or, with a numpy Generator or a seed, a sample. `act = load_policy(
    "runs/..."); env.step(act(observation))`. Raises Failure: there is no run, or an action is not
    finite; what to_vector raises: an observation that its space does not have."""
    config, state = load_run(run_folder(run))
    env, rng = make_env(config.task), None if rng is None else np.random.default_rng(rng)
    act = make_actor(state).acting(rng)
    close(env)

    def action_for(observation):
        observation = to_vector(env.observation_space, observation)
        return to_action(env.action_space, act(observation))

    return action_for

def report(run, state):
    """Draws curves.png; returns means over the last tenth of the epochs, and where all is."""
    from matplotlib.figure import Figure

    rows = list(csv.DictReader(state["progress"].decode().splitlines()))
    figure = Figure(figsize=(20, 3.2), layout="constrained")
    text = "Mean over the last tenth of the epochs:"
    names = "EpRet", "EpCost", "SafetyProbability", "SafeReward", "kept"
    for axis, name in zip(figure.subplots(1, 5), names):
        values = [float(row.get(f"Metrics/{name}", row.get(f"Misc/{name}", "nan"))) for row in rows]
        axis.plot([int(row["Train/TotalSteps"]) for row in rows], values)
        axis.set(title=name, xlabel="environment steps")
        if name != "kept":  # that of one epoch is rough
            text += f" {name} {np.mean(values[-max(1, len(rows) // 10):]):.3g}"
    for name in rows[0]:
        if name.startswith("Misc/recovery") and all(row[name] == "1" for row in rows):
            cost = name.removeprefix("Misc/recovery").removeprefix("_") or "the cost"
            text = f"All epochs were recovery: {cost} was never low enough to end it.\n{text}"
    picture = io.BytesIO()
    figure.savefig(picture)
    write(run / "curves.png", picture.getvalue())
    text += f"\npolicy  {run}/checkpoint.npz\ncurves  {run}/curves.png"
    return f"{text}\nnumbers {run}/progress.csv"

# ------------------------------------------------------ 10. options and command line
def option(default, meaning, rule=""):
    """A field of Config; its rule is an interval, (0, 1], or a set, {mc, time, gae}."""
    return dataclasses.field(default=default, metadata={"text": meaning, "rule": rule})

def allowed(value, rule):
    if rule.startswith("{"):
        return str(value) in rule[1:-1].split(", ")
    low, high = map(float, rule[1:-1].split(", "))
    above = low < value or (low == value and rule[0] == "[")
    return above and (value < high or (value == high and rule[-1] == "]"))

class Checked:
    """What Config inherits: a bad option is one sentence."""
    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata["rule"]
            if rule and not all(allowed(each, rule) for each in np.atleast_1d(value)):
                name = field.name.replace("_", "-")
                raise Failure(f"--{name} is {value!r} but must be in {rule}.")
        budgets, names = np.size(self.cost_limit), len(self.costs)
        if (np.ndim(self.cost_limit) and budgets != names) or len(set(self.costs)) < names:
            raise Failure(f"--costs has {names} names, and --cost-limit {budgets} values: give one "
                          "for each of the names, which differ, or one for their sum.")
        if re.search(r'[,"\r\n]', "".join(self.costs)):
            raise Failure(f"--costs is {self.costs!r} but must have no comma, quote or new line.")
        if not re.fullmatch(r"\w[\w.-]*", self.experiment):
            raise Failure(f"--experiment is {self.experiment!r} but must be a folder's mere name.")
        if self.batch_steps > self.total_steps:
            raise Failure(f"--batch-steps is {self.batch_steps:,}, longer than the whole run, "
                          f"{self.total_steps:,} steps.")
        if self.scheduler and not re.fullmatch(r"(tcp|tls|wss?)://.+:\d+", self.scheduler):
            raise Failure(f"--scheduler is {self.scheduler!r} but must be as tcp://host:8786.")

    def check_new(self):
        """What only a new run has to keep, not a resumed one: in strpo.py, that --unsafe fits."""
# --- end shared ---

ALGORITHM = "sbtrpo"
CRITIC_OUTPUTS = {"reward": 1, "cost": 1}
MEMORY = {}  # what the loop carries from epoch to epoch besides: nothing
# paper: conventions of PyTorch's libraries, which average KL and damping over action dimensions;
# here are sums, for two of these. safe: batches grow tenfold in 3M steps.
PRESETS = {"none": {}, "paper": {"advantage": "mc", "batch_steps": 20_000, "cg_iterations": 15,
                                 "delta": 0.02, "damping": 0.2, "initial_std": 1.0},
           "safe": {"update": "optimal", "beta": 0.99, "batch_growth": 10 ** (1 / 3),
                    "total_steps": 3_000_000}}
GROUPS = {"task": "run", "update": "algorithm", "hidden": "network", "scheduler": "rarely changed"}

@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The options of a run: default, meaning [unit], range. The command line is made of it."""
    task: str = option("SafetyCarCircle2-v0", "EnvId, or package.module:EnvId")
    experiment: str = option("default", "folder: runs/EXPERIMENT/TASK/ALGORITHM/seed-SEED")
    preset: str = option("none", "a set of defaults, see PRESETS", "{none, paper, safe}")
    seed: int = option(0, "all that is random follows from it", "[0, inf)")
    total_steps: int = option(400_000, "length of the training [environment steps]", "[1, inf)")
    batch_steps: int = option(10_000, "an epoch ends with the episode that reaches it", "[1, inf)")
    workers: int = option(loky.cpu_count(), "processes; changes no result", "[1, inf)")
    update: str = option("convex", "the paper's step, or the best one", "{convex, optimal}")
    delta: float = option(0.01, "radius of the trust region [nats, mean KL(old, new)]", "(0, inf)")
    beta: float = option(0.75, "fraction of the best cost decrease to keep", "(0, 1]")
    costs: tuple = option((), "names NAME of info['cost_NAME'], or of keys of info['cost']")
    cost_limit: float = option(0.0, "b [undiscounted cost per episode]; 0: the paper", "[0, inf)")
    advantage: str = option("time", "see estimate_advantages", "{mc, time, gae}")
    discount: float = option(0.99, "gamma, of reward and cost", "[0, 1]")
    gae_lambda: float = option(0.95, "lambda of gae", "[0, 1]")
    hidden: tuple = option((64, 64), "widths of the tanh layers", "[1, inf)")
    initial_std: float = option(0.6, "std of a Gaussian policy at first [half range]", "(0, inf)")
    scheduler: str = option("", "tcp://host:port of a Dask scheduler, instead of processes")
    batch_growth: float = option(1.0, "factor by which batches grow in a million steps", "[1, inf)")
    cg_iterations: int = option(5, "conjugate-gradient iterations for each direction", "[1, inf)")
    damping: float = option(1e-4, "added to the diagonal of F", "[0, inf)")

    def __post_init__(self):
        super().__post_init__()
        if np.ndim(self.cost_limit):
            raise Failure("sbtrpo.py takes one --cost-limit, for the sum of --costs; ctrpo.py and "
                          "strpo.py take one for each.")

# --- shared: command line ---
def make_parser():
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--resume RUN | --option value ...]", epilog=f"PRESETS = {PRESETS}",
        allow_abbrev=False, argument_default=argparse.SUPPRESS)
    text = "go on with this folder's run; of the options only --total-steps, --workers, --scheduler"
    parser.add_argument("--resume", type=run_folder, metavar="RUN", help=text)
    for field in dataclasses.fields(Config):
        if field.name in GROUPS:
            group = parser.add_argument_group(GROUPS[field.name])
        name, kind = field.name.replace("_", "-"), field.type
        nargs = "+" if kind is tuple or name == "cost-limit" else None
        if kind is tuple:
            kind = type(field.default[0]) if field.default else str
        text = "{text} {rule}".format_map(field.metadata)
        if field.default not in ((), ""):
            text += f" (default {field.default})"
        group.add_argument(f"--{name}", type=kind, nargs=nargs, metavar="x", help=text)
    return parser

def this_process():
    """As it signs the folder of a run."""
    return f"process {os.getpid()} on {platform.node()}"

def own(run):
    """The lock on a run's folder: one process at a time has it, until it ends or releases it."""
    lock, owner = filelock.FileLock(run / "lock"), run / "owner"
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        who = owner.read_text() if owner.exists() else "another process"
        raise Failure(f"{run} is in use, by {who}.") from None
    write(owner, this_process().encode())
    return lock

def open_run(argv):
    """A new run, or the one to resume, with a checkpoint in its folder; and its lock."""
    parser = make_parser()
    options = vars(parser.parse_args(argv))
    run = options.pop("resume", None)
    if len(options.get("cost_limit", [])) == 1:
        options["cost_limit"] = options["cost_limit"][0]
    if run:
        if set(options) - {"total_steps", "workers", "scheduler"}:
            parser.error("a resumed run takes only --total-steps, --workers and --scheduler")
        if not (run / "config.json").exists():
            raise Failure(f"{run} holds no run that can be resumed.")
        if run.resolve().name == "unsafe" and (run.resolve().parent / "config.json").exists():
            raise Failure(f"{run} is the first stage of {run.resolve().parent}: resume that.")
        lock = own(run)
        config, state = load_run(run)
        if options.get("total_steps", math.inf) < state["steps"]:
            raise Failure(f"{run} has done {state['steps']:,} steps: --total-steps is too small.")
        # a scheduler sends code: none is taken from a file
        config = dataclasses.replace(config, **{"scheduler": ""} | options)
    else:
        config = Config(**PRESETS.get(options.get("preset"), {}) | options)
        config.check_new()
        task = re.sub(r"[^\w.-]", "-", config.task)
        run = Path("runs", config.experiment, task, ALGORITHM, f"seed-{config.seed}")
        state = initial_state(config)
        lock = own(run)  # makes the folder
        if (run / "config.json").exists():
            parser.error(f"{run} exists: --resume {run}, or choose another --experiment or --seed")
    save(run, config, state)  # a raised total, too, and the state of checkpoint.previous.npz
    return config, run, state, lock

def main(argv=None):
    run = lock = None
    try:
        if np.lib.NumpyVersion(np.__version__) < "1.24.0":  # numpy/numpy#24903
            raise Failure(f"numpy {np.__version__} multiplies wrongly on some CPUs: take a newer.")
        if not importlib.util.find_spec("matplotlib"):
            raise Failure("matplotlib, which draws a run's curves at its end, is not installed.")
        config, run, state, lock = open_run(argv)
        steps = f"from step {state['steps']:,} to {config.total_steps:,}"
        print(f"{config.task}: {steps}, in {run}", flush=True)
        print(report(run, train(config, run, state)))
        return 0
    except (Failure, OSError, ImportError, MemoryError, KeyboardInterrupt) as error:
        saved = "\nWhat was saved is whole" if run and run.exists() else ""
        if saved and not isinstance(error, Diverged):
            saved += f". Other options take a new --experiment; else go on with --resume {run}"
        kinds = {KeyboardInterrupt: "interrupted", MemoryError: "out of memory"}
        print(f"{str(error) or kinds.get(type(error), error)}{saved}", file=sys.stderr)
        return 1
    finally:
        if lock:
            lock.release()  # else it ends with this process

if __name__ == "__main__":  # under its own name, by which workers find the functions
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    path = Path(globals().get("__file__", ".")).resolve()
    if not path.is_file() or path.suffix != ".py" or "." in path.stem:
        sys.exit("Save this script as NAME.py, without another dot: so its workers can find it.")
    sys.path.insert(0, str(path.parent))
    sys.exit(importlib.import_module(path.stem).main())
# --- end shared ---
