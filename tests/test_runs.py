"""What a run must survive: kill -9, dead workers, full disks, damaged checkpoints, broken simulators, users
who mistype. Part of `uv run test_updates.py`.

Runs are started as users start them, on the exact worlds, and compared bit for bit with one in which nothing
happened; what goes wrong ends in one sentence.
"""

import dataclasses, importlib.metadata, importlib.util, json, math, os, resource, shutil, signal, subprocess
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np
import psutil
import pytest

import ctrpo
import sbtrpo
import strpo
from conftest import ROOT, check

# ------------------------------------------------------------------------------------ whole runs

SMALL = ["--task=tabular_cmdp:HazardGrid-v0", "--hidden=8", "--batch-steps=250", "--total-steps=2500"]


def run_of(experiment: object = "default", task: str = "tabular_cmdp-HazardGrid-v0", script: str = "sbtrpo"):
    return Path("runs", str(experiment), task, script, "seed-0")


RUN = run_of()


def start(folder: Path, *options: str, script=sbtrpo, **popen) -> subprocess.Popen:
    """The script as its users start it, in this folder, which can also hold modules with environments."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **popen.pop("env", {})}
    options = [*map(str, options), *([] if "--workers" in options else ["--workers", "1"])]
    return subprocess.Popen([sys.executable, script.__file__, *options], cwd=folder, text=True,
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen)


def finish(process: subprocess.Popen, *codes: int) -> list[str]:
    """Waits for the end; returns the lines on stderr. No traceback, and an exit code of `codes` (or 0)."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (codes or (0,)) and "Traceback" not in errors, errors
    return errors.splitlines()


def outcome(run: Path) -> tuple:
    """All that must be equal bit for bit: the rows of progress.csv without times, and the checkpoint."""
    state = {"sbtrpo": sbtrpo, "ctrpo": ctrpo, "strpo": strpo}[run.parent.name].load_run(run)[1]
    assert (run / "progress.csv").read_bytes() == state.pop("progress")
    return rows(run), bits(state)


def bits(arrays) -> dict:
    return {name: (np.shape(arrays[name]), np.asarray(arrays[name]).tobytes()) for name in arrays}


def rows(run: Path) -> list[dict]:
    """The rows of progress.csv without times; none is torn."""
    text = (run / "progress.csv").read_text() if (run / "progress.csv").exists() else ""
    table = [line.split(",") for line in text.split("\n")]
    assert table.pop() == [""] and all(len(line) == len(table[0]) for line in table)
    return [{key: value for key, value in zip(table[0], line) if "Time/" not in key} for line in table[1:]]


def wait_for(condition, process: subprocess.Popen) -> None:
    """Returns as soon as the condition holds, or the process has ended."""
    while process.poll() is None and not condition():
        time.sleep(1e-3)


def progress(run: Path, process: subprocess.Popen) -> float:
    """Waits until the run has finished one more epoch; returns how long that took [s]."""
    begun, done = time.perf_counter(), len(rows(run))
    wait_for(lambda: len(rows(run)) > done, process)
    return time.perf_counter() - begun


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Path:
    """A folder with an undisturbed run of one worker."""
    folder = tmp_path_factory.mktemp("reference")
    finish(start(folder, *SMALL))
    assert [int(row["Train/Epoch"]) for row in rows(folder / RUN)] == list(range(1, 11))
    return folder


def test_result_does_not_depend_on_the_number_of_workers(reference, tmp_path):
    """1, 2 and 3 workers, bit for bit."""
    runs = [start(tmp_path, *SMALL, "--workers", n, "--experiment", n) for n in (2, 3)]
    for n, process in zip((2, 3), runs):
        finish(process)
        assert outcome(tmp_path / run_of(n)) == outcome(reference / RUN)


def test_result_in_safety_gymnasium_depends_neither_on_workers_nor_on_the_fast_file(tmp_path):
    """Two epochs of SafetyPointGoal1-v0, bit for bit: sbtrpo.py alone in a folder, without
    fast_safety_gymnasium.py, with 1 worker; and here, with it, with 2. No episode depends on earlier ones."""
    small = ["--task=SafetyPointGoal1-v0", "--hidden=8", "--batch-steps=2000", "--total-steps=4000"]
    alone = SimpleNamespace(__file__=shutil.copy(sbtrpo.__file__, tmp_path))
    processes = [start(tmp_path, *small, "--experiment", 1, script=alone, env={"PYTHONPATH": ""}),
                 start(tmp_path, *small, "--experiment", 2, "--workers", 2)]
    for process in processes:
        finish(process)
    one, two = (tmp_path / run_of(n, "SafetyPointGoal1-v0") for n in (1, 2))
    assert outcome(one) == outcome(two) and len(rows(one)) == 2


