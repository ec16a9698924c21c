"""Proof that fast_safety_gymnasium.py changes no bit: part of `uv run test_updates.py`; `-m slow`: all tasks.

Episodes are run twice, each time in a fresh process: by the package untouched, as it is installed, textures
and all, and with the file. Compared are hashes of every number that comes out, with its type, and of the
state of the simulation and of the random generator after each episode. `python tests/test_fast.py sweep
[TASK ...]` does so for the tasks named, or all, and prints a line for each.
"""

import dataclasses, hashlib, json, os, subprocess, sys, unittest.mock, warnings

os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy as np
import pytest

from conftest import ROOT, check, slow

AGENTS = "Point", "Car", "Racecar", "Doggo", "Ant"
LEVELS = [f"{kind}{i}" for kind in ("Goal", "Button", "Push", "Circle") for i in range(3)] + ["Run0"]
NAVIGATION = [f"Safety{agent}{level}-v0" for level in LEVELS for agent in AGENTS]
BODIES = "HalfCheetah", "Hopper", "Swimmer", "Walker2d", "Ant", "Humanoid"
VELOCITY = [f"Safety{body}Velocity-v{i}" for i in (0, 1) for body in BODIES]

# what a process runs
def untouched():
    """The package as it is installed; the two patches without which it cannot be imported here."""
    dataclass = dataclasses.dataclass

    def dataclass_with_arrays(cls):
        for name, value in list(vars(cls).items()):
            if isinstance(value, np.ndarray):
                setattr(cls, name, dataclasses.field(default_factory=value.copy))
        return dataclass(cls)

    sys.modules["gymnasium_robotics.envs.multiagent_mujoco.mujoco_multi"] = unittest.mock.MagicMock()
    with unittest.mock.patch.object(dataclasses, "dataclass", dataclass_with_arrays):
        import safety_gymnasium
    return safety_gymnasium

def fast():
    import fast_safety_gymnasium, safety_gymnasium
    assert fast_safety_gymnasium.ORIGINAL
    return safety_gymnasium

def perturbed():
    """With the file, but for one lidar reading out of some thousands, which is off by its last bit."""
    package = fast()
    import fast_safety_gymnasium
    add_lidars, calls = fast_safety_gymnasium.add_lidars, []

    def once_wrong(task, plan, vectors, obs):
        add_lidars(task, plan, vectors, obs)
        calls.append(1)
        if len(calls) == 200:
            obs[obs.argmax()] = np.nextafter(obs.max(), 0)

    fast_safety_gymnasium.add_lidars = once_wrong
    return package

def put(digest, value) -> None:
    """Adds a value to a hash: its type, its bits, and those of all in it, in its order."""
    digest.update(type(value).__name__.encode())
    if isinstance(value, dict):
        for key in value:
            put(digest, key)
            put(digest, value[key])
    elif isinstance(value, (tuple, list)):
        for item in value:
            put(digest, item)
    elif isinstance(value, (np.ndarray, np.generic)):
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, float):
        digest.update(value.hex().encode())
    else:
        digest.update(repr(value).encode())

def displace(env, rng) -> None:
    """Moves the agent beside some object, and sometimes that object onto the goal: costs, goals, contacts."""
    task = env.unwrapped.task
    model, data = task.model, task.data
    names = [name for name in task.world_info.layout if name != "agent"]
    name = names[rng.integers(len(names))]
    body = model.body(name + "obj" * name.startswith("gremlin"))
    place = data.xpos[body.id, :2] + rng.uniform(-0.15, 0.15, 2)
    if "goal" in names and body.jntnum[0] and rng.random() < 0.5:
        data.qpos[model.jnt_qposadr[body.jntadr[0]] :][:2] = data.xpos[model.body("goal").id, :2]
    agent = model.body("agent")
    if task.agent.__class__.__name__ == "Point":  # its joints slide along the axes it has at reset
        turn = np.zeros(9)
        import mujoco
        mujoco.mju_quat2Mat(turn, agent.quat)
        place = (turn.reshape(3, 3).T @ [*(place - agent.pos[:2]), 0])[:2]
    data.qpos[:2] = place

def policy_of(name: str, env, rng):
    """observation, step -> action. `closed`: a network of tanh units with fixed weights; others: random."""
    space, size = env.action_space, env.observation_space.shape[0]
    weights = np.random.default_rng(7)
    first, second = weights.normal(size=(32, size)) / np.sqrt(size), weights.normal(size=(space.shape[0], 32))

    def act(observation, step):
        if name == "displaced" and step % 20 == 19:
            displace(env, rng)
        if name == "closed":
            share = (np.tanh(second @ np.tanh(first @ observation)) + 1) / 2
        else:
            share = rng.uniform(-0.1, 1.1, space.shape)  # a tenth of the range out of bounds
        action = space.low + share * (space.high - space.low)
        return action.astype(np.float32 if name == "random" else float)

    return act

