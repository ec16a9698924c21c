"""What goes wrong around a run: each fault that users of such tools report, by kind. None is silent,
each ends in one sentence, and nothing that was saved is lost. Part of `uv run test_updates.py`.

Runs of one process are tried in this one, on the shipped functions; whole runs as users start them.
"""
import functools
import gc
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium import spaces
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ctrpo
import faulty
import sbtrpo
import strpo
from test_runs import finish, outcome, progress, rows, run_of, start, wait_for
from conftest import ROOT, check

SCRIPTS = [sbtrpo, ctrpo, strpo]
TESTS = Path(__file__).parent
PATHS = {"PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)])}  # for processes: environments, scripts
SHORT = ["--hidden=8", "--batch-steps=500", "--total-steps=2000"]


def episode(name, index=0, script=sbtrpo, **changes):
    """Episode `index` of a fresh policy, in this process."""
    task = f"faulty:{name}-v0"
    state = script.initial_state(script.Config(task=task, hidden=(8,), **changes))
    return script.run_episode(task, 0, index, script.make_actor(state))


def sentence(action, *args, **kwargs):
    """What the Failure says, in one line."""
    with pytest.raises(Exception) as caught:
        action(*args, **kwargs)
    assert type(caught.value).__name__ in ("Failure", "Diverged"), repr(caught.value)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    return said


def begin(folder, *options, script=sbtrpo, **popen):
    return start(folder, *options, script=script, env=PATHS, **popen)


# ----------------------------------------------------------------------- what goes in and out of environments

def test_observations_and_actions_are_copied_at_the_border():
    """The environment gives its own buffer away and clips the action in place: observations that differ, and
    actions as the policy chose them."""
    observations, actions, *_ = episode("Buffer")
    assert len(np.unique(observations)) > 5
    assert np.abs(actions).max() > 0.1
    moved = np.clip(actions.astype(np.float32), -1e-3, 1e-3)
    assert np.allclose(np.diff(observations, axis=0), moved, rtol=1e-6, atol=1e-9)


FLOATS = (np.float16, np.float32, np.float64)
WHOLE = (np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64)


@st.composite
def boxes(draw):
    """Boxes of all dtypes and of shapes of 0 to 3 axes; bounds of any size, finite or not, on each side."""
    dtype = draw(st.sampled_from(FLOATS + WHOLE))
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    if dtype in WHOLE:
        limits = np.iinfo(dtype)
        number = st.integers(int(limits.min), int(limits.max))
    else:
        largest = float(np.finfo(dtype).max)
        number = st.floats(-largest, largest, width=8 * np.dtype(dtype).itemsize)
    size = int(np.prod(shape))
    pairs = [sorted([draw(number), draw(number)]) for _ in range(size)]
    low, high = np.array(pairs, dtype).T.reshape(2, *shape)
    if dtype in FLOATS:
        below, above = (np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(shape)
                        for _ in range(2))
        low, high = np.where(below, -np.inf, low), np.where(above, np.inf, high)
    return spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype)


@settings(max_examples=300, deadline=None)
@given(boxes(), st.integers(0, 2**32 - 1))
@example(spaces.Box(-np.inf, np.inf, (6,), np.float16), 533198)  # an output between two numbers, by 6e-10
def test_actions_are_members_of_their_box_and_reach_all_of_it(space, seed):
    """Any output of a policy becomes a member; where both bounds are finite, -1 and 1 are mapped to them;
    what has no bound is passed on, but for rounding to the dtype, to one of its two neighbours."""
    size = int(np.prod(space.shape))
    for scale in (0.1, 1.0, 10.0):
        outputs = scale * np.random.default_rng(seed).standard_normal(size)
        action = sbtrpo.to_action(space, outputs)
        assert space.contains(action) and action.dtype == space.dtype
        free = ~(space.bounded_below | space.bounded_above)
        error = np.abs(action[free].astype(float) - outputs.reshape(space.shape)[free])
        assert np.all(error <= 0.501 * np.spacing(np.abs(action[free])).astype(float))
    two = space.bounded_below & space.bounded_above
    for output, bound in ((-1.0, space.low), (1.0, space.high)):
        reached = sbtrpo.to_action(space, np.full(size, output))
        assert np.array_equal(reached[two], bound[two])
    assert not np.shares_memory(outputs, sbtrpo.to_action(space, outputs))


def test_whole_actions_are_the_nearest_ones():
    """Of 0 to 9, at every fifth between: cut off, 0.6 would be 0."""
    space = spaces.Box(-3, 6, (46,), np.int64)
    meant = np.arange(46) / 5
    assert sbtrpo.to_action(space, 2 * meant / 9 - 1).tolist() == (np.rint(meant) - 3).tolist()


