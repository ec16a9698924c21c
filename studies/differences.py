# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Few differences between three seeds hold: `uv run studies/differences.py` writes results/differences.md.

A section is a claim, a line of it one metric of two samples of seeds. The value of a seed is its mean over
the epochs of the last tenth of the steps that all seeds of both samples have come to, or over 100 fresh
episodes.

difference   of the means, with Welch's 95% interval, for normal samples of different variances; p is that of
             his test. A published sample is known by its mean, standard deviation and number of seeds. One
             seed beside it counts as a new draw from it: its standard deviation is that of the published one,
             and a share of 100 episodes has their binomial error besides
slope        of the least-squares line through all seeds of a dial, with its 95% interval and the p of t
Holm         p, corrected by Holm's method for the number of lines in its section
verdict      `differs` where that is below 5%, else `not distinguishable`: alike, or too few seeds to tell

The sampled policy and its mean action meet the same 100 worlds: McNemar's exact test, by the worlds where
just one of them is safe. How many these are is not kept; p is the largest that the two numbers allow.
"""

import argparse, itertools, json, math, re, sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
sys.path.insert(0, str(ROOT / "tools"))
import numpy as np
from report import find, joined, number, spread, until
from scipy import stats
import table
from table import ANT, BUTTON2, CIRCLE, CIRCLE2, HOPPER, PAPER, POINT, POINT2, PUSH2, SWIMMER

METRICS = "return", "cost", "safety probability", "safe reward"
HEAD = ["metric", "first", "second", "difference", "p", "Holm", "verdict"]
PAIRS = {  # title: first, second, metrics
    f"Critics against returns: SB-TRPO on {CIRCLE2}":
        (f"sbtrpo-{CIRCLE2}-gae", f"sbtrpo-{CIRCLE2}-defaults-800k", METRICS),
    f"The optimal step against the convex one: SB-TRPO on {CIRCLE2}, β = 0.75":
        (f"sbtrpo-{CIRCLE2}-optimal", f"sbtrpo-{CIRCLE2}-beta-0.75", METRICS),
    f"C-TRPO with a budget of 25 against SB-TRPO: {CIRCLE2}":
        (f"ctrpo-{CIRCLE2}-cost-limit-25", f"sbtrpo-{CIRCLE2}-beta-0.75", METRICS),  # of one sweep
    f"The release's settings against our defaults: C-TRPO on {HOPPER}":
        (f"ctrpo-{HOPPER}-paper", f"ctrpo-{HOPPER}-defaults-5M", METRICS[:2]),
    f"The release's settings against our defaults: C-TRPO on {POINT}":
        (f"ctrpo-{POINT}-paper", f"ctrpo-{POINT}-defaults-5M", METRICS[:2]),
    f"The release's settings against δ = 0.03: C-TRPO on {ANT}":
        (f"ctrpo-{ANT}-paper", f"ctrpo-{ANT}-delta-0.03", METRICS[:2]),
    f"With exclusion against without: sTRPO on {HOPPER}":
        (f"strpo-{HOPPER}-exact-1.5M", f"strpo-{HOPPER}-exclusion-none-1.5M", METRICS[:2]),
    f"With exclusion against without: sTRPO on {CIRCLE}":
        (f"strpo-{CIRCLE}-exact-1.5M", f"strpo-{CIRCLE}-exclusion-none-1.5M", METRICS[:2]),
    f"With exclusion against without: sTRPO on {HOPPER}, older scripts":
        (f"strpo-{HOPPER}-exact", f"strpo-{HOPPER}-exclusion-none", METRICS[:2]),
    f"With exclusion against without, a budget of 0, 1M steps: sTRPO on {HOPPER}":
        (f"development-strpo-{HOPPER}-limit-0-1M", f"development-strpo-{HOPPER}-limit-0-exclusion-none-1M",
         METRICS),
    f"With exclusion against without, a budget of 0, 1M steps: sTRPO on {CIRCLE}":
        (f"development-strpo-{CIRCLE}-limit-0-1M", f"development-strpo-{CIRCLE}-limit-0-exclusion-none-1M",
         METRICS),
    f"SB-TRPO, `--preset safe`, against its older runs: {CIRCLE2}":
        (f"sbtrpo-{CIRCLE2}-safe", f"sbtrpo-{CIRCLE2}-safe-older", METRICS),
    f"Scaling that moves the policy, against absorbed, SB-TRPO `--preset safe`: {SWIMMER}":
        (f"development-sbtrpo-{SWIMMER}-not-absorbed", f"sbtrpo-{SWIMMER}-safe", METRICS),
    f"A budget for each of two costs against one for their sum: C-TRPO on {POINT2}":
        (f"ctrpo-{POINT2}-two-budgets", f"ctrpo-{POINT2}-one-budget", METRICS[:2])}
THREE = HOPPER, SWIMMER, CIRCLE2  # where both have three seeds
for task in THREE:
    PAIRS[f"A multiplier and a budget of 0 against SB-TRPO `--preset paper`: {task}, 2M steps"] = (
        f"strpo-{task}-exclusion-none-limit-0", f"sbtrpo-{task}-paper", METRICS)
for task, (setting, options) in itertools.product((CIRCLE, HOPPER), {
        "critic-mean": "`--critic mean`", "pid-fast": "a faster multiplier",
        "pid-slow": "a slower multiplier", "delta-0.02": "`--delta-1 0.02`"}.items()):
    PAIRS[f"sTRPO with a budget of 0, 1M steps, {options} against nothing else: {task}"] = (
        f"development-strpo-{task}-limit-0-{setting}-1M", f"development-strpo-{task}-limit-0-1M", METRICS)
BETAS = 0.6, 0.7, 0.75, 0.8, 0.9


class Sample(NamedTuple):
    mean: float
    std: float  # n - 1; NaN for n = 1
    n: int

    def __str__(self) -> str:
        """As in print."""
        return number(self.mean) + (f" ± {number(self.std)}" if self.n > 1 else "") + f" ({self.n})"


def sample(values) -> Sample:
    values = np.asarray(values, float)
    return Sample(float(values.mean()), float(spread(values)), len(values))


def welch(first: Sample, second: Sample, besides: float = 0.0) -> tuple[float, float]:
    """Half the width of the 95% interval of the difference, and p. A single first value has the variance of
    the second sample, and one besides. NaN where a standard deviation is; equal samples that do not vary are
    alike, others differ."""
    pair = [[x.std**2, x.n] for x in (first, second)]
    if first.n == 1:
        variance, freedom = pair[1][0] * (1 + 1 / second.n) + besides, second.n - 1
    else:
        parts = [square / n for square, n in pair]
        variance = sum(parts)
        if variance == 0:
            return 0.0, float(first.mean == second.mean)
        freedom = variance**2 / sum(part**2 / (n - 1) for part, (_, n) in zip(parts, pair))
    error = variance**0.5
    half = stats.t.ppf(0.975, freedom) * error
    return float(half), float(2 * stats.t.sf(abs(first.mean - second.mean) / error, freedom))


def mcnemar(safe: int, other: int, worlds: int = 100) -> float:
    """The largest p over all numbers of worlds where neither is safe."""
    alone = [(worlds - safe - both, worlds - other - both)
             for both in range(max(0, worlds - safe - other), worlds - max(safe, other) + 1)]
    return max(float(stats.binomtest(one, one + two).pvalue) if one + two else 1.0 for one, two in alone)


def holm(values: list[float]) -> list[float]:
    """The k-th smallest of m is multiplied by m + 1 - k; none falls below the one before it, or exceeds 1.
    NaN stays, and counts as one of the m."""
    corrected, largest = [math.nan] * len(values), 0.0
    for k, i in enumerate(np.argsort(values)):  # NaN is last
        if not math.isnan(values[i]):
            largest = max(largest, (len(values) - k) * values[i])
            corrected[i] = min(1.0, largest)
    return corrected


def printed(p: float) -> str:
    return "–" if math.isnan(p) else f"{p:.2g}" if p >= 0.001 else "< .001"


def section(title: str, lines: list[tuple]) -> str:
    """Of (metric, first, second, difference or slope with interval, p), with what is concluded."""
    rows = []
    for (*cells, p), corrected in zip(lines, holm([line[-1] for line in lines])):
        verdict = "**differs**" if corrected < 0.05 else "not distinguishable"
        if math.isnan(corrected):
            verdict = "not tested"
        rows.append([*map(str, cells), printed(p), printed(corrected), verdict])
    return f"\n### {title}\n\n{joined(HEAD, rows)}\n"


def compared(metric: str, first: Sample, second: Sample) -> tuple:
    """A line of a section; of a single policy, a safety is the share of 100 episodes."""
    besides = first.mean * (1 - first.mean) / 100 if metric == "safety" and first.n == 1 else 0.0
    half, p = welch(first, second, besides)
    return metric, first, second, f"{first.mean - second.mean:+.3g} ± {half:.2g}", p


def finals(folders, metric: str, share: float = 0.1) -> list[np.ndarray]:
    """A value for each seed of folders in results/: the mean over the last share of their common steps."""
    runs = [find([str(RESULTS / folder)]) for folder in folders]
    last = min(run.steps[-1] for run in itertools.chain(*runs))
    return [np.array([run.columns[metric][run.steps > (1 - share) * last].mean()
                      for run in until(each, last)]) for each in runs]


def published(text: str, n: int) -> list[Sample]:
    """Of `7.5 ± 1.5 at 0.99 ± 0.01`."""
    pairs = [part.replace(",", "").partition(" ± ")[::2] for part in text.split(" at ")]
    return [Sample(float(mean), float(std or "nan"), n) for mean, std in pairs]


def dial(task: str, folders: list[str]) -> str:
    """β, a folder each, and a line through all seeds; the slope is that of a tenth."""
    lines = []
    for metric in METRICS:
        values = finals(folders, metric)
        fit = stats.linregress(np.repeat(BETAS, [len(each) for each in values]), np.concatenate(values))
        half = stats.t.ppf(0.975, sum(map(len, values)) - 2) * fit.stderr
        ends = (f"{sample(each)}, β = {beta}" for each, beta in zip(values[::4], BETAS[::4]))
        lines.append((metric, *ends, f"{fit.slope / 10:+.3g} ± {half / 10:.2g} a tenth", float(fit.pvalue)))
    seeds = sum(map(len, values))
    return section(f"β as a dial, 0.6 to 0.9: slope over all {seeds} seeds, SB-TRPO on {task}", lines)


def dials() -> str:
    """The campaign, and the paper's settings, whose β is 0.75, as in its Figure 3."""
    of_paper = [f"sbtrpo-{BUTTON2}-paper" + ("" if beta == 0.75 else f"-beta-{beta}") for beta in BETAS]
    return dial(CIRCLE2, [f"sbtrpo-{CIRCLE2}-beta-{beta}" for beta in BETAS]) + dial(BUTTON2, of_paper)


