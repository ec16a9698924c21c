"""The tools around the scripts: sweeps that survive, statistics that hold. Part of `uv run test_updates.py`.

Sweeps are started as users start them, on the two-state world, and judged by what the runs leave: bit for bit
that of a sweep in which nothing happened. The statistics of reports are compared with rliable's.
"""

import contextlib, csv, fcntl, json, math, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import gymnasium
import numpy as np
import psutil
import pytest
from rliable import library, metrics
from scipy import stats

from conftest import ROOT, check, pages
from test_runs import BROKEN, dask_cluster, outcome, rows

sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "studies")]
import budgets
import critics
import ctrpo
import evaluate
import exclusion
import margins
import report
import sbtrpo
import sweep

TASK = "tabular_cmdp:TwoState-v0"
SMALL = ["--task", TASK, "--hidden", "8", "--batch-steps", "250", "--total-steps", "5000"]
GRID = ["--algorithm", "sbtrpo", "ctrpo", "--delta", "0.01", "--seed", "0", "1", *SMALL]
RUNS = [f"runs/sweep_batch-steps-250_delta-0.01_hidden-8/tabular_cmdp-TwoState-v0/{name}/seed-{seed}"
        for name in ("sbtrpo", "ctrpo") for seed in (0, 1)]
ONE = ["--seed", "0", *SMALL]  # a grid of one run
RUN = RUNS[0].replace("_delta-0.01", "")
TWO = ["--delta", "0.01", "--seed", "0", "1", *SMALL]  # of sbtrpo.py, the first two of RUNS

# ---------------------------------------------------------------------------------------------------- sweeps


def start(folder: Path, *options: object, **popen) -> subprocess.Popen:
    """A sweep in this folder, which can also hold modules with environments; a process group of its own that
    hears Ctrl-C, as in a terminal: what a shell starts in the background is deaf to it."""
    def in_a_terminal():
        os.setpgrp()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **popen.pop("env", {})}
    return subprocess.Popen([sys.executable, sweep.__file__, *map(str, options)], cwd=folder, env=environment,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=in_a_terminal, **popen)


