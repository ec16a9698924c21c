# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "tqdm==4.67.1"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""C-TRPO: Constrained Trust Region Policy Optimisation (arXiv 2411.02957), from simulator to policy.

The idea in one sentence: a barrier on what is left of the cost budget bends the geometry of policies, so that
the trust region around a safe policy holds safe policies only.

    D(new) = KL(old, new) + beta Psi(a)        constrained divergence; trust region: D(new) <= delta       (1)
    a      = J_c(new) - J_c(old)               estimated by the surrogate, a mean over the batch
    Psi    = phi(m - a) - phi(m) + phi'(m) a   Bregman divergence of a barrier phi at the margin m = b - J_c
           = -a/m - log(1 - a/m)               for phi(x) = -log x    (--barrier log, the default)         (2)
           = a + (m - a) log(1 - a/m)          for phi(x) = x log x   (--barrier xlogx, the paper's runs)
    H      = F + w g_c g_c^T                   Hessian of D at the old policy, w = beta phi''(m)           (3)
    step   = sqrt(2 delta / g_r.y) y           with y = H^-1 g_r = x_r - w (g_r.x_c) / (1 + w s) x_c       (4)

where x = F^-1 g and s = g_c.x_c: of the reward step's part along x_c only 1 / (1 + w s) is left. Once
J_c >= b, recovery takes the best cost step, until J_c < h b.

Differs from the paper in
 1. Units are one: J_c, b, m, a, g_c are undiscounted costs per episode. The official release sets a
    discounted `a` against undiscounted J_c and b, and averages KL over actions: `--official-units 1`.
 2. (4) comes from two solves with F (Sherman-Morrison), not from one with H.
 3. Default barrier -log x: it is infinite at the boundary, where x log x is finite and lets iterates jam.
 4. 5 iterations of conjugate gradients filter noise; the damping is 1e-4, not 0.1.
 5. J_c is the mean cost of the batch's own episodes; the release's is that of the last 50 at the end of each
    of them, steadier and later: `--cost-window 50`.

symbol    name in code               shape       unit
theta     theta                      (p,)        policy parameters: weights and biases, then log std
g_r       reward_gradient            (p,)        advantage per step: batch mean of grad log pi * A
g_c       cost_gradient              (p,)        cost per episode: batch mean of grad log pi * A, times steps
x_r, x_c  reward_, cost_direction    (p,)        F^-1 g, by conjugate gradients
F         fisher                     (p,)->(p,)  nats: Hessian of KL, summed over actions, mean over states
delta     delta                      scalar      nats
beta      beta                       scalar      nats (log); nats per unit of cost (xlogx)
J_c, b    mean_cost, cost_limit      scalar      undiscounted cost per episode
m         margin                     scalar      b - J_c; 0 in recovery
h         hysteresis                 scalar      fraction of b; h b must exceed the least cost

Run `uv run ctrpo.py`, see `--help`, or read on: the update stands next, `train` is the algorithm as a whole.
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
from autograd import make_ggnvp, make_vjp
from tqdm import tqdm

Vector = np.ndarray
WEIGHTS, CRITICS, EPISODE = 2, 3, 4  # purposes of random streams; evaluation has 1
class Failure(Exception):
    """Ends a run: one sentence that says what was wrong, where, and what to do."""

def option(default, text: str, rule: str = "True"):
    return dataclasses.field(default=default, metadata={"text": text, "rule": rule})

PRESETS = {"none": {}, "paper": {  # what the published runs were made with
    "batch_steps": 20_000, "barrier": "xlogx", "beta": 1.0, "hysteresis": 0.8, "official_units": 1,
    "cost_window": 50, "cg_iterations": 15, "damping": 0.1}}

CRITIC_OUTPUTS = {"reward": 1, "cost": 1}

@dataclasses.dataclass(frozen=True)
class Config:
    """The options of a run: default, symbol and meaning [unit], range. The command line is made of it."""
    task: str = option("SafetyHopperVelocity-v1", "EnvId or package.module:EnvId, as Gymnasium names them")
    experiment: str = option("default", "results go to runs/EXPERIMENT/TASK/ALGORITHM/seed-SEED")
    preset: str = option("none", "a set of defaults, see PRESETS", f"x in {tuple(PRESETS)}")
    seed: int = option(0, "all that is random follows from it; episode i is keyed by (seed, i)", "x >= 0")
    total_steps: int = option(1_000_000, "length of the training [environment steps]", "x >= 1")
    batch_steps: int = option(10_000, "an epoch ends with the episode that reaches it [steps]", "x >= 1")
    workers: int = option(os.cpu_count() or 1, "processes that run episodes; changes no result", "x >= 1")
    scheduler: str = option("", "tcp://host:port of a Dask scheduler to use instead", "not x or '://' in x")
    delta: float = option(0.01, "delta, radius of the trust region [nats, of D]", "0 < x < inf")
    beta: float = option(0.1, "beta, weight of the barrier [nats; xlogx: nats per cost]", "0 < x < inf")
    barrier: str = option("log", "phi: -log x, or x log x", "x in ('log', 'xlogx')")
    cost_limit: float = option(25.0, "b [undiscounted cost per episode]; 0: only recovers", "0 <= x < inf")
    hysteresis: float = option(0.8, "h: recovery, also at the start, ends when J_c < h b", "0 < x <= 1")
    cost_window: int = option(1, "J_c: running mean of so many episodes; 1: the batch's own", "x >= 1")
    official_units: int = option(0, "1: cost and KL in the units of the official release", "x in (0, 1)")
    advantage: str = option("gae", "see estimate_advantages", "x in ('mc', 'time', 'gae')")
    discount: float = option(0.99, "gamma, of reward and cost", "0 <= x < 1")
    gae_lambda: float = option(0.95, "lambda of GAE", "0 <= x <= 1")
    hidden: tuple = option((64, 64), "widths of the tanh layers", "min(x) >= 1")
    initial_std: float = option(1.0, "std of a Gaussian policy at the start [action]", "0 < x < inf")
    cg_iterations: int = option(5, "conjugate-gradient iterations for each direction", "x >= 1")
    damping: float = option(1e-4, "added to the diagonal of F", "0 <= x < inf")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata["rule"]
            if not eval(rule, {"x": value, "inf": math.inf}):
                raise Failure(f"--{field.name.replace('_', '-')} is {value!r} but needs {rule}.")

def barrier_divergence(change: float, margin: float, barrier: str) -> float:
    """Psi of eq. (2) for a change a of the cost at margin m > 0 [same unit]: convex, 0 at a = 0, infinite
    from a = m on: a policy on the boundary is not inside. Unit: that of cost for xlogx, none for log."""
    share = change / margin
    if not share < 1:  # for x log x the limit at the boundary is finite, m
        return math.inf
    log = math.log1p(-share)
    return -share - log if barrier == "log" else change + (margin - change) * log

def barrier_step(reward_gradient: Vector, reward_direction: Vector, cost_gradient: Vector,
                 cost_direction: Vector, delta: float, beta: float, margin: float,
                 barrier: str = "log") -> tuple[Vector, dict]:
    """The C-TRPO step, eq. (4), from gradients g and directions x = F^-1 g, in O(n); without a margin, the
    step of recovery: TRPO on -cost. With step_r and step_c the best reward and cost steps of KL delta, rho
    the cosine of g_r, g_c in the F^-1 metric, and keep = 1 / (1 + w s):
        step = (step_r + rho step_c - keep rho step_c) / sqrt(1 - rho^2 + keep rho^2)
    step_r + rho step_c leaves the cost as it is; keep falls from 1 (TRPO) to 0 as the margin vanishes.
    Returns the step and a dict: rho, keep, first-order kl, divergence and changes, angles to x_r and -x_c in
    the Fisher metric [degrees]."""
    reward_unit, step_r = steepest_step(reward_gradient, reward_direction, delta)
    cost_unit, step_c = steepest_step(cost_gradient, -cost_direction, delta)
    rho = float(np.clip(cost_unit @ step_r, -1, 1))  # Cauchy-Schwarz in the F^-1 inner product
    sine2 = float((reward_unit - rho * cost_unit) @ (step_r + rho * step_c))  # 1 - rho^2
    sine2 = sine2 if sine2 > 1e-12 else 0.0  # else parallel: nothing but rounding
    best = float(-cost_gradient @ step_c)  # = sqrt(2 delta s)
    if margin > 0:
        share = best / margin
        keep = 1 / (1 + beta / (2 * delta) * share * (share if barrier == "log" else best))  # 1 / (1 + w s)
        scale = 1 / (math.sqrt(sine2 + keep * rho**2) or math.inf)
        across = step_r + rho * step_c if sine2 else 0.0
        step = scale * (across - keep * rho * step_c)
        reward, cost = 1 / (scale or math.inf), keep * rho * scale  # changes in units of the best ones
        bend = (1 - keep) * keep * (rho * scale) ** 2  # w s cost^2: the barrier's part of the divergence
        length = math.hypot(math.sqrt(sine2), keep * rho) * scale  # in the Fisher metric, units of the radius
    else:
        keep, bend, step, reward, cost, length = 0.0, 0.0, step_c, -rho, -1.0, 1.0
    cosines = np.clip(np.array([reward, -cost]) / (length or math.nan), -1, 1)
    reward_angle, cost_angle = np.degrees(np.arccos(cosines)).tolist()
    return step, {"rho": rho, "keep": keep, "kl": delta * length**2, "divergence": delta * (length**2 + bend),
                  "reward_change": float(reward_gradient @ step), "cost_change": float(cost_gradient @ step),
                  "reward_angle": reward_angle, "cost_angle": cost_angle}

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
                  reward_advantages: Vector, cost_advantages: Vector, margin: float) -> tuple:
    """One update from a batch of n steps: gradients, natural directions, the step, the line search.
    Cost advantages and margin have the same unit; margin 0 is recovery."""
    gradient, old_log_probs = policy_gradient(policy, theta, observations, actions)
    reward_gradient, cost_gradient = (gradient(a / len(a)) for a in (reward_advantages, cost_advantages))
    # the release averages the KL over action dimensions: KL / k + beta Psi <= delta, and damps F / k
    k = policy.sizes[-1] if config.official_units and not policy.discrete else 1
    delta, beta, damping = k * config.delta, k * config.beta, k * config.damping
    fisher = fisher_product(policy, theta, observations, damping)
    reward_direction, reward_residual = conjugate_gradients(fisher, reward_gradient, config.cg_iterations)
    cost_direction, cost_residual = conjugate_gradients(fisher, cost_gradient, config.cg_iterations)
    step, info = barrier_step(reward_gradient, reward_direction, cost_gradient, cost_direction,
                              delta, beta, margin, config.barrier)
    old = distributions(policy, theta, observations)
    rounding = np.finfo(old.dtype).eps * np.abs(cost_advantages).max()

    def judge(theta):
        new = distributions(policy, theta, observations)
        gains = np.expm1((log_probabilities(policy, new, actions) - old_log_probs).astype(float))  # ratio - 1
        kl, cost = float(mean_kl(policy, old, new)), float(np.mean(gains * cost_advantages))
        reward = float(np.mean(gains * reward_advantages))
        divergence = kl + beta * barrier_divergence(cost, margin, config.barrier) if margin > 0 else kl
        failed = "divergence" if not divergence <= delta else ""
        if not failed and not (reward >= 0 if margin > 0 else cost <= rounding):
            failed = "reward" if margin > 0 else "cost"
        return failed, {"realised_kl": kl, "realised_divergence": divergence, "surrogate_reward": reward,
                        "surrogate_cost": cost}

    theta, found = line_search(judge, theta, step)
    return theta, info | found | {"reward_residual": reward_residual, "cost_residual": cost_residual}

