# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Does anything make the promise of SB-TRPO's step truer for the same number of steps? results/truer.json, by
`uv run studies/truer.py`, which fills a table of docs/promise.md, too. 27 to 54 runs, some 3 to 12 hours of a
core.

Each candidate is sbtrpo.py with default options but for one thing: an option, or a function that is put in
the place of the script's. All train on two tasks, with three seeds, for 1.5 million steps:

    gae, gae .8   critics of reward and cost, lambda = 0.95 and 0.8
    critic        critics as baselines of whole returns: lambda = 1
    large         batches of four times as many episodes, so a quarter of the steps
    cost gae      as gae, but for the cost alone; the reward has the mean at equal time
    averaged      gradients of the last four batches; each step is weighted by pi_now(a|s) / pi_then(a|s), at
                  most 10
    until kept    batches go on, up to four times as long, until Misc/kept is a quarter or more
    shrunk        beta of the decrease that fresh episodes will confirm, not of the batch's: with kept the
                  median of the last twenty Misc/kept, at least 0.05, rho / kept stands for rho in (2), for
                  g_c.step_c shrinks and g_c.step_r, whose noise is another's, does not

Said before the runs: a candidate wins on a task if its safe reward, over the last tenth of the epochs, is
above the default's (Welch's test over seeds, p < 0.05, one-sided) and its safety probability is not below
(the same). What wins on both tasks becomes an option of the scripts. So what does not win on the first task,
with all seeds, is not run on the second. The mean cost of all epochs was added after the runs, and decides
nothing.