def ended(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    """What the sweep said, on stdout and stderr; no traceback."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == code and "Traceback" not in errors, output + errors
    return output, errors


def outcomes(output: str) -> list[str]:
    """Of the runs, from the table at the end of a sweep: in the order of seeds."""
    lines = output.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("experiment"))
    return [line.split()[4] for line in lines[head + 1:]]


def begun_at(folder: Path, run: str) -> list[int]:
    """The steps from which each process of the run started, by its log."""
    log = (folder / run / "log.txt").read_text()
    return [int(steps.replace(",", "")) for steps in re.findall(r"from step ([\d,]+) to", log)]


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def scripts(process: subprocess.Popen, run: str) -> list[psutil.Process]:
    """The processes below the sweep or cluster that train this run: they hold the lock on its folder."""
    found = []
    for child in descendants(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "trpo.py" in " ".join(child.cmdline()[:2]) and any(
                    file.path.endswith(f"{run}/sweep.lock") for file in child.open_files()):
                found.append(child)
    return found


def in_the_middle(folder: Path, runs: list[str], process: subprocess.Popen) -> str:
    """Waits until some run has at least two epochs, and is far from done; its folder."""
    while process.poll() is None:
        for run in runs:
            if 2 <= len(rows(folder / run)) < 10:
                return run
        time.sleep(0.05)
    raise AssertionError("the sweep ended too early: " + "".join(process.communicate()))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Path:
    """A folder with a sweep of 4 runs, two at a time, in which nothing happened."""
    folder = tmp_path_factory.mktemp("sweep")
    output, _ = ended(start(folder, *GRID, "--parallel", 2))
    assert outcomes(output) == ["finished"] * 4
    assert [len(rows(folder / run)) for run in RUNS] == [20] * 4
    return folder


def test_a_sweep_survives_the_death_of_a_dask_worker(undisturbed, tmp_path):
    """4 runs on 2 workers. The worker that has a run half-way is killed (SIGKILL): the run's process ends at
    once, too; the sweep ends complete, the run resumed, all equal bit for bit to the undisturbed sweep."""
    process = start(tmp_path, *GRID, "--parallel", 2)
    run = in_the_middle(tmp_path, RUNS, process)
    [script] = scripts(process, run)
    worker = script.parent()
    assert worker.ppid() == process.pid and "spawn_main" in " ".join(worker.cmdline())
    worker.kill()
    assert not psutil.wait_procs([script], timeout=30)[1], "a run outlived its Dask worker"
    output, _ = ended(process)
    assert len(outcomes(output)) == 4 and set(outcomes(output)) == {"finished", "resumed"}
    equal = sum(outcome(tmp_path / run) == outcome(undisturbed / run) for run in RUNS)
    check("a Dask worker killed: runs (of 4) equal to the undisturbed sweep's", equal, at_least=4)
    [first, second] = begun_at(tmp_path, run)
    assert first == 0 and 500 <= second < 5000


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_sweep_leaves_no_process_and_goes_on(how, undisturbed, tmp_path):
    """kill -9 of the sweep alone; and Ctrl-C, which reaches all its processes. The same command goes on."""
    process = start(tmp_path, *TWO, "--parallel", 2)
    run = in_the_middle(tmp_path, RUNS[:2], process)
    children = descendants(process)
    assert set(scripts(process, run)) <= set(children) and scripts(process, run)
    if how == signal.SIGKILL:
        process.kill()
        process.communicate(timeout=30)
    else:
        os.killpg(process.pid, how)
        assert ended(process, 1)[1].splitlines()[-1].startswith("interrupted")
    assert not psutil.wait_procs(children, timeout=30)[1], "a process outlived its sweep"
    done = [len(rows(tmp_path / run)) for run in RUNS[:2]]
    output, _ = ended(start(tmp_path, *TWO, "--parallel", 2))
    assert "resumed" in outcomes(output) and max(done) >= 2 and min(done) < 20
    assert [outcome(tmp_path / run) for run in RUNS[:2]] == [outcome(undisturbed / run) for run in RUNS[:2]]


def test_what_is_finished_is_skipped_and_what_is_longer_resumed(undisturbed, tmp_path):
    """The same sweep again changes no checkpoint; with more steps, the runs go on from the old ones."""
    shutil.copytree(undisturbed / "runs", tmp_path / "runs")
    before = [(tmp_path / run / "checkpoint.npz").stat().st_mtime_ns for run in RUNS]
    output, _ = ended(start(tmp_path, *GRID, "--parallel", 2))
    assert outcomes(output) == ["skipped"] * 4
    assert [(tmp_path / run / "checkpoint.npz").stat().st_mtime_ns for run in RUNS] == before
    output, _ = ended(start(tmp_path, *TWO, "--total-steps", 6000))  # the last one counts
    assert outcomes(output) == ["resumed"] * 2
    assert [begun_at(tmp_path, run)[1:] for run in RUNS[:2]] == [[int(rows(undisturbed / run)[-1][
        "Train/TotalSteps"])] for run in RUNS[:2]]
    assert [rows(tmp_path / run)[:20] == rows(undisturbed / run) for run in RUNS[:2]] == [True, True]
    assert min(len(rows(tmp_path / run)) for run in RUNS[:2]) >= 23


def test_two_sweeps_of_the_same_runs_share_them(tmp_path):
    """Started at the same time: each run is trained once, by whichever comes first."""
    processes = [start(tmp_path, "--seed", 0, 1, *SMALL, "--parallel", 2) for _ in range(2)]
    results = [outcomes(ended(process)[0]) for process in processes]
    assert sorted(zip(*results)) in ([("finished", "skipped")] * 2, [("skipped", "finished")] * 2,
                                     [("finished", "skipped"), ("skipped", "finished")])
    for seed in (0, 1):
        assert begun_at(tmp_path, RUN.replace("seed-0", f"seed-{seed}")) == [0]


def test_a_run_waits_for_the_lock_on_its_folder(tmp_path):
    """Held by another process, as by one that is being killed: nothing is written until it is released."""
    (tmp_path / RUN).mkdir(parents=True)
    with open(tmp_path / RUN / "sweep.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start(tmp_path, *ONE)
        while not (tmp_path / RUN / "log.txt").exists():  # the worker is there
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(2)
        assert not (tmp_path / RUN / "config.json").exists() and process.poll() is None
    assert outcomes(ended(process)[0]) == ["finished"]


def test_a_cluster_forgets_a_sweep_that_is_killed(undisturbed, tmp_path):
    """--scheduler, a Dask cluster that goes on: the run of a sweep that was killed (SIGKILL) ends, though its
    worker lives, and the next sweep resumes it there."""
    shutil.copy(ROOT / "tabular_cmdp.py", tmp_path)
    cluster = dask_cluster(tmp_path, 2, 1)
    options = ["--delta", "0.01", "--seed", "0", *SMALL, "--total-steps", "20000"]  # Dask needs a second
    try:
        address = cluster.stdout.readline().strip()
        process = start(tmp_path, *options, "--scheduler", address)
        in_the_middle(tmp_path, RUNS[:1], process)
        trainers = scripts(cluster, RUNS[0])
        process.kill()
        process.communicate(timeout=30)
        assert trainers and not psutil.wait_procs(trainers, timeout=30)[1], "a run outlived its sweep"
        assert len(rows(tmp_path / RUNS[0])) < 80
        assert outcomes(ended(start(tmp_path, *options, "--scheduler", address))[0]) == ["resumed"]
        assert rows(tmp_path / RUNS[0])[:20] == rows(undisturbed / RUNS[0])
    finally:
        cluster.communicate("", timeout=30)


def test_a_sweep_whose_scheduler_is_gone_is_one_sentence(tmp_path):
    shutil.copy(ROOT / "tabular_cmdp.py", tmp_path)
    cluster = dask_cluster(tmp_path, 1, 1)
    try:
        options = ["--delta", "0.01", "--seed", "0", *SMALL, "--total-steps", "20000"]
        process = start(tmp_path, *options, "--scheduler", cluster.stdout.readline().strip())
        in_the_middle(tmp_path, RUNS[:1], process)
    finally:
        cluster.kill()
        cluster.wait()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("the scheduler has gone; the same command goes on"), errors


def test_action_noise_replaces_actions(undisturbed, tmp_path):
    """evaluate.py: if all actions are replaced, the sampled policy and the most likely actions do the same;
    if none are, they differ. Means over runs are those of the runs' means, and the curves are drawn."""
    command = [sys.executable, ROOT / "tools" / "evaluate.py", *(undisturbed / run for run in RUNS[:2]),
               "--episodes=20", "--workers=1", "--action-noise", "0", "1", "--figure=curves.png",
               "--output=judged.json"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0 and (tmp_path / "curves.png").exists(), done.stderr
    judged = json.loads((tmp_path / "judged.json").read_text())["by_action_noise"]
    for noise, same in (("0.0", False), ("1.0", True)):
        results = list(judged[noise]["runs"].values())
        assert [run["sampled"] == run["deterministic"] for run in results] == [same, same]
        [spread] = judged[noise]["over_runs"].values()
        means = [run["sampled"]["return"][0] for run in results]
        assert spread["sampled"]["return"] == pytest.approx([np.mean(means), np.std(means, ddof=1)])


class Fetch(gymnasium.Env):
    """Five steps; a goal at each even one, and a cost at the end of every second episode."""
    observation_space = action_space = gymnasium.spaces.Box(-1, 1, (1,))
    episodes = 0

    def reset(self, seed=None, options=None):
        self.time, self.episodes = 0, self.episodes + 1
        return np.zeros(1), {}

    def step(self, action):
        self.time += 1
        ended = self.time == 5
        info = {"cost": float(ended and self.episodes % 2 == 0)}
        if self.time % 2 == 0:
            info["goal_met"] = True
        return np.zeros(1), 1.0, ended, False, info


def test_goals_are_those_of_safe_episodes():
    """Two goals in each of the safe ones; of no safe episode there is no mean. Where info says nothing of
    goals there are none to count, and a dash; but 0 where the task has goals that nothing met, or where one
    episode has some."""
    env, actor = Fetch(), SimpleNamespace(acting=lambda rng: lambda observation: np.zeros(1))
    totals = np.array([evaluate.play(sbtrpo, env, actor, (0, 0, i), True, 0.0) for i in range(4)])
    assert totals.tolist() == [[5, 0, 2], [5, 1, 2], [5, 0, 2], [5, 1, 2]]
    assert evaluate.summary(totals)["goals"][0] == 2 and evaluate.summary(totals)["safe reward"][0] == 2.5
    unsafe = evaluate.summary(totals[1::2])
    assert unsafe["goals"] == (None, None, None) and evaluate.cell(*unsafe["goals"]) == "-"
    run = dict.fromkeys(evaluate.POLICIES, unsafe)
    assert evaluate.over_runs({"a/seed-0": run, "a/seed-1": run})["a"]["sampled"]["goals"] == (None, None)
    silent = gymnasium.wrappers.TransformObservation(env, lambda observation: observation)
    silent.step = lambda action: (*env.step(action)[:4], {"cost": 0.0})
    unsaid = np.array([evaluate.play(sbtrpo, silent, actor, (0, 0, i), True, 0.0) for i in range(2)])
    assert unsaid[:, :2].tolist() == [[5, 0], [5, 0]] and np.isnan(unsaid[:, 2]).all()
    assert evaluate.cell(*evaluate.summary(unsaid)["goals"]) == "-"
    assert evaluate.summary(unsaid, has_goals=True)["goals"] == (0, 0, 0)
    assert evaluate.summary(np.append(unsaid, totals[:1], axis=0))["goals"][0] == pytest.approx(2 / 3)
    silent.step = lambda action: (*env.step(action)[:4], {"cost": 0.0, "goal_met": False})
    assert evaluate.play(sbtrpo, silent, actor, (0, 0, 0), True, 0.0).tolist() == [5, 0, 0]
    tasks = ("SafetyCarGoal1-v0", "SafetyPointRace2-v0", "SafetyRacecarPush0-v0", "SafetyAntButton1-v0",
             "SafetyRacecarCircle1-v0", "SafetyCarRun0-v0", "SafetyHopperVelocity-v1")
    assert [evaluate.has_goals(task) for task in tasks] == [True] * 4 + [False] * 3


def test_interval_of_a_share_is_wilsons():
    """scipy's, for all shares of 1, 7 and 100 episodes, to 1e-6: z is given to six digits. Control: the
    normal approximation has no width at 0."""
    for n in (1, 7, 100):
        for k in range(n + 1):
            theirs = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
            assert evaluate.share_interval(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    assert evaluate.share_interval(0, 7)[1] > 0.3


def test_interval_of_a_mean_is_that_of_all_resamples():
    """Of zeros and ones the mean of a resample is binomial, so that its percentiles are exact; those of 5,000
    draws are the same, where 6 sigma of their shares cannot reach the next value. One value has none."""
    for n, ones in ((9, 4), (10, 5), (14, 2)):
        law = stats.binom(n, ones / n)
        exact = law.ppf([0.025, 0.975])
        margin = 6 * math.sqrt(0.025 * 0.975 / 5000)
        for x, level in zip(exact, (0.025, 0.975)):
            assert law.cdf(x - 1) < level - margin and law.cdf(x) > level + margin
        values = np.arange(n) < ones
        assert evaluate.mean_interval(values.astype(float)) == pytest.approx(exact / n, abs=1e-12)
    assert evaluate.mean_interval(np.ones(1)) == (None, None) == evaluate.mean_interval(np.ones(0))


def test_distance_from_the_unsafe_policy_is_what_training_logged(monkeypatch):
    """Of sTRPO's runs in results, over ten episodes: an unsafe policy is at 0 nats from itself; a trained one
    as far as its last epoch says, up to 20%, since the episodes differ."""
    monkeypatch.setattr(exclusion, "EPISODES", 10)
    monkeypatch.setattr(exclusion, "VARIANTS", {"itself": "strpo-{}-unsafe", "exact": "strpo-{}-exact"})
    text, found = exclusion.measured("SafetyHopperVelocity-v1")
    of_itself, *_ = lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| strpo")]
    assert abs(float(found["itself"][0])) < 1e-9 and of_itself[-1].strip("| ") == "" and len(lines) == 4
    far, std, changed = lines[1][-3:]
    trained = ROOT / "results" / "strpo-SafetyHopperVelocity-v1-exact" / "seed-0"
    logged = rows(trained)
    assert far == found["exact"][0] and float(far) > 50
    assert float(far) == pytest.approx(float(logged[-1]["Misc/exclusion"]), rel=0.2)
    active = [float(row["Misc/lambda_2"]) > 0 or row["Misc/stopped_by"] == "exclusion" for row in logged]
    assert float(changed.strip(" |%")) == pytest.approx(100 * sum(active) / len(active), abs=0.06)
    with np.load(trained / "checkpoint.npz") as state:
        log_std = state["theta"][-state["sizes"][-1] :]
    ends = np.exp([log_std.min(), log_std.max()])
    assert [float(x) for x in std.split(" to ")] == pytest.approx(ends, rel=0.01)


def test_every_way_to_fit_a_linear_critic_finds_least_squares():
    """Without hidden layers a critic is linear. From 500 points, Gauss-Newton finds the dense solution, Adam
    comes close; returns are discounted sums, known where the episode terminated or goes on for 300 steps."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(500, 3))
    targets = inputs @ [0.3, -0.2, 0.1] + 0.4 + 0.1 * rng.normal(size=500)
    exact = np.linalg.lstsq(np.c_[inputs, np.ones(500)], targets, rcond=None)[0]
    for name, way in critics.methods(ctrpo).items():
        found = np.zeros(4)
        for _ in range(1 if name.startswith("Gauss") else 30):
            orders = [rng.permutation(500) for _ in range(10)]
            found = way(found, (3, 1), inputs, targets, orders)
        bound = 1e-3 if name.startswith("Gauss") else 0.03
        check(f"critics, {name}: |w - least squares|", np.abs(found - exact).max(), at_most=bound)
    signals = rng.normal(size=400)
    total, known = critics.returns(signals, False, 0.9)
    sum_of_7 = signals[7:] @ 0.9 ** np.arange(393)
    check("critics: discounted return - its sum", abs(total[7] - sum_of_7), at_most=1e-12)
    assert known.sum() == 100 and critics.returns(signals, True, 0.9)[1].all()


SBATCH = f"""#!{sys.executable}
import os, shutil, subprocess, sys
job = ["sh", shutil.copy(sys.argv[1], sys.argv[1] + ".job")]
with open("jobs.log", "a") as log, open("jobs.txt", "a") as jobs:
    job = subprocess.Popen(job, stdin=-3, stdout=log, stderr=-2, preexec_fn=os.setpgrp)
    print("Submitted batch job", job.pid)
    print(job.pid, file=jobs)
"""


def test_slurm_by_the_pages_where_sbatch_stands_in_for_slurm(undisturbed, tmp_path):
    """The code of the pages, with jobs of one core; sbatch runs the job script here, scancel kills it. A job
    is killed, as at the end of its time: another one is submitted, and its run is resumed."""
    [code] = re.findall(r"```python\n(from dask_jobqueue.*?)```", pages(), re.S)
    (tmp_path / "slurm.py").write_text(code.replace("=16", "=1"))
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", '#!/bin/sh\nkill -9 -- "-$1"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    cluster = subprocess.Popen([sys.executable, "slurm.py"], cwd=tmp_path, text=True, env=environment,
                               stdout=subprocess.PIPE, stderr=-3)
    try:
        script = ""
        while (line := cluster.stdout.readline()) and not line.startswith("tcp://"):
            script += line
        assert "#SBATCH --cpus-per-task=1" in script and "#SBATCH -t 12:00:00" in script
        process = start(tmp_path, *TWO, "--scheduler", line.strip())
        run = in_the_middle(tmp_path, RUNS[:2], process)
        jobs = [psutil.Process(int(job)) for job in (tmp_path / "jobs.txt").read_text().split()]
        [job] = [job for job in jobs if scripts(job, run)]
        os.killpg(job.pid, signal.SIGKILL)
        output, _ = ended(process)
        assert "resumed" in outcomes(output)
        assert [outcome(tmp_path / run) for run in RUNS[:2]] == [
            outcome(undisturbed / run) for run in RUNS[:2]]
    finally:
        cluster.send_signal(signal.SIGINT)
        cluster.communicate(timeout=60)


def test_a_run_that_fails_is_tried_again_and_then_reported(tmp_path):
    """A simulator that breaks in step 145 of its process, of which the first batch, of 60, only
    scales observations. 180 steps: the second process needs 120 and ends as if nothing had
    happened. 400 steps: it breaks twice, which is said with the log's last words; the sweep's other runs end;
    its exit code is 1."""
    (tmp_path / "broken_env.py").write_text(BROKEN)
    options = ["--task", "broken_env:Broken-v0", "--hidden", "4", "--batch-steps", "60"]
    output, _ = ended(start(tmp_path, *options, "--total-steps", 180, env={"BROKEN": "exception"}))
    assert outcomes(output) == ["resumed"]
    run = "runs/{}_batch-steps-60_hidden-4/broken_env-Broken-v0/sbtrpo/seed-0"
    ended(start(tmp_path, *options, "--total-steps", 180, "--experiment", "whole"))
    assert outcome(tmp_path / run.format("sweep")) == outcome(tmp_path / run.format("whole"))
    (tmp_path / "grid.toml").write_text(
        'experiment = "again"\nhidden = 4\nbatch_steps = 60\ntotal_steps = 400\n'
        f'[[grid]]\ntask = "broken_env:Broken-v0"\n[[grid]]\ntask = "{TASK}"\n')
    output, errors = ended(start(tmp_path, "grid.toml", env={"BROKEN": "exception"}), 1)
    assert outcomes(output) == ["failed", "finished"]
    assert "again_batch-steps-60_hidden-4/broken_env-Broken-v0/sbtrpo/seed-0 failed: exit code 1" in errors
    assert "the simulator broke" in errors and len(begun_at(tmp_path, run.format("again"))) == 2
    assert len(rows(tmp_path / run.format("again"))) == 3  # one epoch, and two


BAD = {"no.toml": None, "torn.toml": "seed = [0", "table.toml": "[grid]\nseed = 0", "empty.toml": "seed = []",
       "date.toml": "seed = 2020-01-01", "unknown.toml": "delat = 1", "many.toml": 'seed = "many"',
       "dash.toml": "cost-limit = 5\ncost_limit = 6",
       "twice.toml": "[[grid]]\nseed=0\n[[grid]]\nseed=0", "name.toml": 'algorithm = "trpo"',
       "list.toml": "grid = 3", "workers.toml": "workers = 2", "parallel.toml": "parallel = 2",
       "scheduler.toml": 'scheduler = "tcp://a:1"'}


@pytest.mark.parametrize("options, said", [
    ("--beta 2", "--beta"), ("--beta much", "--beta"), ("--seed 1.5", "--seed"), ("--hidden 8,x", "--hidden"),
    ("--update sideways", "--update"), ("--delat 1", "--delat"), ("--seed", "--seed"),
    ("--seed 0 0", "twice"),
    ("--algorithm trpo", "trpo"), ("--algorithm sbtrpo strpo --beta 0.5", "strpo.py has no option --beta"),
    ("--algorithm strpo --unsafe nowhere", "nowhere"), ("--experiment a/b", "a/b"),
    ("--experiment .. --dry-run", "--experiment is '..'"), ("--experiment .hidden", "mere name"),
    ("--workers 0", "--workers"),
    ("--parallel x", "--parallel"), ("--scheduler somewhere", "--scheduler"),
    ("--scheduler tcp://127.0.0.1:9 --total-steps 10000", "--scheduler"), *((name, name) for name in BAD)])
def test_a_mistake_with_a_sweep_is_one_sentence(options, said, tmp_path, monkeypatch, capsys):
    """After argparse's lines of usage at most; non-zero exit; no run is begun."""
    monkeypatch.chdir(tmp_path)
    for name, text in BAD.items():
        if text:
            Path(name).write_text(text)
    said = {"unknown.toml": "delat", "many.toml": "--seed", "name.toml": "'trpo'"}.get(said, said)
    said = "twice" if options == "twice.toml" else said
    if options in ("workers.toml", "parallel.toml", "scheduler.toml"):
        said = f"--{options[:-5]} is an option of the sweep: give it on the command line."
    try:
        code = sweep.main(options.split())
    except SystemExit as error:
        code = error.code
    lines = capsys.readouterr().err.splitlines()
    assert code and said in lines[-1] and not Path("runs").exists()
    assert len(lines) == 1 or lines[0].startswith("usage") and "error:" in lines[-1], lines


def test_a_sweep_knows_where_the_scripts_put_their_runs(tmp_path, monkeypatch, capsys):
    """Folder and configuration, for all three scripts, presets and lists of layers; a TOML file says the
    same; no two runs share a folder, and options have an order of their own."""
    monkeypatch.chdir(tmp_path)
    grids = [{"algorithm": ["sbtrpo"], "preset": ["safe"], "hidden": ["8,16", "8"], "beta": ["0.5", "1e-3"]},
             {"algorithm": ["ctrpo"], "barrier": ["xlogx"], "seed": ["3"], "cost_limit": ["0"]},
             {"algorithm": ["strpo"], "unsafe_steps": ["30000", "40000"], "reverse": ["1"]}]
    runs = [run for grid in grids for run in sweep.expand({"task": [TASK], "total_steps": ["20000"], **grid})]
    for run in runs:
        config, folder, *_ = sys.modules[run.algorithm].open_run([*run.options, "--workers", "1"])
        written = json.loads((folder / "config.json").read_text())["config"]
        assert str(folder) == run.folder
        assert {**written, **dict.fromkeys(sweep.OURS)} == {**run.config, **dict.fromkeys(sweep.OURS)}
        assert sweep.in_checkpoint(run, ".") == 0
    assert len({run.folder for run in runs}) == len(runs) == 7
    assert [sum(run.lengths.values()) for run in runs] == [20_000] * 5 + [50_000, 60_000]
    assert runs[0].folder.startswith("runs/sweep_preset-safe_beta-0.5_hidden-8-16/")
    text = f'total-steps = 20000\ntask = "{TASK}"\n'
    for grid in grids:
        hidden = {"hidden": [[8, 16], 8]} if "hidden" in grid else {}
        lines = [f"{name} = {json.dumps(values)}\n" for name, values in {**grid, **hidden}.items()]
        text += "".join(["[[grid]]\n", *lines])
    Path("grid.toml").write_text(text)
    capsys.readouterr()
    assert sweep.main(["grid.toml", "--dry-run"]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(
        f"{run.folder}: 0 of {sum(run.lengths.values()):,} steps" for run in runs)


def test_the_table_of_a_sweep_has_means_of_the_last_tenth(tmp_path):
    """A run of 40 epochs of 1,000 steps: of its last four. With fewer --total-steps than it has: of the last
    ones up to the epoch that reaches them, here epochs 19 and 20; of 5 epochs, of the last alone."""
    columns, config = made_up(0)
    for total, first, end in ((40_000, 36, 40), (19_500, 18, 20), (10_000, 9, 10)):
        [run] = sweep.expand({"task": [TASK], "total_steps": [str(total)]})
        folder = tmp_path / str(total) / run.folder
        write_run(folder, columns, config)
        found = sweep.summary(run, str(tmp_path / str(total)), "skipped", 0.0)
        expected = {name: np.mean(columns[f"Metrics/{name}"][first:end]) for name in sweep.METRICS}
        assert found["means"] == pytest.approx(expected, rel=1e-12) and found["steps"] == total
        cells = sweep.table([run], {run.folder: found}).splitlines()[1].split()
        assert cells[3:7] == ["0", "skipped", f"{total:,}", f"{expected['EpRet']:.3g}"]


def test_a_run_with_other_options_is_not_taken_up(tmp_path, monkeypatch):
    """A folder whose config.json differs, in anything but the total steps: refused, with both values."""
    monkeypatch.chdir(tmp_path)
    [run] = sweep.expand({"task": [TASK], "beta": ["0.5"]})
    sys.modules["sbtrpo"].open_run([*run.options, "--total-steps", "10000"])
    assert sweep.in_checkpoint(run, ".") == 0
    config = json.loads(Path(run.folder, "config.json").read_text())
    config["config"]["beta"] = 0.25
    Path(run.folder, "config.json").write_text(json.dumps(config))
    with pytest.raises(sweep.Mistake, match="beta 0.25, not 0.5"):
        sweep.in_checkpoint(run, ".")


def test_a_run_that_is_another_one_is_refused_and_not_tried_again(tmp_path):
    """A sweep over a folder whose config.json has another beta: reported once, with both; exit code 1."""
    [run] = sweep.expand({"task": [TASK], "hidden": ["8"], "batch_steps": ["250"], "total_steps": ["5000"],
                          "seed": ["0"]})
    about = {"algorithm": "sbtrpo", "config": {**run.config, "beta": 0.25}}
    state = sbtrpo.initial_state(sbtrpo.Config(task=TASK, hidden=(8,), batch_steps=250, total_steps=5000))
    (tmp_path / run.folder).mkdir(parents=True)
    (tmp_path / run.folder / "config.json").write_text(json.dumps(about))
    np.savez(tmp_path / run.folder / "checkpoint.npz", **state, checksum=sbtrpo.checksum(state))
    output, errors = ended(start(tmp_path, *ONE), 1)
    assert outcomes(output) == ["refused"] and "once more" not in output
    assert f"{run.folder} refused: {run.folder} was made with beta 0.25, not 0.75" in errors.replace(
        f"{tmp_path}/", "")


# --------------------------------------------------------------------------------------------------- reports


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 1), (5, 8), (10, 2)])
def test_interquartile_mean_and_profile_are_rliables(shape):
    """Runs x tasks, with a tie: point values equal to 1e-12. Control: the plain mean differs."""
    scores = np.random.default_rng(shape).normal(size=shape) ** 3
    scores.flat[-1] = scores.flat[0]
    ours = report.iqm(scores.ravel())
    check("interquartile mean against rliable's", abs(ours - metrics.aggregate_iqm(scores)), at_most=1e-12)
    if scores.size >= 5:
        assert abs(ours - scores.mean()) > 1e-3
    tau = np.linspace(-2, 2, 9)
    theirs, _ = library.create_performance_profile({"": scores}, tau, reps=2)
    strata = [(column[:, None] > tau).astype(float) for column in scores.T]
    check("performance profile against rliable's",
          np.abs(report.pooled(strata).mean(0) - theirs[""]).max(), at_most=1e-12)


@pytest.mark.parametrize("shape", [(5, 1), (3, 8), (10, 4)])
def test_bootstrap_interval_is_rliables(shape):
    """Stratified by task; ends of both, from 20,000 and 10,000 resamples, within 3% of the interval's width.
    Control: resampling runs of whatever task is wider where tasks differ."""
    rng = np.random.default_rng(shape)
    scores = rng.normal(size=shape) + 3 * np.arange(shape[1])
    ours = report.interval(list(scores.T), repetitions=20_000)
    np.random.seed(1)  # the source of rliable's resamples
    _, theirs = library.get_interval_estimates({"": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]),
                                               reps=10_000)
    width = float(np.diff(ours)[0])
    check("bootstrap interval against rliable's [of its width]",
          np.abs(ours - theirs[""][:, 0]).max() / width, at_most=0.03)
    if shape[1] > 1:
        assert np.diff(report.interval([scores.ravel()]))[0] > 1.2 * width


