# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Compares runs: tables in Markdown, and pictures in a folder: `uv run tools/report.py OUT FOLDER ...`.

A FOLDER is one of a run, or holds such, at any depth: ours, or those of SafePO and of the official release of
C-TRPO, whose progress.csv has the same names of columns. Runs of one task and one label are seeds of the
same thing. The label is the algorithm, with the experiment where there are several; or LABEL=FOLDER gives
one. The algorithm stands in config.json, or in the name of the folder around the seeds; a folder of another
project's runs is named after its algorithm. What a run has not logged is left out, and named.

    TASK_curves.png   over environment steps; a point is the mean of the epochs in a window before it
    TASK_scatter.png  return over cost, and safe reward over safety probability, with the Pareto front of the
                      labels: those for which no other is better in one and at least as good in the other
    TASK_angles.png   how often, over epochs, the step made which angle with the best reward and the best cost
                      step, in the Fisher metric, from the changes and the KL that our scripts log,
                      or from the angle itself: beyond 90 degrees it works against it; where a batch
                      met no cost, whose gradient is 0 then, the angle counts as 90
    profiles.png      share of runs beyond a score, over the score, for the tasks that all labels have

Lines and numbers are interquartile means over seeds, the mean of what is left after a quarter of the seeds,
rounded down, is cut off at either end: with 3 seeds nothing is. Over tasks each counts alike, whatever its
number of seeds. Bands and [brackets] are 95% percentile intervals of the stratified bootstrap: seeds are
drawn again, within each task; where there are more than 6 labels, pictures show none. Both are those of
Agarwal et al. (2021), Deep Reinforcement Learning at the Edge of the Statistical Precipice, and of their
library rliable, with which the tests compare. From 3 or 5 seeds such intervals are too narrow; of one there
is none.

Final numbers are means over the epochs of the last tenth of the steps that all seeds of a label have come to
(or of --steps). The cost regret is the integral of max(0, cost - limit) over the steps, by epochs, in cost
per episode times million steps, for the limit in the runs' config.json, or --cost-limit. (Of several budgets,
cost and limit are their sums.) It is not the
column of that name, which is a running mean in the release and a sum over epochs in ours. Nor are costs quite
the same: theirs are running means over 50 episodes, ours means over the episodes of an epoch.