def judged(folder: str) -> dict:
    """{policy: {metric: a value for each seed}} of its evaluation.json."""
    about = json.loads((RESULTS / folder / "evaluation.json").read_text())
    runs = about["by_action_noise"]["0.0"]["runs"].values()
    return {policy: {metric: [run[policy][metric][0] for run in runs] for metric in ("safe reward", "safety")}
            for policy in ("sampled", "deterministic")}


def fresh_episodes() -> str:
    """The trained policies on 100 episodes a seed, beside the paper's and beside their mean actions."""
    text = ""
    both = itertools.product((CIRCLE2, SWIMMER), ("safe", "paper", "paper-20M"))
    for task, setting in (*both, (PUSH2, "paper"), (PUSH2, "paper-20M")):
        folder = f"sbtrpo-{task}-{setting}"
        found, steps = judged(folder), table.cells(RESULTS / folder, "sbtrpo", task)[4]
        ours = f"SB-TRPO, `--preset {setting.partition('-')[0]}`, {steps} steps"
        known = published(" at ".join(PAPER[task]), 5)
        for policy, name in (("sampled", "as trained"), ("deterministic", "mean action")):
            lines = [compared(metric, sample(values), theirs)
                     for (metric, values), theirs in zip(found[policy].items(), known)]
            text += section(f"{ours}, {name}, against the paper's: {task}", lines)
        seeds = [[round(100 * share) for share in found[policy]["safety"]] for policy in found]
        lines = []
        for seed, pair in enumerate(zip(*seeds)):
            lines.append((f"safe of 100, seed {seed}", *pair, f"{pair[0] - pair[1]:+d}", mcnemar(*pair)))
        text += section(f"{ours}, as trained, against its mean action: {task}", lines)
    return text


