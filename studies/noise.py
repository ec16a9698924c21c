# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""A batch of three times the noise scale is enough for a step: results/noise.json, by
`uv run studies/noise.py`.

It measures the noise of sampled policy gradients on exact worlds: 8,192 episodes of each of four policies,
sampled and estimated by the functions that train, compared with the exact gradient g. For n episodes in a
batch,

    |v|^2  = v.F^+ v                          the metric of the natural gradient; v a gradient
    e(n)   = |ghat - g| / |g|                 relative error of a batch's gradient ghat
    n*     = E |G_i - g|^2 / |g|^2            noise scale [episodes]: tr(F^+ Sigma) / g.F^+ g
    e(n)   = sqrt(n* / n)                     the law, of the root mean square over batches              (1)
    share  = 1 / sqrt(1 + n* / n)             the law of what a step gets of the best cost decrease      (2)

where ghat is the mean of the parts G_i of the episodes, and the share is the cosine of ghat and g in this
metric: the change of J_c to first order along F^+ ghat, over the best that the same KL allows. A biased
estimator (GAE with a critic) has e(n)^2 = bias^2 + n* / n. (1) is exact for a mean of independent parts, (2)
an approximation; and where few batches carry all of the noise, both say little of the typical one: hence
quantiles. Estimators: mc, no baseline; time, less the others' mean at equal time; value, less the exact
value; gae, with the critics of sbtrpo.py, lambda = .95, fitted to three earlier batches of 10,000 steps.

