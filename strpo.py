# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "tqdm==4.67.1"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""sTRPO: Safe Trust Region Policy Optimisation (Rahman, Shefin, Gupta, Alqahtani), from simulator to policy.

The idea in one sentence: a policy is first trained to be as unsafe as possible and frozen; then every step of
the task policy stays in its trust region and moves away from that unsafe policy.

    stage 1   TRPO on the cost advantage, from CVaR values: xi = c + gamma V_CVaR(s') - V_CVaR(s)     (Eq. 4)
    stage 2   A    = A_r / std(A_r) - lambda A_c / std(A_c)   joint advantage, both less their means  (Eq. 6)
              g    = mean of grad log pi * A,   phi = grad KL(unsafe || pi)                           (Eq. 7)
              step = argmax g.s   subject to   s.H s / 2 <= delta_1   and   phi.s >= delta_2          (Eq. 8)
                   = k step_g + (f - k rho) step_phi,   k = sqrt((1 - f^2) / (1 - rho^2))                (D)

(D) is the exact solution: step_g and step_phi are the best steps of KL delta_1 for g and for phi, rho is the
cosine of g and phi in the H^-1 metric, and f = delta_2 / phi.step_phi. If rho >= f, step_g meets the demand;
if f > 1, nothing does, and step_phi comes closest. A PID controller of the cost moves lambda.

Differs from the paper in
 1. (D) solves Eq. 8. `--dual fixed` is the paper's practice, x + lambda_2 y (Eq. 9), which need not meet it.
 2. phi and the exclusion are exact in the actions, and taken over states of the unsafe policy's own rollouts:
    no importance weights. `--estimator weights` is the paper's Eq. 7, `states` is exact in the task's states.
 3. Backtracking shrinks phi.s too, so the line search looks at KL(unsafe || pi) itself.
 4. Eq. 8 asks for an increase in every step. `--exclusion level` asks for KL(unsafe || pi) >= level, as F_k.
 5. Eq. 4 writes r for the cost. The critic's quantiles are fitted to sampled returns.
 6. Radii are two, 1e-2 and 1e-4, the paper's own advice; the reverse step (Eq. 10) is off: `--reverse 1`.

symbol         name in code         shape       unit
theta          theta                (p,)        policy parameters: weights and biases, then log std
g, phi         gradient, away       (p,)        1 and nats: gradients of the surrogate and of the exclusion
x, y           direction, away_     (p,)        H^-1 g, H^-1 phi, by conjugate gradients
H              fisher               (p,)->(p,)  nats: Hessian of KL, summed over actions, mean over states
delta_1, _2    delta_1, delta_2     scalar      nats
lambda         multiplier           scalar      1
J_c, b         EpCost, cost_limit   scalar      undiscounted cost per episode

Run `uv run strpo.py`, see `--help`, or read on: the update stands next, `train` is the algorithm as a whole.
"""

import argparse, csv, dataclasses, functools, importlib.metadata, importlib.util, io, itertools, json, math
import multiprocessing, os, re, signal, sys, threading, time, unittest.mock
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Callable, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one BLAS thread: the same bits in every process
import autograd.numpy as anp
import numpy as np
from autograd import grad, make_ggnvp, make_vjp
from tqdm import tqdm

Vector = np.ndarray
QUANTILES = 5  # purpose of a random stream
WEIGHTS, CRITICS, EPISODE = 2, 3, 4  # purposes of random streams; evaluation has 1
class Failure(Exception):
    """Ends a run: one sentence that says what was wrong, where, and what to do."""

def option(default, text: str, rule: str = "True"):
    return dataclasses.field(default=default, metadata={"text": text, "rule": rule})

PRESETS = {"none": {}, "paper": {"dual": "fixed", "estimator": "weights", "reverse": 1}}

def given_config(path: str) -> dict:
    """What config.json in this folder says; nothing, if it is none of ours."""
    try:
        return json.loads(Path(path, "config.json").read_text())["config"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}

def unsafe_run(path: str) -> str:
    """The type of --unsafe: the folder of a run of --stage unsafe, at the time it is given."""
    if given_config(path).get("stage") != "unsafe":
        raise Failure(f"--unsafe {path} is not the folder of a run of --stage unsafe.")
    return path

CRITIC_OUTPUTS = {"reward": 1, "cost": 1, "quantile": 32}

@dataclasses.dataclass(frozen=True)
class Config:
    """The options of a run: default, symbol and meaning [unit], range. The command line is made of it."""
    task: str = option("SafetyCarCircle1-v0", "EnvId or package.module:EnvId, as Gymnasium names them")
    experiment: str = option("default", "results go to runs/EXPERIMENT/TASK/ALGORITHM/seed-SEED")
    preset: str = option("none", "a set of defaults, see PRESETS", f"x in {tuple(PRESETS)}")
    seed: int = option(0, "all that is random follows from it; episode i is keyed by (seed, i)", "x >= 0")
    stage: str = option("safe", "safe: both stages; unsafe: the first alone", "x in ('safe', 'unsafe')")
    unsafe: unsafe_run = option("", "a run of --stage unsafe, copied; without, one is trained in RUN/unsafe")
    unsafe_steps: int = option(150_000, "length of the first stage [environment steps]", "x >= 1")
    total_steps: int = option(300_000, "length of the training [environment steps]", "x >= 1")
    batch_steps: int = option(15_000, "an epoch ends with the episode that reaches it [steps]", "x >= 1")
    workers: int = option(os.cpu_count() or 1, "processes that run episodes; changes no result", "x >= 1")
    scheduler: str = option("", "tcp://host:port of a Dask scheduler to use instead", "not x or '://' in x")
    delta_1: float = option(1e-2, "radius of the trust region [nats, mean KL(old, new)]", "0 < x < inf")
    delta_2: float = option(1e-4, "increase of KL(unsafe || new) in each step [nats]", "0 <= x < inf")
    exclusion: str = option("increment", "Eq. 8, F_k, or no exclusion", "x in ('increment', 'level', 'none')")
    level: float = option(1.0, "epsilon, least KL(unsafe || new) of --exclusion level [nats]", "0 <= x < inf")
    dual: str = option("exact", "of Eq. 8; or Eq. 9, with ascent or not", "x in ('exact', 'fixed', 'ascent')")
    lambda_2: float = option(1.0, "lambda_2 of Eq. 9, or where its ascent starts", "0 <= x < inf")
    reverse: int = option(0, "1: where Eq. 8 is infeasible, the reverse step of Eq. 10", "x in (0, 1)")
    estimator: str = option("rollouts", "of phi", "x in ('rollouts', 'states', 'weights')")
    clip: float = option(10.0, "largest weight of --estimator weights", "1 <= x < inf")
    joint: int = option(1, "0: the advantage of reward alone", "x in (0, 1)")
    critic: str = option("cvar", "of the first stage: tail of the return, or mean", "x in ('cvar', 'mean')")
    cvar_alpha: float = option(0.25, "alpha, share of the worst returns", "0 < x <= 1")
    cost_limit: float = option(25.0, "b [undiscounted cost per episode]", "0 <= x < inf")
    pid_p: float = option(0.05, "K_P [1 / cost per episode]", "0 <= x < inf")
    pid_i: float = option(0.005, "K_I [1 / cost per episode]", "0 <= x < inf")
    pid_d: float = option(0.01, "K_D [1 / cost per episode]", "0 <= x < inf")
    advantage: str = option("gae", "see estimate_advantages", "x in ('mc', 'time', 'gae')")
    discount: float = option(0.99, "gamma, of reward and cost", "0 <= x <= 1")
    gae_lambda: float = option(0.95, "lambda of GAE", "0 <= x <= 1")
    hidden: tuple = option((64, 64), "widths of the tanh layers", "min(x) >= 1")
    initial_std: float = option(0.6, "std of a Gaussian policy at the start [action]", "0 < x < inf")
    cg_iterations: int = option(5, "conjugate-gradient iterations for each direction", "x >= 1")
    damping: float = option(1e-4, "added to the diagonal of F", "0 <= x < inf")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata["rule"]
            if not eval(rule, {"x": value, "inf": math.inf}):
                raise Failure(f"--{field.name.replace('_', '-')} is {value!r} but needs {rule}.")
        if self.unsafe and (task := given_config(self.unsafe).get("task", self.task)) != self.task:
            raise Failure(f"--unsafe {self.unsafe} is a run of {task}, and this one of {self.task}.")

def exclusion_step(gradient: Vector, direction: Vector, away: Vector, away_direction: Vector, delta_1: float,
                   delta_2: float) -> tuple[Vector, dict]:
    """(D), the exact solution of Eq. 8, from gradients g, phi and directions H^-1 g, H^-1 phi, in O(n).
    Where phi = 0 it is step_g: at the unsafe policy any step leads away, to second order; where g and phi are
    parallel, the shortest of many. Returns the step and a dict: lambda_1 [1], lambda_2 [1 / nats] of the
    dual, g - lambda_1 H s + lambda_2 phi = 0 (infinite where nothing is better than step_phi), whether Eq. 8
    is feasible, rho, and first-order kl and changes. delta_2 may be negative."""
    unit, step_g = steepest_step(gradient, direction, delta_1)
    away_unit, step_phi = steepest_step(away, away_direction, delta_1)
    rho = float(np.clip(away_unit @ step_g, -1, 1))  # Cauchy-Schwarz in the H^-1 inner product
    sine2 = float((unit - rho * away_unit) @ (step_g - rho * step_phi))  # 1 - rho^2, 0 if g = 0
    sine2 = sine2 if sine2 > 1e-12 else 0.0  # else parallel: nothing but rounding
    best_gain, best_away = float(gradient @ step_g), float(away @ step_phi)  # sqrt(2 delta_1 g.x), ... phi.y
    f = delta_2 / best_away if best_away > 0 else -math.inf
    if rho >= f:  # step_g meets the demand by itself, or nothing is excluded
        k, m, length = 1.0, 0.0, float(step_g.any())
        lambda_1, lambda_2 = best_gain / (2 * delta_1), 0.0
    elif f >= 1:  # nothing in the trust region does more than step_phi
        k, m, length, lambda_1, lambda_2 = 0.0, 1.0, 1.0, math.inf, math.inf
    else:
        slope = math.sqrt(sine2 / (1 - f**2))
        k = 1 / slope if slope else 0.0
        m, length = f - k * rho, 1.0 if slope else f
        lambda_1, lambda_2 = best_gain / (2 * delta_1) * slope, best_gain / best_away * (f * slope - rho)
    step = k * step_g + m * step_phi
    return step, {"rho": rho, "lambda_1": lambda_1, "lambda_2": lambda_2, "kl": delta_1 * length**2,
                  "feasible": int(delta_2 <= best_away), "surrogate_change": float(gradient @ step),
                  "exclusion_change": float(away @ step)}

def fixed_step(gradient: Vector, direction: Vector, away: Vector, away_direction: Vector, delta_1: float,
               delta_2: float, lambda_2: float = 1.0, ascents: int = 0) -> tuple[Vector, dict]:
    """The paper's practice, Eq. 9: the step of KL delta_1 along x + lambda_2 y. With `ascents`, lambda_2
    rises that often, in proportion to delta_2 - phi.step, until Eq. 8 is met. Returns as exclusion_step."""
    best_gain, best_away = (float(b @ steepest_step(b, x, delta_1)[1])
                            for b, x in ((gradient, direction), (away, away_direction)))
    for ascent in range(ascents + 1):
        total = gradient + lambda_2 * away
        _, step = steepest_step(total, direction + lambda_2 * away_direction, delta_1)
        short = delta_2 - float(away @ step)
        if short <= 1e-9 * abs(delta_2) or not best_away or ascent == ascents:
            break
        lambda_2 += best_gain / best_away * (short / best_away)  # no unit is left but that of lambda_2
    return step, {"lambda_1": float(total @ step) / (2 * delta_1), "lambda_2": lambda_2,
                  "kl": delta_1 * bool(step.any()), "feasible": int(delta_2 <= best_away),
                  "surrogate_change": float(gradient @ step), "exclusion_change": float(away @ step)}

def pid_multiplier(memory: Vector, cost: float, limit: float, gains: tuple, smoothing: float = 0.5) -> tuple:
    """lambda = [K_P P + I + K_D D]+ (Stooke et al. 2020), and the controller's memory (I, smoothed J_c), at
    first NaN. P is the smoothed J_c - b, I the sum of K_I (J_c - b), never below 0, D the rise of the
    smoothed J_c; J_c and b in one unit, the gains in its inverse."""
    k_p, k_i, k_d = gains
    integral, before = memory if np.isfinite(memory).all() else (0.0, cost)
    integral, now = max(0.0, integral + k_i * (cost - limit)), smoothing * before + (1 - smoothing) * cost
    return max(0.0, k_p * (now - limit) + integral + k_d * max(0.0, now - before)), np.array([integral, now])

# --- shared: steepest step, conjugate gradients, line search ---
def steepest_step(gradient: Vector, direction: Vector, delta: float) -> tuple[Vector, Vector]:
    """g / sqrt(2 delta g.x), and sqrt(2 delta / g.x) x: the step of KL delta along x = F^-1 g. 0 if g is 0.
    The first, times a step, is its change in units of the best. Scaled, for gradients of 1e-300 and 1e150."""
    scale = np.abs(gradient).max() or 1.0
    g, x = gradient / scale, direction / scale
    norm = math.sqrt(2 * delta * abs(float(g @ x)))
    if not norm < math.inf:
        raise Failure("a policy gradient, or F^-1 times it, is not finite.")
    return g / (norm or math.inf), 2 * delta / (norm or math.inf) * x

def conjugate_gradients(product: Callable, b: Vector, iterations: int) -> tuple[Vector, float]:
    """Solves A x = b for symmetric positive definite A, given as v -> A v; returns x and |b - A x| / |b|."""
    scale = np.abs(b).max() or 1.0
    x, r, p = np.zeros_like(b), b / scale, b / scale
    rr = start = float(r @ r)
    for _ in range(iterations):
        if rr <= 1e-20 * start:
            break
        Ap = product(p)
        alpha = rr / (float(p @ Ap) or math.inf)
        x, r = x + alpha * p, r - alpha * Ap
        rr, previous = float(r @ r), rr
        p = r + rr / previous * p
    return scale * x, math.sqrt(rr / (start or 1.0))

def line_search(judge: Callable, theta: Vector, step: Vector, shrink: float = 0.8, trials: int = 60):
    """The largest fraction shrink^k of a step to pass `judge`: theta -> (what failed or "", measured). Gives
    the parameters, the old ones if none passes, and measured, with stopped_by: what the larger one failed."""
    stopped_by = "nothing"
    for trial, fraction in enumerate([*shrink ** np.arange(trials), 0.0]):
        failed, measured = judge(theta + fraction * step)
        if not failed or fraction == 0:
            break
        stopped_by = failed
    measured |= {"trials": trial + 1, "fraction": float(fraction), "stopped_by": stopped_by}
    return theta + fraction * step, measured

# policy, policy gradient, Fisher product
class Policy(NamedTuple):
    sizes: tuple[int, ...]  # tanh layers from the size of an observation to that of an action
    discrete: bool  # whether the head is categorical; otherwise it is Gaussian

def initial_parameters(sizes: tuple, log_std: Vector, rng, last: float = 0.01) -> Vector:
    """Weights uniform in +-1/sqrt(fan in), the last layer's times `last`; biases 0; then the log std."""
    parts = []
    for fan_in, fan_out in pairwise(sizes):
        parts += [rng.uniform(-1, 1, fan_in * fan_out) / math.sqrt(fan_in), np.zeros(fan_out)]
    parts[-2] *= last
    return np.concatenate([*parts, log_std])

def unflatten(theta: Vector, sizes: tuple[int, ...]) -> tuple[list, Vector]:
    """[(W, b) of every layer], and what is left of theta: the log std."""
    layers, start = [], 0
    for fan_in, fan_out in pairwise(sizes):
        stop = start + fan_in * fan_out
        layers.append((theta[start:stop].reshape(fan_in, fan_out), theta[stop : stop + fan_out]))
        start = stop + fan_out
    return layers, theta[start:]

def network(layers: list, inputs: np.ndarray) -> np.ndarray:
    for W, b in layers[:-1]:
        inputs = anp.tanh(inputs @ W + b)
    return inputs @ layers[-1][0] + layers[-1][1]

def distributions(policy: Policy, theta: Vector, observations: np.ndarray) -> np.ndarray:
    """pi(.|s) in rows: log probabilities (n, k) of k indices, or mean and log std (n, 2k) of k dimensions."""
    layers, log_std = unflatten(theta.astype(observations.dtype), policy.sizes)
    outputs = network(layers, observations)
    if policy.discrete:
        outputs = outputs - anp.max(outputs, axis=1, keepdims=True)
        return outputs - anp.log(anp.sum(anp.exp(outputs), axis=1, keepdims=True))
    return anp.concatenate([outputs, anp.zeros_like(outputs) + log_std], axis=1)

def log_probabilities(policy: Policy, distributions: np.ndarray, actions: np.ndarray) -> Vector:
    """log pi(a|s), (n,), of indices (n,), or of Gaussian actions (n, k), summed over k."""
    if policy.discrete:
        return distributions[np.arange(len(actions)), actions]
    mean, log_std = anp.split(distributions, 2, axis=1)
    z = (actions - mean) * anp.exp(-log_std)
    return anp.sum(-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi), axis=1)