def beside_the_release() -> str:
    """Ours and the release's at 5M steps, by results/published.md."""
    text = ""
    for task, rows in table.beside_the_release().items():
        samples = {label: published(f"{returned} at {cost}", int(n))
                   for steps, label, n, returned, cost, _ in rows if steps == "5M"}
        theirs = samples.pop("published")
        for label, ours in samples.items():
            lines = [compared(metric, *pair) for metric, *pair in zip(METRICS, ours, theirs)]
            text += section(f"C-TRPO, {label}, against the release's own runs: {task}, at 5M steps", lines)
    return text


def recorded() -> str:
    """What a mean and std of observations that no policy feels change, by the returns in two JSON files."""
    runs = json.loads((RESULTS / "normaliser.json").read_text())["runs"]
    text = ""
    for task in (CIRCLE2, HOPPER):
        pair = [sample([run["EpRet"] for run in runs if run["task"] == task and run["normaliser"] == name])
                for name in ("warm-up and absorbed", "before")]
        text += section(f"Scaling absorbed, against as before: {task}", [compared("return", *pair)])
    runs = json.loads((RESULTS / "signal.json").read_text())["runs"]
    walks = {commit: sample([run["EpRet"] for run in runs if run["commit"] == commit
                             and run["task"].endswith("Walk-v0") and run["advantage"] == "time"])
             for commit in ("86175ad", "86175ad, scaling absorbed", "3ff1a2c")}
    before, alone, with_warm_up = walks.values()
    text += section("Scaling absorbed, nothing else changed, against as before: a walk",
                    [compared("return", alone, before)])
    text += section("Scaling absorbed, with a warm-up batch, against as before: a walk",
                    [compared("return", with_warm_up, before)])
    walks = re.findall(r"(\w+): return (.*)", (RESULTS / "scaling-walk.txt").read_text())
    walks = {kind: np.array([float(value) for name, value in walks if name == kind]) for kind, _ in walks}
    for kind, what in ("moving", "Scaling that moves the policy"), ("fixed", "Scaling of the warm-up batch"):
        interval = stats.ttest_rel(walks[kind], walks["absorbed"])
        low, high = interval.confidence_interval()
        difference = f"{(low + high) / 2:+.3g} ± {(high - low) / 2:.2g}"
        means = sample(walks[kind]), sample(walks["absorbed"])
        text += section(f"{what}, against absorbed, seed by seed: a walk",
                        [("return", *means, difference, interval.pvalue)])
    longer = re.findall(r"(\S+) .*: return (.*)", (RESULTS / "scaling-walk-delta.txt").read_text())
    for delta in ("0.0125", "0.015"):
        steps = sample([float(value) for name, value in longer if name == delta])
        text += section(f"δ = {delta} against 0.01, scaling absorbed: a walk",
                        [compared("return", steps, sample(walks["absorbed"]))])
    return text