A finished run, in runs/truer-CANDIDATE, is not run again; one that was stopped begins anew, for what a
candidate remembers is not in a checkpoint. --only, --task and --seed take a part; results are kept.
"""

import argparse, collections, contextlib, csv, dataclasses, itertools, json, shutil, sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import numpy as np
from scipy import stats

import sbtrpo
from pages import add, fill
from table import joined
from two_budgets import cell

PLACE = ROOT / "results" / "truer.json"
TASKS, SEEDS, STEPS = ("SafetyCarCircle2-v0", "SafetyPointPush2-v0"), (0, 1, 2), 1_500_000
METRICS = {"EpRet": "return", "EpCost": "cost", "SafetyProbability": "safety", "SafeReward": "safe reward"}


# ------------------------------------------------------------------------------- what candidates replace


def of_the_cost_alone() -> dict:
    def estimate_advantages(config, batch, state, shipped=sbtrpo.estimate_advantages):
        rewards = shipped(config, batch, state)[0]
        _, costs, fits = shipped(dataclasses.replace(config, advantage="gae"), batch, state)
        return rewards, costs, {"cost_critic": fits["cost_critic"]}

    return {"estimate_advantages": estimate_advantages}


def averaged(count: int = 4, most: float = 10.0) -> dict:
    """The update gets the steps of the last batches as if they were of one; their advantages are multiplied
    by pi_now / pi_then, so that gradients are those of the surrogates."""
    memory, now = collections.deque(maxlen=count), {}

    def make_batch(episodes, actor, shipped=sbtrpo.make_batch):
        batch = shipped(episodes, actor)
        now.update(actor=actor, raw=np.delete(batch.raw, batch.lasts, axis=0))
        return batch

    def log_probs(policy, theta, observations, actions):
        new = sbtrpo.distributions(policy, theta, observations)
        return sbtrpo.log_probabilities(policy, new, actions)

    def update_policy(config, policy, theta, observations, actions, rewards, costs, excess, lengths,
                      shipped=sbtrpo.update_policy):
        then = log_probs(policy, theta, observations, actions)
        memory.append((now["raw"], actions, then, rewards, costs, lengths))
        parts = []
        for raw, acts, then, of_reward, of_cost, each in memory:
            inputs = now["actor"].normalise(raw).astype(np.float32)
            weights = np.minimum(np.exp(log_probs(policy, theta, inputs, acts) - then), most)
            parts.append((inputs, acts, weights * of_reward, weights * of_cost, each))
        inputs, acts, of_reward, of_cost, each = map(np.concatenate, zip(*parts))
        return shipped(config, policy, theta, inputs, acts, of_reward, of_cost, excess, each)

    return {"make_batch": make_batch, "update_policy": update_policy}


def until_kept(level: float = 0.25, most: int = 4) -> dict:
    def share_of(config, actor, episodes):
        batch = sbtrpo.make_batch(episodes, actor)
        state = {"sizes": np.array(actor.policy.sizes), "epoch": 0}
        _, costs, _ = sbtrpo.estimate_advantages(config, batch, state)
        given = actor.policy, actor.theta, batch.observations
        gradient, _ = sbtrpo.policy_gradient(*given, batch.actions)
        whole = gradient(costs / len(costs))
        return sbtrpo.share_kept(config, *given, gradient, batch.lengths, costs, whole)

    def collect(executor, config, actor, first, size, usual=1000, shipped=sbtrpo.collect):
        executor, episodes = shipped(executor, config, actor, first, size, usual)
        batches = 1
        # NaN, where no episode has cost, is no reason to go on
        while first < 2**41 and batches < most and share_of(config, actor, episodes) < level:
            executor, more = shipped(executor, config, actor, first + len(episodes), size, usual)
            episodes, batches = episodes + more, batches + 1
        return executor, episodes

    return {"collect": collect}


def shrunk(least: float = 0.05) -> dict:
    memory = collections.deque(maxlen=20)

    def share_kept(*given, shipped=sbtrpo.share_kept):
        share = shipped(*given)
        if np.isfinite(share):
            memory.append(share)
        return share

    def convex_weights(rho, beta, shipped=sbtrpo.convex_weights):
        kept = np.median(memory) if memory else 1.0
        return shipped(rho / min(max(float(kept), least), 1.0), beta)

    return {"share_kept": share_kept, "convex_weights": convex_weights}


OPTIONS = {"default": "", "gae": "--advantage gae", "gae .8": "--advantage gae --gae-lambda 0.8",
           "critic": "--advantage gae --gae-lambda 1", "large": "--batch-steps 40000"}
FUNCTIONS = {"cost gae": of_the_cost_alone, "averaged": averaged, "until kept": until_kept, "shrunk": shrunk}
CANDIDATES = (*OPTIONS, *FUNCTIONS)


# ------------------------------------------------------------------------------- runs and verdicts


def train(candidate: str, task: str, seed: int, steps: int, workers: int) -> dict[str, float]:
    """Means over the last tenth of the epochs of the run, which is made unless it is there; the mean cost of
    all its epochs, and the median of their Misc/kept. Of a longer run that is there, its beginning counts."""
    experiment = f"truer-{candidate.replace(' ', '-')}"
    run = Path("runs", experiment, task, "sbtrpo", f"seed-{seed}")
    table = rows(run)
    if not table or int(table[-1]["Train/TotalSteps"]) < steps:
        shutil.rmtree(run, ignore_errors=True)
        functions = FUNCTIONS[candidate]() if candidate in FUNCTIONS else {}
        with contextlib.ExitStack() as replaced:
            for name, function in functions.items():
                replaced.enter_context(mock.patch.object(sbtrpo, name, function))
            code = sbtrpo.main([*OPTIONS.get(candidate, "").split(), "--experiment", experiment,
                                "--task", task, "--seed", str(seed), "--total-steps", str(steps),
                                "--workers", str(workers)])
        if code:
            sys.exit(code)
        table = rows(run)
    table = table[: 1 + sum(int(row["Train/TotalSteps"]) < steps for row in table)]
    last = table[-max(1, len(table) // 10):]
    means = {name: np.mean([float(row[f"Metrics/{key}"]) for row in last]) for key, name in METRICS.items()}
    means["cost of all"] = np.mean([float(row["Metrics/EpCost"]) for row in table])
    means["kept"] = np.nanmedian([float(row["Misc/kept"]) for row in table])
    found = {name: float(f"{value:.4g}") for name, value in means.items()}
    return found | {"epochs": len(table), "steps": steps}


def rows(run: Path) -> list[dict]:
    if not (run / "progress.csv").exists():
        return []
    with open(run / "progress.csv", newline="") as lines:
        return list(csv.DictReader(lines))


def below(a: list[float], b: list[float]) -> float:
    """The one-sided p of Welch's test that a's mean is not below b's; 1 if there is no spread to tell by."""
    if min(len(a), len(b)) < 2 or np.std(a) + np.std(b) == 0:
        return 1.0
    return float(stats.ttest_ind(a, b, equal_var=False, alternative="less").pvalue)