def test_tasks_count_alike_whatever_their_numbers_of_seeds(monkeypatch):
    """Three runs of 1 on one task, two of 0 on another: 0.5 in the table, in each resample, and in the
    profiles. Control: over all runs alike it is 0.6. With equal numbers each run counts once."""
    strata = [np.ones(3), np.zeros(2)]
    assert report.cell(strata) == "0.50 [0.50, 0.50]" and np.concatenate(strata).mean() == 0.6
    assert report.cell([np.ones(3), np.zeros(1)]).startswith("0.50 [")
    equal = list(np.random.default_rng(0).normal(size=(3, 4)))
    assert np.array_equal(report.pooled(equal), np.concatenate(equal))
    drawn = []
    monkeypatch.setattr(report, "save", lambda figure, path: drawn.append(figure))
    report.profiles(Path("none.png"), {"return": ("return", {"x": strata})}, report.styles(["x"]), 2)
    [axis] = drawn[0].axes
    assert axis.lines[0].get_ydata().tolist() == [1, 0.5, 0, 0]
    assert axis.collections[0].get_datalim(axis.transData).height == pytest.approx(1)


def test_one_seed_has_no_interval():
    assert np.isnan(report.interval([np.ones((1, 4))] * 3)).all() and report.cell([np.ones(1)]) == "1.00"
    assert not np.isnan(report.interval([np.ones(1), np.ones(2)])).any()