def test_kill_9_and_resume_change_nothing(reference, tmp_path):
    """The parent is killed as soon as a save begins, then at a random moment, then interrupted by Ctrl-C, and
    each time resumed: the result is equal bit for bit, progress.csv whole at all times, no worker left
    behind."""
    run, rng, deaths = tmp_path / RUN, np.random.default_rng(), 0
    process = start(tmp_path, *SMALL, "--workers", 2)
    for moment in ("save", "random", "Ctrl-C"):
        done = len(rows(run))
        progress(run, process)
        if moment == "save":
            wait_for((run / "checkpoint.npz.tmp").exists, process)
        time.sleep(0 if moment == "save" else rng.uniform(0, 0.1))
        children = psutil.Process(process.pid).children(recursive=True)
        deaths += process.poll() is None
        process.send_signal(signal.SIGINT if moment == "Ctrl-C" else signal.SIGKILL)
        said = finish(process, -9, 0, 1)
        assert process.returncode != 1 or said[0] == "interrupted" and said[1].endswith(f"--resume {RUN}")
        assert not psutil.wait_procs(children, timeout=10)[1], "a worker outlived its parent"
        assert rows(run) == rows(reference / RUN)[: len(rows(run))] and len(rows(run)) > done
        process = start(tmp_path, "--resume", RUN, "--workers", 2)
    finish(process)
    assert outcome(run) == outcome(reference / RUN)
    check("kill -9 and resume with the same result: deaths (of three)", deaths, at_least=2)


def die_at_call(call: int) -> None:
    """Makes this process kill itself instead of its next but `call` fsync or replace."""
    calls = iter(range(100))

    def dying(original):
        return lambda *arguments: os.kill(os.getpid(), 9) if next(calls) == call else original(*arguments)

    os.fsync, os.replace = dying(os.fsync), dying(os.replace)


def test_kill_9_within_a_save_leaves_the_old_or_the_new_state(reference, tmp_path):
    """The process is killed at each system call of a save in turn; what is loaded afterwards is the state of
    before or after, whole. Both occur."""
    seen = []
    for call in range(6):
        run = shutil.copytree(reference / RUN, tmp_path / str(call))
        (run / "owner").unlink()
        config, old = sbtrpo.load_run(run)
        if not (pid := os.fork()):
            die_at_call(call)
            columns = old["progress"].splitlines()[0].split(b",")
            try:
                sbtrpo.save(run, config, {**old, "epoch": 11}, dict.fromkeys(columns, 0.0))
            finally:
                os._exit(0)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == (signal.SIGKILL if call < 5 else 0)
        state = sbtrpo.load_run(run)[1]
        assert state["progress"].count(b"\n") == 1 + state["epoch"]
        assert rows(run)[:10] == rows(reference / RUN)
        assert all(np.array_equal(state[name], old[name]) for name in set(old) - {"epoch", "progress"})
        seen.append(state["epoch"])
    assert seen == [10, 10, 10, 11, 11, 11]


def kill_a_worker(process: subprocess.Popen) -> None:
    children = psutil.Process(process.pid).children()
    names = "popen_loky_posix", "spawn_main"  # ours, and Dask's
    next(child for child in children if any(name in " ".join(child.cmdline()) for name in names)).kill()


def test_a_worker_killed_in_mid_epoch_changes_nothing(reference, tmp_path):
    """The run goes on by itself, and its result is equal bit for bit."""
    process = start(tmp_path, *SMALL, "--workers", 2)
    progress(tmp_path / RUN, process)
    kill_a_worker(process)
    seconds = progress(tmp_path / RUN, process)
    check("a worker killed: seconds until the next epoch is done (two busy cores)", seconds, at_most=15)
    finish(process)
    assert len(rows(tmp_path / RUN)) == 10 and outcome(tmp_path / RUN) == outcome(reference / RUN)


CLUSTER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    cluster = LocalCluster(n_workers=int(sys.argv[1]), threads_per_worker=int(sys.argv[2]), processes=True,
                           dashboard_address=None)
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
    cluster.close()