The worlds end an episode with probability 1 - gamma in each step (see TabularEnv). For comparison n* is also
measured with episodes of 60 steps, discounted in the return and in the weight of a state, from 2,048 of them.
"""

import argparse, dataclasses, math, sys
from pathlib import Path

import gymnasium as gym

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import sbtrpo
import tabular_cmdp
import figures
import numpy as np
from pages import add

ESTIMATORS = ("mc", "time", "value", "gae")
BATCHES, EARLIER, BETA, DELTA = (4, 16, 64, 256, 1024), 3_072, 0.75, 0.01
WORLDS = {"two_state": ("TwoState-v0", 0), "hazard_grid": ("HazardGrid-v0", 0), "garnet": ("Garnet-v0", 0),
          "hazard_grid, 8 steps": ("HazardGrid-v0", 8)}  # environment, SB-TRPO steps from the uniform policy


class Case:
    """A world, a policy in it as logits (S, A), what is exact there, and episodes sampled from it: of random
    length, whose end is the discount, or of a fixed `length`, with a discount."""

    def __init__(self, task: str, steps: int, episodes: int, length: int | None = None):
        self.world = world = gym.make(f"tabular_cmdp:{task}").unwrapped.world
        self.theta = theta = figures.exact_path(world, np.zeros(world.r.shape), "SB-TRPO", "", BETA, DELTA,
                                                steps)[-1]
        self.occupancy = world.occupancy(theta)
        self.exact = [world.gradient(theta, f) for f in (world.r, world.c)]
        self.config = sbtrpo.Config(task=f"tabular_cmdp:{task}", discount=1.0)
        if length:
            gym.register("Fixed" + task, entry_point=tabular_cmdp.TabularEnv, max_episode_steps=length,
                         kwargs={"make_world": lambda: dataclasses.replace(world, gamma=1.0)})
            self.config = sbtrpo.Config(task="Fixed" + task, discount=world.gamma)
        self.weight = (1 - world.gamma) * world.gamma ** np.arange(length) if length else None  # of a state
        self.state = sbtrpo.initial_state(self.config)  # for its critics: the policy is a table, one layer
        (S, A), self.policy = theta.shape, sbtrpo.Policy(theta.shape, True)
        self.actor = sbtrpo.Actor(self.policy, np.append(theta, np.zeros(A)), np.zeros(S), np.ones(S))
        self.parameters = self.actor.theta
        self.episodes = [sbtrpo.run_episode(self.config.task, 0, i, self.actor) for i in range(episodes)]

    def length2(self, v: np.ndarray) -> np.ndarray:
        """v.F^+ v = sum v^2 / (d pi), for v (..., S, A) whose rows sum to 0."""
        return np.sum(v**2 / self.occupancy, axis=(-2, -1))

    def natural(self, v: np.ndarray) -> np.ndarray:
        """F^+ v, for v whose rows sum to 0."""
        x = v / self.occupancy
        return x - x.mean(axis=1, keepdims=True)

    def fit_critics(self, batches: list) -> None:
        """Critics as training leaves them: fitted to one batch after the other."""
        config = dataclasses.replace(self.config, advantage="gae")
        for episodes in batches:
            batch = sbtrpo.make_batch(episodes, self.actor)
            *_, fits = sbtrpo.estimate_advantages(config, batch, self.state)
            self.state |= {name: fit() for name, fit in fits.items()} | {"epoch": self.state["epoch"] + 1}

    def advantages(self, episodes: list, estimator: str) -> list[np.ndarray]:
        """Of reward and cost, for every step: by the shipped estimators; "value" is exact."""
        batch = sbtrpo.make_batch(episodes, self.actor)
        if estimator == "value":
            return [sbtrpo.gae(batch, signal, batch.raw @ self.world.value(self.theta, f),
                               self.config.discount, 1.0)
                    for signal, f in ((batch.reward, self.world.r), (batch.cost, self.world.c))]
        config = dataclasses.replace(self.config, advantage=estimator)
        return sbtrpo.estimate_advantages(config, batch, self.state)[:2]

    def noise_scale(self, estimator: str) -> list[dict]:
        """n*, its standard error, and the bias, of the reward and of the cost gradient."""
        *_, inputs, actions, owner = together(self.episodes)
        states, pi, results = inputs.argmax(axis=1), tabular_cmdp.policy(self.theta), []
        weights = np.ones(len(owner)) if self.weight is None else np.tile(self.weight, len(self.episodes))
        lengths = np.bincount(owner, weights)
        for advantages, g in zip(self.advantages(self.episodes, estimator), self.exact):
            parts = np.zeros((len(lengths), *g.shape))  # sums of A grad log pi, and that is one-hot - pi
            np.add.at(parts, (owner, states, actions), weights * advantages)
            parts -= parts.sum(axis=2, keepdims=True) * pi
            # ghat = sum of parts / sum of lengths: to first order in its error a mean of (parts - T g) / E T
            noise = (parts - lengths[:, None, None] * g) / lengths.mean()
            squares = self.length2(noise - noise.mean(axis=0)) / self.length2(g)
            bias2 = self.length2(noise.mean(axis=0)) / self.length2(g) - squares.mean() / len(squares)
            results.append({"noise_scale": squares.mean(), "bias": math.sqrt(max(0.0, bias2)),
                            "standard_error": squares.std() / math.sqrt(len(squares))})
        return results

    def gradients(self, episodes: list, estimator: str) -> list[np.ndarray]:
        """g-hat of reward and cost, flat, over the table's logits and the bias of each action."""
        *_, inputs, actions, _ = together(episodes)
        gradient, _ = sbtrpo.policy_gradient(self.policy, self.parameters, inputs, actions)
        return [gradient(a / len(a)) for a in self.advantages(episodes, estimator)]

    def table(self, v: np.ndarray) -> np.ndarray:
        """Of parameters (S A + A,), those of the logits."""
        return v[: self.theta.size].reshape(self.theta.shape)

    def judge(self, episodes: list, estimator: str) -> dict:
        """What one batch gives: errors, shares of the best change, and the SB-TRPO step that it leads to."""
        flat = self.gradients(episodes, estimator)
        (g_r, g_c), exact_x = map(self.table, flat), [self.natural(g) for g in self.exact]
        q, s = (float(np.sum(g * x)) for g, x in zip(self.exact, exact_x))
        cosine = np.sum(g_c * exact_x[1]) / math.sqrt(self.length2(g_c) * s or math.inf)
        step, info = sbtrpo.safety_biased_step(*(v.ravel() for g in (g_r, g_c) for v in (g, self.natural(g))),
                                               DELTA, BETA)
        changes = [float(g.ravel() @ step) for g in self.exact]
        half = len(episodes) // 2
        first, second = (self.table(self.gradients(part, estimator)[1])
                         for part in (episodes[:half], episodes[half:]))
        return {"reward_error": math.sqrt(self.length2(g_r - self.exact[0]) / q),
                "cost_error": math.sqrt(self.length2(g_c - self.exact[1]) / s),
                "cost_share": cosine, "shipped_cost_share": self.shipped_share(episodes, flat[1]),
                "half_cosine": np.sum(first * self.natural(second))
                / math.sqrt(self.length2(first) * self.length2(second) or math.inf),
                "kept": -changes[1] / (BETA * math.sqrt(2 * DELTA * s)), "rho": info["rho"],
                "reward_gain": changes[0] / math.sqrt(2 * DELTA * q), "no_cost": float(not g_c.any())}

    def shipped_share(self, episodes: list, cost_gradient: np.ndarray) -> float:
        """As cost_share, of the direction that sbtrpo.py takes: F of the batch, five iterations, damping."""
        *_, inputs, _, _ = together(episodes)
        product = sbtrpo.fisher_product(self.policy, self.parameters, inputs, self.config.damping)
        x, _ = sbtrpo.conjugate_gradients(product, cost_gradient, self.config.cg_iterations)
        v = self.table(x) + x[self.theta.size :]  # of the logits
        d, pi = self.occupancy.sum(axis=1), tabular_cmdp.policy(self.theta)
        v = v - np.sum(pi * v, axis=1, keepdims=True)
        length2, s = np.sum(d[:, None] * pi * v**2), self.length2(self.exact[1])  # v.F v
        return float(np.sum(self.exact[1] * v) / math.sqrt(length2 * s or math.inf))