def mean_kl(policy: Policy, old: np.ndarray, new: np.ndarray) -> float:
    """Mean over states of KL(old || new), summed over action dimensions [nats]."""
    if policy.discrete:  # exp(new) - exp(old) sums to 0, but makes the Hessian in log probabilities diag(p)
        return anp.mean(anp.sum(np.exp(old) * (old - new - 1) + anp.exp(new), axis=1))
    (mean, log_std), (new_mean, new_log_std) = np.split(old, 2, axis=1), anp.split(new, 2, axis=1)
    ratio = (np.exp(2 * log_std) + (mean - new_mean) ** 2) * anp.exp(-2 * new_log_std)
    return anp.mean(anp.sum(new_log_std - log_std + (ratio - 1) / 2, axis=1))

def policy_gradient(policy: Policy, theta: Vector, observations: np.ndarray, actions: np.ndarray) -> tuple:
    """weights (n,) -> sum_i weights_i grad log pi(a_i|s_i), by autograd; and log pi(a_i|s_i), (n,)."""
    vjp, log_probs = make_vjp(
        lambda theta: log_probabilities(policy, distributions(policy, theta, observations), actions))(theta)
    return lambda weights: vjp(weights.astype(log_probs.dtype)), log_probs

def fisher_product(policy: Policy, theta: Vector, observations: np.ndarray, damping: float) -> Callable:
    """v -> (F + damping I) v; F = J^T M J, J the Jacobian of `distributions` and M the Hessian of mean_kl."""
    old = distributions(policy, theta, observations)
    product = make_ggnvp(lambda theta: distributions(policy, theta, observations),
                         lambda new: mean_kl(policy, old, new))(theta)
    return lambda v: product(v) + damping * v