def verdict(default: dict[str, dict], candidate: dict[str, dict]) -> str:
    """Of one task, from {seed: means}: as the top of this file says."""
    def values(runs, name):
        return [means[name] for means in runs.values()]

    if min(len(default), len(candidate)) < 2:
        return "too few seeds"
    better = below(values(default, "safe reward"), values(candidate, "safe reward"))
    less_safe = below(values(candidate, "safety"), values(default, "safety"))
    if better < 0.05 and less_safe >= 0.05:
        return f"wins (p = {better:.3f})"
    return f"no (safe reward: p = {better:.2f}" + (", less safe)" if less_safe < 0.05 else ")")


def lost(results: dict, name: str) -> bool:
    """Whether a candidate has all seeds on the first task and does not win there; of the default, if all."""
    if name == "default":
        return all(lost(results, each) for each in CANDIDATES if each != name)
    default, runs = (results.get(each, {}).get(TASKS[0], {}) for each in ("default", name))
    full = min(len(default), len(runs)) >= len(SEEDS)
    return full and not verdict(default, runs).startswith("wins")


def read(output: Path) -> dict:
    return json.loads(output.read_text()) if output.exists() else {}


def tables(results: dict) -> dict[str, str]:
    """{name on the page: table}, of {candidate: {task: {seed: means}}}."""
    lines = []
    for task in TASKS:
        for name in (name for name in CANDIDATES if task in results.get(name, {})):
            runs, cells = results[name][task], []
            for metric in ("return", "cost", "safety", "safe reward", "cost of all", "kept"):
                values = [means[metric] for means in runs.values()]
                cells.append(cell(values).replace("-", "−"))
            wins = "" if name == "default" else verdict(results.get("default", {}).get(task, {}), runs)
            lines.append([task[6:-3], name, str(len(runs)), *cells, wins])
    return {"candidates": joined(["task", "candidate", "seeds", "return", "cost", "safety probability",
                                  "safe reward", "cost, all epochs", "kept", "wins"], lines)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=CANDIDATES, help="candidates")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seed", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--total-steps", type=int, default=STEPS, help=f"of a run (default {STEPS:,})")
    parser.add_argument("--workers", type=int, default=1, help="processes; changes no result (default 1)")
    parser.add_argument("--output", type=Path, default=PLACE)
    options = parser.parse_args(argv)
    lengths = {means["steps"] for of in read(options.output).values() for seeds in of.values()
               for means in seeds.values()}
    if lengths - {options.total_steps}:
        sys.exit(f"{options.output} has runs of {max(lengths):,} steps: take that --total-steps, or another "
                 "--output.")
    for task, seed, name in itertools.product(options.task, options.seed, options.only):
        if task != TASKS[0] and lost(read(options.output), name):
            continue
        means = train(name, task, seed, options.total_steps, options.workers)
        add(options.output, means, name, task, str(seed))
        print(name, task, seed, means, flush=True)
    found = tables(read(options.output))
    print(found["candidates"])
    if options.output == PLACE:
        fill("truer.py", found)


if __name__ == "__main__":
    main()