def test_pareto_front_is_what_nothing_dominates():
    """Against the definition, with ties; equal points count once."""
    rng = np.random.default_rng(3)
    for _ in range(300):
        worse, better = rng.integers(0, 6, size=(2, 8))
        free = {(w, b) for w, b in zip(worse, better) if not any(
            (w2 <= w and b2 >= b) and (w2 < w or b2 > b) for w2, b2 in zip(worse, better))}
        found = report.front(worse, better)
        assert sorted(found) == [i for i, pair in enumerate(zip(worse, better)) if pair in free]
        assert (np.diff(worse[found]) >= 0).all()


def test_a_label_without_a_number_leaves_the_front_to_the_others(monkeypatch):
    """Of (cost, return) the first has none of one, the next are (1, 2), (2, 1) and (3, 4): the front is what
    it is without the first. Nothing but NaN has no front, and a picture all the same."""
    for nan in ((np.nan, 0.0), (0.0, np.nan)):
        worse, better = np.array([nan, (1, 2), (2, 1), (3, 4)]).T
        assert report.front(worse, better) == [1, 3]
        assert report.front(worse[:1], better[:1]) == []
    run = report.Run(Path("a"), "A-v0", "x", "", "", "0", 0.0, np.array([1000]),
                     {"return": np.array([np.nan]), "cost": np.array([1.0])}, {})
    drawn = []
    monkeypatch.setattr(report, "save", lambda figure, path: drawn.append(figure))
    report.scatter(Path("none.png"), "A-v0", {"x": [run]}, report.styles(["x"]), 0.0)
    assert len(drawn) == 1


