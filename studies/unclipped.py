# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""C-TRPO's release pays for actions beyond their bounds, and ours are clipped: two rewards of one policy. See
results/unclipped.json, by `uv run studies/unclipped.py`, which fills a table of docs/ctrpo.md, too.

The reward of the velocity tasks has a control cost, c |a|^2. The simulator clips what the motors do. Our
scripts clip the action before the environment sees it, as its action space asks for. The release maps [-1, 1]
to the bounds and clips nothing: the control cost is that of the whole Gaussian sample. So the same policy
makes the same moves, and has two returns. The table has both of untrained policies (seed 0), beside the first
epochs of the release's runs, and of those trained by `ctrpo.py --preset paper`: means over 20 episodes, then
over seeds.

This file is a module with the release's tasks, too:

    uv run ctrpo.py --task studies.unclipped:UnclippedHalfCheetah-v1 --preset paper --total-steps 5000000
"""

import argparse, csv, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
import gymnasium
import numpy as np

TASKS = "HalfCheetah", "Ant", "Humanoid", "Hopper"
PLACE, RELEASE = ROOT / "results" / "unclipped.json", ROOT / "release" / "data" / "runs" / "ablation"
EPISODES = 20  # an epoch of the preset, where they are long


class Unclipped(gymnasium.Wrapper):
    """[-1, 1] is mapped to the bounds, and what is beyond it beyond them."""

    def __init__(self, name: str):
        import safety_gymnasium  # not before make_env has mended it
        super().__init__(safety_gymnasium.make(name, disable_env_checker=True).unwrapped)
        space = self.env.action_space
        self.middle, self.half = (space.high + space.low) / 2, (space.high - space.low) / 2
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, space.shape, space.dtype)

    def step(self, action):
        return self.env.step(self.middle + self.half * action)


for task in TASKS:
    if f"Unclipped{task}-v1" not in gymnasium.registry:
        gymnasium.register(f"Unclipped{task}-v1", Unclipped, max_episode_steps=1000,
                           kwargs={"name": f"Safety{task}Velocity-v1"})


def both(config, state, task: str) -> dict:
    """Mean returns of a policy, and the share of its actions' components beyond [-1, 1]."""
    import ctrpo
    actor, found = ctrpo.make_actor(state), {}
    names = {"clipped": f"Safety{task}Velocity-v1", "unclipped": f"studies.unclipped:Unclipped{task}-v1"}
    for name, env in names.items():
        played = [ctrpo.run_episode(env, config.seed, 2**42 + i, actor) for i in range(EPISODES)]
        found[name] = float(np.mean([episode.rewards.sum() for episode in played]))
    found["beyond"] = float(np.mean(np.abs(np.concatenate([episode.actions for episode in played])) > 1))
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def untrained(task: str) -> dict:
    import ctrpo
    config = ctrpo.Config(task=f"Safety{task}Velocity-v1", workers=1, **ctrpo.PRESETS["paper"])
    executor, state = ctrpo.warm_up(ctrpo.make_executor(config), config, ctrpo.initial_state(config))
    ctrpo.stop(executor)
    return both(config, state, task)


def trained(task: str) -> dict:
    """{seed: both} of the runs with the preset."""
    import ctrpo
    runs = sorted((ROOT / "results" / f"ctrpo-Safety{task}Velocity-v1-paper").glob("seed-*"))
    return {run.name.removeprefix("seed-"): both(*ctrpo.load_run(run), task) for run in runs}


def published(task: str) -> list[float]:
    """The first returns of the release's runs."""
    returns = []
    for path in sorted((RELEASE / f"Safety{task}Velocity-v1" / "c-trpo-hyst").glob("*/progress.csv")):
        with open(path, newline="") as lines:
            returns.append(round(float(next(csv.DictReader(lines))["Metrics/EpRet"]), 1))
    return returns


def table(results: dict) -> str:
    from table import joined
    lines = []
    for task, of in results.items():
        first, runs = of["untrained"], of["trained"].values()
        means = [np.mean([run[name] for run in runs]) for name in ("clipped", "unclipped", "beyond")]
        low, high = min(of["published"]), max(of["published"])
        returns = f"{first['clipped']:,.0f}", f"{first['unclipped']:,.0f}", f"{low:,.0f} to {high:,.0f}"
        lines.append([f"Safety{task}Velocity-v1", *returns, f"{means[0]:,.0f}", f"{means[1]:,.0f}",
                      f"{means[2]:.0%}", str(len(runs))])
    return joined(["task", "untrained, clipped", "unclipped", "release, first epoch", "trained, clipped",
                   "the same, unclipped", "components beyond ±1", "seeds"], lines)


def main(argv: list[str] | None = None) -> None:
    from pages import add, fill
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parser.add_argument("--task", nargs="+", choices=TASKS, default=TASKS)
    options = parser.parse_args(argv)
    if not RELEASE.exists():
        sys.exit("There are no published runs: git clone https://github.com/milosen/ctrpo release")
    for task in options.task:
        found = {"published": published(task), "untrained": untrained(task), "trained": trained(task)}
        results = add(PLACE, found, task)
        print(task, results[task], flush=True)
    fill("unclipped.py", {"clipped and not": table(results)})


if __name__ == "__main__":
    main()
