# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Of what a step promises, fresh episodes confirm the share 1 / (1 + n* / n): results/promise.json, by
`uv run studies/promise.py`, which fills the tables of docs/promise.md, too.

A step comes from one batch, by the shipped update; the batch promises the change ghat.step of its own
objective: of the cost (SB-TRPO, and the recovery of C-TRPO), or of the joint advantage (sTRPO). Episodes of
the same policy that the step has not seen say g.step. Kept is the ratio of the two, of means over steps.

Each policy gives a pool of episodes. A tenth of it fits critics; the rest is cut into two halves. Steps from
batches of either half are judged on the other, always by Monte Carlo with the mean at equal time as baseline,
whatever estimator the step had. Where a half holds fewer batches than it has steps, these overlap. Intervals
are at 95%, by the bootstrap: steps and the episodes that judge are drawn again, in both halves. For a batch
of all of a half they miss that its episodes, too, could be others.

    n*       (1 / k - 1) N, k from Misc/kept of a whole half of N episodes: the law of the other half's steps
    logged   Misc/kept of each batch: mean, median, standard deviation over steps
    judged   -g.step, the decrease that fresh episodes see [objective per step]
    no_step  share of the batches that give none, or see no cost

Policies are those of runs with default options after 0, 80,000, 400,000 and 800,000 steps; they are trained
first, in runs/promise-STEPS, and their pools are kept there.
"""

import argparse, dataclasses, importlib, json, math, os, pickle, shutil, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import numpy as np
import threadpoolctl
from pages import add, fill

PLACE = ROOT / "results" / "promise.json"
SIZES, STEPS, DRAWS = (10, 20, 50, 100, 200, 500), 20, 2000
STAGES = (0, 80_000, 400_000, 800_000)
CIRCLE, HOPPER, POINT = "SafetyCarCircle2-v0", "SafetyHopperVelocity-v1", "SafetyPointGoal1-v0"
POOLS = {CIRCLE: 1200, HOPPER: 400, POINT: 300}  # episodes
ESTIMATORS = {"time": {"advantage": "time"}, "gae .95": {"advantage": "gae", "gae_lambda": 0.95},
              "mc": {"advantage": "mc"}, "gae .8": {"advantage": "gae", "gae_lambda": 0.8},
              "critic": {"advantage": "gae", "gae_lambda": 1.0},  # as the baseline of returns
              "cost gae": {"of_cost": {"advantage": "gae", "gae_lambda": 0.95}}}  # reward: time
SOLVES = {"15 iterations": {"cg_iterations": 15}, "50 iterations": {"cg_iterations": 50},
          "damping .01": {"damping": 0.01}, "damping .1": {"damping": 0.1}}
NAMES = {"sbtrpo": "SB-TRPO", "ctrpo": "C-TRPO", "strpo": "sTRPO"}
CASES = [(algorithm, task, steps) for algorithm, task, stages in (
    ("sbtrpo", CIRCLE, STAGES), ("ctrpo", HOPPER, STAGES), ("sbtrpo", HOPPER, STAGES[1:]),
    ("ctrpo", POINT, STAGES), ("sbtrpo", POINT, STAGES[1:3]), ("strpo", HOPPER, STAGES[1:]))
    for steps in stages]


# ------------------------------------------------------------------------------- policies and pools


def trained(algorithm: str, task: str, steps: int) -> Path:
    """The folder of a run of that many steps, or of the shortest if 0; each goes on where the one before
    ended."""
    before = None
    for total in (s for s in STAGES if 0 < s <= max(steps, STAGES[1])):
        run = Path("runs", f"promise-{total}", task, algorithm, "seed-0")
        if not (run / "trained").exists():  # made last: an interrupted run is made anew
            shutil.rmtree(run, ignore_errors=True)
            script, options = str(ROOT / f"{algorithm}.py"), ["--total-steps", str(total), "--workers", "1"]
            if before:
                shutil.copytree(before, run, ignore=shutil.ignore_patterns("trained", "pool-*"))
                options += ["--resume", str(run)]
            else:
                options += ["--experiment", f"promise-{total}", "--task", task]
            subprocess.run([sys.executable, script, *options], check=True)
            (run / "trained").touch()
        before = run
    return before


def pool(algorithm: str, task: str, steps: int, count: int) -> tuple:
    """The run's folder and config, its state after so many steps, and `count` fresh episodes of that
    policy."""
    run, script = trained(algorithm, task, steps), importlib.import_module(algorithm)
    path = run / f"pool-{steps}.pickle"
    saved = pickle.loads(path.read_bytes()) if path.exists() else (None, None, [])
    if len(saved[2]) < count:
        config, state = script.load_run(run)
        if steps == 0:
            first = dataclasses.replace(config, workers=1)
            executor, state = script.warm_up(script.make_executor(first), first, script.initial_state(first))
            script.stop(executor)
        saved = config, state, play(script, config, state, count, 2**42)
        path.with_suffix(".tmp").write_bytes(pickle.dumps(saved))
        os.replace(path.with_suffix(".tmp"), path)
    config, state, episodes = saved
    return run, config, state, episodes[:count]


def thinned(fisher_product):
    """The same for up to 10,000 states; of more, every k-th counts: a product takes most of the time."""
    def product(policy, theta, observations, damping):
        return fisher_product(policy, theta, observations[:: math.ceil(len(observations) / 10_000)], damping)

    return product


def play(script, config, state, count: int, first: int) -> list:
    actor = script.make_actor(state)
    return [script.run_episode(config.task, config.seed, first + i, actor) for i in range(count)]


# ------------------------------------------------------------------------------- steps and their judges


class Case:
    """A policy, two halves of its pool, and what the shipped functions make of them."""

    def __init__(self, algorithm: str, task: str, steps: int, count: int):
        self.script = script = importlib.import_module(algorithm)
        if script.fisher_product.__name__ != "product":
            script.fisher_product = thinned(script.fisher_product)
        self.run, self.config, state, episodes = pool(algorithm, task, steps, count)
        tenth, self.actor = len(episodes) // 10, script.make_actor(state)
        config = dataclasses.replace(self.config, advantage="gae")
        for start in range(0, 3 * (tenth // 3), tenth // 3):  # critics as training leaves them
            part = script.make_batch(episodes[start : start + tenth // 3], self.actor)
            fits = script.estimate_advantages(config, part, state)[2]
            state = state | {name: fit() for name, fit in fits.items()}
        self.state, middle = state, tenth + (len(episodes) - tenth) // 2
        self.halves = episodes[tenth:middle], episodes[middle:]
        self.exclusions = [None, None]
        if algorithm == "strpo":
            self.exclusions = [self.exclusion(2**40 + 1000 * half) for half in (0, 1)]
        self.judges = [Judge(self, half) for half in (0, 1)]

    def exclusion(self, first: int):
        """KL(unsafe || pi) over states of 15 episodes of the unsafe policy."""
        config, state = self.script.load_run(self.run / "unsafe")
        raw = [e.observations[:-1] for e in play(self.script, config, state, 15, first)]
        unsafe = self.script.make_actor(state)
        return self.script.make_exclusion(self.config, self.actor, unsafe, np.concatenate(raw), None)[0]

    def advantages(self, batch, options: dict) -> tuple:
        """(rewards, costs), by the shipped estimators."""
        options = {"advantage": "time"} | options
        of_cost = options.pop("of_cost", options)
        rewards, costs = (self.script.estimate_advantages(dataclasses.replace(self.config, **each), batch,
                                                          self.state)[:2] for each in (options, of_cost))
        return rewards[0], costs[1]

    def objective(self, rewards, costs) -> np.ndarray:
        """What the step is to lower: the cost; sTRPO: the joint advantage, negated."""
        if self.script.ALGORITHM != "strpo":
            return costs
        memory, cost = self.state["pid"], self.config.cost_limit
        multiplier, _ = self.script.pid_multiplier(memory, cost, cost, self.config.pid)
        return multiplier * self.script.standardised(costs) - self.script.standardised(rewards)

    def update(self, episodes: list, options: dict, half: int) -> dict:
        """The shipped update from these episodes, C-TRPO in recovery; what it promises and logs."""
        config = dataclasses.replace(self.config, **{k: v for k, v in options.items() if k != "of_cost"})
        batch = self.script.make_batch(episodes, self.actor)
        rewards, costs = self.advantages(batch, options)
        given = config, self.actor.policy, self.actor.theta, batch.observations, batch.actions
        if self.script.ALGORITHM == "sbtrpo":
            theta, info = self.script.update_policy(*given, rewards, costs, None, batch.lengths)
        elif self.script.ALGORITHM == "ctrpo":
            theta, info = self.script.update_policy(*given, rewards, costs, 1.0, True, batch.lengths)
        else:
            joint = -self.objective(rewards, costs)
            theta, info = self.script.update_policy(*given, joint, self.exclusions[half], batch.lengths)
            info |= {"cost_change": -info["surrogate_change"], "surrogate_cost": -info["surrogate"]}
        return {"theta": theta, "step": theta - self.actor.theta, "kept": info["kept"],
                "promised": -info["fraction"] * info["cost_change"], "info": info}


class Judge:
    """One half of a pool: gradients of its episodes, one by one, and surrogates of a new policy on them."""

    def __init__(self, case: Case, half: int):
        self.case, self.half = case, half
        self.batch = batch = case.script.make_batch(case.halves[half], case.actor)
        self.rewards, self.costs = case.advantages(batch, {})
        self.objective = case.objective(self.rewards, self.costs)
        self.gradients = self.by_episode(self.objective)
        self.old = case.script.distributions(case.actor.policy, case.actor.theta, batch.observations)

    def by_episode(self, weights: np.ndarray) -> np.ndarray:
        """(episodes, p): their parts of the gradient, whose mean it is."""
        case, batch, parts = self.case, self.batch, []
        for end, length in zip(np.cumsum(batch.lengths), batch.lengths):
            rows = slice(end - length, end)
            gradient, _ = case.script.policy_gradient(
                case.actor.policy, case.actor.theta, batch.observations[rows], batch.actions[rows])
            parts.append(gradient(weights[rows]) / batch.lengths.mean())
        return np.array(parts)

    def surrogates(self, theta: np.ndarray) -> dict:
        """Decrease of the objective, gain of reward, KL and exclusion of a new policy, on this half."""
        script, policy, batch = self.case.script, self.case.actor.policy, self.batch
        new = script.distributions(policy, theta, batch.observations)
        logs = [script.log_probabilities(policy, each, batch.actions) for each in (self.old, new)]
        gains = np.expm1((logs[1] - logs[0]).astype(float))
        found = {"decrease": -np.mean(gains * self.objective), "reward": np.mean(gains * self.rewards),
                 "kl": script.mean_kl(policy, self.old, new)}
        if exclusion := self.case.exclusions[self.half]:
            found["exclusion"] = exclusion(theta) - exclusion(self.case.actor.theta)
        return {name: float(value) for name, value in found.items()}

    def noise_scale(self, shuffles: int = 5) -> float:
        """n* [episodes], from Misc/kept of all episodes of this half, the median over ways to halve them."""
        case, shares = self.case, []
        for k in range(shuffles):
            order = np.random.default_rng(k).permutation(len(self.case.halves[self.half]))
            batch = case.script.make_batch([case.halves[self.half][i] for i in order], case.actor)
            weights = case.objective(*case.advantages(batch, {}))
            gradient, _ = case.script.policy_gradient(case.actor.policy, case.actor.theta, batch.observations,
                                                      batch.actions)
            shares.append(case.script.share_kept(case.config, case.actor.policy, case.actor.theta,
                                                 batch.observations, gradient, batch.lengths, weights,
                                                 gradient(weights / len(weights))))
        share = np.median(shares)
        return len(order) * (1 / share - 1) if share > 0 else math.inf


# ------------------------------------------------------------------------------- what is measured


def measure(case: Case, size: int, options: dict, steps: int = STEPS) -> tuple[dict, list]:
    """Kept by steps of batches of this size, half of them from either half of the pool; and the steps."""
    folds, every = [], []
    for half, judge in ((0, case.judges[1]), (1, case.judges[0])):
        rng, source, order, taken = np.random.default_rng(half), case.halves[half], [], []
        for _ in range(steps // 2):
            if len(order) < size:  # used up: shuffle again
                order = rng.permutation(len(source)).tolist()
            chosen, order = order[:size], order[size:]
            taken.append(case.update([source[i] for i in chosen], options, half) | {"judge": judge})
        changes = -np.array([step["step"] for step in taken]) @ judge.gradients.T  # (steps, episodes)
        folds.append((changes, np.array([step["promised"] for step in taken])))
        every += taken
    kept, interval = bootstrap(folds)
    logged = np.array([step["kept"] for step in every])
    logged = logged[np.isfinite(logged)]
    judged, promised = (np.mean([fold[k].mean() for fold in folds]) for k in (0, 1))
    row = {"steps": len(every), "kept": kept, "interval": interval, "promised": promised, "judged": judged,
           "no_step": np.mean([step["promised"] <= 0 for step in every])}
    if len(logged):
        row["logged"] = {"mean": logged.mean(), "median": np.median(logged),
                         "sd": logged.std(ddof=1) if len(logged) > 1 else 0.0, "batches": len(logged)}
    return row, every


def bootstrap(folds: list, draws: int = DRAWS) -> tuple[float, list]:
    """The ratio of judged and promised means, and 95% of its draws."""
    rng, ratios = np.random.default_rng(0), []
    total = sum(promised.mean() for _, promised in folds)
    if total <= 0:
        return math.nan, [math.nan, math.nan]
    for _ in range(draws):
        above = below = 0.0
        for changes, promised in folds:
            rows = rng.integers(len(changes), size=len(changes))
            columns = rng.integers(changes.shape[1], size=changes.shape[1])
            weight = np.bincount(columns, minlength=changes.shape[1]) / len(columns)
            above += (changes[rows] @ weight).mean()
            below += promised[rows].mean()
        ratios.append(above / below if below > 0 else math.nan)
    kept = sum(changes.mean() for changes, _ in folds) / total
    return kept, np.nanquantile(ratios, (0.025, 0.975)).tolist()


def whole_steps(every: list) -> dict:
    """What the line search has let through: surrogates on the batch, and on the other half."""
    fresh = [step["judge"].surrogates(step["theta"]) for step in every]
    infos = [step["info"] for step in every]
    names = {"decrease": "surrogate_cost", "reward": "surrogate_reward", "kl": "realised_kl",
             "exclusion": "realised_exclusion"}
    found = {}
    for name, logged in names.items():
        if name in fresh[0] and logged in infos[0]:
            sign = -1 if name == "decrease" else 1
            found[name] = {"batch": float(np.mean([sign * info[logged] for info in infos])),
                           "fresh": float(np.mean([each[name] for each in fresh]))}
    found["kl"]["most"] = max(each["kl"] for each in fresh)
    return found


def real_change(case: Case, every: list, count: int) -> dict:
    """Cost per episode of the new policies of some steps, on fresh episodes, against the old one's."""
    old = np.array([e.costs.sum() for half in case.halves for e in half])
    length, means, promised, judged = np.mean(case.judges[0].batch.lengths), [], [], []
    for k, step in enumerate(every):
        episodes = play(case.script, case.config, case.state | {"theta": step["theta"]}, count,
                        2**43 + k * count)
        means.append(np.mean([e.costs.sum() for e in episodes]))
        promised.append(step["promised"] * length)
        judged.append(-float(step["judge"].gradients.mean(axis=0) @ step["step"]) * length)
    error = math.hypot(np.std(means, ddof=1) / math.sqrt(len(means)), old.std() / math.sqrt(len(old)))
    return {"steps": len(every), "episodes": count, "before": old.mean(), "after": np.mean(means),
            "standard_error": error, "promised": np.mean(promised), "judged": np.mean(judged)}


