# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0"]
# [tool.uv]
# override-dependencies = [
#   "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#   "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""A new mean and std of the observations hardly move the policy, since the first layer absorbs them:
results/scaling.txt, by `uv run studies/scaling.py sbtrpo --seed 0`, then 1 and 2, and by ctrpo likewise.

`uv run studies/scaling.py sbtrpo --seed 0 --experiment scaling` trains as sbtrpo.py does with
these options (or ctrpo) and prints two KL in units of delta, over the observations of each epoch:
from the policy that the update accepted to the one that acts next. `absorbed` is the policy that
acts next, whose first layer has absorbed the new scaling; `not absorbed` is what the accepted
parameters would be under the new scaling, which is how the scripts did it once. For each, the value
after the first epoch, and the largest after a later one.

`uv run studies/scaling.py --train moving sbtrpo ...` trains that other way: the policy acts with the
accepted parameters under the new scaling, and so do the critics. `--train fixed` keeps the scaling of
the warm-up batch. The last line is the return over the last tenth of the steps.
"""
import argparse
import csv
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parser.add_argument("--train", choices=("absorbed", "moving", "fixed"), default="absorbed",
                        help="what new observations do to policy and scaling (default absorbed)")
    parser.add_argument("algorithm", choices=("sbtrpo", "ctrpo"))
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="--option value", help="of the script")
    given = parser.parse_args(argv)
    script, moved = importlib.import_module(given.algorithm), []
    advance = script.advance

    def watched(state, batch, theta, critics, regret):
        before, after = script.make_actor(state), advance(state, batch, theta, critics, regret)
        if given.train != "absorbed":
            after |= critics | {"theta": theta}
        if given.train == "fixed":
            after["moments"] = state["moments"]
        actor = script.make_actor(after)
        accepted = script.distributions(actor.policy, theta, before.normalise(batch.raw))
        moved.append([
            float(script.mean_kl(actor.policy, accepted, script.distributions(
                actor.policy, parameters, actor.normalise(batch.raw)))) / config.delta
            for parameters in (actor.theta, theta)])
        return after

    script.advance = watched
    try:
        config, run, state, _ = script.open_run(given.options)
        state = script.train(config, run, state)
    except script.Failure as error:
        print(error, file=sys.stderr)
        return 1
    for name, values in zip(("absorbed", "not absorbed"), zip(*moved)):
        later = max(values[1:], default=0.0)
        print(f"{config.task}, seed {config.seed}, {name}: "
              f"{values[0]:.1e} delta after the first epoch, {later:.1e} at most later")
    rows = list(csv.DictReader(state["progress"].decode().splitlines()))
    last = rows[-max(1, len(rows) // 10):]
    mean = sum(float(row["Metrics/EpRet"]) for row in last) / len(last)
    print(f"{config.task}, seed {config.seed}, {given.train}: return {mean:.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
