# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "tqdm==4.67.1", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Critics fitted by Adam, with gradients by hand, explain as much as those of slower methods:
results/critics.json, by `uv run studies/critics.py RUN [RUN ...] --output FILE`, of runs of ctrpo.py.

The policy of each RUN acts in batches of 20,000 steps. Every method starts from the run's own critics, of
reward and of cost, or with --new from new ones, and fits them to one batch after the other, by least squares
to the targets of GAE, as in training. From the second on, they are judged on each batch before its fit:

    explained = 1 - var(G - V) / var(G)     G: the discounted return that followed, of steps whose episode
                                            went on for 300 steps more, or terminated

The methods take turns on each batch; seconds are those of two critics. The table gives the mean of what is
explained over the batches judged, its range, and the median of the seconds with the factor over the first
method; --output FILE writes all values.
"""

import argparse, functools, json, sys, time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import autograd.numpy as anp
import numpy as np
from autograd import grad, make_ggnvp
from autograd.misc.optimizers import adam
from evaluate import load

SIGNALS = "reward", "cost"


def values_of(ctrpo, sizes, inputs):
    """critic -> its values of all inputs, differentiable."""
    return lambda critic: ctrpo.network(
        ctrpo.unflatten(critic.astype(inputs.dtype), sizes)[0], inputs)[:, 0]


def mean_square(ctrpo, sizes, inputs, targets):
    values = values_of(ctrpo, sizes, inputs)
    return lambda critic: anp.mean((values(critic) - targets) ** 2) / 2


def by_autograd(ctrpo, critic, sizes, inputs, targets, orders, size=128):
    """The release's loop: ten passes of Adam over minibatches of 128, with a step size of 1e-3."""
    targets = targets.astype(inputs.dtype)
    n = -(-len(inputs) // size)
    batches = sum((np.array_split(order, n) for order in orders), [])

    def slope(critic, iteration):
        rows = batches[iteration]
        return grad(mean_square(ctrpo, sizes, inputs[rows], targets[rows]))(critic)

    return adam(slope, critic, num_iters=len(batches), step_size=1e-3)


def gauss_newton(ctrpo, critic, sizes, inputs, targets, steps, iterations, damping=1e-3):
    """Steps (J^T J / n + damping) p = -slope by conjugate gradients on the whole batch, each halved until the
    loss falls; the damping is that of Levenberg and Marquardt: a third after a whole step, else threefold."""
    targets = targets.astype(inputs.dtype)
    values, loss = values_of(ctrpo, sizes, inputs), mean_square(ctrpo, sizes, inputs, targets)
    for _ in range(steps):
        product = make_ggnvp(values, lambda v: anp.mean(v**2) / 2)(critic)
        damped = functools.partial(lambda product, damping, v: product(v) + damping * v, product, damping)
        step, _ = ctrpo.conjugate_gradients(damped, -grad(loss)(critic), iterations)
        before, fraction = loss(critic), 1.0
        while fraction > 1e-3 and not loss(critic + fraction * step) < before:
            fraction /= 2
        critic = critic + fraction * step if fraction > 1e-3 else critic
        damping *= 1 / 3 if fraction == 1 else 3
    return critic


def methods(ctrpo) -> dict:
    return {
        "ours: Adam, minibatches of 256, by hand": ctrpo.fit_critic,
        "Adam, minibatches of 128, autograd": lambda *given: by_autograd(ctrpo, *given),
        "Gauss-Newton, 2 steps of 10 CG iterations": lambda *given: gauss_newton(ctrpo, *given[:-1], 2, 10),
        "Gauss-Newton, 5 steps of 10": lambda *given: gauss_newton(ctrpo, *given[:-1], 5, 10)}


def returns(signals, terminated, discount):
    """Discounted returns of all steps of an episode, and which of them are known to e^-3 and better."""
    total, known = np.zeros(len(signals)), np.arange(len(signals)) < len(signals) - 300
    for t in range(len(signals))[::-1]:
        total[t] = signals[t] + discount * (total[t + 1] if t + 1 < len(signals) else 0)
    return total, known | terminated


def measure(run: Path, batches: int, size: int, fresh: bool) -> dict:
    """{method: {signal: [explained], "seconds": [...]}}"""
    ctrpo, config, state, actor = load(run)
    if ctrpo.__name__ != "ctrpo":
        sys.exit(f"{run} is not a run of ctrpo.py.")
    sizes = (*state["sizes"].tolist()[:-1], 1)
    new = [ctrpo.initial_parameters(sizes, [], np.random.default_rng(0)) for _ in SIGNALS]
    start = new if fresh else [state[f"{signal}_critic"] for signal in SIGNALS]
    ways = methods(ctrpo)
    critics = {name: start for name in ways}
    found = {name: {"reward": [], "cost": [], "seconds": []} for name in ways}
    index = 2**41
    for batch in range(batches + 1):
        episodes = []
        while sum(len(e.rewards) for e in episodes) < size:
            episodes.append(ctrpo.run_episode(config.task, config.seed, index, actor))
            index += 1
        steps = ctrpo.make_batch(episodes, actor)
        for name, way in ways.items():
            seconds, fitted = 0.0, []
            for critic, signal in zip(critics[name], SIGNALS):
                signals = getattr(steps, signal)
                values = ctrpo.network(ctrpo.unflatten(critic, sizes)[0], steps.inputs)[:, 0]
                if batch:
                    each = np.split(signals, np.cumsum(steps.lengths)[:-1])
                    pairs = [returns(one, ended, config.discount)
                             for one, ended in zip(each, steps.terminated)]
                    total, known = (np.concatenate(part) for part in zip(*pairs))
                    rest = (total - np.delete(values, steps.lasts))[known]
                    found[name][signal].append(float(1 - rest.var() / total[known].var()))
                targets = np.delete(values, steps.lasts) + ctrpo.gae(
                    steps, signals, values, config.discount, config.gae_lambda)
                started = time.perf_counter()
                rng = np.random.default_rng(batch)
                orders = [rng.permutation(len(targets)) for _ in range(10)]
                fitted.append(way(critic, sizes, steps.observations, targets, orders))
                seconds += time.perf_counter() - started
            critics[name] = fitted
            found[name]["seconds"].append(seconds)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, usage="%(prog)s [options] RUN [RUN ...]",
                                     description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--batches", type=int, default=5, help="judged, one after the other (default 5)")
    parser.add_argument("--size", type=int, default=20_000, help="of a batch [steps] (default 20000)")
    parser.add_argument("--new", action="store_true", help="start from new critics")
    parser.add_argument("--output", type=Path, metavar="FILE", help="all values, as JSON")
    options = parser.parse_args(argv)
    if options.batches < 1 or options.size < 1:
        parser.error("--batches and --size must be 1 or more")
    every = {}
    for run in options.runs:
        every[str(run)] = found = measure(run, options.batches, options.size, options.new)
        print(f"\n### {run}\n\n| method | reward explained | cost explained | seconds | factor |\n"
              "|---|---|---|---|---|")
        first = median(next(iter(found.values()))["seconds"])
        for name, of in found.items():
            cells = [f"{np.mean(of[s]):.2f} [{min(of[s]):.2f}, {max(of[s]):.2f}]" for s in SIGNALS]
            seconds = median(of["seconds"])
            print(f"| {name} | {' | '.join(cells)} | {seconds:.2f} | {seconds / first:.1f} |", flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(every, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