def random(seed: int, purpose: int, index: int = 0) -> np.random.Generator:
    """A stream of its own for each purpose and index: numpy keeps a spawn key apart from the seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, index)))

# advantages and critics
class Batch(NamedTuple):
    raw: np.ndarray  # (n + episodes, size): T + 1 observations an episode, as the environment gave them
    inputs: np.ndarray  # the same, normalised; float32
    lasts: np.ndarray  # (episodes,): rows that have no action
    observations: np.ndarray  # (n, size): inputs without these
    actions: np.ndarray  # (n, k), or (n,) indices
    reward: Vector  # (n,)
    cost: Vector  # (n,)
    lengths: np.ndarray  # (episodes,): T
    terminated: np.ndarray  # (episodes,): otherwise truncated

def make_batch(episodes, actor):
    raw, actions, reward, cost = map(np.concatenate, list(zip(*episodes))[:4])
    lengths = np.array([len(episode.costs) for episode in episodes])
    lasts = np.cumsum(lengths + 1) - 1
    inputs = actor.normalise(raw).astype(np.float32)
    if not actor.policy.discrete:
        actions = actions.astype(np.float32)
    return Batch(raw, inputs, lasts, np.delete(inputs, lasts, axis=0), actions, reward, cost, lengths,
                 terminated=np.array([episode.terminated for episode in episodes]))

def by_time(values, lengths):
    """(n,) values as a table (episodes, longest T), padded with zeros, and the mask of what is not padded."""
    mask = np.arange(lengths.max()) < lengths[:, None]
    table = np.zeros(mask.shape)
    table[mask] = values
    return table, mask

def discounted_sums(values, lengths, discount):
    """y[t] = values[t] + discount y[t + 1], within each episode."""
    table, mask = by_time(values, lengths)
    for t in reversed(range(table.shape[1] - 1)):
        table[:, t] += discount * table[:, t + 1]
    return table[mask]

def gae(batch, signal, values, discount, gae_lambda):
    """sum_k (discount lambda)^k (r + discount V' - V)[t + k], given V of all T + 1 observations. The last
    one counts where an episode was truncated, not where it terminated."""
    following = np.delete(values, batch.lasts - batch.lengths)
    following[np.cumsum(batch.lengths)[batch.terminated] - 1] = 0
    residuals = signal + discount * following - np.delete(values, batch.lasts)
    return discounted_sums(residuals, batch.lengths, discount * gae_lambda)

def less_the_others(returns, lengths):
    """Returns less the mean of the other episodes at equal time; 0 where no other is as long."""
    table, mask = by_time(returns, lengths)
    count = mask.sum(axis=0)
    others = (table.sum(axis=0) - table) / np.maximum(count - 1, 1)
    return np.where(count > 1, table - others, 0.0)[mask]

def with_signal(advantages, signal, returns, lengths):
    """Advantages, but 0 where they are below the rounding of the returns; and everywhere, if at equal
    time the returns of all episodes are equal (of a single one: if its signal is constant): then no action
    has made a difference, whatever a critic says, and a natural step would follow rounding."""
    rounding = 1e-12 * np.abs(returns).max()
    contrast = signal - signal.mean()
    if len(lengths) > 1:
        contrast = less_the_others(returns, lengths)
    if np.abs(contrast).max() <= rounding:
        return np.zeros_like(advantages)
    return np.where(np.abs(advantages) > rounding, advantages, 0.0)

def fit_critic(critic, sizes, inputs, targets, rng, slope=np.subtract):
    """Ten passes of Adam over minibatches of 256. slope(outputs, targets) is the loss's; by default
    least squares'. The network's gradient is written out: autograd takes four times as long."""
    critic, targets = critic.astype(np.float32), targets.astype(np.float32)[:, None]
    gradient, mean, square = np.zeros((3, len(critic)), np.float32)
    layers, gradients = unflatten(critic, sizes)[0], unflatten(gradient, sizes)[0]  # views
    count = math.ceil(len(inputs) / 256)
    batches = [np.array_split(rng.permutation(len(inputs)), count) for _ in range(10)]
    for t, rows in enumerate(itertools.chain(*batches), start=1):
        hidden = [inputs[rows]]
        for W, b in layers[:-1]:
            hidden.append(np.tanh(hidden[-1] @ W + b))
        W, b = layers[-1]
        error = slope(hidden[-1] @ W + b, targets[rows]) / len(rows)
        for (W, _), (dW, db), h in zip(layers[::-1], gradients[::-1], hidden[::-1]):
            dW[:], db[:] = h.T @ error, error.sum(axis=0)
            error = error @ W.T * (1 - h * h)
        mean += 0.1 * (gradient - mean)
        square += 0.001 * (gradient**2 - square)
        rate = 2e-3 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        critic -= rate * mean / (np.sqrt(square) + 1e-8)
    return critic.astype(float)

def estimate_advantages(config, batch, state):
    """Advantages of reward and of cost, (n,) each, and the critics, fitted to this batch for the next:
    mc    discounted return to go
    time  the same, less the mean of the other episodes at equal time
    gae   generalised advantage estimation with a critic for each, less the batch mean"""
    sizes, advantages, critics = (*state["sizes"][:-1].tolist(), 1), [], {}
    rng = random(config.seed, CRITICS, state["epoch"])
    if config.advantage == "time" and len(batch.lengths) == 1:
        raise Failure(f"a batch of one episode, of {len(batch.cost):,} steps, has no others to be compared "
                      "with: take a larger --batch-steps, or --advantage gae.")
    for name, signals in (("reward", batch.reward), ("cost", batch.cost)):
        returns = estimate = discounted_sums(signals, batch.lengths, config.discount)
        if config.advantage == "time":
            estimate = less_the_others(returns, batch.lengths)
        if config.advantage == "gae":
            critic = state[name + "_critic"]
            values = network(unflatten(critic, sizes)[0], batch.inputs)[:, 0]
            estimate = gae(batch, signals, values, config.discount, config.gae_lambda)
            targets = estimate + np.delete(values, batch.lasts)
            critics[name + "_critic"] = fit_critic(critic, sizes, batch.observations, targets, rng)
            estimate = estimate - estimate.mean()
        advantages.append(with_signal(estimate, signals, returns, batch.lengths))
    return *advantages, critics

# environments and episodes
@functools.lru_cache
def safety_gymnasium(textures: bool):
    """safety-gymnasium 1.0.0, for Python 3.11 too; without textures, resets decode no PNG files (1 s)."""
    import mujoco
    if not textures and importlib.util.find_spec(fast := "fast_safety_gymnasium"):
        importlib.import_module(fast)  # it lies beside this file: the same bits, sooner
    dataclass, compile_model = dataclasses.dataclass, mujoco.MjModel.from_xml_string
    def dataclass_with_arrays(cls):
        for name, value in list(vars(cls).items()):
            if isinstance(value, np.ndarray):  # Python 3.11 refuses arrays as defaults
                setattr(cls, name, dataclasses.field(default_factory=value.copy))
        return dataclass(cls)
    sys.modules["gymnasium_robotics.envs.multiagent_mujoco.mujoco_multi"] = unittest.mock.MagicMock()
    with unittest.mock.patch.object(dataclasses, "dataclass", dataclass_with_arrays):
        package = importlib.import_module("safety_gymnasium")
    if not textures:
        pattern = re.compile(r'<texture\b[^>]*?(/>|></texture>)|\stexture="[^"]*"')
        mujoco.MjModel.from_xml_string = staticmethod(lambda xml: compile_model(pattern.sub("", xml)))
    return package

@functools.lru_cache
def make_env(task: str, thread: int = 0, **rendering):
    """The environment of this thread, reset once: the first episode after `make` differs in its last bits."""
    import gymnasium
    try:
        make = safety_gymnasium(bool(rendering)).make if task.startswith("Safety") else gymnasium.make
        env = make(task, disable_env_checker=True, **rendering)
    except (gymnasium.error.Error, ImportError, AssertionError) as error:
        raise Failure(f"--task {task} cannot be made: {error}") from None
    space = env.action_space
    if not isinstance(space, (gymnasium.spaces.Box, gymnasium.spaces.Discrete)) or getattr(space, "start", 0):
        raise Failure(f"--task {task} has actions in {space}; Box, and Discrete from 0, are supported.")
    if len(env.observation_space.shape or ()) != 1:
        env = gymnasium.wrappers.FlattenObservation(env)
    env.bounded = hasattr(space, "low") and (space.bounded_below & space.bounded_above).all()
    env.low, env.range = (space.low, space.high - space.low) if env.bounded else (None, None)
    env.reset(seed=0)
    return env

class Episode(NamedTuple):
    observations: np.ndarray  # (T + 1, size), as the environment gave them
    actions: np.ndarray  # (T, size) before they are clipped, or (T,) indices
    rewards: Vector
    costs: Vector
    terminated: bool  # if not, the episode was truncated

class Actor(NamedTuple):
    """A policy as workers need it: float64, one row at a time, so that every process finds the same bits."""
    policy: Policy
    theta: Vector
    mean: Vector  # of observations
    std: Vector

    def normalise(self, observations: np.ndarray) -> np.ndarray:
        return ((observations - self.mean) / self.std).clip(-10, 10)

    def acting(self, rng: np.random.Generator | None) -> Callable:
        """observation -> a sampled action; without rng, the mean or the most likely one."""
        layers, log_std = unflatten(self.theta, self.policy.sizes)
        def act(observation):
            output = network(layers, self.normalise(observation))
            if self.policy.discrete:
                return np.argmax(output + rng.gumbel(size=len(output)) if rng else output)  # a sample
            return output + np.exp(log_std) * rng.standard_normal(len(output)) if rng else output
        return act

def env_step(env, action) -> tuple:
    """(observation, reward, cost, terminated, truncated); maps [-1, 1] to the bounds of a bounded Box."""
    if env.bounded:
        action = env.low + (action.clip(-1, 1) + 1) / 2 * env.range
    observation, reward, *cost, terminated, truncated, info = env.step(action)
    return observation, reward, cost[0] if cost else info["cost"], terminated, truncated

def run_episode(task: str, seed: int, index: int, actor: Actor) -> Episode:
    """Episode `index` of the run: the same bits in whatever process, and after whatever other episodes."""
    rng, steps = random(seed, EPISODE, index), []
    try:
        env, act = make_env(task, threading.get_ident()), actor.acting(rng)
        observations, ended, truncated = [env.reset(seed=int(rng.integers(2**32)))[0]], False, False
        while not (ended or truncated):
            action = act(observations[-1])
            observation, reward, cost, ended, truncated = env_step(env, action)
            if not math.isfinite(action.sum() + reward + cost + observation.sum()):
                raise ArithmeticError(f"not finite: {action=}, {reward=}, {cost=} or {observation=}")
            steps.append((action, reward, cost))
            observations.append(observation)
        return Episode(np.array(observations, float), *map(np.array, zip(*steps)), bool(ended))
    except Exception as error:
        where = f"{task}, seed {seed}, episode {index}, step {len(steps)}"
        raise Failure(f"{where}: {type(error).__name__}: {error}") from error

def guard_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when its parent has ended, in whatever way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wait = multiprocessing.parent_process().join
    threading.Thread(target=lambda: (wait(), os._exit(1)), daemon=True).start()

def make_executor(config: Config):
    """Processes on this machine, or a Dask cluster; both are executors as in concurrent.futures."""
    if not config.scheduler:
        return ProcessPoolExecutor(config.workers, multiprocessing.get_context("spawn"), guard_worker)
    from distributed import Client
    client = Client(config.scheduler)
    client.upload_file(__file__)
    return client.get_executor()

def collect(executor, config: Config, actor: Actor, first: int, length: float, size: int, deaths: int = 0):
    """Episodes first, first + 1, ... until they have `size` steps, about `length` each. A death: all anew."""
    episodes, pending, steps, planned = [], [], 0, first
    run = functools.partial(run_episode, config.task, config.seed, actor=actor)
    try:
        while steps < size:
            wanted = first + len(episodes) + math.ceil((size - steps) / length)
            while planned < wanted:
                indices = range(planned, planned := min(wanted, planned + math.ceil(500 / length)))
                pending.append(executor.submit(list, map(run, indices)))  # short episodes share a job
            episodes += pending.pop(0).result()
            steps = sum(len(episode.rewards) for episode in episodes)
            length = steps / len(episodes)
    except (BrokenExecutor, getattr(sys.modules.get("distributed"), "KilledWorker", BrokenExecutor)):
        if deaths == 3 or config.scheduler:  # Dask has tried as often by itself
            raise Failure(f"workers died four times in the epoch that starts at episode {first}.") from None
        return collect(make_executor(config), config, actor, first, length, size, deaths + 1)
    for future in pending:
        future.cancel()
    return executor, episodes[: np.searchsorted(np.cumsum([len(e.rewards) for e in episodes]), size) + 1]
# --- end shared ---

def update_policy(config: Config, policy: Policy, theta: Vector, observations: np.ndarray, actions: Vector,
                  advantages: Vector, exclusion: Callable | None = None) -> tuple:
    """One update from a batch of n steps: gradients, natural directions, the step, the line search.
    `exclusion`: theta -> KL(unsafe || pi_theta) [nats], differentiable; None in the first stage."""
    gradient_of, old_log_probs = policy_gradient(policy, theta, observations, actions)
    gradient = gradient_of(advantages / len(advantages))
    before, away, demand = 0.0, 0 * gradient, 0.0
    if exclusion:
        before, away = float(exclusion(theta)), grad(exclusion)(theta)
        demand = config.level - before if config.exclusion == "level" else config.delta_2
    fisher = fisher_product(policy, theta, observations, config.damping)
    direction, residual = conjugate_gradients(fisher, gradient, config.cg_iterations)
    away_direction, away_residual = conjugate_gradients(fisher, away, config.cg_iterations)
    vectors = gradient, direction, away, away_direction, config.delta_1, demand
    step, info = (exclusion_step(*vectors) if config.dual == "exact" else
                  fixed_step(*vectors, config.lambda_2, 100 if config.dual == "ascent" else 0))
    if config.reverse and not info["feasible"]:
        step = -step  # Eq. 10
    old, gain, change = distributions(policy, theta, observations), float(gradient @ step), float(away @ step)
    # held to the demand if met to first order, and no step to more than it promises
    least_change = demand if change >= demand - 1e-9 * abs(demand) else min(0.0, change)
    info |= {"surrogate_change": gain, "exclusion_change": change}

    def judge(theta):
        new = distributions(policy, theta, observations)
        ratios = (log_probabilities(policy, new, actions) - old_log_probs).astype(float)
        kl, surrogate = float(mean_kl(policy, old, new)), float(np.mean(np.expm1(ratios) * advantages))
        rise = float(exclusion(theta)) - before if exclusion else 0.0
        failed = "kl" if not kl <= config.delta_1 else "exclusion" if not rise >= least_change else ""
        return failed or ("" if surrogate >= min(0.0, gain) else "surrogate"), {
            "realised_kl": kl, "realised_exclusion": rise, "surrogate": surrogate}

    theta, found = line_search(judge, theta, step)
    return theta, info | found | {"exclusion": before + found["realised_exclusion"], "residual": residual,
                                  "exclusion_residual": away_residual}

def make_exclusion(config: Config, actor: Actor, unsafe: Actor, unsafe_raw: np.ndarray, raw: np.ndarray,
                   actions: np.ndarray) -> tuple[Callable, dict]:
    """theta -> KL(unsafe || pi_theta) [nats], differentiable, in the mean over states of the unsafe policy's
    rollouts, or of this batch; or mean(w log unsafe(a) / pi_theta(a)), whose gradient is phi of Eq. 7, with
    clipped weights w = unsafe / pi; and these weights' effective share of the samples, and mean: 1, if none
    is clipped."""
    policy, theta = actor.policy, actor.theta
    states = unsafe_raw if config.estimator == "rollouts" else raw
    inputs = actor.normalise(states)  # float64: differences of the exclusion are small
    reference = distributions(unsafe.policy, unsafe.theta, unsafe.normalise(states))
    if config.estimator != "weights":
        return lambda theta: mean_kl(policy, reference, distributions(policy, theta, inputs)), {}

    unsafe_log_probs = log_probabilities(policy, reference, actions)

    def log_ratios(theta):
        return unsafe_log_probs - log_probabilities(policy, distributions(policy, theta, inputs), actions)

    weights = np.exp(np.minimum(log_ratios(theta), math.log(config.clip)))
    share = weights.sum() ** 2 / ((weights**2).sum() or math.inf) / len(weights)
    return lambda theta: anp.mean(weights * log_ratios(theta)), {
        "effective_share": float(share), "mean_weight": float(weights.mean())}

def quantile_slope(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Derivative of the mean quantile loss of all outputs, of levels 1/2k, 3/2k, ..."""
    k = outputs.shape[1]
    levels = (np.arange(k, dtype=np.float32) + 0.5) / k
    return ((targets < outputs) - levels) / k

def cvar_advantages(config: Config, batch: Batch, state: dict) -> tuple[Vector, Vector]:
    """xi of Eq. 4 by GAE, less its mean, from CVaR values: the mean of the largest alpha of the quantiles of
    the cost to go; and the critic of these quantiles, fitted to sampled returns."""
    sizes = (*state["sizes"][:-1].tolist(), CRITIC_OUTPUTS["quantile"])
    rng = random(config.seed, QUANTILES, state["epoch"])
    outputs = np.sort(network(unflatten(state["quantile_critic"], sizes)[0], batch.inputs), axis=1)
    tail = outputs[:, -math.ceil(config.cvar_alpha * sizes[-1]) :].mean(axis=1)
    xi = gae(batch, batch.cost, tail, config.discount, config.gae_lambda)
    ends = np.zeros_like(tail)
    ends[batch.lasts] = outputs[batch.lasts].mean(axis=1)  # truncated episodes go on
    targets = gae(batch, batch.cost, ends, config.discount, 1.0)
    critic = fit_critic(state["quantile_critic"], sizes, batch.observations, targets, rng, quantile_slope)
    returns = discounted_sums(batch.cost, batch.lengths, config.discount)
    return with_signal(xi - xi.mean(), batch.cost, returns, batch.lengths), critic

def standardised(advantages: Vector) -> Vector:
    """Less the mean, over the std; as they are, if they are constant."""
    std = advantages.std()
    return (advantages - advantages.mean()) / std if std > 0 else advantages

def load_unsafe(config: Config, run: Path) -> dict:
    """State of the frozen policy of the first stage, in RUN/unsafe: a copy of the run --unsafe, which may go
    on or disappear, or trained there, now, as far as it is not yet."""
    folder = run / "unsafe"
    if not (folder / "config.json").exists():  # written last
        first = dataclasses.replace(config, stage="unsafe", total_steps=config.unsafe_steps)
        first, state = load_run(Path(config.unsafe)) if config.unsafe else (first, initial_state(first))
        folder.mkdir(exist_ok=True)
        save(folder, state)
        write(folder / "config.json", json.dumps({"config": dataclasses.asdict(first)}, indent=1).encode())
    first, state = load_run(folder)
    first = dataclasses.replace(first, workers=config.workers, scheduler=config.scheduler)
    return state if config.unsafe else train(first, folder, state)

def train(config: Config, run: Path, state: dict) -> dict:
    """Collect, estimate, update, log and save, until config.total_steps are done; the first stage before."""
    excluding = config.stage == "safe" and config.exclusion != "none"
    unsafe, exclusion, about = make_actor(load_unsafe(config, run)) if excluding else None, None, {}
    executor = make_executor(config)
    state = {"pid": np.full(2, math.nan), **state}
    bar = tqdm(total=config.total_steps, initial=state["steps"], unit="step", desc=config.stage,
               disable=not sys.stderr.isatty())
    try:
        if excluding:  # episodes of its own, the same in every session of this run
            executor, episodes = collect(executor, config, unsafe, 2**40, 1000, config.batch_steps)
            unsafe_raw = np.concatenate([episode.observations[:-1] for episode in episodes])
            about["unsafe_cost"] = episode_metrics(episodes)["EpCost"]
            print(f"the unsafe policy costs {about['unsafe_cost']:.3g} an episode", flush=True)
        if not state["steps"]:
            executor, state = warm_up(executor, config, state)
        while state["steps"] < config.total_steps:
            started, actor = time.perf_counter(), make_actor(state)
            length = state["steps"] / state["next_episode"] if state["next_episode"] else 1000
            executor, episodes = collect(
                executor, config, actor, state["next_episode"], length, config.batch_steps)
            collected = time.perf_counter()
            batch = make_batch(episodes, actor)
            metrics = episode_metrics(episodes)
            rewards, costs, critics = estimate_advantages(config, batch, state)
            if config.stage == "unsafe" and config.critic == "cvar":
                costs, critics["quantile_critic"] = cvar_advantages(config, batch, state)
            rewards, costs = standardised(rewards), standardised(costs)
            multiplier, pid = pid_multiplier(state["pid"], metrics["EpCost"], config.cost_limit,
                                             (config.pid_p, config.pid_i, config.pid_d))
            advantages = costs if config.stage == "unsafe" else rewards - config.joint * multiplier * costs
            if excluding:
                raw = np.delete(batch.raw, batch.lasts, axis=0)
                exclusion, weights = make_exclusion(config, actor, unsafe, unsafe_raw, raw, batch.actions)
                about |= weights
            theta, info = update_policy(config, actor.policy, state["theta"], batch.observations,
                                        batch.actions, advantages, exclusion)
            finished = time.perf_counter()
            metrics["EpCostRegret"] = state["regret"] + max(0.0, metrics["EpCost"] - config.cost_limit)
            state = {**state, **critics, "theta": theta, "pid": pid,
                     "regret": metrics["EpCostRegret"],
                     "moments": added(state["moments"], batch.raw),
                     "epoch": state["epoch"] + 1, "steps": state["steps"] + len(batch.cost),
                     "next_episode": state["next_episode"] + len(episodes)}
            state = absorb_scaling(state, actor)
            save(run, state, {
                "Train/Epoch": state["epoch"], "Train/TotalSteps": state["steps"],
                **{f"Metrics/{name}": value for name, value in metrics.items()},
                "Train/KL": info.pop("realised_kl"), "Misc/AcceptanceStep": info.pop("trials"),
                "Misc/LagrangianMultiplier": multiplier,
                **{f"Misc/{name}": value for name, value in (info | about).items()},
                "Time/Total": finished - started,
                "Time/Rollout": collected - started, "Time/Update": finished - collected})
            bar.update(len(batch.cost))
            bar.set_postfix(ret=metrics["EpRet"], cost=metrics["EpCost"], multiplier=multiplier)
        return state
    finally:
        bar.close()
        executor.shutdown(wait=False, **({} if config.scheduler else {"cancel_futures": True}))

# --- shared: what a run leaves ---
def episode_metrics(episodes: list[Episode]) -> dict:
    """Raw means over the epoch's own episodes, undiscounted; an episode is safe if its cost is 0."""
    reward, cost = (np.array([getattr(e, name).sum() for e in episodes]) for name in ("rewards", "costs"))
    return {"EpRet": reward.mean(), "EpCost": cost.mean(), "EpLen": np.mean([len(e.costs) for e in episodes]),
            "SafetyProbability": (cost == 0).mean(), "SafeReward": (reward * (cost == 0)).mean()}

def initial_state(config: Config) -> dict:
    """All that a run needs to go on where it stood: the content of checkpoint.npz."""
    env, rng = make_env(config.task), random(config.seed, WEIGHTS)
    discrete, size = hasattr(env.action_space, "n"), env.observation_space.shape[0]
    actions = int(env.action_space.n) if discrete else env.action_space.shape[0]
    log_std = np.full(0 if discrete else actions, math.log(config.initial_std))
    return {"sizes": np.array([size, *config.hidden, actions]), "discrete": discrete,
            "theta": initial_parameters((size, *config.hidden, actions), log_std, rng),
            # a critic says 0 until it has learned: what it never met has no gradient
            **{f"{name}_critic": initial_parameters((size, *config.hidden, outputs), [], rng, 0.0)
               for name, outputs in CRITIC_OUTPUTS.items()},
            "moments": np.zeros((3, size)),  # of the observations: count, mean, sum of squared deviations
            "epoch": 0, "steps": 0, "next_episode": 0, "regret": 0.0, "progress": b""}

def added(moments: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Count, mean and sum of squared deviations, with more observations (Chan et al. 1983)."""
    (count, mean, squares), new = moments, len(raw)
    shift, total = raw.mean(0) - mean, count + new
    squares = squares + ((raw - raw.mean(0)) ** 2).sum(0) + shift**2 * count * new / total
    return np.array([total, mean + shift * new / total, squares])

def absorb_scaling(state: dict, before: Actor) -> dict:
    """First layers for the new scaling of the observations, so that policy and critics stay the functions
    that they were under `before`, but where observations are clipped."""
    after, state = make_actor(state), dict(state)
    for name in ("theta", *(f"{name}_critic" for name in CRITIC_OUTPUTS)):
        state[name] = state[name].copy()
        (W, b), = unflatten(state[name], after.policy.sizes[:2])[0]  # views
        b += (after.mean - before.mean) / before.std @ W
        W *= (after.std / before.std)[:, None]
    return state

def warm_up(executor, config: Config, state: dict) -> tuple:
    """The first mean and std of the observations: of a batch of the initial policy's own, in which nothing
    is learned and whose steps do not count."""
    executor, episodes = collect(executor, config, make_actor(state), 2**41, 1000, config.batch_steps)
    raw = np.concatenate([episode.observations for episode in episodes])
    return executor, state | {"moments": added(state["moments"], raw)}

def make_actor(state: dict) -> Actor:
    """The policy; observations are scaled by mean and std of all before this epoch (0 and 1 at first)."""
    count, mean, squares = state["moments"]
    std = np.sqrt(np.maximum(squares / np.maximum(count, 1), 1e-6)) if count[0] else np.ones_like(mean)
    policy = Policy(tuple(state["sizes"].tolist()), state["discrete"])
    return Actor(policy, state["theta"], mean, std)

def write(path: Path, data: bytes, previous: Path | None = None) -> None:
    """Old or new content is there at every moment, whole; the old one stays as `previous`, if given."""
    with open(path.with_suffix(".tmp"), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if previous and path.exists():
        os.replace(path, previous)
    os.replace(path.with_suffix(".tmp"), path)

def save(run: Path, state: dict, row: dict | None = None) -> None:
    """checkpoint.npz, the one before as checkpoint.previous.npz, and progress.csv, which is part of both."""
    if row:
        lines = [row.values()] if state["progress"] else [row, row.values()]
        state["progress"] += "".join(",".join(map(str, line)) + "\n" for line in lines).encode()
    np.savez(buffer := io.BytesIO(), **state)
    write(run / "checkpoint.npz", buffer.getvalue(), run / "checkpoint.previous.npz")
    write(run / "progress.csv", state["progress"])

def load_run(run: Path) -> tuple[Config, dict]:
    """Config and newest undamaged state of a run; the checksums of npz files tell damage."""
    for path in filter(Path.exists, (run / "checkpoint.npz", run / "checkpoint.previous.npz")):
        try:
            config = Config(**json.loads((run / "config.json").read_text())["config"])
            with np.load(path) as arrays:
                return config, {name: a if (a := arrays[name]).ndim else a.item() for name in arrays}
        except Exception as error:  # damage has many faces
            print(f"{path} cannot be used: {error}", file=sys.stderr)
    raise Failure(f"{run} holds no run that can be resumed; start anew under another --experiment.")

def report(run: Path, state: dict) -> str:
    """Draws curves.png; returns the means over the last tenth of the epochs, and where everything is."""
    from matplotlib.figure import Figure
    rows, text = list(csv.DictReader(state["progress"].decode().splitlines())), "Mean over the last tenth:"
    figure = Figure(figsize=(16, 3.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, 4), ("EpRet", "EpCost", "SafetyProbability", "SafeReward")):
        values = [float(row[f"Metrics/{name}"]) for row in rows]
        axis.plot([int(row["Train/TotalSteps"]) for row in rows], values)
        axis.set(title=name, xlabel="environment steps")
        text += f" {name} {np.mean(values[-max(1, len(rows) // 10):]):.3g}"
    figure.savefig(run / "curves.png")
    return f"{text}\npolicy  {run}/checkpoint.npz\ncurves  {run}/curves.png\nnumbers {run}/progress.csv"

# the command line
def check_blas() -> None:
    """Some OpenBLAS builds multiply wrongly on some CPUs (numpy/numpy#24903): a millisecond tells."""
    rng = np.random.default_rng(0)
    for n, k, m in ((1000, 60, 64), (625, 5, 625)):
        a, b = rng.standard_normal((n, k)), rng.standard_normal((k, m))
        if np.abs(a @ b - np.einsum("nk,km->nm", a, b)).max() > 1e-12:
            raise Failure(f"numpy {np.__version__} multiplies matrices wrongly on this CPU; try another.")

def open_run(argv: list[str] | None) -> tuple[Config, Path, dict]:
    """A new run, with config.json and a first checkpoint in its folder, or the one to resume."""
    parser = argparse.ArgumentParser(usage="%(prog)s [--resume RUN | --option value ...]", allow_abbrev=False)
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder; "
                        "only --total-steps, --workers and --scheduler may be given besides")
    for field in dataclasses.fields(Config):
        kind = {"type": int, "nargs": "+"} if field.type is tuple else {"type": field.type}
        text = f"{field.metadata['text']}; {field.metadata['rule']} (default {field.default})"
        parser.add_argument("--" + field.name.replace("_", "-"), default=argparse.SUPPRESS, metavar="x",
                            help=text.replace("; True", ""), **kind)
    options = vars(parser.parse_args(argv))
    if run := options.pop("resume"):
        if set(options) - {"total_steps", "workers", "scheduler"}:
            parser.error("a resumed run takes only --total-steps, --workers and --scheduler")
        config, state = load_run(run)
        write(run / "progress.csv", state["progress"])
        return dataclasses.replace(config, **options), run, state
    config = Config(**{**PRESETS.get(options.get("preset"), {}), **options})
    run = Path("runs", config.experiment, re.sub(r"[^\w.-]", "-", config.task), Path(__file__).stem)
    run = run / f"seed-{config.seed}"
    if (run / "config.json").exists():
        parser.error(f"{run} exists: go on with --resume {run}, or choose another --experiment or --seed")
    state = initial_state(config)
    run.mkdir(parents=True, exist_ok=True)
    save(run, state)
    about = {name: importlib.metadata.version(name) for name in ("numpy", "autograd", "gymnasium", "mujoco")}
    about |= {"config": dataclasses.asdict(config), "python": sys.version}
    write(run / "config.json", json.dumps(about, indent=1).encode())
    return config, run, state

def main(argv: list[str] | None = None) -> int:
    run = None
    try:
        check_blas()
        config, run, state = open_run(argv)
        print(f"{config.task}: from step {state['steps']:,} to {config.total_steps:,}, in {run}", flush=True)
        print(report(run, train(config, run, state)))
        return 0
    except (Failure, OSError, ImportError, KeyboardInterrupt) as error:
        saved = f"\nWhat was saved is whole: go on with --resume {run}" if run else ""
        print(f"{str(error) or 'interrupted'}{saved}", file=sys.stderr)
        return 1

if __name__ == "__main__":  # under its own name, by which workers, here or on a cluster, find the functions
    sys.exit(importlib.import_module(Path(__file__).stem).main())
# --- end shared ---