def run(package, task: str, policy: str, seeds: list, checker: bool) -> list:
    """[hash, steps, goals, {cost: steps where it was due}] of episodes of one environment; -1: no seed."""
    np.random.seed(len(seeds))  # environments are seeded from numpy's own generator
    env, results = package.make(task, disable_env_checker=not checker), []
    for seed in seeds:
        digest, steps, goals, due, ended = hashlib.sha256(), 0, 0, {}, False
        act = policy_of(policy, env, np.random.default_rng(abs(seed)))
        observation, info = env.reset() if seed < 0 else env.reset(seed=seed)
        put(digest, (observation, info))
        while not ended:
            observation, *rest, terminated, truncated, info = env.step(act(observation, steps))
            put(digest, (observation, rest, terminated, truncated, info))
            steps, goals, ended = steps + 1, goals + info.get("goal_met", False), terminated or truncated
            for name, value in [("cost", rest[1]), *info.items()]:
                due[name] = due.get(name, 0) + (name.startswith("cost") and value > 0)
        world = getattr(env.unwrapped, "task", env.unwrapped)
        data = world.data
        put(digest, (data.qpos, data.qvel, data.qacc_warmstart, data.ctrl, data.xpos, data.time))
        put(digest, world.model.body_pos)
        if hasattr(world, "random_generator"):
            put(digest, world.random_generator.random_generator.get_state())
            put(digest, world.world_info.layout)
        due = {name: int(count) for name, count in due.items() if name.startswith("cost")}
        results.append([digest.hexdigest(), steps, int(goals), due])
    env.close()
    return results

def main() -> None:
    """Reads [[task, policy, seeds, checker], ...] and prints a line of results for each."""
    warnings.filterwarnings("error", message="fast_safety_gymnasium")
    package = globals()[sys.argv[1]]()
    for job in json.load(sys.stdin):
        print("RESULT " + json.dumps(run(package, *job)), flush=True)

def results_of(mode: str, jobs: list) -> list:
    """Of a fresh process."""
    command = [sys.executable, __file__, mode]
    done = subprocess.run(command, input=json.dumps(jobs), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]

# what is compared
def jobs_of(task: str) -> list:
    """An environment for each policy, one after the other; more episodes where they are short."""
    policies = ["random", "closed"] + ["displaced"] * (task in NAVIGATION)
    seeds = [3, -1, *range(18)] if task in VELOCITY else [3, -1, *range(6)] if "yAnt" in task else [3, -1]
    return [[task, policy, seeds, i == 0] for i, policy in enumerate(policies)]

def compare(task: str) -> str:
    """Asserts that all is the same; a line of what there was to see."""
    expected, found = (results_of(mode, jobs_of(task)) for mode in ("untouched", "fast"))
    assert expected == found, f"{task}: {expected} {found}"
    episodes = [episode for job in found for episode in job]
    due = {}
    for episode in episodes:
        for name, value in episode[3].items():
            due[name] = due.get(name, 0) + value
    return (f"{task}: {len(episodes)} episodes equal, {sum(e[1] for e in episodes)} steps, "
            f"{sum(e[2] for e in episodes)} goals, {due}")

QUICK = [["SafetyPointGoal2-v0", "displaced", [0, -1], True],
         ["SafetyCarCircle2-v0", "closed", [0], False],
         ["SafetyHopperVelocity-v1", "random", [0, 1, -1], True],
         ["SafetyAntVelocity-v1", "random", [0], False],
         ["SafetySwimmerVelocity-v1", "closed", [0], False]]

def test_whole_episodes_are_equal_bit_for_bit():
    """Five tasks, whole episodes, first and later ones, with and without a seed."""
    expected, found = results_of("untouched", QUICK), results_of("fast", QUICK)
    different = sum(a != b for jobs in zip(expected, found) for a, b in zip(*jobs))
    steps = sum(episode[1] for job in found for episode in job)
    check("episodes in which any bit differs", different, at_most=0, supports="fast", cases=steps)
    check("tasks compared", len({task for task, *_ in QUICK}), at_least=5, supports="fast")
    assert expected == found

@slow
@pytest.mark.parametrize("task", NAVIGATION + VELOCITY)
def test_all_tasks_are_equal_bit_for_bit(task):
    """Two or three policies, two episodes each or more, one of them without a seed."""
    print(compare(task))

