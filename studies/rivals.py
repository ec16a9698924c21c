# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "tqdm==4.67.1", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""SB-TRPO beside C-TRPO and TRPO with a multiplier on its paper's eight tasks: figures/rivals.png, by
`uv run studies/rivals.py`, which draws another picture and fills four tables of docs/sbtrpo.md, too.

The runs are those of studies/table_sbtrpo.toml, as far as they are in results/: ALGORITHM-TASK-SETTING, two
million steps where nothing else is said. The first table and the picture have safe reward and safety
probability, training episodes of the last tenth: means over seeds, and their standard deviations (n - 1).
The second table has fresh episodes of SB-TRPO's policies, by their evaluation.json: is a safe policy doing
its task? The third has the angles of all steps with the best reward step and with the best cost step, to
first order, in the Fisher metric; figures/angles.png has those of the two tasks of the paper's Figure 4. The
last has what the line search leaves of a step.
"""

import argparse, csv, itertools, json, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import numpy as np
from evaluate import has_goals
from matplotlib.figure import Figure
from pages import fill
from report import COLOURS, GREY, MARKERS, cut, final, find, number, progress_of, save, spread
from table import CIRCLE2, PAPER, TASKS, cells, folder_of, joined

RIVALS = {"SB-TRPO": ("SB-TRPO", "paper"), "SB-TRPO, `--advantage time`": ("SB-TRPO", "paper-time"),
          "C-TRPO, budget 0": ("C-TRPO", "paper-limit-0"), "C-TRPO, budget 15": ("C-TRPO", "paper-limit-15"),
          "TRPO + PID, budget 0": ("sTRPO", "exclusion-none-limit-0"),
          "SB-TRPO, longer": ("SB-TRPO", "paper-20M")}  # label: script, setting


def table() -> str:
    """Safe reward at safety probability: a line a task, a column a method."""
    lines = []
    for task in TASKS["SB-TRPO"]:
        line = [task, " at ".join(PAPER.get(task, []))]
        for method, setting in RIVALS.values():
            folder, algorithm = folder_of(method, task, setting)
            line.append("not yet")
            if folder.exists():
                _, _, safety, safe_reward, steps, seeds, _ = cells(folder, algorithm, task)
                length = "" if steps == "2M" else f", {steps}"
                line[-1] = f"{safe_reward} at {safety} ({seeds}{length})"
        lines.append(line)
    return joined(["task", "paper (20M, 5 seeds)", *RIVALS], lines)


def fresh() -> str:
    """Of SB-TRPO's policies on fresh episodes: mean and 95% interval for one policy."""
    lines = []
    for task, setting in itertools.product(TASKS["SB-TRPO"], ("paper", "paper-20M")):
        folder, algorithm = folder_of("SB-TRPO", task, setting)
        file = folder / "evaluation.json"
        runs = json.loads(file.read_text())["by_action_noise"]["0.0"]["runs"] if file.exists() else {}
        for run in runs.values():
            trained = f"{run['training_seed']}, {run['steps'] / 1e6:.2g}M"
            for policy, name in (("sampled", "sampled"), ("deterministic", "mean action")):
                values = [run[policy][metric] for metric in ("safety", "safe reward", "goals")]
                shown = [with_interval(value) for value in values]
                lines.append([task, trained, name, *shown[:2], shown[2] if has_goals(task) else ""])
    head = ["task", "seed, steps", "policy", "safety probability", "safe reward", "goals per safe episode"]
    return joined(head, lines)


def with_interval(value: list) -> str:
    mean, low, high = value
    if mean is None:
        return "no safe episode"
    return number(mean) + (f" [{number(low)}, {number(high)}]" if low is not None else "")


def draw() -> None:
    """The paper's scatter: to the right is safer, up is better."""
    figure = Figure(figsize=(15, 7), layout="constrained")
    axes = figure.subplots(2, 4).flat
    for axis, task in zip(axes, TASKS["SB-TRPO"]):
        for (method, setting), colour, marker in zip(RIVALS.values(), COLOURS, MARKERS):
            folder, _ = folder_of(method, task, setting)
            if folder.exists():
                [runs] = cut({"": find([str(folder)])}, None).values()
                x, y = (final(runs, metric) for metric in ("safety probability", "safe reward"))
                bars = {"xerr": spread(x), "yerr": spread(y)} if len(runs) > 1 else {}
                axis.errorbar(x.mean(), y.mean(), fmt=marker, color=colour, markersize=8, capsize=3, **bars)
        known = [text.split(" ± ") for text in PAPER.get(task, [])]
        if known and all(len(pair) == 2 for pair in known):
            (y, yerr), (x, xerr) = (map(float, pair) for pair in known)
            axis.errorbar(x, y, xerr=xerr, yerr=yerr, fmt="*", color=GREY, markersize=11, capsize=3)
        axis.axhline(0, color=GREY, linewidth=0.8)
        axis.set(title=task, xlim=(0, 1.05), xlabel="safety probability", ylabel="safe reward")
    handles = [axis.plot([], [], marker, color=colour)[0] for colour, marker in zip(COLOURS, MARKERS)]
    labels = [label.replace("`", "") for label in RIVALS]
    known = axis.plot([], [], "*", color=GREY)[0]
    figure.legend([*handles[:len(labels)], known], [*labels, "paper, 20M steps"], ncols=4,
                  loc="outside lower center")
    save(figure, ROOT / "figures" / "rivals.png")