Scores over several tasks are normalised for each: a return is 0 for the lowest and 1 for the highest final
one of all runs, or is divided by the interquartile mean of the label --reference; a cost, by its limit.
"""

import argparse, csv, glob, json, math, os, re, sys
from pathlib import Path
from typing import NamedTuple

try:
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure
    from scipy.stats import trim_mean
except ModuleNotFoundError as error:
    sys.exit(f"{error}: start this with `uv run`, or install what its first lines name.")

COLUMNS = {"return": "Metrics/EpRet", "cost": "Metrics/EpCost", "length": "Metrics/EpLen",
           "safety probability": "Metrics/SafetyProbability", "safe reward": "Metrics/SafeReward",
           "hours": "Time/Total", "reward angle": "Misc/reward_angle", "cost angle": "Misc/cost_angle"}
ALGORITHMS = "sbtrpo", "ctrpo", "strpo"
METRICS = "return", "cost", "safety probability", "safe reward", "cost regret"
MARKERS, LINES = "os^DvPX<>*", ("-", "--", ":", "-.")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito: for all eyes
GREY = "#444444"
FREE = {"task", "experiment", "preset", "seed", "total_steps", "workers", "scheduler", "unsafe"}  # of seeds
MOST_BANDS = 6  # with more labels, only their lines are drawn
matplotlib.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False,
                            "axes.grid": True, "grid.color": "#e6e6e6", "axes.axisbelow": True,
                            "legend.frameon": False, "axes.titlesize": 12, "lines.linewidth": 1.8,
                            "hatch.linewidth": 0.5, "hatch.color": "#777777"})


class Run(NamedTuple):
    folder: Path
    task: str
    algorithm: str
    experiment: str
    label: str  # as given, or ""
    seed: str
    limit: float | None  # of the cost per episode
    steps: np.ndarray  # at the end of each epoch
    columns: dict  # {metric: (epochs,)}
    options: dict  # of a run of ours, those that make it another thing than a seed


# runs
def note(text: str) -> None:
    print(text, file=sys.stderr)


def note_left_out(left_out: dict[str, list[Path]]) -> None:
    """Of {reason: folders of runs}."""
    for reason, folders in left_out.items():
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        note(f"{folders[0]}{more}: left out, {reason}.")


def first_stage(folder: Path) -> bool:
    return folder.name == "unsafe" and (folder.parent / "config.json").exists()


def algorithm_of(folder: Path, about: dict) -> str | None:
    """Of a run of ours: what its config.json says; else the one that the name of its folder, or of the folder
    around it, begins with, or else contains. None where nothing says it, or a name says two."""
    if name := about.get("algorithm"):
        return name
    for part in folder.resolve().parts[:-4:-1]:  # the first stage of sTRPO's is a folder in its run's
        for named in ([a for a in ALGORITHMS if part.startswith(a)], [a for a in ALGORITHMS if a in part]):
            if len(named) == 1:
                return named[0]
    return None


def find(texts: list[str]) -> list[Run]:
    """The runs in all [LABEL=]FOLDERs, links followed; not in hidden folders, nor first stages of sTRPO's."""
    runs, left_out = {}, {}
    for text in texts:
        label, equals, folder = text.partition("=")
        if not equals or Path(text).exists():
            label, folder = "", text
        found = glob.glob(f"{glob.escape(folder)}/**/progress.csv", recursive=True) if folder else []
        found = [folder for folder in sorted(Path(file).parent for file in found) if not first_stage(folder)]
        if not found:
            sys.exit(f"{text} holds no progress.csv; give folders of runs, or LABEL=FOLDER.")
        for one in found:
            if (other := runs.get(one.resolve())) and other.label != label:
                sys.exit(f"{one} is given twice, under two labels.")
            if isinstance(run := read(one, label), str):
                left_out.setdefault(run, []).append(one)
            else:
                runs[one.resolve()] = run
    note_left_out(left_out)
    return list(runs.values())


def progress_of(folder: Path) -> str:
    """Its progress.csv; where studies/keep.py has left out rows of that, the whole one in its checkpoint.
    A checkpoint that has not come as far is that of an earlier run."""
    text = (folder / "progress.csv").read_text()
    try:
        with np.load(folder / "checkpoint.npz") as state:
            whole = state["progress"].item().decode()
    except Exception:  # there is none, or it is damaged, in one of many ways
        return text
    return text if last_epoch(text) > last_epoch(whole) else whole


def last_epoch(text: str) -> int:
    """Of a progress.csv of ours, whose first column is the epoch; its last row may be torn."""
    head, *rows = text.splitlines() or [""]
    whole = [row for row in rows if row.count(",") == head.count(",")]
    return int(whole[-1].split(",")[0]) if whole else -1


def read(folder: Path, label: str) -> Run | str:
    """A run; or, if it has no epoch that can be read, why."""
    try:
        lines = progress_of(folder).splitlines()
        rows = [row for row in csv.DictReader(lines) if None not in row.values()]  # the last may be torn
    except (OSError, ValueError, csv.Error) as error:
        return f"its progress.csv cannot be read: {error}"
    try:
        about = dict(json.loads((folder / "config.json").read_text()))
    except (OSError, TypeError, ValueError):
        about = {}
    *_, experiment, task, around, _ = ("", "", "", *folder.resolve().parts)
    try:
        config = dict(about.get("config", about))  # ours keeps versions beside it
        algorithm = str("config" in about and algorithm_of(folder, about) or around)
        limit = config.get("cost_limit")  # of several budgets, the sum
        limit = None if limit is None else float(np.sum(limit))
        columns = {name: np.array([float(row[column]) for row in rows])
                   for name, column in COLUMNS.items() if rows and column in rows[0]}
        columns = {name: np.where(np.isinf(values), np.nan, values) for name, values in columns.items()}
        columns |= angles_of(folder, rows, config)
        steps = np.array([int(float(row["Train/TotalSteps"])) for row in rows])
    except (KeyError, TypeError, ValueError) as error:
        return f"{type(error).__name__} {error} in progress.csv or config.json"
    if not len(steps) or not {"return", "cost"} <= set(columns):
        return f"there is no {'return and cost' if len(steps) else 'epoch'} in progress.csv"
    return Run(folder, str(config.get("task", task)), algorithm, str(config.get("experiment", experiment)),
               label, str(config.get("seed", folder.name)), limit, steps, columns,
               {name: config[name] for name in config if "config" in about and name not in FREE})