def precisions() -> str:
    """Single and double precision, over the second half of 400,000 steps."""
    values = []
    for folder in (f"sbtrpo-{CIRCLE2}-beta-0.75", f"development-sbtrpo-{CIRCLE2}-precision-64"):
        runs = find([str(RESULTS / folder)])
        values.append({metric: [run.columns[metric][(run.steps > 200_000) & (run.steps <= 400_000)].mean()
                                for run in runs] for metric in METRICS[2:]})
    lines = [compared(metric, *(sample(each[metric]) for each in values)) for metric in METRICS[2:]]
    return section(f"Networks in float32 against float64: SB-TRPO on {CIRCLE2}, 0.2M to 0.4M steps", lines)


def candidates() -> str:
    """Those of studies/truer.py, each against the default: Holm's correction is for all lines."""
    runs = {name: tasks[CIRCLE2].values()
            for name, tasks in json.loads((RESULTS / "truer.json").read_text()).items()}
    lines = []
    for metric in ("return", "safe reward", "safety"):
        default, *others = [(name, sample([run[metric] for run in each])) for name, each in runs.items()]
        lines += [compared(f"{metric}, {name}", values, default[1]) for name, values in others]
    return section(f"Candidates for truer steps against the default: SB-TRPO on {CIRCLE2}, 1.5M steps", lines)