def test_a_legend_of_many_labels_leaves_the_panels_their_room():
    """The panel is above the legend, nearly as high with 60 labels as with 6, whose figure is as it was."""
    heights = {}
    for labels in (6, 60):
        figure = report.Figure(figsize=(11, 4.6), layout="constrained")
        axis = figure.subplots()
        for i in range(labels):
            axis.plot([i], label=f"a label of some length {i}")
        report.legend(figure, axis)
        figure.draw_without_rendering()
        panel, legend = axis.get_window_extent(), figure.legends[0].get_window_extent()
        heights[labels] = panel.height
        assert legend.y0 >= 0 and legend.y1 < panel.y0 and (figure.get_figheight() == 4.6) == (labels == 6)
    assert abs(heights[60] / heights[6] - 1) < 0.1


def row_of(label: str, output: str) -> str:
    return next(line for line in output.splitlines() if line.startswith(f"| {label}"))


def write_run(folder: Path, columns: dict, config: dict | None) -> Path:
    folder.mkdir(parents=True)
    with open(folder / "progress.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def made_up(seed: int, limit: float = 25.0, epochs: int = 40, ours: bool = True) -> tuple[dict, dict]:
    """Columns and config.json of a run; foreign ones log neither safety nor safe reward."""
    rng = np.random.default_rng(seed)
    steps, cost = 1000 * np.arange(1, epochs + 1), rng.uniform(0, 60, epochs)
    columns = {"Train/TotalSteps": steps, "Metrics/EpRet": rng.normal(size=epochs) + seed,
               "Metrics/EpCost": cost, "Time/Total": np.full(epochs, 36.0)}
    config = {"task": "A-v0", "experiment": "here", "seed": seed, "cost_limit": limit}
    if not ours:
        return columns, {**config, "experiment": "there"}
    columns |= {"Metrics/SafetyProbability": rng.uniform(size=epochs),
                "Metrics/SafeReward": rng.normal(size=epochs)}
    return columns, {"numpy": "2", "config": config}


def test_a_report_says_what_the_runs_say(tmp_path, capsys):
    """Ours (3 seeds) and foreign ones (2): number of seeds, interquartile mean of the last tenth, hours, cost
    regret as the integral over steps, against numpy; what foreign runs lack is left out with a word, and so
    are empty runs, torn lines, second runs of a seed and hidden folders. Pictures are there."""
    for seed in range(3):
        write_run(tmp_path / f"runs/here/A-v0/sbtrpo/seed-{seed}", *made_up(seed))
    for seed in range(2):
        write_run(tmp_path / f"runs/there/A-v0/cpo/seed-{seed}-2024", *made_up(10 + seed, ours=False))
    write_run(tmp_path / "runs/there/A-v0/cpo/.ipynb_checkpoints/seed-9", *made_up(9, ours=False))
    write_run(tmp_path / "runs/there/A-v0/cpo/seed-0-2023", *made_up(10, epochs=30, ours=False))
    empty = write_run(tmp_path / "runs/there/A-v0/cpo/seed-8", *made_up(8, ours=False))
    (empty / "progress.csv").write_text("")
    with open(tmp_path / "runs/here/A-v0/sbtrpo/seed-1/progress.csv", "a") as file:
        file.write("41000,3.5")
    report.main([str(tmp_path / "out"), str(tmp_path / "runs")])
    output, errors = capsys.readouterr()
    lines = {line.split("|")[1].strip().removesuffix(" \\*"): line.split("|")[1:-1]
             for line in output.splitlines() if line.startswith("| ")}
    head = [cell.strip() for cell in lines.pop("")]
    ours, theirs = ({name: cell.strip() for name, cell in zip(head, lines[label])} for label in
                    ("sbtrpo", "cpo"))
    assert (ours["seeds"], theirs["seeds"], ours["steps"], ours["hours"]) == ("3", "2", "40,000", "0.40")
    for row, seeds in ((ours, range(3)), (theirs, (10, 11))):
        columns = [made_up(seed, ours=False)[0] for seed in seeds]
        last = np.mean([c["Metrics/EpRet"][-4:].mean() for c in columns])  # no quarter of 3 or 2 seeds
        regret = np.mean([np.maximum(c["Metrics/EpCost"] - 25, 0).sum() * 1000 / 1e6 for c in columns])
        assert float(row["return"].split()[0]) == pytest.approx(last, abs=0.006 if last < 10 else 0.06)
        assert float(row["cost regret"].split()[0]) == pytest.approx(regret, abs=0.006)
    assert theirs["safe reward"] == "–" and ours["safe reward"] != "–"
    assert "safety probability: left out, not logged by cpo." in errors
    assert "seed-8: left out, there is no epoch" in errors and "seed-0-2023: left out, there is a" in errors
    assert len([line for line in errors.splitlines() if "left out" in line]) == 4, errors
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "A-v0_curves.png", "A-v0_scatter.png", "profiles.png"}