def windowed_cost(before: Vector, costs: Vector, window: int) -> tuple[float, Vector]:
    """J_c: the mean, over the episodes of a batch, of the mean cost of the last `window` at the end of each;
    and the last costs, for the next batch. With a window of 1, the mean cost of the batch."""
    costs, first = np.append(before, costs), len(before) + 1
    ends = range(first, len(costs) + 1)
    return np.mean([costs[max(0, end - window) : end].mean() for end in ends]), costs[-window:]

def train(config: Config, run: Path, state: dict) -> dict:
    """The paper's Algorithm 1: collect, estimate, update, log and save, until config.total_steps are done."""
    executor = make_executor(config)
    bar = tqdm(total=config.total_steps, initial=state["steps"], unit="step", disable=not sys.stderr.isatty())
    try:
        if not state["steps"]:
            executor, state = warm_up(executor, config, state)
        while state["steps"] < config.total_steps:
            started, actor = time.perf_counter(), make_actor(state)
            length = state["steps"] / state["next_episode"] if state["next_episode"] else 1000
            executor, episodes = collect(
                executor, config, actor, state["next_episode"], length, config.batch_steps)
            collected = time.perf_counter()
            batch = make_batch(episodes, actor)
            rewards, costs, critics = estimate_advantages(config, batch, state)
            metrics = episode_metrics(episodes)
            # mean over steps -> cost per episode: times its steps (the release: discounted, 1 / (1 - gamma))
            costs = costs * (1 / (1 - config.discount) if config.official_units else metrics["EpLen"])
            mean_cost, recent = windowed_cost(
                state.get("recent", []), [episode.costs.sum() for episode in episodes], config.cost_window)
            ends_at = config.cost_limit * (config.hysteresis if state.get("recovery", True) else 1.0)
            recovery = mean_cost >= ends_at
            theta, info = update_policy(
                config, actor.policy, state["theta"], batch.observations, batch.actions, rewards, costs,
                0.0 if recovery else config.cost_limit - mean_cost)
            finished = time.perf_counter()
            metrics["EpCostRegret"] = state["regret"] + max(0.0, metrics["EpCost"] - config.cost_limit)
            state = {**state, **critics, "theta": theta, "regret": metrics["EpCostRegret"],
                     "moments": added(state["moments"], batch.raw),
                     "epoch": state["epoch"] + 1, "steps": state["steps"] + len(batch.cost),
                     "next_episode": state["next_episode"] + len(episodes), "recovery": recovery,
                     "recent": recent}
            state = absorb_scaling(state, actor)
            save(run, state, {
                "Train/Epoch": state["epoch"], "Train/TotalSteps": state["steps"],
                **{f"Metrics/{name}": value for name, value in metrics.items()},
                "Train/KL": info.pop("realised_kl"), "Misc/AcceptanceStep": info.pop("trials"),
                **{f"Misc/{name}": value for name, value in info.items()}, "Misc/recovery": int(recovery),
                **({"Misc/mean_cost": mean_cost} if config.cost_window > 1 else {}),  # else it is EpCost
                "Time/Total": finished - started,
                "Time/Rollout": collected - started, "Time/Update": finished - collected})
            bar.update(len(batch.cost))
            bar.set_postfix(ret=metrics["EpRet"], cost=metrics["EpCost"], recovery=int(recovery))
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
