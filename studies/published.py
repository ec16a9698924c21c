# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""C-TRPO beside its official release's own runs, on the release's eight tasks: results/published.md, by
`uv run studies/published.py`, with a clone of the release in release/.

The release's runs are those with hysteresis; all at equal steps. All are averaged over 200,000 steps (the
release's numbers are themselves running means over 50 episodes). What follows ± is one standard deviation
over seeds, with n - 1. "Not clipped": actions, as in the release; see studies/unclipped.py. The cost regret
is the sum over time of max(0, cost - 25), of these averages, in cost per episode times million steps: what
exceeds the limit within an average does not count, for either. It also draws figures/published.png, whose
bands are the same deviations, and puts the last rows of each task, at 5M steps at most, into docs/ctrpo.md.
"""

import argparse, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import numpy as np
from matplotlib.figure import Figure
from pages import fill
from report import COLOURS, GREY, Run, find, note_left_out, save, smooth, spread
from table import ANT, BESIDE, CHEETAH, HOPPER, POINT, TASKS, beside_the_release, joined, not_clipped

RELEASE = ROOT / "release" / "data" / "runs" / "ablation"
PRESET = "ours, preset paper"
UNCLIPPED = f"{PRESET}, not clipped"
OURS = {task: {"preset paper": "paper"} for task in TASKS["C-TRPO"]}  # {label: setting} of each task
OURS[POINT] = {"defaults": "defaults-5M"} | OURS[POINT]
OURS[HOPPER] = {"defaults": "defaults-5M"} | OURS[HOPPER]
OURS[ANT] = {"delta 0.03": "delta-0.03", "delta 0.01": "delta-0.01"} | OURS[ANT]
OURS[CHEETAH] |= {"preset paper, not clipped": "paper-unclipped"}
COLOUR = {"published": GREY, PRESET: COLOURS[1], UNCLIPPED: COLOURS[3], "ours, defaults": COLOURS[0],
          "ours, delta 0.03": COLOURS[0], "ours, delta 0.01": COLOURS[2]}
WINDOW, LIMIT = 200_000, 25.0  # environment steps; cost per episode
MARKS = 1_000_000, 2_000_000, 3_000_000, 5_000_000, 10_000_000  # rows, beside the last that all have
HEAD = ["steps", "runs", "seeds", "return", "cost", "cost regret so far"]
ABOUT = f"""Runs of ours beside those of C-TRPO's official release (https://github.com/milosen/ctrpo,
386c647), by `uv run studies/published.py`: means over {WINDOW:,} steps, and over seeds ± the standard
deviation with n - 1.
"""


def averages(group: list[Run]) -> tuple[np.ndarray, dict]:
    """Ends of the windows, as far as all runs have come, and {column: (seeds, windows)}."""
    at = np.arange(WINDOW, min(run.steps[-1] for run in group) + 1, WINDOW)
    returns, costs = (np.array([smooth(run.steps, run.columns[name], at, WINDOW) for run in group])
                      for name in ("return", "cost"))
    regret = np.cumsum(np.maximum(costs - LIMIT, 0), axis=1) * WINDOW / 1e6
    return at, {"return": returns, "cost": costs, "regret": regret}


def ours(task: str) -> dict[str, tuple]:
    """{label: averages} of our runs, as far as there are any, and they have come to the first average."""
    groups = {}
    for label, setting in OURS[task].items():
        folder = ROOT / "results" / f"ctrpo-{task}-{setting}"
        runs = find([str(folder)]) if folder.exists() else []
        if other := [run for run in runs if run.task not in (task, not_clipped(task))]:
            sys.exit(f"{other[0].folder} is a run on {other[0].task}: {folder} needs runs on {task} only.")
        if short := [run.folder for run in runs if run.steps[-1] < WINDOW]:
            note_left_out({f"it has not come to {WINDOW:,} steps": short})
        if long := [run for run in runs if run.steps[-1] >= WINDOW]:
            groups[f"ours, {label}"] = averages(long)
    return groups


def cell(values: np.ndarray) -> str:
    """Mean ± standard deviation over seeds; a single one has no ±."""
    digits = 0 if values.mean() >= 100 else 1
    mean = f"{values.mean():,.{digits}f}"
    return f"{mean} ± {spread(values):,.{digits}f}" if len(values) > 1 else mean


def rows(groups: dict[str, tuple]) -> list[list[str]]:
    """Of one task, by steps."""
    lines = []
    for t in sorted({*MARKS, int(min(at[-1] for at, _ in groups.values()))}):
        for label, (at, columns) in groups.items():
            if t in at:
                cells = [cell(values[:, np.argmax(at == t)]) for values in columns.values()]
                lines.append([f"{t / 1e6:g}M", label, str(len(columns["return"])), *cells])
    return lines


def single(groups: dict[str, tuple]) -> str:
    """The return of each run of one task at 5M steps, where ± does not say how they lie."""
    found = {label: columns["return"][:, at == 5_000_000].ravel() for label, (at, columns) in groups.items()}
    shown = {label: [f"{value:,.{0 if value >= 100 else 1}f}" for value in np.sort(values)]
             for label, values in found.items()}
    return "; ".join(f"{label}: {', '.join(each)}" for label, each in shown.items() if each)


def at_the_end(found: dict[str, list[list[str]]]) -> str:
    """A line a task: the last steps, 5M at most, that the published runs and the preset have come to."""
    lines = []
    for task, of_task in found.items():
        by_run = {(label, steps): cells for steps, label, *cells in of_task}
        for label, name in ((PRESET, task), (UNCLIPPED, "the same, actions not clipped")):
            both = [steps for known, steps in by_run if known == label and ("published", steps) in by_run
                    and float(steps.removesuffix("M")) <= 5]
            end = both[-1] if both else "5M"
            _, returned, cost, _ = by_run["published", end]
            line = [name, end, f"{returned} at {cost}", "not run yet", ""]
            if both:
                seeds, returned, cost, _ = by_run[label, end]
                line[3:] = f"{returned} at {cost}", seeds
            if both or label == PRESET:
                lines.append(line)
    return joined(["task", "steps", "published, 5 seeds", "ours, `--preset paper`", "seeds"], lines)


def draw(groups: dict[str, dict]) -> None:
    """Return and cost of each task over the steps, published ones in grey."""
    figure = Figure(figsize=(15, 11), layout="constrained")
    axes = figure.subplots(4, 4)
    for k, (task, of_task) in enumerate(groups.items()):
        upper, lower = axes[k // 4 * 2, k % 4], axes[k // 4 * 2 + 1, k % 4]
        for axis, column in ((upper, "return"), (lower, "cost")):
            for label, (at, columns) in of_task.items():
                colour = COLOUR[label]
                mean, std = columns[column].mean(0), spread(columns[column])
                axis.plot(at / 1e6, mean, color=colour, label=f"{label} ({len(columns[column])})")
                axis.fill_between(at / 1e6, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
            axis.set(ylabel=f"{column} per episode", xlim=(0, 10))
        upper.set_title(task)
        upper.legend(fontsize=8)
        lower.axhline(LIMIT, color=GREY, linestyle="--", linewidth=1.2)
        lower.set(xlabel="million steps", ylim=(0, None))
    save(figure, ROOT / "figures" / "published.png")


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0]).parse_args(argv)
    if not RELEASE.exists():
        sys.exit("There are no published runs: git clone https://github.com/milosen/ctrpo release")
    groups = {task: {"published": averages(find([str(RELEASE / task / "c-trpo-hyst")])), **ours(task)}
              for task in TASKS["C-TRPO"]}
    parts = [f"### {task}\n\n{joined(HEAD, rows(of_task))}\n\nEach run at 5M: {single(of_task)}.\n"
             for task, of_task in groups.items()]
    BESIDE.write_text("\n".join([ABOUT, *parts]))
    draw(groups)
    fill("published.py", {"beside the release": at_the_end(beside_the_release())})


if __name__ == "__main__":
    main()
