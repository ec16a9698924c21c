# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""The main runs, a table a paper: of results/, by `uv run studies/table.py`, which puts them between two
comments of docs/results.md, a few of their rows into README.md, and what was tried for settings into the
pages of SB-TRPO and sTRPO.

A row is an algorithm, a task, options, and the end of a folder's name, results/ALGORITHM-TASK-SETTING.
Numbers are means over the epochs of the last tenth of the steps that all its seeds have come to, training
episodes; then the mean over seeds ± their standard deviation; hours are those of one seed.
"""

import argparse, functools, itertools, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from pages import fill
from report import cut, final, find, joined, number, spread

METRICS = ["return", "cost", "safety probability", "safe reward"]
HEAD = ["task", "published", "options", *METRICS, "steps", "seeds", "hours"]
CIRCLE, GOAL, POINT = "SafetyCarCircle1-v0", "SafetyCarGoal1-v0", "SafetyPointGoal1-v0"
CIRCLE2, POINT2, SWIMMER = "SafetyCarCircle2-v0", "SafetyPointGoal2-v0", "SafetySwimmerVelocity-v1"
PUSH2, BUTTON2 = "SafetyPointPush2-v0", "SafetyPointButton2-v0"
HOPPER, ANT = "SafetyHopperVelocity-v1", "SafetyAntVelocity-v1"
CHEETAH = "SafetyHalfCheetahVelocity-v1"
TASKS = {  # of the papers' own tables; SB-TRPO's are the second levels
    "SB-TRPO": [PUSH2, BUTTON2, POINT2, "SafetyCarPush2-v0", CIRCLE2, "SafetyCarGoal2-v0", SWIMMER, HOPPER],
    "C-TRPO": [POINT, "SafetyPointPush1-v0", "SafetyCarButton1-v0", "SafetyRacecarCircle1-v0", ANT,
               CHEETAH, "SafetyHumanoidVelocity-v1", HOPPER],
    "sTRPO": [CIRCLE, GOAL, HOPPER, ANT]}
PAPER = {  # SB-TRPO's safe reward and safety probability, 20M steps, 5 seeds, as far as reviews of it say
    PUSH2: ("0.33 ± 0.18", "0.79 ± 0.08"), BUTTON2: ("more than 0", "0.47 ± 0.10"),
    CIRCLE2: ("7.5 ± 1.5", "0.99 ± 0.01"), SWIMMER: ("48 ± 26", "0.98 ± 0.02")}
BESIDE = ROOT / "results" / "published.md"
ROWS = [
    ("SB-TRPO", CIRCLE2, "--preset safe", "safe"),
    ("SB-TRPO", CIRCLE2, "--preset safe, older scripts", "safe-older"),
    ("SB-TRPO", CIRCLE2, "", "defaults-800k"),
    *(("SB-TRPO", CIRCLE2, f"--beta {beta}", f"beta-{beta}") for beta in (0.6, 0.7, 0.75, 0.8, 0.9)),
    ("SB-TRPO", CIRCLE2, "--update optimal", "optimal"),
    ("SB-TRPO", CIRCLE2, "--advantage gae", "gae"),
    ("SB-TRPO", CIRCLE2, "--advantage gae, random critics", "gae-random-critics"),
    ("SB-TRPO", SWIMMER, "--preset safe --batch-growth 1.585", "safe"),
    ("SB-TRPO", SWIMMER, "--preset safe --batch-growth 1.585, older scripts", "safe-older"),
    ("SB-TRPO", HOPPER, "", "defaults-1M"),
    ("SB-TRPO", ANT, "--initial-std 0.5", "std-0.5-1M"),
    ("SB-TRPO", CIRCLE, "", "defaults-1M"),
    ("SB-TRPO", GOAL, "", "defaults-1M"),
    ("C-TRPO", POINT, "--preset paper, older scripts", "paper-older"),
    ("C-TRPO", POINT, "", "defaults-5M"),
    ("C-TRPO", ANT, "--preset paper, older scripts", "paper-older"),
    ("C-TRPO", ANT, "--initial-std 0.5 --delta 0.03", "delta-0.03"),
    ("C-TRPO", ANT, "--initial-std 0.5", "delta-0.01"),
    ("C-TRPO", CHEETAH, "--preset paper, actions not clipped", "paper-unclipped"),
    ("C-TRPO", HOPPER, "--preset paper, older scripts", "paper-older"),
    ("C-TRPO", HOPPER, "", "defaults-5M"),
    ("C-TRPO", CIRCLE2, "", "cost-limit-25"),
    ("C-TRPO", CIRCLE2, "--cost-limit 0", "cost-limit-0"),
    ("C-TRPO", POINT2, "--costs hazards vases_contact --cost-limit 25 10 --batch-steps 20000", "two-budgets"),
    ("C-TRPO", POINT2, "--costs hazards vases_contact --cost-limit 35 --batch-steps 20000", "one-budget"),
    ("C-TRPO", CIRCLE, "", "defaults-1M"),
    ("C-TRPO", GOAL, "", "defaults-1M"),
    ("sTRPO", CIRCLE, "", "exact-1.5M"),
    ("sTRPO", CIRCLE, "--exclusion none", "exclusion-none-1.5M"),
    ("sTRPO", CIRCLE, "defaults, older scripts", "exact"),
    ("sTRPO", CIRCLE, "--exclusion none, older scripts", "exclusion-none"),
    ("sTRPO", CIRCLE, "", "defaults"),
    ("sTRPO", GOAL, "", "exact"),
    ("sTRPO", GOAL, "--exclusion none", "exclusion-none"),
    ("sTRPO", HOPPER, "--initial-std 1", "exact-1.5M"),
    ("sTRPO", HOPPER, "--initial-std 1 --exclusion none", "exclusion-none-1.5M"),
    ("sTRPO", HOPPER, "--initial-std 1, older scripts", "exact"),
    ("sTRPO", HOPPER, "--initial-std 1 --exclusion none, older scripts", "exclusion-none"),
    ("sTRPO", GOAL, "--initial-std 1 --cost-limit 0, older scripts", "limit-0-1M-older"),
    ("sTRPO", ANT, "--initial-std 0.5", "exact"),
    ("sTRPO", ANT, "--initial-std 1 --cost-limit 0, older scripts", "limit-0-1M-older"),
]
SWEPT = {  # by studies/table_*.toml, as far as they have run: {end of the folder: options}
    "SB-TRPO": {"paper": "--preset paper", "paper-time": "--preset paper --advantage time",
                "paper-20M": "--preset paper",
                **{f"paper-beta-{beta}": f"--preset paper --beta {beta}" for beta in (0.6, 0.7, 0.8, 0.9)}},
    "C-TRPO": {"paper": "--preset paper", "paper-limit-0": "--preset paper --cost-limit 0",
               "paper-limit-15": "--preset paper --cost-limit 15"},
    "sTRPO": {"exclusion-none-limit-0": "--initial-std 1 --exclusion none --cost-limit 0",
              "limit-0-1M": "--initial-std 1 --cost-limit 0",
              "limit-0-exclusion-none-1M": "--initial-std 1 --cost-limit 0 --exclusion none"}}
FEW = [("SB-TRPO", CIRCLE2, "safe"), ("SB-TRPO", SWIMMER, "safe"), ("C-TRPO", HOPPER, "paper"),
       ("C-TRPO", ANT, "paper"), ("C-TRPO", POINT, "paper"), ("sTRPO", HOPPER, "exact-1.5M")]  # README's rows
SETTINGS = {  # what was tried on development tasks, beside what; {end of the folder: options}
    "SB-TRPO": ("--preset paper", [CIRCLE2, POINT2], {
        "paper-1M": "", "paper-time-1M": "--advantage time", "paper-gae-1M": "--advantage gae",
        "paper-cg-5-1M": "--cg-iterations 5", "paper-damping-1e-4-1M": "--damping 1e-4",
        "paper-std-0.6-1M": "--initial-std 0.6", "paper-optimal-1M": "--update optimal",
        "paper-delta-0.01-1M": "--delta 0.01", "paper-batch-10000-1M": "--batch-steps 10000",
        "paper-beta-0.9-1M": "--beta 0.9"}),
    "sTRPO": ("--cost-limit 0 --initial-std 1", [CIRCLE, HOPPER], {
        "limit-0-1M": "", "limit-0-1M-older": "nothing else, older scripts",
        "limit-0-exclusion-none-1M": "--exclusion none",
        "limit-0-delta-0.02-1M": "--delta-1 0.02", "limit-0-pid-slow-1M": "--pid 0.01 0.001 0",
        "limit-0-pid-fast-1M": "--pid 0.2 0.02 0.05", "limit-0-batch-20000-1M":
        "--batch-steps 20000 --delta-1 0.02 --cg-iterations 15 --damping 0.1",
        "limit-0-critic-mean-1M": "--critic mean", "limit-0-paper-1M": "--preset paper",
        "limit-0-paper-lambda-0.01-1M": "--preset paper --lambda-2 0.01"})}


def cells(folder: Path, algorithm: str, task: str) -> list[str]:
    """Return, cost, safety and safe reward, steps, seeds, hours."""
    runs = [run for run in find([str(folder)]) if run.algorithm == algorithm]
    one = {run.task for run in runs} in ({task}, {not_clipped(task)})
    assert one, f"{folder} needs runs of {algorithm} on {task} only"
    assert len({run.seed for run in runs}) == len(runs), f"{folder} has two runs of one seed"
    [runs] = cut({"": runs}, None).values()
    values = [final(runs, name) for name in METRICS]
    spreads = [f" ± {number(spread(each))}" if len(runs) > 1 else "" for each in values]
    means = [number(each.mean()) + std for each, std in zip(values, spreads)]
    return [*means, f"{runs[0].steps[-1] / 1e6:.2g}M", str(len(runs)), f"{final(runs, 'hours').mean():.2g}"]


def short(task: str) -> str:
    """Hopper of SafetyHopperVelocity-v1."""
    return re.match(r"Safety(.*?)(Velocity)?-v\d", task)[1]


def not_clipped(task: str) -> str:
    """The same velocity task by studies/unclipped.py."""
    return f"studies.unclipped:{task.replace('Safety', 'Unclipped').replace('Velocity', '')}"


def folder_of(method: str, task: str, setting: str, kind: str = "") -> tuple[Path, str]:
    """Where its runs are, and the name of its algorithm."""
    algorithm = method.replace("-", "").lower()
    return ROOT / "results" / f"{kind}{algorithm}-{task}-{setting}", algorithm


def all_rows() -> list[tuple]:
    swept = []
    for method, task in itertools.product(SWEPT, dict.fromkeys(sum(TASKS.values(), []))):
        for setting, options in SWEPT[method].items():
            if folder_of(method, task, setting)[0].exists():
                swept.append((method, task, options, setting))
    return swept + ROWS


@functools.cache
def beside_the_release() -> dict[str, list[list[str]]]:
    """{task: rows} of results/published.md: steps, runs, seeds, return, cost, regret."""
    parts = re.findall(r"^### (.*)\n\n((?:\|.*\n)+)", BESIDE.read_text(), re.M)
    return {task: [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines.splitlines()[2:]]
            for task, lines in parts}


def published(method: str, task: str) -> str:
    """What a row is to be compared with; nothing where we know of nothing."""
    if method == "C-TRPO":
        for steps, label, seeds, returned, cost, _ in beside_the_release().get(task, []):
            if (steps, label) == ("5M", "published"):
                return f"{returned} at {cost} (5M, {seeds} seeds)"
    if method == "SB-TRPO" and task in PAPER:
        return f"{' at '.join(PAPER[task])} (20M, 5 seeds)"
    return ""


def linked(options: str, folder: Path) -> str:
    """Options, and words beside them, as a link to the runs that had them."""
    command, comma, words = options.partition(", ")
    text = f"`{command}`{comma}{words}" if command.startswith("--") else options
    return f"[{text}](../results/{folder.name})"


def lines_of(method: str, task: str) -> list[list[str]]:
    """The rows of a task; what was published stands in the first."""
    known, lines = published(method, task), []
    for *where, options, setting in all_rows():
        if where == [method, task]:
            folder, algorithm = folder_of(method, task, setting)
            link = linked(options or "defaults", folder)
            beside = "the same" if known and lines and lines[-1][1] else known
            if "--cost-limit" in options:
                beside = ""  # the published ones have a budget of 25
            lines.append([task, beside, link, *cells(folder, algorithm, task)])
    return lines or [[task, known, "not run yet", *[""] * (len(HEAD) - 3)]]


def table() -> str:
    """The tables of the three papers, each below its heading: its own tasks in its order, then others."""
    text = ""
    for method, tasks in TASKS.items():
        others = dict.fromkeys(row[1] for row in all_rows() if row[0] == method and row[1] not in tasks)
        lines = [line for task in [*tasks, *others] for line in lines_of(method, task)]
        text += f"### {method}\n\n{joined(HEAD, lines)}\n\n"
    return text


def few() -> str:
    """README's rows: SB-TRPO's in safe reward at safety probability, the others' in return at cost."""
    lines = []
    for method, task, setting in FEW:
        folder, algorithm = folder_of(method, task, setting)
        returned, cost, safety, safe_reward, steps, seeds, _ = cells(folder, algorithm, task)
        ours = f"{safe_reward} at {safety}" if method == "SB-TRPO" else f"{returned} at {cost}"
        lines.append([f"{short(task)}, {method}, {steps}, {seeds}", ours, published(method, task)])
    return joined(["task, method, steps, seeds", "ours", "published"], lines)


def settings(method: str) -> str:
    """What was tried on development tasks, as far as it was: a million steps."""
    lines, (common, tasks, tried) = [], SETTINGS[method]
    for task in tasks:
        for setting, options in tried.items():
            folder, algorithm = folder_of(method, task, setting, "development-")
            if folder.exists():
                *means, steps, seeds, _ = cells(folder, algorithm, task)
                assert steps == "1M", folder
                lines.append([task, linked(options or "nothing else", folder), *means, seeds])
    return joined(["task", f"`{common}` with", *METRICS, "seeds"], lines)


def tables() -> dict[str, str]:
    """What stands in the pages, by name."""
    tried = {f"settings of {method}": settings(method) for method in SETTINGS}
    return {"the results": table(), "some results": few(), **tried}


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0]).parse_args(argv)
    fill("table.py", tables())


if __name__ == "__main__":
    main()