def together(episodes: list) -> tuple:
    """Observations with the last ones, where these stand; observations, actions and episode of every step."""
    observations = np.concatenate([e.observations for e in episodes])
    lasts = np.cumsum([len(e.observations) for e in episodes]) - 1
    owner = np.repeat(np.arange(len(episodes)), [len(e.actions) for e in episodes])
    return observations, lasts, np.delete(observations, lasts, axis=0), np.concatenate(
        [e.actions for e in episodes]), owner


def sampled(task: str, steps: int, earlier: int, episodes: int, length: int | None = None) -> Case:
    """A case with that many episodes, and critics fitted to three batches of earlier ones."""
    case, batch = Case(task, steps, earlier + episodes, length), math.ceil(earlier / 3)
    case.fit_critics([case.episodes[i : min(i + batch, earlier)] for i in range(0, earlier, batch)])
    case.episodes = case.episodes[earlier:]
    return case


def quantiles(values: list) -> dict:
    values = np.array(values)
    return {"mean": values.mean(), "rms": math.sqrt(np.mean(values**2)),
            **dict(zip(("q10", "median", "q90"), np.quantile(values, (0.1, 0.5, 0.9))))}


def measure(case: Case, estimator: str, most: int = 64) -> dict:
    """Noise scales, and what batches of every size give: statistics over at most `most` disjoint batches."""
    reward, cost = case.noise_scale(estimator)
    batches = {}
    for n in (n for n in BATCHES if n <= len(case.episodes)):
        count = min(most, len(case.episodes) // n)
        judged = [case.judge(case.episodes[i * n : (i + 1) * n], estimator) for i in range(count)]
        batches[n] = {"batches": count, **{k: quantiles([b[k] for b in judged]) for k in judged[0]}}
    return {"reward": reward, "cost": cost, "batches": batches}


def summary(case: Case) -> dict:
    """What is exact at the policy, and how rare cost is."""
    vectors = [v.ravel() for g in case.exact for v in (g, case.natural(g))]
    step, info = sbtrpo.safety_biased_step(*vectors, DELTA, BETA)
    return {"J_r": float(case.world.J(case.theta, case.world.r)), "rho": info["rho"],
            "J_c": float(case.world.J(case.theta, case.world.c)), "reward_gain": info["reward_change"]
            / math.sqrt(2 * DELTA * vectors[0] @ vectors[1]),
            "episodes_with_cost": np.mean([e.costs.any() for e in case.episodes])}


def rounded(value):
    """Four significant digits, all the way down."""
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parser.add_argument("--episodes", type=int, default=8_192, help="of every policy")
    parser.add_argument("--only", nargs="+", choices=WORLDS, default=list(WORLDS), help="and keep the others")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "noise.json")
    options = parser.parse_args(argv)
    if options.episodes < 4 * BATCHES[0]:  # a quarter has a fixed length
        parser.error(f"--episodes must be at least {4 * BATCHES[0]}")
    results = {}
    for name in options.only:
        task, steps = WORLDS[name]
        case = sampled(task, steps, EARLIER, options.episodes)
        results[name] = summary(case) | {e: measure(case, e) for e in ESTIMATORS}
        fixed = sampled(task, steps, EARLIER // 6, options.episodes // 4, length=60)
        results[name]["fixed length"] = {e: dict(zip(("reward", "cost"), fixed.noise_scale(e)))
                                         for e in ESTIMATORS}
        print(name, *(f"{e} {results[name][e]['cost']['noise_scale']:.3g}" for e in ESTIMATORS), flush=True)
        add(options.output, rounded(results[name]), name)


if __name__ == "__main__":
    main()