def margins(case: Case, size: int) -> dict:
    """How often J_c is over the budget after a step of C-TRPO that its surrogate calls safe, and without a
    step, against the margin of the batch in units of the noise of its mean cost."""
    found = {}
    for distance in (0.5, 1.0, 2.0):
        unsafe, still, reached = [], [], []
        for half, judge in ((0, case.judges[1]), (1, case.judges[0])):
            rng = np.random.default_rng(half)
            true, length = np.mean([e.costs.sum() for e in case.halves[1 - half]]), judge.batch.lengths.mean()
            for _ in range(STEPS // 2):
                chosen = rng.permutation(len(case.halves[half]))[:size]
                batch = case.script.make_batch([case.halves[half][i] for i in chosen], case.actor)
                totals = np.array([case.halves[half][i].costs.sum() for i in chosen])
                margin = distance * totals.std(ddof=1) / math.sqrt(size)
                if margin == 0:  # no cost, no noise
                    continue
                rewards, costs = case.advantages(batch, {"advantage": case.config.advantage})
                theta, info = case.script.update_policy(
                    case.config, case.actor.policy, case.actor.theta, batch.observations, batch.actions,
                    rewards, batch.lengths.mean() * costs, margin, False, batch.lengths)
                after = true - length * judge.surrogates(theta)["decrease"]
                unsafe.append(after > totals.mean() + margin)
                still.append(true > totals.mean() + margin)
                reached.append(info["surrogate_cost"] / margin)
        if unsafe:
            found[distance] = {"steps": len(unsafe), "unsafe": np.mean(unsafe), "without": np.mean(still),
                               "promised_rise": np.mean(reached)}
    return found


def study(case: Case, real: tuple[int, int]):
    """All that is measured of a policy, as far as it has come, again and again."""
    costs = [e.costs for half in case.halves for e in half]
    lengths, results, solves = case.judges[0].batch.lengths, {}, {}
    result = {"cost": np.mean([c.sum() for c in costs]), "with_cost": np.mean([c.any() for c in costs]),
              "length": lengths.mean(), "pool": len(costs),
              "noise_scale": [judge.noise_scale() for judge in case.judges], "estimators": results}
    sizes = [n for n in SIZES if n <= len(case.halves[0])]
    default = min(sizes, key=lambda n: abs(n - case.config.batch_steps / lengths.mean()))
    rich = case.config.task == CIRCLE  # the others: fewer columns of the table
    for name, options in ESTIMATORS.items() if rich else list(ESTIMATORS.items())[:2]:
        results[name] = {}
        for size in sizes if name in ("time", "gae .95") else [n for n in sizes if n <= 100]:
            results[name][size], every = measure(case, size, options)
            if name == "time" and size == default:
                result["default"], of_default = {"size": size} | whole_steps(every), every
        yield result
    if case.script.ALGORITHM == "ctrpo":
        result["margins"] = margins(case, default)
        yield result
    if real[0] and case.script.ALGORITHM != "strpo":
        result["default"]["real"] = real_change(case, of_default[:: max(1, STEPS // real[0])], real[1])
        yield result
    for name, options in SOLVES.items() if rich else ():
        solves[name] = {default: measure(case, default, {"advantage": "time"} | options)[0]}
        result["solves"] = solves
        yield result


def rounded(value):
    """Three significant digits, all the way down; JSON knows no infinity."""
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.3g}") if math.isfinite(value) else None
    return value


def title(name: str) -> str:
    """As a row of a table calls it."""
    algorithm, *task, steps = name.split("-")
    return f"{NAMES[algorithm]}, {task[0].removeprefix('Safety').removesuffix('Velocity')}, {int(steps):,}"


def number(value, digits: int = 2) -> str:
    """Empty for what was not measured, or divided by nothing."""
    return "" if value is None else f"{value:.{digits}f}".replace("-", "−")


def rows(head: list[str], lines: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]


def kept_table(results: dict) -> list[str]:
    """Kept, with the mean at equal time and with GAE, for some n."""
    sizes, lines = ("10", "20", "50", "100"), []
    for name, result in results.items():
        scales = [scale for scale in result["noise_scale"] if scale is not None]
        line = [title(name), f"{result['cost']:.3g}",
                " and ".join(f"{scale:,.0f}" for scale in scales) if len(scales) == 2 else "unknown"]
        for estimator in ("time", "gae .95"):
            line += [number(result["estimators"].get(estimator, {}).get(n, {}).get("kept")) for n in sizes]
        lines.append(line)
    head = [f"{estimator}, {n}" for estimator in ("time", "GAE") for n in sizes]
    return rows(["policy", "cost", "n\\*", *head], lines)


def decrease_table(results: dict) -> list[str]:
    """What fresh episodes see of the decrease of the cost, per thousand steps, for 10, 20, 50 and 100
    episodes."""
    columns, lines = {"mc": "no baseline", "time": "time", "critic": "critic", "gae .95": "GAE, λ = 0.95",
                      "gae .8": "GAE, λ = 0.8"}, []
    for name, result in results.items():
        if result["with_cost"] > 0.02 and not name.startswith("strpo"):
            line = [title(name)]
            for key in columns:
                found = list(result["estimators"].get(key, {}).values())[:4]
                line.append(", ".join(number(1000 * each["judged"], 1) for each in found))
            lines.append(line)
    return rows(["policy", *columns.values()], lines)


def real_table(results: dict) -> list[str]:
    """The cost of an episode before and after the steps, what they promised, and what fresh episodes say."""
    lines = []
    for name, result in results.items():
        if (real := result["default"].get("real")) and result["with_cost"] > 0.02:
            decrease = real["before"] - real["after"]
            lines.append([title(name), str(result["default"]["size"]), f"{real['before']:.3g}",
                          f"{real['promised']:.3g}", number(real["judged"], 1),
                          f"{number(decrease, 1)} ± {number(real['standard_error'], 1)}"])
    return rows(["policy", "episodes in a batch", "cost before", "promised decrease",
                 "surrogate on fresh episodes", "real decrease"], lines)


def margin_table(results: dict) -> list[str]:
    """Of the steps of C-TRPO that the surrogate calls safe, the share over the budget, against the margin."""
    lines = []
    for name, result in results.items():
        if found := result.get("margins"):
            cells = [f"{number(each['unsafe'])} ({number(each['without'])})" for each in found.values()]
            lines.append([title(name), str(result["default"]["size"]), *cells])
    return rows(["policy", "episodes in a batch", "margin 0.5", "margin 1", "margin 2"], lines)


def tables(results: dict) -> dict[str, str]:
    """All that docs/promise.md shows of the results."""
    found = {"kept": kept_table, "agreement": agreement, "decrease": decrease_table, "real": real_table,
             "margin": margin_table}
    return {name: "\n".join(table(results)) for name, table in found.items()}


def agreement(results: dict) -> list[str]:
    """How often the law is within a point's interval, where both halves give n*; and how far the median of
    Misc/kept is from kept, with each estimator of the table."""
    inside, lines = [], []
    for result in results.values():
        scales = [scale for scale in result["noise_scale"] if scale is not None]
        for n, row in result["estimators"]["time"].items() if len(scales) == 2 else ():
            if row["kept"] is not None:
                low, high = row["interval"]
                inside.append(low <= 1 / (1 + np.mean(scales) / int(n)) <= high)
    lines.append(f"* The law lies within the interval at {sum(inside)} of {len(inside)} points.")
    for name, estimator in (("the mean at equal time", "time"), ("GAE", "gae .95")):
        points = [row for result in results.values() for row in result["estimators"][estimator].values()]
        gaps = np.array([row["logged"]["median"] - row["kept"] for row in points
                         if row["kept"] is not None and "logged" in row])
        near, ends = sum(abs(gaps) <= 0.1), f"{number(gaps.min())} and {number(gaps.max())}"
        lines.append(f"* With {name} the median of `Misc/kept` is within 0.1 of kept at {near} of "
                     f"{len(gaps)} points; {ends} are the largest differences, "
                     f"{number(gaps.mean())} the mean.")
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    names = ["-".join(map(str, case)) for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="and keep the others")
    of_pools = f"{min(POOLS.values()):,} to {max(POOLS.values()):,}"
    parser.add_argument("--episodes", type=int, help=f"of a pool (default {of_pools})")
    parser.add_argument("--real", nargs=2, type=int, default=(4, 40), metavar=("STEPS", "EPISODES"),
                        help="steps whose new policies are played, and for how many episodes (default 4 40)")
    parser.add_argument("--output", type=Path, default=PLACE)
    options = parser.parse_args(argv)
    if options.episodes is not None and options.episodes < 30:  # a tenth, in three parts, fits the critics
        parser.error("--episodes must be at least 30")
    threadpoolctl.threadpool_limits(1, "blas")
    for name, case in zip(names, CASES):
        if name in options.only:
            started = time.perf_counter()
            policy = Case(*case, options.episodes or POOLS[case[1]])
            for part in study(policy, options.real):
                results = add(options.output, rounded(part), name)
            kept = {n: row["kept"] for n, row in results[name]["estimators"]["time"].items()}
            print(f"{name}: {kept}, {time.perf_counter() - started:.0f} s", flush=True)
    found = tables(json.loads(options.output.read_text()))
    print("\n\n".join(found.values()))
    if options.output == PLACE:
        fill("promise.py", found)


if __name__ == "__main__":
    main()
