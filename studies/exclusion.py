# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "tqdm==4.67.1", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Learning leads away from an unsafe policy by itself: results/exclusion.md, by
`uv run studies/exclusion.py UNSAFE RUN [RUN ...]` for each task.

UNSAFE is a run of `strpo.py --stage unsafe`, each RUN one of any of the three scripts on its task. It prints
KL(unsafe || policy) [nats, summed over action dimensions], its mean over the states of ten episodes of the
unsafe policy, for the policy at the start of its training and at the end; the least and the largest standard
deviation of its actions at the end; and, for runs of strpo.py that exclude, in what share of the epochs this
changed the step: lambda_2 > 0, or it stopped the line search.
"""

import argparse, csv, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import numpy as np
from evaluate import load


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, usage="%(prog)s UNSAFE RUN [RUN ...]",
                                     description=__doc__.split("\n\n")[0])
    parser.add_argument("unsafe", type=Path, metavar="UNSAFE")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    options = parser.parse_args(argv)
    strpo, config, _, unsafe = load(options.unsafe)
    if getattr(config, "stage", "") != "unsafe":
        sys.exit(f"{options.unsafe} is not a run of --stage unsafe.")
    episodes = [strpo.run_episode(config.task, config.seed, 2**41 + i, unsafe) for i in range(10)]
    states = np.concatenate([episode.observations[:-1] for episode in episodes])
    cost = np.mean([episode.costs.sum() for episode in episodes])
    print(f"{config.task}: the unsafe policy costs {cost:.3g} an episode\n")

    def divergence(actor):
        old, new = (strpo.distributions(a.policy, a.theta, a.normalise(states)) for a in (unsafe, actor))
        return strpo.mean_kl(actor.policy, old, new)

    print("| run | KL(unsafe, policy) at the start | at the end | std at the end | epochs changed |")
    print("|---|---|---|---|---|")
    for run in options.runs:
        algorithm, about, state, actor = load(run)
        if about.task != config.task:
            sys.exit(f"{run} is a run of {about.task}, and {options.unsafe} of {config.task}.")
        changed = "–"
        if algorithm is strpo and about.stage == "safe" and about.exclusion != "none":
            rows = csv.DictReader(state["progress"].decode().splitlines())
            active = [float(row["Misc/lambda_2"]) > 0 or row["Misc/stopped_by"] == "exclusion"
                      for row in rows]
            changed = f"{np.mean(active):.1%}"
        start = divergence(algorithm.make_actor(algorithm.initial_state(about)))
        std = np.exp(strpo.unflatten(actor.theta, actor.policy.sizes)[1])  # none of a categorical policy
        spread = f"{std.min():.3g} to {std.max():.3g}" if len(std) else "–"
        print(f"| {run} | {start:.3g} | {divergence(actor):.3g} | {spread} | {changed} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
