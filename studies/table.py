# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""All runs, a table a paper: of results/, by `uv run studies/table.py`, which puts them between two comments
of a page in docs/, and a few of their rows into README.md.

A row is a task, an algorithm with its options, and the end of a folder's name, which is
results/ALGORITHM-TASK-SETTING. Numbers are means over the epochs of the last tenth of the steps that all its
seeds have come to, training episodes; then the mean over seeds ± their standard deviation; hours are those of
one seed. ROWS holds what was published, too.
"""

import argparse, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from ledger import put
from report import cut, final, find, have, number, spread

COMMENTS = "<!-- the results, by studies/table.py -->\n", "<!-- end of the results -->"
SHORT = "<!-- some results, by studies/table.py -->\n", "<!-- end of some results -->"
HEAD = ["task", "options", "return", "cost", "safety probability", "safe reward", "steps", "seeds", "hours",
        "published, return at cost or safe reward at safety probability", "folder"]
CIRCLE, GOAL, POINT = "SafetyCarCircle1-v0", "SafetyCarGoal1-v0", "SafetyPointGoal1-v0"
CIRCLE2, POINT2, SWIMMER = "SafetyCarCircle2-v0", "SafetyPointGoal2-v0", "SafetySwimmerVelocity-v1"
HOPPER, ANT = "SafetyHopperVelocity-v1", "SafetyAntVelocity-v1"
# Published: SB-TRPO's from reviews of the paper, C-TRPO's from the release's runs (studies/published.py)
ROWS = [
    (CIRCLE2, "SB-TRPO, `--preset safe`", "safe", "7.5 ± 1.5 at 0.99 ± 0.01 (20M, 5 seeds)"),
    *((CIRCLE2, f"SB-TRPO, `--beta {beta}`", f"beta-{beta}", "the same")
      for beta in (0.6, 0.7, 0.75, 0.8, 0.9)),
    (CIRCLE2, "SB-TRPO, `--preset paper`", "paper", "the same"),
    (CIRCLE2, "SB-TRPO, `--update optimal`", "optimal", "the same"),
    (CIRCLE2, "SB-TRPO, `--advantage gae`", "gae", "the same"),
    (CIRCLE2, "SB-TRPO, `--advantage gae`, random critics", "gae-random-critics", "the same"),
    (CIRCLE2, "C-TRPO", "cost-limit-25", ""),
    (CIRCLE2, "C-TRPO, `--cost-limit 0`", "cost-limit-0", ""),
    (SWIMMER, "SB-TRPO, `--preset safe`", "safe", "48 ± 26 at 0.98 ± 0.02 (20M, 5 seeds)"),
    (HOPPER, "C-TRPO", "defaults-5M", "1,401 ± 547 at 21.7 ± 4.6 (5M, 5 seeds)"),
    (HOPPER, "C-TRPO, `--preset paper`", "paper", "the same"),
    (HOPPER, "sTRPO", "exact", ""),
    (HOPPER, "sTRPO, `--exclusion none`", "exclusion-none", ""),
    (HOPPER, "SB-TRPO", "defaults-1M", ""),
    (ANT, "C-TRPO, `--initial-std 0.5 --delta 0.03`", "delta-0.03", "2,943 ± 95 at 15.8 ± 4.3 (5M, 5 seeds)"),
    (ANT, "C-TRPO, `--preset paper`", "paper", "the same"),
    (ANT, "C-TRPO, `--initial-std 0.5`", "delta-0.01", "the same"),
    (ANT, "sTRPO, `--initial-std 0.5`", "exact", ""),
    (ANT, "SB-TRPO, `--initial-std 0.5`", "std-0.5-1M", ""),
    (POINT, "C-TRPO", "defaults-5M", "14.5 ± 2.6 at 26.3 ± 3.0 (5M, 5 seeds)"),
    (POINT, "C-TRPO, `--preset paper`", "paper", "the same"),
    (POINT2, "C-TRPO, `--costs hazards vases_contact --cost-limit 25 10`", "two-budgets", ""),
    (POINT2, "C-TRPO, `--costs hazards vases_contact --cost-limit 35`", "one-budget", ""),
    (CIRCLE, "sTRPO", "exact", ""),
    (CIRCLE, "sTRPO, `--exclusion none`", "exclusion-none", ""),
    (CIRCLE, "C-TRPO", "defaults-1M", ""),
    (CIRCLE, "SB-TRPO", "defaults-1M", ""),
    (GOAL, "sTRPO", "exact", ""),
    (GOAL, "sTRPO, `--exclusion none`", "exclusion-none", ""),
    (GOAL, "C-TRPO", "defaults-1M", ""),
    (GOAL, "SB-TRPO", "defaults-1M", ""),
]

TASKS = {  # of the papers' own tables; SB-TRPO's are the second levels
    "SB-TRPO": ["PointPush2-v0", "PointButton2-v0", "PointGoal2-v0", "CarPush2-v0", "CarCircle2-v0",
                "CarGoal2-v0", "SwimmerVelocity-v1", "HopperVelocity-v1"],
    "C-TRPO": ["PointGoal1-v0", "PointPush1-v0", "CarButton1-v0", "RacecarCircle1-v0", "AntVelocity-v1",
               "HalfCheetahVelocity-v1", "HumanoidVelocity-v1", "HopperVelocity-v1"],
    "sTRPO": ["CarCircle1-v0", "CarGoal1-v0", "HopperVelocity-v1", "AntVelocity-v1"]}
FEW = [(CIRCLE2, "SB-TRPO", "safe"), (SWIMMER, "SB-TRPO", "safe"), (HOPPER, "C-TRPO", "paper"),
       (ANT, "C-TRPO", "paper"), (POINT, "C-TRPO", "paper"), (HOPPER, "sTRPO", "exact")]  # README's rows


def cells(folder: Path, algorithm: str, task: str) -> list[str]:
    """Return, cost, safety and safe reward, steps, seeds, hours."""
    runs = [run for run in find([str(folder)]) if run.algorithm == algorithm]
    assert runs and {run.task for run in runs} == {task}, f"{folder} needs runs of {algorithm} on {task} only"
    assert len({run.seed for run in runs}) == len(runs), f"{folder} has two runs of one seed"
    [runs] = cut({"": runs}, None).values()
    values = [final(runs, name) for name in HEAD[2:6] if have(runs, name)]
    spreads = [f" ± {number(spread(each))}" if len(runs) > 1 else "" for each in values]
    means = [number(each.mean()) + std for each, std in zip(values, spreads)]
    return [*means, f"{runs[0].steps[-1] / 1e6:.2g}M", str(len(runs)), f"{final(runs, 'hours').mean():.2g}"]


def folder_of(task: str, method: str, setting: str) -> tuple[Path, str]:
    """Where its runs are, and the name of its algorithm."""
    algorithm = method.replace("-", "").lower()
    return ROOT / "results" / f"{algorithm}-{task}-{setting}", algorithm


def table() -> str:
    """The tables of the three papers, each below its heading; tasks of a paper without a run are named."""
    tables = {"SB-TRPO": "", "C-TRPO": "", "sTRPO": ""}
    for task, label, setting, published in ROWS:
        method, _, options = label.partition(", ")
        folder, algorithm = folder_of(task, method, setting)
        link = f"[{setting}](../results/{folder.name})"
        line = [task, options or "defaults", *cells(folder, algorithm, task), published, link]
        tables[method] += f"| {' | '.join(line)} |\n"
    for method, tasks in TASKS.items():
        for task in [f"Safety{task}" for task in tasks]:
            if not any(row[0] == task and row[1].partition(",")[0] == method for row in ROWS):
                tables[method] += f"| {task} | not run yet |{' |' * (len(HEAD) - 2)}\n"
    head = f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}\n"
    return "\n".join(f"### {method}\n\n{head}{lines}" for method, lines in tables.items())


def few() -> str:
    """README's rows: SB-TRPO's in safe reward at safety probability, the others' in return at cost."""
    lines = "| task, method, steps, seeds | ours | published |\n|---|---|---|\n"
    published, before = {}, ""
    for task, label, setting, text in ROWS:
        if text != "the same":
            before = text
        published[task, label.partition(",")[0], setting] = before
    for task, method, setting in FEW:
        returned, cost, safety, safe_reward, steps, seeds, _ = cells(*folder_of(task, method, setting), task)
        ours = f"{safe_reward} at {safety}" if method == "SB-TRPO" else f"{returned} at {cost}"
        name = re.match(r"Safety(.*?)(Velocity)?-v\d", task)[1]
        lines += f"| {name}, {method}, {steps}, {seeds} | {ours} | {published[task, method, setting]} |\n"
    return lines


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0]).parse_args(argv)
    print(put(table(), *COMMENTS), put(few(), *SHORT))


if __name__ == "__main__":
    main()