def test_angles_are_counted_over_all_epochs_of_all_seeds(tmp_path, capsys):
    """Two seeds of 40 epochs log angles, one of which is no number; a second label logs none, and a
    third one the changes, the best ones and the KL that such angles have: medians and shares beyond
    90 degrees are numpy's of both seeds together, for both; the second label is left out."""
    angles = np.random.default_rng(0).uniform(0, 180, size=(2, 2, 40))
    angles[0, 1, 3] = np.nan
    for seed in range(2):
        columns, config = made_up(seed)
        names = ("Misc/reward_angle", "Misc/cost_angle")
        write_run(tmp_path / f"runs/a/seed-{seed}", columns | dict(zip(names, angles[:, seed])), config)
        write_run(tmp_path / f"runs/b/seed-{seed}", *made_up(seed))
        size, (reward, cost) = 10 ** np.arange(-20, 20.0), np.cos(np.radians(angles[:, seed]))
        known = np.isfinite(reward + cost)
        kl = np.where(known, 0.02 * np.linspace(0.1, 1, 40), 0)  # a share of the radius, or no step
        share = np.sqrt(kl / 0.02)
        changes = {"best_reward": size, "best_cost": 3 * size, "kl": kl,
                   "reward_change": np.where(known, size * share * reward, 0),
                   "cost_change": np.where(known, -3 * size * share * cost, 0)}
        columns |= {f"Misc/{name}": values for name, values in changes.items()}
        config = config | {"config": config["config"] | {"delta": 0.02}}
        write_run(tmp_path / f"runs/c/seed-{seed}", columns, config)
    report.main([str(tmp_path / "out"), *(f"{label}={tmp_path}/runs/{folder}" for label, folder in (
        ("turns", "a"), ("none", "b"), ("computed", "c")))])
    output = capsys.readouterr().out
    for label, missing in (("turns", False), ("computed", True)):
        row, pools = row_of(f"{label} | 80", output), angles.reshape(2, 80)
        either = np.isfinite(pools).all(axis=0) if missing else np.ones(80, bool)
        known = [each[np.isfinite(each) & either] for each in pools]
        cells = [text for each in known
                 for text in (f"{np.median(each):.0f}°", f"{np.mean(each > 90):.0%}")]
        assert [cell.strip() for cell in row.split("|")[1:-1]] == [label, "80", *cells]
    assert "none | 80" not in output
    nothing = np.zeros(2)  # no cost to save: 90 degrees; no step: none
    assert np.array_equal(report.angle(nothing, nothing, np.array([0.01, 0]), 0.01), [90, np.nan],
                          equal_nan=True)
    assert (tmp_path / "out/A-v0_angles.png").stat().st_size > 5000