def turned(task: str) -> dict[str, dict]:
    """{method: {"reward", "cost": angles of all steps of all seeds [degrees]}}; the cost's are NaN where a
    batch met none."""
    found = {}
    for label, (method, setting) in RIVALS.items():
        folder, _ = folder_of(method, task, setting)
        runs = find([str(folder)]) if folder.exists() else []
        if runs and all("reward angle" in run.columns for run in runs):
            reward, cost, met = (np.concatenate([run.columns[name] for run in runs])
                                 for name in ("reward angle", "cost angle", "cost"))
            found[label] = {"reward": reward, "cost": np.where(met > 0, cost, np.nan)}
    return found


def angles() -> str:
    """A line a task and method: how many batches met cost; of these, medians and quartiles of the angles, and
    how many steps work against reward."""
    lines = []
    for task in TASKS["SB-TRPO"]:
        for label, of in turned(task).items():
            met = np.isfinite(of["cost"])
            shown = ["{1:.0f}° ({0:.0f}° to {2:.0f}°)".format(*np.nanpercentile(each[met], [25, 50, 75]))
                     for each in of.values()]
            beyond = f"{np.mean(of['reward'][met] > 90):.0%}"
            lines.append([task, label, f"{met.mean():.0%}", shown[0], beyond, shown[1]])
    return joined(["task", "method", "batches with cost", "angle with the best reward step", "beyond 90°",
                   "angle with the best cost step"], lines)


def searched() -> str:
    """What the line search leaves of steps that have to lower the cost: medians over all epochs and seeds."""
    lines = []
    for options, setting in {"defaults": "defaults-800k", "`--update optimal`": "optimal",
                             "`--preset safe`": "safe", "`--preset paper`": "paper"}.items():
        filled, kept, shortened = [], [], []
        for folder in sorted(folder_of("SB-TRPO", CIRCLE2, setting)[0].glob("seed-*")):
            delta = json.loads((folder / "config.json").read_text())["config"]["delta"]
            for row in csv.DictReader(progress_of(folder).splitlines()):
                if float(row["Misc/required"]) > 0:
                    filled.append(float(row["Train/KL"]) / delta)
                    kept.append(-float(row["Misc/surrogate_cost"]) / float(row["Misc/required"]))
                    shortened.append(float(row["Misc/fraction"]) < 1)
        lines.append([options, str(len(kept)), f"{np.mean(shortened):.0%}", f"{np.median(filled):.2f}",
                      f"{np.median(kept):.2f}"])
    return joined(["CarCircle2", "steps that have to lower the cost", "shortened", "KL [δ]",
                   "surrogate decrease [required]"], lines)


def draw_angles() -> None:
    """The paper's Figure 4: left of 90 degrees a step improves reward, or cost."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes, edges = figure.subplots(2, 2), np.arange(0, 181, 5)
    for row, task in zip(axes, ("SafetyCarCircle2-v0", "SafetyPointButton2-v0")):
        for axis, which in zip(row, ("reward", "cost")):
            for label, of in turned(task).items():
                known = of[which][np.isfinite(of[which])]
                axis.stairs(np.histogram(known, edges)[0] / len(known), edges, linewidth=1.8,
                            color=COLOURS[list(RIVALS).index(label)], label=label.replace("`", ""))
            axis.axvline(90, color=GREY, linestyle="--", linewidth=1.2)
            axis.set(title=f"{task}: angle with the best {which} step", ylabel="share of steps",
                     xlabel="degrees, in the Fisher metric", xlim=(0, 180), xticks=range(0, 181, 30))
        row[0].legend()
    save(figure, ROOT / "figures" / "angles.png")


def tables() -> dict[str, str]:
    """What stands in the page, by name."""
    return {"rivals": table(), "fresh episodes": fresh(), "angles": angles(), "line search": searched()}


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0]).parse_args(argv)
    draw()
    draw_angles()
    fill("rivals.py", tables())


if __name__ == "__main__":
    main()
