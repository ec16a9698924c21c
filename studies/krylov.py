# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "tqdm==4.67.1", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""The best step of few conjugate-gradient iterations is the best in their Krylov space only, well below what
the batch allows. See results/krylov.json, by `uv run studies/krylov.py RUN [RUN ...] --output FILE`.

A step of KL delta along x changes an objective by sqrt(2 delta g.x) to first order, if F x = g. After k
iterations x solves that within their Krylov space, and the change is the best in that space. Each RUN, of
sbtrpo.py or ctrpo.py, gives two policies: the one it began with and the one it ended with. The table shows,
for one batch of each and the run's own damping, the change after k iterations over that after the most. That
is what the batch allows, not what fresh episodes would: late iterations fit the noise of the batch, too.
"""

import argparse, json, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import numpy as np
from evaluate import load

ITERATIONS = 2, 5, 15, 50, 200


def shares(script, config, state, steps: int) -> dict:
    """{objective: [change after each of ITERATIONS, over the last one's]} for one batch of this policy."""
    actor, episodes = script.make_actor(state), []
    while sum(len(each.costs) for each in episodes) < steps:
        episodes.append(script.run_episode(config.task, config.seed, 2**41 + len(episodes), actor))
    batch = script.make_batch(episodes, actor)
    advantages = script.estimate_advantages(config, batch, state)[:2]
    observations, actions = (each.astype(float) for each in (batch.observations, batch.actions))
    gradient_of, _ = script.policy_gradient(actor.policy, actor.theta, observations, actions)
    fisher = script.fisher_product(actor.policy, actor.theta, observations, config.damping)
    found = {}
    for name, values in zip(("reward", "cost"), advantages):
        gradient = gradient_of(values / len(actions))
        if gradient.any():  # else no episode of the batch met any cost
            solved = [script.conjugate_gradients(fisher, gradient, k)[0] for k in ITERATIONS]
            changes = np.sqrt([float(gradient @ x) for x in solved])
            found[name] = (changes / changes[-1]).tolist()
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, usage="%(prog)s [options] RUN [RUN ...]")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--steps", type=int, default=10_000, help="of a batch (default 10000)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="all values, as JSON")
    options = parser.parse_args(argv)
    every = {"iterations": ITERATIONS, "steps": options.steps, "runs": {}}
    print(f"| policy | objective | {' | '.join(map(str, ITERATIONS))} |\n|---|---|{'---|' * len(ITERATIONS)}")
    for run in options.runs:
        script, config, trained, _ = load(run)
        executor, fresh = script.warm_up(script.make_executor(config), config, script.initial_state(config))
        script.stop(executor)
        for when, state in (("before training", fresh), (f"after {trained['steps']:,} steps", trained)):
            found = shares(script, config, state, options.steps)
            every["runs"][f"{run}, {when}"] = found
            for objective, values in found.items():
                cells = " | ".join(f"{value:.2f}" for value in values)
                print(f"| {config.task}, {when} | {objective} | {cells} |", flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(every, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