def test_official_units_need_a_checkpoint_for_angles_alone(tmp_path, capsys):
    """delta of --official-units is for the mean over action dimensions: with 4 of them, and a KL of 4 delta
    that gains all there is, the angle is 0. Without a checkpoint, or with half of one: a note, no angles."""
    columns, about = made_up(0)
    one, about["config"]["official_units"] = np.ones(40), 1
    about["config"]["delta"] = 0.01
    columns |= {"Misc/best_reward": one, "Misc/reward_change": one, "Misc/kl": 0.04 * one,
                "Misc/best_cost": one, "Misc/cost_change": -one}
    run = write_run(tmp_path / "run", columns, about)
    np.savez(run / "checkpoint.npz", discrete=False, sizes=[3, 8, 4])
    assert report.read(run, "").columns["reward angle"].tolist() == [0.0] * 40
    whole = (run / "checkpoint.npz").read_bytes()
    (run / "checkpoint.npz").write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        assert "reward angle" not in report.read(run, "").columns
        assert f"{run}: its angles are left out" in capsys.readouterr().err
        (run / "checkpoint.npz").unlink(missing_ok=True)


def test_a_margin_that_noise_has_chosen_is_too_wide(tmp_path, capsys):
    """A policy that never changes, whose epochs cost 25 +- 10, normal, b = 25, h = 1. In 40,000 epochs, up
    to six standard errors: J_c is 25 - 10 sqrt(2 / pi) where steps are normal, as far above elsewhere, the
    next epoch's cost is 25 after both, the noise is 10. Runs without recovery are refused."""
    cost = np.random.default_rng(0).normal(25, 10, size=40_000)
    epoch = np.arange(1, 40_001)
    columns = {"Train/Epoch": epoch, "Train/TotalSteps": epoch,
               "Metrics/EpRet": 0 * cost, "Metrics/EpCost": cost,
               "Misc/recovery": (cost >= 25).astype(int), "Misc/surrogate_cost": 0.5 + 0 * cost}
    margins.main([str(write_run(tmp_path / "a", columns, made_up(0)[1]))])
    cells = capsys.readouterr().out.splitlines()[-1].split("|")[2:-1]
    noise, share, *means = (float(cell.strip(" %")) for cell in cells)
    assert means.pop(3) == 0.5
    away = 10 * math.sqrt(2 / math.pi)
    assert noise == pytest.approx(10, abs=0.3) and share == pytest.approx(50, abs=2.3)
    expected = [25 - away, 25 - away, 25, 25 + away, 25 + away, 25]
    assert means == pytest.approx(expected, abs=6 * 10 / math.sqrt(15_000))
    with pytest.raises(SystemExit, match="not a run of ctrpo.py"):
        margins.main([str(write_run(tmp_path / "b", *made_up(0)))])
    thinned = {name: values[1::2] for name, values in columns.items()}
    with pytest.raises(SystemExit, match="not the rows of all its epochs"):
        margins.main([str(write_run(tmp_path / "c", thinned, made_up(0)[1]))])


def test_runs_of_other_options_are_no_seeds_and_that_is_said(tmp_path, capsys):
    """Seed 0 with beta 0.5 and seed 1 with 0.9, of one experiment: named, with the option. Control: more
    steps, other workers, another unsafe policy, or an option that one of them has not, are no difference."""
    for kind, more in (("other", {"beta": 0.9}),
                       ("same", {"total_steps": 9, "workers": 2, "unsafe": "b", "pid": [1, 0, 0]})):
        for seed in range(2):
            columns, about = made_up(seed)
            about["config"] |= {"beta": 0.5, "total_steps": 8, "workers": 1, "unsafe": "a"}
            about["config"] |= more if seed else {}
            write_run(tmp_path / f"{kind}/here/A-v0/sbtrpo/seed-{seed}", columns, about)
        report.grouped(report.find([str(tmp_path / kind)]))
        said = capsys.readouterr().err
        assert said == ("sbtrpo on A-v0: its runs differ in beta.\n" if kind == "other" else "")


def test_limits_that_differ_have_no_common_regret(tmp_path, capsys):
    """Left out, with the limits; --cost-limit gives one. --steps compares at equal steps."""
    for seed, limit in ((0, 0.0), (1, 25.0)):
        write_run(tmp_path / f"runs/here/A-v0/{'ab'[seed]}/seed-0", *made_up(seed, limit, 40 - 10 * seed))
    report.main([str(tmp_path / "out"), str(tmp_path / "runs")])
    output, errors = capsys.readouterr()
    assert "cost regret" not in output and "limits being 0, 25" in errors and "| 40,000 |" in output
    report.main([str(tmp_path / "out"), str(tmp_path / "runs"), "--cost-limit", "5", "--steps", "20000"])
    output, errors = capsys.readouterr()
    assert "cost regret" in output and output.count("| 20,000 |") == 2 and "| 40,000 |" not in output
    cost = made_up(0)[0]["Metrics/EpCost"][:20]
    assert f"| {np.maximum(cost - 5, 0).sum() / 1e3:.2f} |" in output