TRAINED = """
import hashlib, importlib, pathlib, sys
run, file = pathlib.Path(sys.argv[1]), sys.argv[2] == "with"
if not file:
    sys.modules["fast_safety_gymnasium"] = None
script = importlib.import_module(run.parent.name.split("-")[0])
config, state = script.load_run(run)
digest, actor, steps = hashlib.sha256(), script.make_actor(state), 0
for index in range(3):
    episode = script.run_episode(config.task, 1, index, actor)
    steps += len(episode.rewards)
    for array in episode[:4]:
        digest.update(array.tobytes())
assert bool(sys.modules.get("fast_safety_gymnasium")) == file
print(digest.hexdigest(), steps)
"""

@slow
@pytest.mark.parametrize("run", sorted(path.parent for path in ROOT.glob(
    "results/*/seed-0/checkpoint.npz")), ids=str)
def test_trained_policies_meet_the_same_episodes(run):
    """Three episodes of each policy in results/, as its script runs them, with the file and without it."""
    found = []
    for mode in ("with", "without"):
        command = [sys.executable, "-c", TRAINED, str(run), mode]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(done.stdout)
    print(run.relative_to(ROOT), *found)
    assert found[0] == found[1]

def test_a_single_wrong_bit_is_found():
    """Negative control: one lidar reading of one step is off by its last bit."""
    jobs = [["SafetyPointGoal1-v0", "random", [0], False]]
    assert results_of("fast", jobs) == results_of("fast", jobs)
    assert results_of("perturbed", jobs) != results_of("fast", jobs)

@slow
def test_models_are_equal_but_for_textures():
    """Every array and size of the compiled model that is not about textures or names."""
    package = fast()
    import fast_safety_gymnasium
    for task in ("SafetyRacecarButton2-v0", "SafetyAntPush2-v0", "SafetyDoggoGoal2-v0", "SafetyCarRun0-v0"):
        models = []
        for switch in (fast_safety_gymnasium.install, fast_safety_gymnasium.uninstall):
            switch()
            env = package.make(task)
            for seed in range(3):
                env.reset(seed=seed)
            models.append(env.unwrapped.task.model)
        fast_safety_gymnasium.install()
        for name in dir(models[0]):
            values = [getattr(model, name) for model in models]
            visual = name.startswith(("tex", "mat_tex", "name", "ntex", "nname", "nbuffer", "_"))
            if isinstance(values[0], (np.ndarray, int)) and not visual:
                assert np.array_equal(*values), (task, name)
        assert [model.ntex > 0 for model in models] == [False, True]

def test_unknown_configurations_run_the_original_and_say_so_once():
    package = fast()
    import fast_safety_gymnasium
    fast_safety_gymnasium.tell.cache_clear()
    env = package.make("SafetyPointGoal1-v0")
    env.unwrapped.task.lidar_conf.alias = False
    with pytest.warns(UserWarning, match="lidar_conf.alias = False") as record:
        env.reset(seed=0)
        env.reset(seed=1)
    assert len([w for w in record if "fast_safety_gymnasium" in str(w.message)]) == 1
    assert env.unwrapped.fast_plan is None and env.unwrapped.task.model.ntex > 0
    env.unwrapped.task.lidar_conf.alias = True
    env.reset(seed=0)
    assert env.unwrapped.fast_plan and env.unwrapped.task.model.ntex == 0

def test_with_a_render_mode_all_is_as_before():
    package = fast()
    env = package.make("SafetyPointGoal1-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.unwrapped.fast_plan is None and env.unwrapped.task.model.ntex > 0

def test_uninstall_puts_everything_back():
    fast()
    import fast_safety_gymnasium
    names = list(fast_safety_gymnasium.ORIGINAL)
    fast_safety_gymnasium.uninstall()
    before = [owner.__dict__.get(name) for owner, name in names]
    fast_safety_gymnasium.install()
    assert all(owner.__dict__[name] is not old for (owner, name), old in zip(names, before))
    fast_safety_gymnasium.uninstall()
    assert all(owner.__dict__.get(name) is old for (owner, name), old in zip(names, before))
    fast_safety_gymnasium.install()

def test_other_versions_are_refused_in_one_sentence():
    code = "import importlib.metadata as m; m.version = lambda name: '1.2.0'; import fast_safety_gymnasium"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: fast_safety_gymnasium is for safety-gymnasium 1.0.0, and here is 1.2.0."

if __name__ == "__main__":
    if sys.argv[1] == "sweep":
        for task in sys.argv[2:] or NAVIGATION + VELOCITY:
            try:
                print(compare(task), flush=True)
            except AssertionError as error:
                print("DIFFERENT", error, flush=True)
    else:
        main()
