# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "tqdm==4.67.1", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Learning leads away from an unsafe policy by itself: results/exclusion.md, and a table in docs/strpo.md, by
`uv run studies/exclusion.py`. Two minutes.

From checkpoints of runs there it measures KL(unsafe || policy) [nats, summed over action dimensions], its
mean over the states of fifty episodes of the unsafe policy of each task, for the policies at the start and
the end of their training; and takes from the runs the least and the largest standard deviation of their
actions at the end, and, of those that exclude, the share of epochs in which this changed the step: lambda_2 >
0, or it stopped the line search.
"""

import argparse, csv, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import numpy as np
from evaluate import load
from pages import fill, write
from table import ANT, CIRCLE, GOAL, HOPPER, joined, short

EPISODES = 50
VARIANTS = {"exact dual": "strpo-{}-exact", "`--exclusion none`": "strpo-{}-exclusion-none",
            "`--joint 0`": "strpo-{}-joint-0", "`--preset paper`": "strpo-{}-paper",
            "`--dual fixed`": "strpo-{}-dual-fixed", "C-TRPO": "ctrpo-{}-defaults-?M"}
HEAD = ["run", "steps", "KL(unsafe, policy) at the start", "at the end", "std at the end", "epochs changed"]


def share_changed(state: dict) -> str:
    """Of the epochs of a run that excludes."""
    rows = list(csv.DictReader(state["progress"].decode().splitlines()))
    changed = [float(row["Misc/lambda_2"]) > 0 or row["Misc/stopped_by"] == "exclusion" for row in rows]
    return f"{np.mean(changed):.1%}"


def measured(task: str) -> tuple[str, dict[str, list[str]]]:
    """A table of the task's runs; and of each variant, its seeds' KL at the start and at the end."""
    strpo, config, _, unsafe = load(ROOT / "results" / f"strpo-{task}-unsafe/seed-0")
    episodes = [strpo.run_episode(task, config.seed, 2**41 + i, unsafe) for i in range(EPISODES)]
    states = np.concatenate([episode.observations[:-1] for episode in episodes])
    cost = np.mean([episode.costs.sum() for episode in episodes])

    def divergence(actor):
        old, new = (strpo.distributions(a.policy, a.theta, a.normalise(states)) for a in (unsafe, actor))
        return f"{strpo.mean_kl(actor.policy, old, new):,.3g}"

    lines, found = [], {}
    for variant, name in VARIANTS.items():
        for run in sorted((ROOT / "results").glob(f"{name.format(task)}/seed-*")):
            algorithm, about, state, actor = load(run)
            start, end = divergence(algorithm.make_actor(algorithm.initial_state(about))), divergence(actor)
            std = np.exp(strpo.unflatten(actor.theta, actor.policy.sizes)[1])
            excludes = getattr(about, "stage", "") == "safe" and about.exclusion != "none"
            lines.append([f"{run.parent.name}/{run.name}", f"{state['steps']:,}", start, end,
                          f"{std.min():.3g} to {std.max():.3g}", share_changed(state) if excludes else ""])
            found.setdefault("before training", []).append(start)
            found.setdefault(variant, []).append(end)
    return f"{task}: the unsafe policy costs {cost:.3g} an episode.\n\n{joined(HEAD, lines)}", found


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0]).parse_args(argv)
    tasks = CIRCLE, GOAL, HOPPER, ANT
    texts, found = zip(*map(measured, tasks))
    start = "KL(unsafe || policy) [nats], by `uv run studies/exclusion.py`"
    write(ROOT / "results" / "exclusion.md", "\n\n".join([start, *texts]) + "\n")
    lines = [[variant, *(", ".join(dict.fromkeys(each.get(variant, []))) for each in found)]
             for variant in ("before training", *VARIANTS)]
    head = ["policy", *(short(task) for task in tasks)]
    fill("exclusion.py", {"distances": joined(head, lines)})


if __name__ == "__main__":
    main()