"""


def dask_cluster(folder: Path, processes: int, threads: int, **environment: str) -> subprocess.Popen:
    (folder / "cluster.py").write_text(CLUSTER)
    command = [sys.executable, "cluster.py", str(processes), str(threads)]
    return subprocess.Popen(command, cwd=folder, text=True, stderr=-3, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, env=os.environ | environment)


def test_a_dask_cluster_gives_the_same_result(reference, tmp_path):
    """`--scheduler`, on a cluster that has the environment but not the script; one of its two worker
    processes is killed in the middle of an epoch. Equal bit for bit."""
    shutil.copy(ROOT / "tabular_cmdp.py", tmp_path)
    cluster = dask_cluster(tmp_path, 2, 1)
    try:
        process = start(tmp_path, *SMALL, "--scheduler", cluster.stdout.readline().strip())
        progress(tmp_path / RUN, process)
        kill_a_worker(cluster)
        _, errors = process.communicate(timeout=120)  # Dask logs results of futures cancelled a moment ago
        assert process.returncode == 0, errors
        assert outcome(tmp_path / RUN) == outcome(reference / RUN)
    finally:
        cluster.communicate("", timeout=30)


NOISY = """
import random, gymnasium, numpy as np
class Noisy(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    def reset(self, seed=None, options=None):
        self.x = np.random.normal(size=1)
        return self.x, {}
    def step(self, action):
        self.x = self.x + 0.1 * action + 0.1 * random.random() + 0.1 * np.random.random()
        return self.x, self.x.item(), False, False, {"cost": float(self.x.item() > 2)}
gymnasium.register("Noisy-v0", Noisy, max_episode_steps=100)
"""


def test_random_numbers_of_an_environment_are_its_own_on_dask(tmp_path):
    """Steps that draw from NumPy's and Python's global generators, on a worker of two threads, beside Dask's
    own threads, which draw from Python's, too: the bits of a process here."""
    (tmp_path / "noisy.py").write_text(NOISY)
    options = ["--task=noisy:Noisy-v0", "--hidden=8", "--batch-steps=500", "--total-steps=5000"]
    runs = [run_of(name, task="noisy-Noisy-v0") for name in ("here", "dask")]
    finish(start(tmp_path, *options, "--experiment", "here"))
    cluster = dask_cluster(tmp_path, 1, 2)
    try:
        address = cluster.stdout.readline().strip()
        process = start(tmp_path, *options, "--experiment", "dask", "--scheduler", address)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    finally:
        cluster.communicate("", timeout=30)
    assert outcome(tmp_path / runs[0]) == outcome(tmp_path / runs[1])


@pytest.mark.parametrize("anew", [False, True])
def test_a_folder_that_is_deleted_ends_its_run(anew, tmp_path, monkeypatch):
    """One sentence; where another run lies there by now, nothing is written into it."""
    monkeypatch.chdir(tmp_path)
    config, run, state, lock = sbtrpo.open_run([*SMALL, "--workers", "1"])
    state = sbtrpo.train(dataclasses.replace(config, total_steps=250), run, state)
    lock.release()
    shutil.rmtree(run)
    if anew:
        sbtrpo.open_run([*SMALL, "--workers", "1", "--beta", "0.9"])
        (run / "owner").write_text("process 1 on another machine")
    before = {path: path.read_bytes() for path in run.rglob("*.*")}
    with pytest.raises(sbtrpo.Failure, match="was deleted"):
        sbtrpo.train(config, run, state)
    assert {path: path.read_bytes() for path in run.rglob("*.*")} == before


def test_a_run_whose_folder_is_gone_is_not_said_to_resume(tmp_path, monkeypatch, capsys):
    """The advice goes with the folder. Control: it stands where the folder does."""
    monkeypatch.chdir(tmp_path)
    advance = sbtrpo.advance

    def interrupted(*arguments):
        if name == "gone":
            shutil.rmtree(run_of(name))
        else:
            raise KeyboardInterrupt
        return advance(*arguments)

    monkeypatch.setattr(sbtrpo, "advance", interrupted)
    said = {}
    for name in ("gone", "kept"):
        assert sbtrpo.main([*SMALL, "--workers", "1", "--experiment", name]) == 1
        said[name] = capsys.readouterr().err.splitlines()
    assert "was deleted" in said["gone"][0] and len(said["gone"]) == 1
    assert said["kept"][0] == "interrupted" and "--resume" in said["kept"][1]


# ------------------------------------------------------------------------- one clear sentence


@pytest.mark.parametrize("options, said", [
    ("--task Nothing-v0", "Nothing"), ("--task SafetyNothing-v0", "SafetyNothing"),
    ("--task no_such_module:Nothing-v0", "no_such_module"), ("--delta 0", "--delta"), ("--beta 2", "--beta"),
    ("--update sideways", "--update"), ("--hidden 8 0", "--hidden"), ("--workers 0", "--workers"),
    ("--total-steps many", "--total-steps"), ("--delat 0.1", "--delat"), ("--resume nowhere", "nowhere"),
    ("--scheduler tcp://localhost", "--scheduler"), ("--scheduler http://localhost:8786", "--scheduler"),
    ("--resume runs --delta 0.1", "--total-steps")])
def test_a_mistake_of_the_user_is_one_sentence(options, said, tmp_path):
    """On stderr, after argparse's line of usage at most; non-zero exit, no traceback, nothing is made."""
    errors = finish(start(tmp_path, *options.split()), 1, 2)
    assert said in errors[-1] and len([line for line in errors if not line.startswith("usage")]) == 1, errors
    assert not any(tmp_path.iterdir())


def test_a_run_is_not_overwritten(reference):
    before = outcome(reference / RUN)
    assert "exists" in finish(start(reference, *SMALL), 2)[-1]
    assert outcome(reference / RUN) == before


BROKEN = """
import gymnasium, math, numpy as np, os

class Broken(gymnasium.Env):
    '''A point pushed about, 10 steps an episode; in step 145 of its process, $BROKEN goes wrong.'''
    observation_space = gymnasium.spaces.Box(-math.inf, math.inf, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))
    steps = 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.x = 0, self.np_random.normal(size=2)
        return self.x, {}

    def step(self, action):
        Broken.steps += 1
        self.time, self.x, broken = self.time + 1, self.x + action / 10, {}
        if Broken.steps == 145:
            broken = {os.environ.get("BROKEN"): math.nan if self.x[0] > 0 else math.inf}
        if "exception" in broken:
            raise ValueError("the simulator broke")
        if "process" in broken or os.environ.get("BROKEN") == "host":
            os._exit(1)
        return (self.x + broken.get("observation", 0), broken.get("reward", -float(self.x @ self.x)),
                broken.get("cost", float(self.x[0] > 1)), False, self.time == 10, {})

gymnasium.register("Broken-v0", Broken)
"""
BREAKABLE = ["--task=broken_env:Broken-v0", "--hidden=4", "--batch-steps=60", "--total-steps=400"]


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
@pytest.mark.parametrize("fault", ["observation", "reward", "cost", "action", "exception"])
def test_what_breaks_in_an_episode_is_named(fault, tmp_path, monkeypatch):
    """NaN or inf in observation, reward, cost or action; an exception: Failure with episode and step."""
    (tmp_path / f"broken_{fault}.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("BROKEN", fault)
    state = sbtrpo.initial_state(config := sbtrpo.Config(task=f"broken_{fault}:Broken-v0", hidden=(4,)))
    state["theta"] = state["theta"] * (math.nan if fault == "action" else 1)
    where = "episode 0, step 0" if fault == "action" else "episode 14, step 4"
    what = {"exception": "the simulator broke", "action": "policy not finite",
            "observation": "observation="}.get(fault, f"the {fault} is inf, not finite")
    with pytest.raises(sbtrpo.Failure, match=f"{where}: .*{what}"):
        for index in range(20):
            sbtrpo.run_episode(config.task, 0, index, sbtrpo.make_actor(state))


def test_a_broken_simulator_loses_no_epoch(tmp_path):
    """NaN, and an exception, in the second epoch: non-zero exit, one sentence, the first epoch
    saved; repaired and resumed, the run ends as one in which nothing broke. A simulator that kills
    its process is run again; one that always does is given up."""
    (tmp_path / "broken_env.py").write_text(BROKEN)
    runs = {fault: tmp_path / run_of(fault, "broken_env-Broken-v0")
            for fault in ("nothing", "reward", "exception", "process", "host")}
    processes = [start(tmp_path, *BREAKABLE, "--experiment", fault, env={"BROKEN": fault}) for fault in runs]
    ended = {fault: finish(process, 0, 1) for fault, process in zip(runs, processes)}
    for fault in ("reward", "exception"):
        sentence, hint = ended[fault]
        assert "episode 8, step 4" in sentence  # in step 145, of which the warm-up took 60
        assert hint.endswith(f"--resume {runs[fault].relative_to(tmp_path)}")
        assert rows(runs[fault]) == rows(runs["nothing"])[:1]
    finish(start(tmp_path, "--resume", runs["exception"]))
    for fault in ("process", "exception"):
        assert len(rows(runs[fault])) == 7 and outcome(runs[fault]) == outcome(runs["nothing"])
    assert "workers died" in ended["host"][0]


def test_a_dask_worker_that_always_dies_is_one_sentence(tmp_path):
    """Dask gives up after four deaths of workers that run the same episodes: one sentence, as without it."""
    (tmp_path / "broken_env.py").write_text(BROKEN)
    cluster = dask_cluster(tmp_path, 2, 1, BROKEN="host", PYTHONPATH=str(tmp_path))
    try:
        address = cluster.stdout.readline().strip()
        *_, sentence, hint = finish(start(tmp_path, *BREAKABLE, "--scheduler", address), 1)
        assert "workers died four times" in sentence and "--resume" in hint
    finally:
        cluster.communicate("", timeout=30)


def test_a_lost_dask_scheduler_is_one_sentence(reference, tmp_path):
    """The scheduler is killed in the middle of an epoch; the run can be resumed with processes instead, and
    ends with the same bits."""
    shutil.copy(ROOT / "tabular_cmdp.py", tmp_path)
    cluster = dask_cluster(tmp_path, 2, 1)
    try:
        address = cluster.stdout.readline().strip()
        process = start(tmp_path, *SMALL, "--scheduler", address)
        progress(tmp_path / RUN, process)
    finally:
        cluster.kill()
        cluster.wait()
    *_, sentence, hint = finish(process, 1)
    assert sentence == f"the scheduler {address} has gone." and "--resume" in hint
    finish(start(tmp_path, "--resume", RUN))
    assert outcome(tmp_path / RUN) == outcome(reference / RUN)


def test_a_full_disk_loses_no_epoch(reference, tmp_path):
    """Files cannot grow beyond a checkpoint of the middle of the run: one sentence, the one before loads, and
    with space again the run ends as if nothing had happened."""
    most = (reference / RUN / "checkpoint.npz").stat().st_size - 1000

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    sentence, hint = finish(start(tmp_path, *SMALL, preexec_fn=limit), 1)
    assert "File too large" in sentence and "--resume" in hint
    assert 1 <= len(rows(tmp_path / RUN)) < 10
    assert rows(tmp_path / RUN) == rows(reference / RUN)[: len(rows(tmp_path / RUN))]
    finish(start(tmp_path, "--resume", RUN))
    assert outcome(tmp_path / RUN) == outcome(reference / RUN)
    picture, most = (tmp_path / RUN / "curves.png").read_bytes(), most + 2000
    assert picture.endswith(b"IEND\xaeB`\x82") and len(picture) > most
    sentence, *_ = finish(start(tmp_path, "--resume", RUN, preexec_fn=limit), 1)
    assert sentence == f"{RUN}/curves.png cannot be written: File too large."
    assert (tmp_path / RUN / "curves.png").read_bytes() == picture


def test_a_damaged_checkpoint_is_noticed(reference, tmp_path, capsys):
    """A bit of any of 400 bytes changed, or the end cut off: what loads is the newest state or, if it cannot
    be trusted, the one before, bit for bit; resumed from there, the run ends equal. Both damaged: Failure.
    The one before is not a name of the newest."""
    run = shutil.copytree(reference / RUN, tmp_path / RUN)
    whole, rng, used = (run / "checkpoint.npz").read_bytes(), np.random.default_rng(12), []
    newest, before = (bits(np.load(run / name)) for name in ("checkpoint.npz", "checkpoint.previous.npz"))
    assert newest.pop("checksum") != before.pop("checksum")
    flips = [*rng.integers(len(whole), size=300), *rng.integers(len(whole) - 1500, len(whole), size=100)]
    damaged = [whole[:i] + bytes([whole[i] ^ 1 << rng.integers(8)]) + whole[i + 1:] for i in flips]
    for data in [*damaged, *(whole[:n] for n in (len(whole) - 1, 1000, 1, 0))]:
        (run / "checkpoint.npz").write_bytes(data)
        used.append(bits(sbtrpo.load_run(run)[1]))
        assert used[-1] in (newest, before) and newest != before
    check("damaged checkpoints (of 404): found out", used.count(before), at_least=300)
    finish(start(tmp_path, "--resume", RUN))
    assert outcome(run) == outcome(reference / RUN)
    assert sbtrpo.run_folder(run / "checkpoint.npz") == run
    assert sbtrpo.run_folder(run / "checkpoint.previous.npz") != run
    (run / "checkpoint.npz").write_bytes(whole[:1000])
    (run / "checkpoint.previous.npz").write_bytes(whole)
    sbtrpo.open_run(["--resume", str(run)])[-1].release()  # the next save would keep the damaged one
    assert bits(np.load(run / "checkpoint.npz")) == bits(np.load(run / "checkpoint.previous.npz"))
    for name in ("checkpoint.npz", "checkpoint.previous.npz"):
        (run / name).write_bytes(whole[:1000])
    assert "no run that can be resumed" in finish(start(tmp_path, "--resume", RUN), 1)[-1]


def test_a_numpy_that_multiplies_wrongly_is_refused(monkeypatch, capsys):
    """1.23.5, which safety-gymnasium asks for, ships an OpenBLAS that does so on some CPUs."""
    monkeypatch.setattr(np, "__version__", "1.23.5")
    assert sbtrpo.main([]) == 1
    assert "numpy 1.23.5 multiplies wrongly" in capsys.readouterr().err


# ------------------------------------------------------------------------------- C-TRPO, briefly


def test_critics_and_growing_batches_survive_kill_9(tmp_path):
    """GAE and batches that grow, killed once and resumed, 2 workers: as one worker undisturbed."""
    options, runs = [*SMALL, "--advantage=gae", "--batch-growth=1e120"], [run_of("alone"), run_of("killed")]
    alone, process = (start(tmp_path, *options, "--experiment", run.parts[1], "--workers", n)
                      for n, run in enumerate(runs, start=1))
    progress(tmp_path / runs[1], process)
    process.kill()
    finish(process, -9)
    finish(start(tmp_path, "--resume", runs[1], "--workers", 2))
    finish(alone)
    assert outcome(tmp_path / runs[1]) == outcome(tmp_path / runs[0])
    steps = np.diff([0, *(int(row["Train/TotalSteps"]) for row in rows(tmp_path / runs[0]))])
    check("growing batches: the last over the first", steps[-1] / steps[0], at_least=1.5)


@pytest.mark.parametrize("script, preset", [(sbtrpo, "safe"), (ctrpo, "paper")])
def test_an_option_wins_over_a_preset(script, preset, tmp_path, monkeypatch):
    """A preset sets what is not given; and is written to config.json with the rest."""
    monkeypatch.chdir(tmp_path)
    options = f"--preset {preset} --beta 0.5 --task tabular_cmdp:TwoState-v0"
    config, run, *_ = script.open_run(options.split())
    expected = script.PRESETS[preset] | {"beta": 0.5, "preset": preset}
    assert all(getattr(config, name) == value for name, value in expected.items()) and len(expected) > 3
    tuples = {"hidden": config.hidden, "costs": config.costs}  # JSON has lists
    assert vars(script.load_run(run)[0]) | tuples == vars(config)


@pytest.mark.parametrize("window", [1, 50])
def test_recovery_survives_kill_9_and_follows_its_rule(window, tmp_path):
    """C-TRPO on the grid with one worker; and with two, killed and resumed: equal bit for bit, with the flag
    of recovery, which is on at first, until J_c is below h b, and again from b on. Both changes occur; with
    the window of the release, which reaches over epochs and deaths, only the first. J_c is the epoch's cost
    per episode, or with that window what is logged."""
    options = [*SMALL, "--cost-limit", 1.5, "--hysteresis", 0.9, "--delta", 0.05,
               "--cost-window", window]
    alone, run = (run_of(name, script="ctrpo") for name in ("alone", "killed"))
    undisturbed = start(tmp_path, *options, "--experiment", "alone", script=ctrpo)
    process = start(tmp_path, *options, "--experiment", "killed", "--workers", 2, script=ctrpo)
    progress(tmp_path / run, process)
    process.kill()
    finish(process, -9)
    finish(start(tmp_path, "--resume", run, script=ctrpo))
    finish(undisturbed)
    assert outcome(tmp_path / run) == outcome(tmp_path / alone)
    flags, recovery = [], True
    for row in rows(tmp_path / run):
        recovery = float(row["Metrics/EpCost" if window == 1 else "Misc/mean_cost"]) >= (
            1.5 * (0.9 if recovery else 1))
        flags.append(int(row["Misc/recovery"]))
        assert flags[-1] == recovery
    assert ctrpo.load_run(tmp_path / run)[1]["recovery"] == flags[-1] and len(flags) == 10
    check(f"C-TRPO, window {window}: changes between recovery and normal steps", np.abs(np.diff(flags)).sum(),
          at_least=2 if window == 1 else 1)


@pytest.mark.parametrize("options, said", [
    ("--barrier cube", "--barrier"), ("--hysteresis 0", "--hysteresis"), ("--cost-limit -1", "--cost-limit"),
    ("--cost-window 0", "--cost-window"), ("--official-units 2", "--official-units"), ("--beta 0", "--beta"),
    ("--preset none-such", "--preset"), ("--resume nowhere", "nowhere"), ("--task Nothing-v0", "Nothing"),
    ("--task :", "--task :")])
def test_a_mistake_with_ctrpo_is_one_sentence(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ctrpo.main(options.split()) == 1
    errors = capsys.readouterr().err.splitlines()
    assert said in errors[-1] and len(errors) == 1 and not any(tmp_path.iterdir())


# ---------------------------------------------------------------------- sTRPO and its two stages


STAGES = [*SMALL, "--unsafe-steps=1500", "--total-steps=1500"]


@pytest.fixture(scope="session")
def both_stages(tmp_path_factory) -> Path:
    """A folder with an undisturbed run of one worker; its first stage is a run of its own, in RUN/unsafe."""
    folder = tmp_path_factory.mktemp("stages")
    finish(start(folder, *STAGES, script=strpo))
    return folder


def test_kill_9_in_either_stage_and_resume_change_nothing(both_stages, tmp_path):
    """Two workers; killed in the first stage, resumed, killed in the second, and resumed: both runs end equal
    to those of one worker, undisturbed, bit for bit; and the unsafe policy's cost per episode is reported,
    far above the first epoch's, a random policy's."""
    run = run_of(script="strpo")
    process = start(tmp_path, *STAGES, "--workers", 2, script=strpo)
    for stage in ("unsafe", ""):
        progress(tmp_path / run / stage, process)
        assert (tmp_path / run / "progress.csv").exists() and process.poll() is None
        process.kill()
        finish(process, -9)
        assert bool(rows(tmp_path / run)) == (not stage)
        process = start(tmp_path, "--resume", run, "--workers", 2, script=strpo)
    output, _ = process.communicate(timeout=120)
    table, reference = rows(tmp_path / run), both_stages / run
    assert process.returncode == 0 and outcome(tmp_path / run) == outcome(reference)
    first = strpo.load_run(tmp_path / run / "unsafe")[1]
    assert bits(first) | {"progress": 0} == bits(strpo.load_run(reference / "unsafe")[1]) | {"progress": 0}
    assert rows(tmp_path / run / "unsafe") == rows(reference / "unsafe") and len(table) == 6
    cost, random = float(table[0]["Misc/unsafe_cost"]), float(rows(reference / "unsafe")[0]["Metrics/EpCost"])
    assert {row["Misc/unsafe_cost"] for row in table} == {str(cost)}
    assert f"costs {cost:.3g} an episode" in output
    check("sTRPO: cost of the unsafe policy over a random one's, 1,500 steps", cost / random, at_least=1.3)


def test_the_first_stage_of_a_run_is_mended_when_it_is_resumed(both_stages, tmp_path, monkeypatch, capsys):
    """A kill within its last save may leave a progress.csv without the last epoch; and of a copy of --unsafe,
    which nobody makes anew, there are two, should one be damaged, also after a kill between them. Another
    task's run may be where the copied one was; a new run with it is refused."""
    monkeypatch.chdir(tmp_path)
    run, original = run_of(script="strpo"), both_stages / run_of(script="strpo")
    shutil.copytree(original, run)
    whole = (run / "unsafe/progress.csv").read_bytes()
    (run / "unsafe/progress.csv").write_bytes(whole[: whole[:-1].rfind(b"\n") + 1])
    config, _ = strpo.load_run(run)
    strpo.open_first_stage(config, run)
    assert (run / "unsafe/progress.csv").read_bytes() == whole
    shutil.copytree(original / "unsafe", "first")
    config, state = strpo.Config(task=config.task, unsafe="first", hidden=(8,)), strpo.load_run(original)[1]
    strpo.save(Path("second"), config, state)
    strpo.open_first_stage(config, Path("second"))
    Path("second/unsafe/checkpoint.previous.npz").unlink()
    strpo.open_first_stage(config, Path("second"))
    about = json.loads(Path("first/config.json").read_text())
    about["config"]["task"] = "tabular_cmdp:TwoState-v0"
    Path("first/config.json").write_text(json.dumps(about))
    Path("second/unsafe/checkpoint.npz").write_text("x")
    config, _ = strpo.load_run(Path("second"))
    _, again = strpo.open_first_stage(config, Path("second"))
    assert bits(again) == bits(strpo.load_run(original / "unsafe")[1])
    assert "checkpoint.npz cannot be used: it is damaged or cut off" in capsys.readouterr().err
    with pytest.raises(strpo.Failure, match="is a run of tabular_cmdp:TwoState-v0, and this one of"):
        config.check_new()


def test_the_unsafe_policy_is_frozen(both_stages, tmp_path):
    """--unsafe takes a copy of a run of --stage unsafe: what happens to that run afterwards changes nothing,
    even to a run that is resumed. Equal bit for bit to training both stages at once. --unsafe-steps, less
    than a batch, has no say."""
    run = run_of(script="strpo")
    shutil.copytree(both_stages / run / "unsafe", tmp_path / "first")
    process = start(tmp_path, *STAGES, "--unsafe", "first", "--unsafe-steps=1", script=strpo)
    progress(tmp_path / run, process)
    process.kill()
    finish(process, -9)
    shutil.rmtree(tmp_path / "first")
    finish(start(tmp_path, "--resume", run, script=strpo))
    assert outcome(tmp_path / run) == outcome(both_stages / run)


@pytest.mark.parametrize("options, said", [
    ("--unsafe nowhere", "--unsafe nowhere"), ("--unsafe safe", "of --stage unsafe"),
    ("--unsafe other", "other"), ("--unsafe null", "null"), ("--unsafe list", "list"),
    ("--resume list", "list holds no run"), ("--resume both/unsafe", "both/unsafe is the first stage of"),
    ("--unsafe unsafe --task TwoState-v0", "unsafe is a run of"),
    ("--exclusion some", "--exclusion"), ("--dual prime", "--dual"), ("--estimator none", "--estimator"),
    ("--delta-2 -1", "--delta-2"), ("--cvar-alpha 0", "--cvar-alpha"), ("--pid 1 1 -1", "--pid"),
    ("--pid 1 1", "--pid takes three"), ("--critic best", "--critic"),
    ("--stage third", "--stage"), ("--unsafe-steps 1000", "longer than --unsafe-steps, 1,000")])
def test_a_mistake_with_strpo_is_one_sentence(options, said, both_stages, tmp_path, monkeypatch, capsys):
    """A folder that is no run, a run of the other stage, of another script, of another task."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "safe").symlink_to(both_stages / run_of(script="strpo"))
    (tmp_path / "unsafe").symlink_to(both_stages / run_of(script="strpo") / "unsafe")
    (tmp_path / "both").symlink_to(both_stages / run_of(script="strpo"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"config": {"task": "tabular_cmdp:TwoState-v0"}}')
    for name, text in (("null", '{"config": null}'), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    assert strpo.main(options.split()) == 1
    errors = capsys.readouterr().err.splitlines()
    assert said in errors[-1] and len(errors) == 1 and not (tmp_path / "runs").exists()


def test_a_project_with_a_configuration_of_its_own_may_hold_a_run(both_stages, tmp_path, monkeypatch):
    """config.json is a common name. Control: the first stage of a run, which is refused above."""
    monkeypatch.setattr(strpo, "make_executor", lambda config: ThreadPoolExecutor(1))
    run = shutil.copytree(both_stages / run_of(script="strpo") / "unsafe", tmp_path / "project" / "seed-0")
    (tmp_path / "project" / "config.json").write_text("{}")
    assert strpo.main(["--resume", str(run)]) == 0


def test_a_project_needs_no_simulator_that_its_environment_does_not(tmp_path, monkeypatch, capsys):
    """A copied script beside other environments: without mujoco and safety-gymnasium. config.json has the
    versions of what is there. Control: here it names mujoco's. Without matplotlib, which a run needs at its
    end, it does not begin."""
    find, version = importlib.util.find_spec, importlib.metadata.version
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sbtrpo, "make_executor", lambda config: ThreadPoolExecutor(1))
    options = ["--task=tabular_cmdp:TwoState-v0", "--total-steps=500", "--batch-steps=500", "--hidden=8"]

    def packages(name):
        assert sbtrpo.main([*options, f"--experiment={name}"]) == 0
        [about] = Path("runs", name).glob("**/config.json")
        return set(json.loads(about.read_text())) - {"algorithm", "python", "config"}

    assert packages("all") == {"numpy", "autograd", "gymnasium", "mujoco"}
    gone = {"mujoco", "safety_gymnasium", "fast_safety_gymnasium"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else find(name))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version("none" if name in gone else name))
    assert packages("few") == {"numpy", "autograd", "gymnasium"}
    gone.add("matplotlib")
    assert sbtrpo.main([*options, "--experiment=none"]) == 1 and not Path("runs/none").exists()
    assert "matplotlib, which draws" in capsys.readouterr().err


def test_an_unfinished_first_stage_is_refused(both_stages, tmp_path, monkeypatch, capsys):
    """A policy that is not unsafe yet: nothing is made, and the same command works once it is one. Nor does
    a first stage take another's policy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(strpo, "make_executor", lambda config: ThreadPoolExecutor(1))
    first = shutil.copytree(both_stages / run_of(script="strpo") / "unsafe", tmp_path / "first")
    config, state = strpo.load_run(first)
    strpo.save(first, config, state | {"steps": 1000})
    assert strpo.main([*STAGES[:-1], "--total-steps=500", "--unsafe", "first"]) == 1
    assert "--unsafe first has 1,000 steps of 1,500: finish it" in capsys.readouterr().err
    assert not Path("runs").exists()
    strpo.save(first, config, state)
    assert strpo.main([*STAGES[:-1], "--total-steps=500", "--unsafe", "first", "--stage=unsafe"]) == 1
    assert "--unsafe is for stage two" in capsys.readouterr().err and not Path("runs").exists()
    assert strpo.main([*STAGES[:-1], "--total-steps=500", "--unsafe", "first"]) == 0


@pytest.mark.parametrize("options", [
    "--preset paper", "--exclusion none", "--exclusion level",
    "--joint 0 --dual fixed --estimator weights",
    "--critic mean --stage unsafe"])
def test_every_ablation_trains(options, both_stages, tmp_path, monkeypatch, capsys):
    """Two epochs each, in this process: finite parameters that have moved, and the switches do what they
    say."""
    monkeypatch.chdir(tmp_path)
    unsafe = both_stages / run_of(script="strpo") / "unsafe"
    monkeypatch.setattr(strpo, "make_executor", lambda config: ThreadPoolExecutor(1))
    given = [] if "--stage unsafe" in options else ["--unsafe", str(unsafe)]
    arguments = [*STAGES[:-1], "--total-steps=500", *given, *options.split()]
    assert strpo.main(arguments) == 0, capsys.readouterr().err
    run = tmp_path / run_of(script="strpo")
    config, state = strpo.load_run(run)
    moved = state["theta"] - strpo.initial_state(config)["theta"]
    assert np.isfinite(moved).all() and moved.any()
    table = rows(run)
    assert len(table) == 2 and all(float(row["Train/KL"]) <= config.delta_1 for row in table)
    excluding = config.exclusion != "none" and config.stage == "safe"
    assert all((float(row["Misc/exclusion_change"]) != 0) == excluding for row in table)
    assert ("Misc/effective_share" in table[0]) == (config.estimator == "weights" and excluding)