@pytest.mark.parametrize("name", ["Member", "Scalar", "Matrix", "Whole", "Thrust", "FromTwo"])
def test_every_box_and_discrete_space_is_trained_on(name, tmp_path, monkeypatch, capsys):
    """A whole run in an environment that insists on members of its action space."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", PATHS["PYTHONPATH"])
    assert sbtrpo.main([f"--task=faulty:{name}-v0", *SHORT, "--total-steps=500", "--workers=1"]) == 0
    act = sbtrpo.load_policy(run_of(task=f"faulty-{name}-v0"))
    env = gymnasium.make(f"{name}-v0", disable_env_checker=True)
    assert env.action_space.contains(act(env.reset(seed=0)[0]))


def test_other_action_spaces_are_refused_in_a_sentence(monkeypatch):
    from environments import Walk

    for space in (spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Dict(a=spaces.Discrete(2))):
        monkeypatch.setattr(Walk, "action_space", space)
        assert str(space) in sentence(sbtrpo.make_env, "environments:Walk-v0")


def test_costs_and_rewards_are_single_numbers_and_costs_not_negative():
    """Negative costs would cancel to "safe"."""
    said = sentence(episode, "Negative", 3)
    assert "episode 3, step 6" in said and "the cost is -1.0, less than 0" in said
    assert episode("OneNumber").rewards.shape == (50,)
    assert "the cost is array([0., 0.]), but must be one number" in sentence(episode, "TwoCosts")
    assert "no single cost: a number, 0 for none, in info['cost']" in sentence(episode, "NoCost")


def test_the_sixth_value_works_below_every_wrapper():
    """The cost in Safety Gymnasium's position, under Gymnasium's time limit of 20 steps."""
    assert episode("Limited").costs.shape == (20,)
    assert not episode("Limited").terminated


def test_wrappers_that_are_registered_with_an_environment_wrap_it():
    """They stand above the cost of six values. Control: the same episode without."""
    raised, plain = episode("Wrapped"), episode("Limited")
    assert np.array_equal(raised.rewards, plain.rewards + 5)
    assert np.array_equal(raised.costs, plain.costs) and len(plain.costs) == 20


@pytest.mark.parametrize("space, observation, said", [
    (spaces.Discrete(4), -1, "but its space"), (spaces.Discrete(3, start=2), 1, "but its space"),
    (spaces.MultiDiscrete([2, 3]), np.array([0, -1]), "but its space"),
    (spaces.Dict(a=spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (2, 3))])),
     {"a": (1, np.zeros((3, 2)))}, "shape (3, 2), but its space (2, 3)"),
    (spaces.Box(-np.inf, np.inf, (1,)), np.array([1e200]), "above 1e100")], ids=str)
def test_an_observation_that_its_space_does_not_have_is_refused(space, observation, said):
    """Else -1 would be the last state, and the square of 1e200 the end of the mean and std. Control: what the
    space has is flattened as gymnasium does."""
    with pytest.raises((ValueError, ArithmeticError), match=re.escape(said)):
        sbtrpo.to_vector(space, observation)
    space.seed(0)
    inside = space.sample()
    assert np.array_equal(sbtrpo.to_vector(space, inside), spaces.flatten(space, inside).astype(float))


def test_a_cost_in_the_wrong_place_is_one_sentence():
    assert "info, the last value of step, is 0.0; a cost may be the third" in sentence(episode, "Last")


def test_an_infinite_observation_of_reset_is_named_and_spoils_nothing():
    """Clipped, it would have passed for a large one, and its square would have stayed in the moments."""
    assert np.isfinite(episode("BadStart", 0).observations).all()  # `make` was the first reset
    said = sentence(episode, "BadStart", 1)
    assert "episode 1, step 0: ArithmeticError: not finite, or above 1e100: observation=array([inf])" in said


def test_environments_do_not_reset_themselves():
    """Registered with autoreset=True, the last observation would be the next episode's first, and the cost
    would stand elsewhere. Control: the same episode registered without."""
    alone, itself = episode("Limited"), episode("Autoreset")
    assert np.array_equal(alone.observations, itself.observations) and len(itself.costs) == 20


def test_observations_are_those_declared():
    """Neither broadcast nor mistaken for infinite where only their sum is; what differs in
    the tenth digit is seen."""
    assert "shape (1, 1), but its space (1,)" in sentence(episode, "Column")
    assert np.array_equal(episode("Blind").observations[0, 1:], np.full(2, 3.4e38, np.float32))
    assert episode("Half").observations.shape == (51, 3)
    state = sbtrpo.initial_state(sbtrpo.Config(task="faulty:Far-v0", hidden=(8,)))
    for index in range(40):  # epochs of one episode
        raw = sbtrpo.run_episode("faulty:Far-v0", 0, index, sbtrpo.make_actor(state)).observations[1:]
        state = sbtrpo.with_moments(state, raw)
    seen = sbtrpo.make_actor(state).normalise(raw)
    assert 0.1 < seen.std() < 3 and np.abs(seen).max() < 5


def test_environments_that_cannot_be_made_end_in_a_sentence(tmp_path, monkeypatch):
    """Whatever they raise; names that neither library knows; observations that have no vector."""
    from environments import Walk

    for name, reason in (("OldReset", "unexpected keyword argument 'seed'"), ("RaisesInReset", "licence"),
                         ("NeedsArgument", "'port'"), ("Nothing", "doesn't exist")):
        said = sentence(sbtrpo.make_env, f"faulty:{name}-v0")
        assert f"--task faulty:{name}-v0 cannot be made" in said and reason in said
    for task in ("", ":", "./x:Y", "no_such_module:Y-v0", "SafetyNothing-v0", "a b"):
        assert f"--task {task} cannot be made" in sentence(sbtrpo.make_env, task)
    assert f"looked for in {ROOT} and on PYTHONPATH" in sentence(sbtrpo.make_env, "no_such_module:Y-v0")
    assert "doesn't exist. One that a module of yours registers" in sentence(sbtrpo.make_env, "Zzz-v0")
    assert "Namespace zoo not found. Have you installed the proper package for zoo? One that a module" \
        in sentence(sbtrpo.make_env, "zoo/Hopper-v0")
    assert "observations without any number" in sentence(sbtrpo.make_env, "faulty:Empty-v0")
    assert "SystemExit: the simulator has left" in sentence(episode, "Exits")
    monkeypatch.setattr(Walk, "observation_space", spaces.Graph(spaces.Box(0, 1), None))
    assert "Graph" in sentence(sbtrpo.make_env, "environments:Walk-v0")


def test_safety_gymnasium_is_needed_for_its_tasks_alone(monkeypatch):
    """Where it is not installed, or fails beside other packages, other tasks are made; of its own ones the
    sentence says why they are not."""
    def fails():
        raise AttributeError("np.bool8 is gone")

    find = importlib.util.find_spec
    for reason, where, name, mock in (
            ("np.bool8 is gone", sbtrpo, "safety_gymnasium", fails),
            ("it is not installed", importlib.util, "find_spec",
             lambda name: None if name == "safety_gymnasium" else find(name))):
        with monkeypatch.context() as patched:
            patched.setattr(where, name, mock)
            patched.delitem(gymnasium.registry, "SafetyCarCircle2-v0", raising=False)  # of earlier tests
            assert sbtrpo.make_env("faulty:Buffer-v0")
            said = sentence(sbtrpo.make_env, "SafetyCarCircle2-v0")
        assert said.endswith(f"MODULE:EnvId. safety_gymnasium cannot be used: {reason}.")
    assert sbtrpo.make_env("SafetyCarCircle2-v0")


def test_ids_that_only_gymnasium_knows_work():
    """Safety Gymnasium registers each task a second time, for Gymnasium, with five values."""
    env = sbtrpo.make_env("SafetyPointGoal1Gymnasium-v0")
    assert len(sbtrpo.env_step(env, np.zeros(2))) == 5


def test_environments_with_random_numbers_of_their_own_repeat():
    """NumPy's and Python's global generators are seeded before an environment is made, in whatever process,
    and with the episode."""
    first, other, again = (episode("Global", index) for index in (5, 6, 5))
    sbtrpo.env_of_thread.cache_clear()  # as in another process
    anew = episode("Global", 5)
    assert np.array_equal(first.observations, again.observations)
    assert np.array_equal(first.observations, anew.observations)
    assert not np.array_equal(first.observations, other.observations)


def order_of_a_set():
    return list({f"object {k}" for k in range(20)})


def test_sets_of_strings_have_one_order_in_all_workers():
    """Python draws the hashes of strings anew in each process: an environment that goes through a set of
    names would depend on its worker. Control: two processes that nobody has told which hashes to take."""
    orders = []
    for _ in range(2):
        executor = sbtrpo.make_executor(sbtrpo.Config(workers=1))
        orders.append(executor.submit(order_of_a_set).result())
        executor.shutdown()
    assert orders[0] == orders[1]
    code = "print(list({f'object {k}' for k in range(20)}))"
    left = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    told = [subprocess.run([sys.executable, "-c", code], env=left, capture_output=True).stdout
            for _ in range(2)]
    assert told[0] != told[1]


def test_an_environment_that_fails_to_close_ends_no_run():
    """It is made for its spaces, and closed before the run begins."""
    assert episode("CloseRaises").rewards.shape == (50,)


# --------------------------------------------------------------------------------------- a run and its folder

def test_a_run_folder_has_one_owner(tmp_path):
    """Of three runs that start together under one name one wins; the others say who holds the folder, or that
    it exists. A running run is not resumed by another process. Result and configuration are of one run."""
    options = ["--task=tabular_cmdp:HazardGrid-v0", "--hidden=8", "--batch-steps=500", "--total-steps=30000"]
    racers = [begin(tmp_path, *options, f"--delta={delta}") for delta in (0.01, 0.02, 0.03)]
    run = tmp_path / run_of()
    wait_for(lambda: len(rows(run)) >= 1, racers[0])
    deadline = time.monotonic() + 60
    while sum(racer.poll() is None for racer in racers) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    (winner,) = [racer for racer in racers if racer.poll() is None]
    for racer in racers:
        if racer is not winner:
            (said, *_) = reversed(finish(racer, 1, 2))
            assert re.search("is in use, by (another )?process", said) or "exists: --resume" in said
    (said,) = finish(begin(tmp_path, "--resume", run), 1)
    assert f"is in use, by process {winner.pid} on" in said
    finish(winner)
    config, state = sbtrpo.load_run(run)
    assert config.delta == (0.01, 0.02, 0.03)[racers.index(winner)] and state["steps"] >= 30_000


def test_a_raised_total_is_kept_and_a_total_below_the_steps_done_refused(tmp_path):
    """--resume RUN --total-steps N, interrupted, then --resume RUN: it goes on to N. The sizes of batches do
    not depend on the total."""
    options = ["--task=tabular_cmdp:HazardGrid-v0", "--hidden=8", "--batch-steps=500", "--batch-growth=1e9"]
    finish(begin(tmp_path, *options, "--total-steps=2000"))
    run = tmp_path / run_of()
    process = begin(tmp_path, "--resume", run / "checkpoint.npz", "--total-steps=400000")
    progress(run, process)
    process.send_signal(signal.SIGINT)
    finish(process, 1)
    assert sbtrpo.load_run(run)[0].total_steps == 400_000
    assert rows(run)[0]["Train/TotalSteps"] == "504"
    sizes = np.diff([0, *(int(row["Train/TotalSteps"]) for row in rows(run))])
    before = np.cumsum([0, *sizes])[:-1]
    assert np.all(np.abs(sizes - 500 * 1e9 ** (before / 1e6)) <= 60)
    for total in (1000, 100):  # the second is less than a batch, too
        (said,) = finish(begin(tmp_path, "--resume", run, f"--total-steps={total}"), 1)
        assert "--total-steps is too small" in said
    assert sbtrpo.load_run(run)[0].total_steps == 400_000


def test_a_finished_run_is_resumed_to_its_report(tmp_path):
    """Nothing is trained; a run ends a few steps beyond its total, which is no mistake."""
    options = ["--task=tabular_cmdp:HazardGrid-v0", "--hidden=8", "--batch-steps=500", "--total-steps=500"]
    finish(begin(tmp_path, *options))
    before = outcome(tmp_path / run_of())
    finish(begin(tmp_path, "--resume", tmp_path / run_of()))
    assert outcome(tmp_path / run_of()) == before and int(before[0][0]["Train/TotalSteps"]) > 500


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_run_ends_within_seconds_whatever_the_environment_does(number, tmp_path):
    """The environment swallows interruptions and its episodes never end; no worker is left, nothing leaks."""
    process = begin(tmp_path, "--task=faulty:Endless-v0", "--workers=2")
    wait_for((tmp_path / "stepping").exists, process)  # a worker is within an episode
    children = psutil.Process(process.pid).children(recursive=True)
    asked = time.perf_counter()
    process.send_signal(number)
    said = finish(process, 1)
    seconds = time.perf_counter() - asked
    check("a run ends after Ctrl-C or SIGTERM, endless episodes [s]", seconds, at_most=4)
    assert said[0] == "interrupted" and "--resume" in said[1] and len(said) == 2
    assert not psutil.wait_procs(children, timeout=5)[1]


def has_workers(pid: int) -> bool:
    return any(each.info["ppid"] == pid and "popen_loky" in str(each.info["cmdline"])
               for each in psutil.process_iter(["ppid", "cmdline"]))


def test_ctrl_c_while_workers_start_is_one_sentence(tmp_path):
    """A terminal sends it to all processes, so workers must not hear it from their first moment on."""
    for delay in (0, 0.5):
        options = ["--task=faulty:Endless-v0", "--workers", "2", f"--experiment=after-{delay}"]
        process = begin(tmp_path, *options, start_new_session=True)
        wait_for(functools.partial(has_workers, process.pid), process)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        said = finish(process, 1)
        assert said[0] == "interrupted" and "--resume" in said[1] and len(said) == 2, said


FITS = """
import sys, faulty, sbtrpo
faulty.fit = sbtrpo.fit_critic
sbtrpo.fit_critic = getattr(faulty, sys.argv[1])
sys.exit(sbtrpo.main(sys.argv[2:]))
"""


def with_fit(how, folder, *options):
    """A run with critics in which fit_critic is another function, of faulty.py."""
    command = [sys.executable, "-c", FITS, how, "--task=environments:Walk-v0", "--advantage=gae"]
    command += [*SHORT, *options]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, **PATHS})


def test_a_worker_that_dies_while_it_fits_a_critic_changes_nothing(tmp_path):
    """In each epoch. Control: the critics count, for without them the run is another one."""
    run = tmp_path / run_of(task="environments-Walk-v0")
    outcomes = []
    for how, *options in (("fit",), ("fit_and_die",), ("fit", "--advantage=mc")):
        folder = tmp_path / "-".join([how, *options])
        folder.mkdir()
        finish(with_fit(how, folder, *options))
        outcomes.append(outcome(folder / run.relative_to(tmp_path)))
    assert outcomes[0] == outcomes[1] != outcomes[2]


def test_ctrl_c_ends_a_run_that_waits_for_a_critic(tmp_path):
    """One that never comes: one sentence within seconds, no worker left."""
    process = with_fit("fit_and_hang", tmp_path)
    wait_for((tmp_path / "fitting").exists, process)
    time.sleep(1)  # the update is done, too
    assert process.poll() is None
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    asked = time.perf_counter()
    said = finish(process, 1)
    check("a run ends after Ctrl-C, waiting for a critic [s]", time.perf_counter() - asked, at_most=4)
    assert said[0] == "interrupted" and "--resume" in said[1]
    assert not psutil.wait_procs(children, timeout=5)[1]


def test_what_workers_fail_to_return_is_computed_here():
    """A worker dies, then there is none. Control: its job alone fails."""
    def dies():
        return faulty.fit_and_die()

    faulty.fit = lambda: 7
    executor = sbtrpo.make_executor(sbtrpo.Config(workers=1))
    try:
        with pytest.raises(Exception, match="EXIT"):
            executor.submit(dies).result()
        for _ in range(2):
            assert sbtrpo.in_workers(executor, {"a": dies, "b": dies})() == {"a": 7, "b": 7}
    finally:
        executor.shutdown(kill_workers=True)


def test_an_environment_without_a_time_limit_is_announced(capsys):
    """Once, at the start. Control: one with a limit."""
    sbtrpo.initial_state(sbtrpo.Config(task="faulty:Endless-v0"))
    assert capsys.readouterr().out.count("without max_episode_steps") == 1
    sbtrpo.initial_state(sbtrpo.Config(task="faulty:Limited-v0"))
    assert not capsys.readouterr().out


def test_environments_are_closed(tmp_path):
    """Those of workers and of the main process: no process of a simulator outlives the run."""
    log = tmp_path / "simulators"
    options = ["--task=faulty:Simulator-v0", *SHORT, "--workers=2"]
    finish(start(tmp_path, *options, env={**PATHS, "SIMULATORS": log}))
    started = [int(line) for line in log.read_text().split()]
    assert len(started) >= 2  # of the main process, and of a worker
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).name() == "sleep" for pid in started)


def test_environments_with_threads_end_with_their_run(tmp_path):
    """Threads that close() ends; and a close() that never returns has ten seconds."""
    tasks = "faulty:Threaded-v0", "faulty:NeverClosed-v0"
    for process in [start(tmp_path, f"--task={task}", *SHORT, env=PATHS) for task in tasks]:
        assert finish(process, 0) == []


def test_a_process_that_dies_is_named_with_episode_and_exit_code(tmp_path):
    process = start(tmp_path, "--task=faulty:Dies-v0", *SHORT, env={**PATHS, "DIES": "yes"})
    said = finish(process, 1)
    assert "workers died four times, at episode" in said[-2] and "EXIT(7)" in said[-2]
    assert "go on with --resume" in said[-1]


def test_the_executor_after_a_dead_worker_is_stopped_as_well(monkeypatch):
    """A worker dies, then a fault of the environment, or Ctrl-C, ends the run: no executor that collect has
    made goes on."""
    def executor(error):
        def submit(*_):
            raise error

        return type("Executor", (), {"submit": submit})()

    died = type("TerminatedWorkerError", (Exception,), {})()
    for fault in (sbtrpo.Failure("a fault"), KeyboardInterrupt()):
        first, second, stopped = executor(died), executor(fault), []
        monkeypatch.setattr(sbtrpo, "make_executor", lambda config, second=second: second)
        monkeypatch.setattr(sbtrpo, "stop", stopped.append)
        with pytest.raises(type(fault)):
            sbtrpo.collect(first, sbtrpo.Config(), None, 0, 100)
        assert stopped == [first, second]


def test_a_worker_that_hangs_is_named(monkeypatch, capsys):
    """Which episode, and how long; here after a hundredth of a second instead of a minute."""
    wait = sbtrpo.concurrent.futures.wait
    monkeypatch.setattr(sbtrpo.concurrent.futures, "wait", lambda jobs, timeout: wait(jobs, timeout / 6000))
    config = sbtrpo.Config(task="environments:Walk-v0", hidden=(8,), workers=1)
    monkeypatch.setenv("PYTHONPATH", PATHS["PYTHONPATH"])
    executor = sbtrpo.make_executor(config)
    try:
        actor = sbtrpo.make_actor(sbtrpo.initial_state(config))
        sbtrpo.collect(executor, config, actor, 17, 100)
    finally:
        executor.shutdown(kill_workers=True)
    assert "waiting for episode 17, 1 min" in capsys.readouterr().err


@pytest.mark.parametrize("discrete", [False, True])
def test_a_policy_that_is_not_finite_does_not_act(discrete):
    """An index would hide it: the largest of NaN is 0."""
    policy = sbtrpo.Policy((2, 3), discrete)
    theta = sbtrpo.initial_parameters(policy.sizes, np.zeros(0 if discrete else 3), np.random.default_rng(0))
    for bad in (np.nan, np.inf):
        broken = np.where(np.arange(len(theta)) == 1, bad, theta)
        actor = sbtrpo.Actor(policy, broken, np.zeros(2), np.ones(2))
        for rng in (None, np.random.default_rng(0)):
            said = sentence(actor.acting(rng), np.ones(2))
            assert "not finite" in said and "start anew" in said
            assert sbtrpo.Actor(policy, theta, *actor[2:]).acting(rng)(np.ones(2)) is not None  # control


def test_a_policy_that_is_not_finite_is_not_advised_to_go_on(tmp_path):
    process = begin(tmp_path, "--task=environments:Walk-v0", *SHORT, "--delta=1e10", "--total-steps=100000")
    said = finish(process, 1)
    assert "start anew, with smaller steps" in said[-2] or "is not finite" in said[-2]
    assert "resume" not in said[-1] and "What was saved is whole" in said[-1]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_train_called_from_own_code_leaves_a_run(script, tmp_path):
    """Without the guard `if __name__ == "__main__"`: workers do not import the caller. Three
    lines use the policy."""
    name = script.__name__
    few = "unsafe_steps=100, exclusion='none'" if script is strpo else ""
    (tmp_path / "mine.py").write_text(f"""