def angle(change: np.ndarray, best: np.ndarray, kl: np.ndarray, delta: float) -> np.ndarray:
    """[degrees], in the Fisher metric, of a step of this KL with the best step, whose KL is delta:
    from its change and the best one, to first order. 90 where there is no gain; NaN for no step."""
    share = np.divide(change, best, out=np.zeros_like(change), where=best != 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.degrees(np.arccos(np.clip(share / np.sqrt(kl / delta), -1, 1)))


def angles_of(folder: Path, rows: list[dict], config: dict) -> dict:
    """Angles of all steps with the best reward and the best cost step, of a run that logs none and has one
    budget."""
    if not rows or "Misc/best_cost" not in rows[0] or "Misc/reward_angle" in rows[0]:
        return {}
    delta = config["delta"]
    if config.get("official_units"):  # the release's delta is for the mean over action dimensions
        try:
            with np.load(folder / "checkpoint.npz") as state:
                delta *= 1 if state["discrete"] else int(state["sizes"][-1])
        except Exception:  # there is none, or it is damaged, in one of many ways
            note(f"{folder}: its angles are left out, for no checkpoint.npz says how many actions it has.")
            return {}
    values = {name: np.array([float(row[f"Misc/{name}"]) for row in rows])
              for name in ("reward_change", "best_reward", "cost_change", "best_cost", "kl")}
    gain, saving, kl = values["reward_change"], -values["cost_change"], values["kl"]
    return {"reward angle": angle(gain, values["best_reward"], kl, delta),
            "cost angle": angle(saving, values["best_cost"], kl, delta)}


def grouped(runs: list[Run]) -> dict[str, dict[str, list[Run]]]:
    """{task: {label: runs}}; of several runs of a seed the longest."""
    unnamed = [run for run in runs if not run.label]
    several = len({run.algorithm for run in unnamed}) > 1
    experiments = {run.algorithm: {other.experiment for other in unnamed if other.algorithm == run.algorithm}
                   for run in unnamed}
    common = os.path.commonprefix([run.experiment for run in unnamed])
    common = common[:common.rfind("_") + 1]  # sweeps name experiments circle_beta-0.6, circle_beta-0.75
    tasks: dict[str, dict[str, list[Run]]] = {}
    left_out: dict[str, list[Path]] = {}
    for run in sorted(runs, key=lambda run: -run.steps[-1]):
        many = len(experiments.get(run.algorithm, ())) > 1
        words = [run.algorithm] * (several or not many) + [run.experiment[len(common):] or "plain"] * many
        seeds = tasks.setdefault(run.task, {}).setdefault(run.label or ", ".join(words), [])
        if run.seed in [other.seed for other in seeds]:
            left_out.setdefault("there is a run of the same seed, as long or longer", []).append(run.folder)
        else:
            seeds.append(run)
    note_left_out(left_out)
    note_different(tasks)
    labels = sorted({label for groups in tasks.values() for label in groups})
    return {task: {label: tasks[task][label] for label in labels if label in tasks[task]}
            for task in sorted(tasks)}


def note_different(tasks: dict[str, dict[str, list[Run]]]) -> None:
    """Where runs of one label are no seeds of one thing: they have other options, as far as all know them."""
    for task, groups in tasks.items():
        for label, runs in groups.items():
            first = runs[0].options
            if names := [name for name in first if all(name in run.options for run in runs)
                         and any(run.options[name] != first[name] for run in runs)]:
                note(f"{label} on {task}: its runs differ in {', '.join(names)}.")


def with_regret(groups: dict[str, list[Run]], limit: float | None, task: str) -> tuple[float | None, dict]:
    """The task's limit, and its groups with the column cost regret, if there is one limit for all."""
    limits = {run.limit for runs in groups.values() for run in runs} if limit is None else {limit}
    if None in limits or len(limits) > 1:
        which = ", ".join(sorted("none" if one is None else f"{one:g}" for one in limits))
        note(f"cost regret on {task}: left out, the runs' limits being {which}; give --cost-limit.")
        return None, groups
    limit = limits.pop()
    return limit, {label: [run._replace(columns=run.columns | {"cost regret": np.cumsum(
        np.maximum(run.columns["cost"] - limit, 0) * np.diff(run.steps, prepend=0)) / 1e6})
        for run in runs] for label, runs in groups.items()}


def kept(run: Run, epochs: np.ndarray) -> Run:
    return run._replace(steps=run.steps[epochs], columns={n: c[epochs] for n, c in run.columns.items()})


def until(runs: list[Run], end: int) -> list[Run]:
    """Runs to the epoch that brings each to `end` steps."""
    return [kept(run, np.append(0, run.steps[:-1]) < end) for run in runs]


def cut(groups: dict[str, list[Run]], steps: int | None) -> dict[str, list[Run]]:
    """Every label as far as all of its seeds have come, to the epoch in which the shortest one ends, and no
    farther than `steps`. A run whose first epoch ends later is left out, and named."""
    most, result = steps or math.inf, {}
    for label, runs in groups.items():
        if late := [run.folder for run in runs if run.steps[0] > most]:
            note_left_out({f"its first epoch ends after the {steps:,} steps to be compared": late})
        early = [kept(run, run.steps <= most) for run in runs if run.steps[0] <= most]
        if early:
            result[label] = until(early, min(run.steps[-1] for run in early))
    return result


def note_not_finite(groups: dict[str, list[Run]]) -> None:
    """Of runs that count as they are: their label then has no such number."""
    for runs in groups.values():
        for metric in (metric for metric in METRICS if have(runs, metric)):
            for run, value in zip(runs, final(runs, metric)):
                if np.isnan(value):
                    note(f"{run.folder}: its {metric} is not finite in the end, nor its label's.")


def have(runs: list[Run], metric: str) -> bool:
    return all(metric in run.columns for run in runs)


# statistics
def iqm(scores: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Interquartile mean: a quarter of the values, rounded down, is cut off at either end. NaN where a value
    is: cut off, it would count among the best."""
    return np.where(np.isnan(scores).any(axis), np.nan, trim_mean(scores, 0.25, axis=axis))


def interval(strata: list[np.ndarray], statistic=iqm, repetitions: int = 2000) -> np.ndarray:
    """95% interval of a statistic of runs, (2, ...), from one array (runs, ...) for each task: the runs of
    each task are drawn with replacement, as many as there are. NaN where there is no task with two runs."""
    rng = np.random.default_rng(0)
    draws = [runs[rng.integers(len(runs), size=(repetitions, len(runs)))] for runs in strata]
    ends = np.quantile(statistic(pooled(draws, axis=1), axis=1), [0.025, 0.975], axis=0)
    return ends if max(map(len, strata)) > 1 else np.full_like(ends, np.nan)


def pooled(strata: list[np.ndarray], axis: int = 0) -> np.ndarray:
    """The runs of all tasks, each as often as makes the tasks count alike, whatever their numbers of runs."""
    most = math.lcm(*(runs.shape[axis] for runs in strata))
    return np.concatenate([np.repeat(runs, most // runs.shape[axis], axis) for runs in strata], axis)


def final(runs: list[Run], metric: str) -> np.ndarray:
    """(runs,): means over the last tenth; the cost regret at the end; hours in all."""
    if metric == "hours":
        return np.array([run.columns[metric].sum() / 3600 for run in runs])
    if metric == "cost regret":
        return np.array([run.columns[metric][-1] for run in runs])
    return np.array([run.columns[metric][run.steps > min(0.9 * run.steps[-1], run.steps[-1] - 1)].mean()
                     for run in runs])


def front(worse: np.ndarray, better: np.ndarray) -> list[int]:
    """Indices of the Pareto front, of least `worse` and most `better`, from the least `worse` on. A NaN is on
    no front."""
    indices: list[int] = []
    for i in np.lexsort((-better, worse)):
        if np.isnan(worse[i] + better[i]):
            continue
        last = indices[-1] if indices else i
        if not indices or better[i] > better[last] or (worse[i], better[i]) == (worse[last], better[last]):
            indices.append(int(i))
    return indices


# pictures
def named(label: str, runs: int, seeds: str = "seed") -> str:
    """As matplotlib takes it: a label with an underscore before it is in no legend, one with $ is TeX."""
    if label.startswith("_"):
        label = f" {label}"
    label = label.replace("$", r"\$")
    return f"{label} ({runs} {seeds}{'s' * (runs > 1)})"


def styles(labels: list[str]) -> dict[str, dict]:
    return {label: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)],
                    "linestyle": LINES[i // len(COLOURS) % len(LINES)]} for i, label in enumerate(labels)}


def legend(figure: Figure, axis) -> None:
    handles, labels = axis.get_legend_handles_labels()
    columns = max(1, int(11 * figure.get_figwidth() / (max(map(len, labels)) + 6)))  # 11 letters an inch
    more = max(0, -(-len(labels) // columns) - 2)  # rows for which the figure has no room
    figure.set_figheight(figure.get_figheight() + 0.21 * more)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=10)


def smooth(steps: np.ndarray, values: np.ndarray, at: np.ndarray, window: float) -> np.ndarray:
    """Mean of the values with t - window < steps <= t, for each t; the newest one if there is none. NaN where
    one of these is."""
    bad = np.isnan(values)
    sums, missing = (np.append(0, np.cumsum(each)) for each in (np.where(bad, 0, values), bad))
    last = np.maximum(np.searchsorted(steps, at, side="right"), 1)  # before the first epoch: the first
    first = np.minimum(np.searchsorted(steps, at - window, side="right"), last - 1)
    return np.where(missing[last] > missing[first], np.nan, (sums[last] - sums[first]) / (last - first))


def save(figure: Figure, path: Path, **options) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, **options)
    except OSError as error:
        sys.exit(f"{path} cannot be written: {error.strerror}.")
    print(path)


def in_steps(axis) -> None:
    million = axis.get_xlim()[1] >= 1e6
    unit, letter = (1e6, "M") if million else (1e3, "k")
    axis.xaxis.set_major_formatter(lambda x, _: f"{x / unit:g}{letter}" if x else "0")
    axis.set_xlim(left=0)


def curves(path: Path, task: str, groups: dict, style: dict, limit: float | None,
           window: float | None) -> None:
    window = window or 0.05 * max(run.steps[-1] for runs in groups.values() for run in runs)
    panels = [metric for metric in METRICS if any(have(runs, metric) for runs in groups.values())]
    across = 2 if len(panels) in (2, 4) else 3
    figure = Figure(figsize=(11, 0.8 + 3.1 * -(-len(panels) // across)), layout="constrained")
    axes = dict(zip(panels, figure.subplots(-(-len(panels) // across), across, squeeze=False).flat))
    for axis in figure.axes[len(panels):]:
        axis.remove()
    for label, runs in groups.items():
        begin, end = max(run.steps[0] for run in runs), min(run.steps[-1] for run in runs)
        at = np.linspace(min(begin, end), end, 200)
        for metric, axis in axes.items():
            if not have(runs, metric):
                continue
            w = 0 if metric == "cost regret" else window
            values = np.array([smooth(run.steps, run.columns[metric], at, w) for run in runs])
            line = {name: style[label][name] for name in ("color", "linestyle")}
            axis.plot(at, iqm(values, axis=0), label=named(label, len(runs)), **line)
            if len(groups) <= MOST_BANDS:
                axis.fill_between(at, *interval([values]), color=line["color"], alpha=0.16, linewidth=0)
    for metric, axis in axes.items():
        axis.set_title(metric + ", in total" * (metric == "cost regret"))
        in_steps(axis)
    bend(axes["cost"], "y", axes["cost"].get_ylim()[1], limit)
    axes["cost"].set_ylim(bottom=0)
    if "cost regret" in axes:
        ends = [iqm(final(runs, "cost regret")) for runs in groups.values()]
        bend(axes["cost regret"], "y", max(ends), 2 * float(np.median(ends)))
        axes["cost regret"].set_ylim(bottom=0)
    if limit:
        axes["cost"].axhline(limit, color=GREY, linestyle="--", linewidth=1.2)
    if "safety probability" in axes:
        axes["safety probability"].set_ylim(0, 1.02)
    legend(figure, axes["return"])
    figure.suptitle(task, fontsize=13)
    save(figure, path)


def bend(axis, which: str, largest: float, threshold: float | None) -> None:
    """Makes an axis of costs logarithmic above the threshold, if the largest is far above it."""
    if threshold and largest > 8 * threshold:
        ticks = [0, *(threshold * 4.0**k for k in range(-1, 12) if 4.0**k * threshold <= largest)]
        getattr(axis, f"set_{which}scale")("symlog", linthresh=threshold, linscale=1.5)
        getattr(axis, f"set_{which}ticks")(ticks, [f"{float(f'{tick:.2g}'):,g}" for tick in ticks])
        axis.minorticks_off()


def scatter(path: Path, task: str, groups: dict, style: dict, limit: float | None) -> None:
    panels = [("cost", "return")]
    if any(have(runs, "safe reward") and final(runs, "safe reward").any() for runs in groups.values()):
        panels.append(("safety probability", "safe reward"))
    figure = Figure(figsize=(11, 5), layout="constrained")
    for axis, (x, y) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        points = {label: (final(runs, x), final(runs, y)) for label, runs in groups.items() if have(runs, y)}
        means = np.array([[iqm(values) for values in pair] for pair in points.values()])
        for (label, pair), mean in zip(points.items(), means):
            look = {"color": style[label]["color"], "marker": style[label]["marker"]}
            axis.plot(*pair, linestyle="", alpha=0.35, markersize=5, markeredgewidth=0, **look)
            bars = np.abs(np.array([interval([values]) for values in pair]) - mean[:, None])
            axis.errorbar(*mean, xerr=bars[0][:, None], yerr=bars[1][:, None], linestyle="", markersize=9,
                          elinewidth=1.4, markeredgecolor="white", zorder=3,
                          label=named(label, len(pair[0])), **look)
        best = means[front(means[:, 0] * (1 if x == "cost" else -1), means[:, 1])]
        corners = np.stack([best[1:, 0], best[:-1, 1]], axis=1)
        stairs = np.insert(best, range(1, len(best)), corners, axis=0)
        axis.plot(*stairs.T, color=GREY, linewidth=1.2, zorder=1, label="Pareto front")
        if x == "cost":
            if limit:
                axis.axvline(limit, color=GREY, linestyle="--", linewidth=1.2, label=f"limit, {limit:g}")
            bend(axis, "x", axis.get_xlim()[1], limit)
            axis.set_xlim(left=0 if axis.get_xscale() == "symlog" else -0.02 * axis.get_xlim()[1])
        axis.set(xlabel=f"{x}{' per episode' * (x == 'cost')}", ylabel=f"{y} per episode")
    legend(figure, figure.axes[0])
    figure.suptitle(f"{task}, last tenth of training", fontsize=13)
    save(figure, path)


def angles(path: Path, task: str, groups: dict, style: dict) -> str:
    """The picture, and its medians and shares as a table; both of all epochs of all seeds."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    head, lines = ["", "epochs"], []
    pools = {label: {which: np.concatenate([run.columns[f"{which} angle"] for run in runs])
                     for which in ("reward", "cost")} for label, runs in groups.items()}
    for axis, which in zip(figure.subplots(1, 2), ("reward", "cost")):
        head += [f"median angle with the best {which} step", "share beyond 90°"]
        for label, pool in pools.items():
            known = pool[which][np.isfinite(pool[which])]
            share, edges = np.histogram(known, np.arange(0, 181, 5))
            line = {name: style[label][name] for name in ("color", "linestyle")}
            axis.stairs(share / max(1, len(known)), edges, label=named(label, len(groups[label])),
                        linewidth=1.8, **line)
        axis.axvline(90, color=GREY, linestyle="--", linewidth=1.2)
        axis.set(title=f"angle with the best {which} step", xlabel="degrees, in the Fisher metric",
                 ylabel="share of epochs", xlim=(0, 180), xticks=range(0, 181, 30))
    for label, pool in pools.items():
        lines.append([label, f"{len(pool['reward']):,}"])
        for known in (values[np.isfinite(values)] for values in pool.values()):
            lines[-1] += [f"{np.median(known):.0f}°", f"{np.mean(known > 90):.0%}"] if len(known) else "––"
    legend(figure, figure.axes[0])
    figure.suptitle(task, fontsize=13)
    save(figure, path)
    return joined(head, lines)


def scores(tasks: dict, limits: dict, metric: str, reference: str | None) -> tuple[str, dict] | None:
    """(what, {label: [final scores on each task]}) for the tasks of all labels; None if they have none."""
    if not all(have(runs, metric) for groups in tasks.values() for runs in groups.values()):
        return None
    values: dict = {}
    for task, groups in tasks.items():
        finals = {label: final(runs, metric) for label, runs in groups.items()}
        low, span = 0.0, 1.0
        if metric == "cost" and len(tasks) > 1:
            if not (span := limits[task]):
                return None
        elif reference:
            span = iqm(finals[reference])
            if not span > 0:
                note(f"{metric}: left out of the profiles, that of {reference} on {task} being {span:.3g}.")
                return None
        elif len(tasks) > 1 and metric != "safety probability":
            every = np.concatenate(list(finals.values()))
            every = every[np.isfinite(every)]
            low, span = (every.min(), np.ptp(every) or 1.0) if len(every) else (0.0, 1.0)
        for label, those in finals.items():
            values.setdefault(label, []).append((those - low) / span)
    how = "" if len(tasks) == 1 else " / limit" if metric == "cost" else ", normalised"
    return metric + (f" / that of {reference}" if reference and metric != "cost" else how), values


def profiles(path: Path, every: dict, style: dict, tasks: int) -> None:
    """Share of runs with a score above tau; of costs, with one that is not above."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(1, len(every), squeeze=False)[0]
    for axis, (metric, (what, values)) in zip(axes, every.items()):
        pool = np.nan_to_num(np.concatenate([runs for strata in values.values() for runs in strata]))
        margin = 0.02 * np.ptp(pool)
        tau = np.concatenate([[pool.min() - margin], np.unique(pool), [pool.max() + margin]])
        for label, strata in values.items():
            beyond = [(runs[:, None] <= tau if metric == "cost" else runs[:, None] > tau).astype(float)
                      for runs in strata]
            line = {name: style[label][name] for name in ("color", "linestyle")}
            runs = sum(map(len, strata))
            share = pooled(beyond).mean(0)
            axis.step(tau, share, where="post", label=named(label, runs, "run"), **line)
            if len(values) <= MOST_BANDS:
                bands = [interval(list(at), np.mean) for at in zip(*(runs.T for runs in beyond))]  # one a tau
                low, high = np.transpose(bands)
                axis.fill_between(tau, low, high, step="post", color=line["color"], alpha=0.12, linewidth=0)
        axis.set(xlabel=rf"{what}, $\tau$", ylim=(-0.02, 1.02),
                 ylabel=f"share of runs {'at or below' if metric == 'cost' else 'above'} $\\tau$")
        if metric == "cost":
            bend(axis, "x", tau[-1], 1.0 if "limit" in what else None)
            axis.set_xlim(left=0)
    legend(figure, figure.axes[0])
    figure.suptitle(f"Performance profiles, {tasks} task{'s' * (tasks > 1)}, last tenth of training",
                    fontsize=13)
    save(figure, path)


# tables
def spread(values: np.ndarray) -> np.ndarray:
    """The ± of this project: the standard deviation over seeds (axis 0), with n - 1; NaN for a single one."""
    return np.std(values, axis=0, ddof=1) if len(values) > 1 else np.full(np.shape(values)[1:], np.nan)


def number(x: float) -> str:
    digits = 0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2
    return "–" if np.isnan(x) else f"{x:,.{digits}f}"


def joined(head: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def cell(strata: list[np.ndarray]) -> str:
    low, high = interval(strata)
    mean = number(float(iqm(pooled(strata))))
    return mean if np.isnan(low) else f"{mean} [{number(low)}, {number(high)}]"


def table(groups: dict[str, list[Run]]) -> str:
    """A row for each label; a star for those on the Pareto front of cost and return."""
    shown = [name for name in (*METRICS, "hours") if any(have(runs, name) for runs in groups.values())]
    means = np.array([[iqm(final(runs, name)) for name in ("cost", "return")] for runs in groups.values()])
    stars = [list(groups)[i] for i in front(*means.T)]
    lines = []
    for label, runs in groups.items():
        cells = [(cell([final(runs, name)]) if name != "hours" else number(final(runs, name).mean()))
                 if have(runs, name) else "–" for name in shown]
        lines.append([label + " \\*" * (label in stars), str(len(runs)), f"{runs[0].steps[-1]:,}", *cells])
    return joined(["", "seeds", "steps", *shown], lines)


def aggregate(every: dict) -> str:
    """Interquartile means over tasks and seeds, stratified by task."""
    first, lines = next(iter(every.values()))[1], []
    for label, strata in first.items():
        cells = [cell(values[label]) for _, values in every.values()]
        lines.append([label, str(sum(map(len, strata))), *cells])
    return joined(["", "runs", *(what for what, _ in every.values())], lines)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the pictures")
    parser.add_argument("runs", metavar="[LABEL=]FOLDER", nargs="+", help="runs, at any depth")
    parser.add_argument("--steps", type=int, help="leave out what came later, to compare at equal steps")
    parser.add_argument("--cost-limit", type=float, help="for the cost regret (default: the runs')")
    parser.add_argument("--reference", metavar="LABEL", help="divide returns by its")
    parser.add_argument("--window", type=float, help="of the curves [steps] (default 5%% of the longest)")
    options = parser.parse_args(argv)
    for name in ("steps", "window"):
        if getattr(options, name) is not None and not getattr(options, name) > 0:
            parser.error(f"--{name} must be positive")
    if options.cost_limit is not None and not 0 <= options.cost_limit < math.inf:
        parser.error("--cost-limit must be in [0, inf)")
    if (options.out / "progress.csv").exists():
        parser.error(f"{options.out} is a run: the first folder is the one for the pictures")
    return options


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    for path in (options.out, *options.out.parents):
        if path.is_file():
            sys.exit(f"{options.out} cannot be the folder of the pictures: {path} is a file.")
    tasks, limits = grouped(find(options.runs)), {}
    for task, groups in tasks.items():
        limits[task], groups = with_regret(groups, options.cost_limit, task)
        tasks[task] = cut(groups, options.steps)
        note_not_finite(tasks[task])
    tasks = {task: groups for task, groups in tasks.items() if groups}
    if not tasks:
        sys.exit("there is no run with an epoch that can be read, up to --steps.")
    labels = list(dict.fromkeys(label for groups in tasks.values() for label in groups))
    if options.reference and options.reference not in labels:
        sys.exit(f"--reference is {options.reference!r} but needs to be one of {', '.join(labels)}.")
    for metric in METRICS[2:4]:
        lacking = [label for label in labels if any(label in groups and not have(groups[label], metric)
                                                    for groups in tasks.values())]
        if lacking:
            who = "no run logs it" if lacking == labels else f"not logged by {'; '.join(lacking)}"
            note(f"{metric}: left out, {who}.")
    style = styles(labels)
    for task, groups in tasks.items():
        name = re.sub(r"[^\w.-]", "-", task)
        curves(options.out / f"{name}_curves.png", task, groups, style, limits[task], options.window)
        scatter(options.out / f"{name}_scatter.png", task, groups, style, limits[task])
        print(f"\n### {task}\n\n{table(groups)}\n")
        if turned := {label: runs for label, runs in groups.items() if have(runs, "reward angle")}:
            print(f"{angles(options.out / f'{name}_angles.png', task, turned, style)}\n")
    common = {task: groups for task, groups in tasks.items() if len(groups) == len(labels)}
    if left := [task for task in tasks if task not in common]:
        note(f"profiles: {', '.join(left)} left out, where not all labels have runs.")
    every = {metric: found for metric in ("return", "cost", "safe reward")
             if common and (found := scores(common, limits, metric, options.reference))}
    if every:
        profiles(options.out / "profiles.png", every, style, len(common))
    if len(common) > 1 and every:
        print(f"\n### Over {len(common)} tasks\n\n{aggregate(every)}\n")
    print("Interquartile means over seeds of the last tenth of training, with 95% stratified bootstrap "
          "intervals; hours are means; \\* marks the Pareto front of cost and return.")


if __name__ == "__main__":
    main()