def test_scores_over_tasks_are_normalised_for_each(tmp_path, capsys):
    """Two tasks: between the lowest and the highest final return, or divided by a reference's; costs by
    limit. Tasks that some label lacks are left out of the profiles, with a word."""
    finals = {("A-v0", "x"): (1.0, 3.0), ("A-v0", "y"): (5.0, 5.0), ("B-v0", "x"): (10.0, 20.0),
              ("B-v0", "y"): (30.0, 30.0), ("C-v0", "x"): (1.0, 1.0)}
    for (task, label), values in finals.items():
        for seed, value in enumerate(values):
            columns = {"Train/TotalSteps": [1000, 2000], "Metrics/EpRet": [0.0, value],
                       "Metrics/EpCost": [50, 20]}
            config = {"task": task, "experiment": "", "seed": seed, "cost_limit": 10}
            write_run(tmp_path / f"runs/{task}/{label}/seed-{seed}", columns, config)
    report.main([str(tmp_path / "out"), str(tmp_path / "runs")])
    output, errors = capsys.readouterr()
    assert "profiles: C-v0 left out" in errors and "Over 2 tasks" in output
    row = row_of("x", output.split("Over 2 tasks")[1])
    assert row.startswith("| x | 4 | 0.25 [") and "| 2.00 [2.00, 2.00] |" in row  # 0, 0.5, 0, 0.5: middle two
    report.main([str(tmp_path / "out"), str(tmp_path / "runs"), "--reference", "y"])
    row = row_of("x", capsys.readouterr().out.split("Over 2 tasks")[1])
    assert row.startswith(f"| x | 4 | {(1 / 3 + 3 / 5) / 2:.2f} [")  # of 1/5, 3/5, 1/3, 2/3
    for value in (0.0, -5.0):  # would divide by 0, or turn the order round
        columns["Metrics/EpRet"], config["task"] = [0.0, value], "A-v0"
        reference = write_run(tmp_path / f"reference {value}", columns, config)
        options = [str(tmp_path / "runs/A-v0"), f"r={reference}", "--reference", "r"]
        report.main([str(tmp_path / "out"), *options])
        said = capsys.readouterr().err
        assert f"return: left out of the profiles, that of r on A-v0 being {value:.3g}" in said


def test_a_report_without_a_score_over_its_tasks_ends_with_what_it_has(tmp_path, capsys, monkeypatch):
    """Two tasks, the reference's return below 0, no cost to be divided by: no table over tasks, nor a
    picture of profiles; all else is there."""
    monkeypatch.setattr(report, "save", lambda figure, path: print(path))
    columns = {"Train/TotalSteps": [1000, 2000], "Metrics/EpRet": [0.0, -1.0], "Metrics/EpCost": [50, 20]}
    for task in "AB":
        config = {"task": task, "experiment": "", "seed": 0, "cost_limit": 0}
        write_run(tmp_path / f"runs/{task}/x/seed-0", columns, config)
    report.main([str(tmp_path / "out"), str(tmp_path / "runs"), "--reference", "x"])
    output = capsys.readouterr().out
    assert output.count("### ") == 2 and "Over" not in output and "profiles.png" not in output
    assert output.splitlines()[-1].startswith("Interquartile means")


def test_curves_begin_where_all_seeds_have_an_epoch():
    """A seed whose only epoch ends after the others' last: before its first epoch a run counts as that."""
    at = np.array([10_300, 10_500])
    assert report.smooth(np.array([10_500]), np.array([7.0]), at, 1000).tolist() == [7, 7]


@pytest.mark.parametrize("options, said", [
    ("out nowhere", "nowhere"), ("out label=nowhere", "nowhere"), ("out x=", "x="),
    ("out empty", "empty"), ("out", "FOLDER"),
    ("out run --steps 0", "--steps"), ("out run --reference z", "--reference"), ("run run", "is a run"),
    ("out broken", "no run"), ("out latin", "no run"), ("out list", "no run"),
    ("run/config.json run", "file"), ("out A=run B=run", "twice")])
def test_a_mistake_with_a_report_is_one_sentence(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", *made_up(0))
    write_run(tmp_path / "broken", {"Train/TotalSteps": [1], "a": [2]}, None)
    (tmp_path / "empty").mkdir()
    (write_run(tmp_path / "latin", *made_up(0)) / "progress.csv").write_bytes(b"\xff\n1\n")
    (write_run(tmp_path / "list", {"Train/TotalSteps": [1], "a": [2]}, None) / "config.json").write_text("[]")
    with pytest.raises(SystemExit) as end:
        report.main(options.split())
    errors = capsys.readouterr().err + "\n" + str(end.value.code)
    sentence = [line for line in errors.splitlines() if line and line != "2"][-1]
    assert said in sentence and end.value.code not in (0, None) and not (tmp_path / "out").exists()


def test_results_in_this_repository_can_be_reported(tmp_path, capsys):
    """The three seeds of C-TRPO's defaults on Hopper: the table agrees with the files."""
    hopper = ROOT / "results" / "ctrpo-SafetyHopperVelocity-v1-defaults-5M"
    report.main([str(tmp_path), str(hopper)])
    output = capsys.readouterr().out
    row = row_of("ctrpo", output)
    files = sorted(hopper.rglob("progress.csv"))
    assert row.split("|")[2].strip() == str(len(files)) == "3"
    tables = [list(csv.DictReader(file.read_text().splitlines())) for file in files]
    steps = [np.array([int(row["Train/TotalSteps"]) for row in table]) for table in tables]
    means = []
    for table, ends in zip(tables, steps):
        last = np.flatnonzero(ends >= min(each[-1] for each in steps))[0]  # epoch to reach the common end
        means.append(np.mean([float(table[epoch]["Metrics/EpRet"]) for epoch in range(last + 1)
                              if ends[epoch] > 0.9 * ends[last]]))
    assert row.split("|")[4].strip().startswith(f"{np.mean(means):,.0f} [")


def test_the_last_epoch_of_a_run_counts_though_another_ends_a_few_steps_before(tmp_path, capsys):
    """Eight epochs, the last of one seed three steps longer: both means are those of the last epoch. Control:
    with two epochs more it counts as far as the other has come."""
    for name, epochs in (("longer", 8), ("far", 10)):
        for seed in range(2):
            columns, config = made_up(seed, epochs=epochs if seed else 8)
            columns["Train/TotalSteps"] += 3 * seed
            columns["Metrics/EpRet"][7] = 10 * (1 + seed)
            columns["Metrics/EpRet"][8:] = 1000
            write_run(tmp_path / f"{name}/here/A-v0/sbtrpo/seed-{seed}", columns, config)
        report.main([str(tmp_path / "out"), str(tmp_path / name)])
        assert row_of("sbtrpo", capsys.readouterr().out).split("|")[4].strip() == "15.0 [10.0, 20.0]"


def test_budgets_in_the_pages_are_those_in_results():
    """The table of results/budgets.json, as studies/budgets.py prints it. Control: another figure."""
    saved = (ROOT / "results" / "budgets.json").read_text()
    assert budgets.table(json.loads(saved)) in pages()
    assert budgets.table(json.loads(saved.replace('"reached": 10', '"reached": 9', 1))) not in pages()