import {name} as script, environments, gymnasium, numpy, pathlib
config = script.Config(task="environments:Walk-v0", hidden=(8,), batch_steps=100, total_steps=100, {few})
script.train(config, pathlib.Path("mine"), script.initial_state(config))
act = script.load_policy("mine")
env = gymnasium.make("Walk-v0")
seen, rng = env.reset(seed=0)[0], numpy.random.default_rng(0)
sample = script.load_policy("mine", rng)
print(act(seen), [sample(seen) for _ in range(3)])
assert act(seen) == act(seen) and sample(seen) != sample(seen)
assert script.load_policy("mine", 0)(seen) == script.load_policy("mine", numpy.random.default_rng(0))(seen)
print(all(env.action_space.contains(each(seen)) for each in (act, sample)))
""")
    environment = {**os.environ, **PATHS}
    result = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, env=environment,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].endswith("True")
    assert script.load_run(tmp_path / "mine")[1]["steps"] == 100


def test_a_run_of_another_algorithm_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ctrpo.Config(task="environments:Walk-v0", hidden=(8,), total_steps=100, batch_steps=100)
    ctrpo.save(Path("run"), config, ctrpo.initial_state(config))
    assert "it is a run of ctrpo.py, not of sbtrpo.py" in sentence(sbtrpo.load_run, Path("run"))


def test_an_option_of_a_damaged_config_is_no_option_of_the_command(tmp_path, monkeypatch):
    """The sentence says in which file it stands."""
    monkeypatch.chdir(tmp_path)
    config = sbtrpo.Config(task="environments:Walk-v0", hidden=(8,), total_steps=100, batch_steps=100)
    sbtrpo.save(Path("run"), config, sbtrpo.initial_state(config))
    about = json.loads(Path("run/config.json").read_text())
    about["config"]["delta"] = -1
    Path("run/config.json").write_text(json.dumps(about))
    assert sentence(sbtrpo.load_run, Path("run")) == (
        "run holds no run that can be resumed: config.json: --delta is -1 but must be in (0, inf).")


def test_a_network_beyond_the_memory_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sbtrpo.main(["--task=environments:Walk-v0", "--hidden", "10000000", "10000000"]) == 1
    assert "Unable to allocate" in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize("address", ["tls://127.0.0.1:8786", "tcp://127.0.0.1:8786/x:99"])
def test_a_scheduler_whose_address_dask_refuses_is_a_sentence(address):
    said = sentence(sbtrpo.make_executor, sbtrpo.Config(scheduler=address))
    assert said.startswith(f"--scheduler {address}: ")
    gc.collect()  # a failed Client that is collected while the next one starts waits for it, for ever


def test_a_policy_of_other_observations_is_a_sentence():
    """Where an environment gives other observations than those it was trained on."""
    state = sbtrpo.initial_state(sbtrpo.Config(task="faulty:Blind-v0", hidden=(8,)))
    said = sentence(sbtrpo.run_episode, "environments:Walk-v0", 0, 0, sbtrpo.make_actor(state))
    assert said.endswith("step 0: ValueError: an observation has 1 numbers, and the policy takes 3")


def test_damaged_checkpoints_are_never_accepted(tmp_path, monkeypatch, capsys):
    """One bit of 2,000 flipped, or an array lost or renamed: the state is the same, or the checkpoint before
    is taken."""
    monkeypatch.chdir(tmp_path)
    run = Path("run")
    config = sbtrpo.Config(task="environments:Walk-v0", hidden=(3,), total_steps=100, batch_steps=100)
    state = sbtrpo.initial_state(config)
    sbtrpo.save(run, config, state)
    shutil.copy(run / "checkpoint.npz", run / "checkpoint.previous.npz")
    sbtrpo.save(run, config, state | {"steps": 50})
    whole, rng = (run / "checkpoint.npz").read_bytes(), np.random.default_rng(0)
    kept = fell_back = 0
    for place in rng.choice(8 * len(whole), 2000, replace=False):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        (run / "checkpoint.npz").write_bytes(damaged)
        loaded = sbtrpo.load_run(run)[1]
        steps = loaded.pop("steps")
        kept, fell_back = kept + (steps == 50), fell_back + (steps == 0)
        assert set(loaded) | {"steps"} == set(state)
        assert all(np.array_equal(loaded[name], state[name]) for name in loaded)
    assert kept + fell_back == 2000 and fell_back > 500
    with np.load(io.BytesIO(whole)) as arrays:
        arrays = dict(arrays)
    for name in sorted(set(arrays) - {"checksum"}):  # renamed, it has its content and its place
        for others in ({}, {name + "_": arrays[name]}):
            np.savez(run / "checkpoint.npz", **{n: arrays[n] for n in arrays if n != name}, **others)
            assert sbtrpo.load_run(run)[1]["steps"] == 0, name


def test_a_resumed_run_keeps_its_columns(tmp_path):
    """progress.csv of a version with other columns: a row has the values under their own names, nan where it
    has none, and nothing under a name that the file does not have."""
    config = sbtrpo.Config(task="environments:Walk-v0", hidden=(3,), total_steps=100, batch_steps=100)
    state = sbtrpo.initial_state(config) | {"progress": b"old,both\n1,2\n"}
    sbtrpo.save(tmp_path, config, state, {"new": 4, "both": 3})
    assert (tmp_path / "progress.csv").read_text() == "old,both\n1,2\nnan,3\n"
    fresh = sbtrpo.initial_state(config)
    for value in (1, 2):
        sbtrpo.save(tmp_path, config, fresh, {"new": value, "both": 3})
    assert (tmp_path / "progress.csv").read_text() == "new,both\n1,3\n2,3\n"


def test_a_scheduler_is_not_taken_from_a_file(tmp_path, monkeypatch):
    """Dask unpickles what a scheduler sends: a foreign run must not choose it."""
    monkeypatch.chdir(tmp_path)
    config = sbtrpo.Config(task="environments:Walk-v0", hidden=(3,), total_steps=100, batch_steps=100,
                           scheduler="tcp://192.0.2.1:8786")
    sbtrpo.save(Path("run"), config, sbtrpo.initial_state(config))
    assert sbtrpo.open_run(["--resume", "run"])[0].scheduler == ""


def test_options_that_make_no_sense_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for options, reason in ((["--batch-steps=5000", "--total-steps=4000"], "longer than the whole run"),
                            (["--experiment=../x"], "mere name"), (["--experiment=/tmp/x"], "mere name"),
                            (["--experiment=.."], "mere name"), (["--experiment="], "mere name")):
        assert sbtrpo.main(options) == 1
        assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_only_recovers_says_so(tmp_path):
    """An episode costs 5, whatever is done; the budget is 4."""
    said = {}
    for limit in (4, 10):
        options = [*SHORT, f"--cost-limit={limit}", f"--experiment=limit-{limit}"]
        process = begin(tmp_path, "--task=faulty:Expensive-v0", *options, script=ctrpo)
        said[limit], _ = process.communicate(timeout=100)
    assert "All epochs were recovery: the cost was never low enough to end it." in said[4]
    assert "recovery" not in said[10]


# ------------------------------------------------------------------------------------ where and how it is run

@pytest.mark.parametrize("way", ["link", "safe path", "dotted", "stdin"])
def test_the_script_runs_from_where_it_stands(way, tmp_path):
    """As a link; under PYTHONSAFEPATH; a name with two dots and standard input are refused in a sentence."""
    options = ["--task=environments:Walk-v0", *SHORT, "--total-steps=500", "--workers=1"]
    environment, source, file = {**os.environ, "PYTHONPATH": str(TESTS)}, None, Path(sbtrpo.__file__)
    if way == "link":
        (tmp_path / "train.py").symlink_to(file)
        file = tmp_path / "train.py"
    if way == "safe path":
        environment["PYTHONSAFEPATH"] = "1"
    if way == "dotted":
        file = tmp_path / "my.sbtrpo.py"
        file.write_text(Path(sbtrpo.__file__).read_text())
    if way == "stdin":
        source, file = file.read_text(), "-"
    result = subprocess.run([sys.executable, str(file), *options], input=source, cwd=tmp_path,
                            env=environment, capture_output=True, text=True, timeout=100)
    assert "Traceback" not in result.stderr
    assert result.returncode == (1 if way in ("dotted", "stdin") else 0), result.stderr
    assert ("Save this script as NAME.py" in result.stderr) == (way in ("dotted", "stdin"))


def test_bits_do_not_depend_on_the_threads_of_blas(tmp_path):
    """OPENBLAS_NUM_THREADS of 1 and 2, 18,565 parameters: OpenBLAS divides products of more than 10,000
    numbers, and rounds their sums differently."""
    options = ["--task=tabular_cmdp:HazardGrid-v0", "--hidden", "128", "128", "--batch-steps=500",
               "--total-steps=1000"]
    processes = [start(tmp_path, *options, "--experiment", n, env={**PATHS, "OPENBLAS_NUM_THREADS": n})
                 for n in ("1", "2")]
    for process in processes:
        finish(process)
    assert outcome(tmp_path / run_of("1")) == outcome(tmp_path / run_of("2"))


def test_workers_fit_critics_on_one_thread_of_blas():
    """A worker that has not run an episode yet, OPENBLAS_NUM_THREADS of 2. Control: before it fits one."""
    def threads():
        return [each["num_threads"] for each in sbtrpo.threadpoolctl.threadpool_info()]

    executor = sbtrpo.loky.ProcessPoolExecutor(1, env={"OPENBLAS_NUM_THREADS": "2"})
    try:
        assert set(executor.submit(threads).result()) == {2}
        fit = functools.partial(sbtrpo.fit_critic, np.zeros(4), (3, 1), np.zeros((1, 3)), np.zeros(1), [[0]])
        assert not sbtrpo.in_workers(executor, {"critic": fit})()["critic"].any()
        assert set(executor.submit(threads).result()) == {1}
    finally:
        executor.shutdown()


def test_a_module_that_changes_a_safety_gymnasium_task_is_trained_on(tmp_path):
    """The usual way, without fast_safety_gymnasium.py: the module imports the package itself."""
    (tmp_path / "sbtrpo.py").write_text(Path(sbtrpo.__file__).read_text())
    (tmp_path / "mygoal.py").write_text("""
import gymnasium, safety_gymnasium
def make(**options):
    env = safety_gymnasium.make("SafetyPointGoal1-v0", **options)
    env.unwrapped.task.hazards.num = 3
    return env
gymnasium.register("MyGoal-v0", make)
""")
    options = ["--task=mygoal:MyGoal-v0", "--hidden=8", "--batch-steps=1000", "--total-steps=1000",
               "--advantage=gae"]
    result = subprocess.run([sys.executable, "sbtrpo.py", *options, "--workers=1"], cwd=tmp_path,
                            capture_output=True, text=True, timeout=100, env={**os.environ, "PYTHONPATH": ""})
    assert result.returncode == 0, result.stderr
    about = json.loads((tmp_path / run_of(task="mygoal-MyGoal-v0") / "config.json").read_text())
    assert about["algorithm"] == "sbtrpo"