def measured_otherwise() -> str:
    """What the pages say besides: with other errors, over other steps, of the cost regret."""
    fresh = sample(judged(f"sbtrpo-{CIRCLE2}-safe")["sampled"]["safe reward"])
    theirs = published(" at ".join(PAPER[CIRCLE2]), 5)[0]
    errors = theirs._replace(std=theirs.std * theirs.n**0.5)
    text = section(f"SB-TRPO, `--preset safe`, as trained, were the paper's ± standard errors: {CIRCLE2}",
                   [compared("safe reward", fresh, errors)])
    alone = sample(judged(f"sbtrpo-{CIRCLE2}-safe")["sampled"]["safe reward"][2:])
    text += section("SB-TRPO, `--preset safe`, as trained, from seed 2 on, against the paper's: "
                    + CIRCLE2, [compared("safe reward", alone, theirs)])
    safety = sample(judged(f"sbtrpo-{BUTTON2}-paper")["sampled"]["safety"])
    text += section(f"SB-TRPO, `--preset paper`, 2M steps, as trained, against the paper's: {BUTTON2}",
                    [compared("safety", safety, *published(PAPER[BUTTON2][1], 5))])
    both = f"strpo-{HOPPER}-exact", f"strpo-{HOPPER}-exclusion-none"
    text += section(f"With exclusion against without, the last third of the steps: sTRPO on {HOPPER}",
                    [compared("cost", *map(sample, finals(both, "cost", 1 / 3)))])
    regrets = {label: published(regret, int(n))[0]
               for steps, label, n, *_, regret in table.beside_the_release()[HOPPER] if steps == "5M"}
    return text + section(f"C-TRPO, preset paper, against the release's own runs: {HOPPER}, at 5M steps",
                          [compared("cost regret", regrets["ours, preset paper"], regrets["published"])])


def page() -> str:
    text = ""
    for title, (first, second, metrics) in PAIRS.items():
        text += section(title, [compared(metric, *map(sample, finals((first, second), metric)))
                                for metric in metrics])
    for part in (dials, precisions, beside_the_release, fresh_episodes, candidates, measured_otherwise,
                 recorded):
        text += part()
    count = text.count("\n### ")
    head = ("# Which differences hold\n\nBy `uv run studies/differences.py`, at whose top the tests are "
            "explained. Numbers are means ± standard deviations over\nseeds, with n - 1, and in brackets the "
            "number of seeds. A title says first and second.\n\nThere are "
            f"{count} comparisons, each at 5%: if nothing differed, {count / 20:.0f} would by chance.\n"
            "Trust those with p below .01.\n")
    return head + text


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0]).parse_args(argv)
    (RESULTS / "differences.md").write_text(page())
    print(RESULTS / "differences.md")


if __name__ == "__main__":
    main()
