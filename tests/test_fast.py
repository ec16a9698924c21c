"""Proof that fast_safety_gymnasium.py changes no bit: part of `uv run test_updates.py`; `-m slow`: all tasks.

Episodes are run twice, each time in a fresh process: by the package untouched, as it is installed, textures
and all, and with the file. Compared are hashes of every number that comes out, with its type, and of the
state of the simulation and of the random generator after each episode. `python tests/test_fast.py sweep
[TASK ...]` does so for the tasks named, or all, and prints a line for each.
"""

import concurrent.futures, copy, dataclasses, functools, gc, hashlib, json, operator, os, pickle, re
import subprocess, sys, tempfile, threading, unittest.mock, warnings

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

def textureless():
    """The package untouched, but that no texture is decoded, which is most of the time of a reset."""
    package = untouched()
    import mujoco
    compile_model = mujoco.MjModel.from_xml_string
    textures = re.compile(r'<texture\b[^>]*?(/>|></texture>)|\stexture="[^"]*"')
    mujoco.MjModel.from_xml_string = staticmethod(lambda xml: compile_model(textures.sub("", xml)))
    return package

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

def put_state(digest, env) -> None:
    """Adds all arrays and numbers of MjData, and the state of the random generator of a navigation task.

    Left out is memory that the solver at hand does not use, and that holds whatever was there before."""
    world = getattr(env.unwrapped, "task", env.unwrapped)
    for name in dir(world.data):
        if not name.startswith(("_", "efc_AR", "efc_J")):
            value = getattr(world.data, name)
            if isinstance(value, (np.ndarray, int, float)):
                put(digest, (name, value))
    put(digest, (world.model.body_pos, world.model.opt.disableflags))
    if hasattr(world, "random_generator"):
        put(digest, world.random_generator.random_generator.get_state())
        put(digest, world.world_info.layout)

def reset(env, seed: int) -> tuple:
    """-1: without a seed."""
    return env.reset() if seed < 0 else env.reset(seed=seed)

def episodes(package, task: str, policy: str, seeds: list, checker: bool) -> list:
    """[hash, steps, goals, {cost: steps where it was due}] of whole episodes of one environment."""
    np.random.seed(len(seeds))  # environments are seeded from numpy's own generator
    env, results = package.make(task, disable_env_checker=not checker), []
    for seed in seeds:
        digest, steps, goals, due, ended = hashlib.sha256(), 0, 0, {}, False
        act = policy_of(policy, env, np.random.default_rng(abs(seed)))
        observation, info = reset(env, seed)
        put(digest, (observation, info))
        while not ended:
            observation, *rest, terminated, truncated, info = env.step(act(observation, steps))
            put(digest, (observation, rest, terminated, truncated, info))
            steps, goals, ended = steps + 1, goals + info.get("goal_met", False), terminated or truncated
            for name, value in [("cost", rest[1]), *info.items()]:
                due[name] = due.get(name, 0) + (name.startswith("cost") and value > 0)
        put_state(digest, env)
        due = {name: int(count) for name, count in due.items() if name.startswith("cost")}
        results.append([digest.hexdigest(), steps, int(goals), due])
    env.close()
    return results

class Stretch:
    """Steps of an environment in its present episode, each with a hash of all that came out so far.

    Where an episode ends, the next one begins, without a seed."""

    def __init__(self, env, policy: str, seed: int) -> None:
        self.env, self.digest, self.steps, self.hashes = env, hashlib.sha256(), 0, []
        self.act = policy_of(policy, env, np.random.default_rng(seed))

    def reset(self, seed: int) -> None:
        self.observation, info = reset(self.env, seed)
        put(self.digest, (self.observation, info))

    def go(self, steps: int) -> None:
        for _ in range(steps):
            action = self.act(self.observation, self.steps)
            self.observation, *rest, terminated, truncated, info = self.env.step(action)
            put(self.digest, (self.observation, rest, terminated, truncated, info))
            self.steps += 1
            if terminated or truncated:
                self.reset(-1)
        put_state(self.digest, self.env)
        self.hashes.append(self.digest.hexdigest())

def cut(package, task: str, policy: str) -> list:
    """Seven resets of one environment, seeded and not, each but the last in mid-episode or at its start."""
    np.random.seed(7)
    stretch = Stretch(package.make(task), policy, 0)
    for seed, steps in ((3, 45), (-1, 1), (3, 45), (3, 0), (-1, 130), (2**32 - 1, 25), (-1, 60)):
        stretch.reset(seed)
        stretch.go(steps)
    return stretch.hashes

def interleaved(package, task: str, other: str, policy: str) -> list:
    """Two environments of one process, stepped in turn; each is reset while the other is in mid-episode."""
    np.random.seed(8)
    pair = [Stretch(package.make(name), policy, seed) for seed, name in enumerate((task, other))]
    for seed, (one, two) in enumerate([pair, pair[::-1], pair]):
        one.reset(seed)
        for _ in range(10):
            one.go(2)
            if seed:
                two.go(3)
    return [stretch.hashes for stretch in pair]

def copy_of(env, how: str):
    """A copy of an environment in its present state; the package's own deepcopy and pickle fail."""
    copier = {"deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}
    twin = object.__new__(type(env))
    twin.__dict__.update(copier[how](env.__dict__))
    return twin

def copied(package, task: str, policy: str, how: str) -> list:
    """An environment and its copy in mid-episode, in turn; then the copy alone; then a reset of the copy."""
    np.random.seed(9)
    original = Stretch(package.make(task).unwrapped, policy, 0)
    original.reset(4)
    original.go(30)
    twin = Stretch(copy_of(original.env, how), policy, 1)
    twin.observation = original.observation
    for steps in (1, 20, 40):
        original.go(steps)
        twin.go(steps)
    hashes = original.hashes + twin.hashes
    assert how == "copy" or original.env.unwrapped is not twin.env
    del original
    gc.collect()
    twin.go(40)
    twin.reset(5)
    twin.go(40)
    return hashes + twin.hashes

def restored(package, task: str, policy: str) -> list:
    """The task of an environment is kept as a deep copy, the episode goes on, and then goes back to it."""
    np.random.seed(10)
    stretch = Stretch(package.make(task), policy, 0)
    stretch.reset(6)
    stretch.go(20)
    kept = copy.deepcopy(stretch.env.unwrapped.task)
    stretch.go(20)
    stretch.env.unwrapped.task = kept
    stretch.go(40)
    return stretch.hashes

def upset(package, task: str) -> list:
    """Actions that are NaN, whole or half precision numbers; and a state that MuJoCo resets in mid-step."""
    np.random.seed(12)
    stretch = Stretch(package.make(task), "random", 0)
    stretch.reset(8)
    act, shape = stretch.act, stretch.env.action_space.shape
    for action in (np.full(shape, np.nan), np.ones(shape, int), np.full(shape, 0.3, np.float16), None):
        stretch.go(4)
        if action is None:
            getattr(stretch.env.unwrapped, "task", stretch.env.unwrapped).data.qvel[:] = 1e11
        else:
            stretch.act = lambda *_, action=action: action
        stretch.go(1)
        stretch.act = act
    stretch.go(20)
    return stretch.hashes

def called_back(package, task: str, name: str) -> list:
    """A callback of MuJoCo that reads a sensor in mid-step, and acts; set and taken away in mid-episode, and
    taken away while an episode begins, too: MuJoCo compiles no model while a Python callback is set."""
    import mujoco
    set_callback = getattr(mujoco, f"set_mjcb_{name}")

    def callback(model, data, *_):
        data.xfrc_applied[1, :2] = 0.01 * np.tanh(data.sensordata[:2])
        return 0

    def reset(seed: int) -> None:
        set_callback(None)
        Stretch.reset(stretch, seed)
        set_callback(callback)

    np.random.seed(13)
    stretch = Stretch(package.make(task), "random", 0)
    stretch.reset(9)
    stretch.go(5)
    set_callback(callback)
    stretch.reset = reset
    try:
        stretch.go(20)
    finally:
        set_callback(None)
    del stretch.reset
    stretch.go(20)
    return stretch.hashes

def changed(package, task: str, path: str, value) -> list:
    """A number of the task is changed by hand before a reset; of its model, which a reset makes, after it."""
    np.random.seed(14)
    stretch = Stretch(package.make(task), "random", 0)
    stretch.reset(10)
    stretch.go(10)
    thing, _, name = path.rpartition(".")
    thing = operator.attrgetter(thing)(stretch.env.unwrapped.task)
    if isinstance(getattr(thing, name), np.ndarray):
        getattr(thing, name)[:] = value
    else:
        setattr(thing, name, value)
        stretch.reset(11)
    stretch.go(60)
    return stretch.hashes

def overridden(package, task: str) -> list:
    """A velocity task of one's own, with frames of its own making."""
    np.random.seed(15)
    env = package.make(task)

    class Halved(type(env.unwrapped)):
        def _step_mujoco_simulation(self, ctrl, n_frames):
            super()._step_mujoco_simulation(np.asarray(ctrl) / 2, n_frames)

    env.unwrapped.__class__ = Halved
    stretch = Stretch(env, "random", 0)
    stretch.reset(12)
    stretch.go(20)
    return stretch.hashes

def converted(package, task: str) -> list:
    """A name that only Gymnasium knows: five values a step, with the cost in info."""
    import gymnasium
    np.random.seed(11)
    stretch = Stretch(gymnasium.make(task, disable_env_checker=True), "random", 0)
    stretch.reset(7)
    stretch.go(40)
    return stretch.hashes

def main() -> None:
    """Reads [[function, arguments ...], ...] and prints a line of results for each."""
    warnings.filterwarnings("error", message="fast_safety_gymnasium")
    package = globals()[sys.argv[1]]()
    for function, *arguments in json.load(sys.stdin):
        print("RESULT " + json.dumps(globals()[function](package, *arguments)), flush=True)

def results_of(mode: str, jobs: list) -> list:
    """Of a fresh process, in a folder of its own: MuJoCo logs there that a state is beyond all bounds."""
    command = [sys.executable, os.path.abspath(__file__), mode]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, input=json.dumps(jobs), text=True, capture_output=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]

# what is compared
def jobs_of(task: str) -> list:
    """An environment for each policy, one after the other; more episodes where they are short."""
    policies = ["random", "closed"] + ["displaced"] * (task in NAVIGATION)
    seeds = [3, -1, *range(18)] if task in VELOCITY else [3, -1, *range(6)] if "yAnt" in task else [3, -1]
    return [["episodes", task, policy, seeds, i == 0] for i, policy in enumerate(policies)]

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

QUICK = [["episodes", "SafetyPointGoal2-v0", "displaced", [0, -1], True],
         ["episodes", "SafetyCarCircle2-v0", "closed", [0], False],
         ["episodes", "SafetyCarButton2-v0", "displaced", [0], False],
         ["episodes", "SafetyHopperVelocity-v1", "random", [0, 1, -1], True],
         ["episodes", "SafetyAntVelocity-v1", "random", [0], False],
         ["episodes", "SafetySwimmerVelocity-v1", "closed", [0], False]]

def test_whole_episodes_are_equal_bit_for_bit():
    """Six tasks, whole episodes, first and later ones, with and without a seed."""
    expected, found = results_of("untouched", QUICK), results_of("fast", QUICK)
    different = sum(a != b for jobs in zip(expected, found) for a, b in zip(*jobs))
    steps = sum(episode[1] for job in found for episode in job)
    check("episodes in which any bit differs", different, at_most=0, supports="fast", cases=steps)
    check("tasks compared", len({task for _, task, *_ in QUICK}), at_least=6, supports="fast")
    assert expected == found

def scenarios_of(task: str) -> list:
    policy = "displaced" if task in NAVIGATION else "random"
    jobs = [["cut", task, policy], ["interleaved", task, "SafetyPointButton1-v0", policy]]
    jobs += [["interleaved", task, task, policy]]
    jobs += [["copied", task, policy, how] for how in ("deepcopy", "copy", "pickle")]
    if task in NAVIGATION:
        jobs += [["restored", task, policy]]
        jobs += [["called_back", task, name] for name in ("control", "passive", "contactfilter")]
    jobs += [["upset", task]]
    return jobs + [["converted", task.replace("-", "Gymnasium-")]]

@functools.cache
def hashes_of(mode: str) -> list:
    """[(job, its hashes), ...] for a task of either sort, in one fresh process."""
    jobs = scenarios_of("SafetyPointGoal1-v0") + scenarios_of("SafetyHopperVelocity-v1")
    jobs += [["upset", "SafetyCarButton2-v0"], ["upset", "SafetySwimmerVelocity-v1"]]
    jobs += [["changed", "SafetyPointGoal2-v0", "vases.velocity_threshold", 0.0],
             ["changed", "SafetyPointCircle2-v0", "sigwalls.num", 3],
             ["changed", "SafetyRacecarGoal0-v0", "model.actuator_ctrlrange", [-3.0, 3.0]],
             ["overridden", "SafetyHopperVelocity-v1"]]
    return list(zip(jobs, results_of(mode, jobs)))

@pytest.mark.parametrize("scenario", ["cut", "interleaved", "copied", "restored", "upset", "called_back",
                                      "changed", "overridden", "converted"])
def test_scenarios_are_equal_bit_for_bit(scenario):
    """Episodes cut by resets; environments in turn; copies that go on without their originals; a task put
    back as it was; states beyond all bounds; callbacks; changes by hand; names of Gymnasium. The functions
    are above."""
    expected, found = ([pair for pair in hashes_of(mode) if pair[0][0] == scenario]
                       for mode in ("textureless", "fast"))
    assert expected
    assert expected == found

@slow
@pytest.mark.parametrize("task", NAVIGATION + VELOCITY)
def test_scenarios_of_all_tasks_are_equal_bit_for_bit(task):
    assert results_of("textureless", scenarios_of(task)) == results_of("fast", scenarios_of(task))

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
    jobs = [["episodes", "SafetyPointGoal1-v0", "random", [0], False]]
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

def test_lidars_that_no_longer_fit_the_observation_are_refused_as_by_the_package():
    package = fast()
    env = package.make("SafetyPointGoal1-v0", disable_env_checker=True)
    env.unwrapped.task.lidar_conf.num_bins = 8
    with pytest.warns(UserWarning, match="num_bins = 8"), pytest.raises(AssertionError, match="Bad obs"):
        env.reset(seed=0)

def test_first_resets_of_two_threads_leave_the_package_whole():
    """Each writes the template of its world; the original code, which a render mode needs, still runs."""
    package = fast()
    import fast_safety_gymnasium
    import mujoco
    both, modules = threading.Barrier(2), []

    def first_reset(task):
        env = package.make(task, disable_env_checker=True)
        both.wait()
        env.reset(seed=0)
        modules.append(fast_safety_gymnasium.worlds.mujoco)

    for _ in range(3):
        fast_safety_gymnasium.TEMPLATES.clear()
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            list(threads.map(first_reset, ["SafetyPointGoal1-v0", "SafetyCarGoal2-v0"]))
    assert modules == [mujoco] * 6
    package.make("SafetyPointGoal1-v0", render_mode="rgb_array").reset(seed=0)

def test_a_plugin_of_gymnasium_may_have_dataclasses_with_options(tmp_path):
    """It is loaded while the package is imported, for which Python's dataclass is changed."""
    lines = ["import dataclasses", "@dataclasses.dataclass(frozen=True)", "class Plugin:",
             "    number: int = 3", "def register():", "    print(Plugin())"]
    (tmp_path / "plugin.py").write_text("\n".join(lines))
    about = tmp_path / "plugin-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[gymnasium.envs]\n__root__ = plugin:register\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run([sys.executable, "-c", "import fast_safety_gymnasium"], text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0 and done.stdout == "Plugin(number=3)\n", done.stderr

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

def said_beside(package: str, version: str, before: str = "") -> tuple[int, str, str]:
    """Exit code, what is printed and the last line of errors where `package` says it has that version."""
    code = f"""
import importlib.metadata, sys
version = importlib.metadata.version
importlib.metadata.version = lambda name: {version!r} if name == {package!r} else version(name)
{before}
import fast_safety_gymnasium, safety_gymnasium
from safety_gymnasium.builder import Builder
env = safety_gymnasium.make("SafetyHopperVelocity-v1")
env.reset(seed=0)
print(len(env.step(env.action_space.sample())), Builder.step.__module__)
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], cwd=ROOT, capture_output=True,
                          text=True)
    warned = [line for line in done.stderr.splitlines() if "fast_safety_gymnasium is for" in line]
    assert len(warned) == 1, done.stderr
    return done.returncode, done.stdout.strip(), warned[0]

def test_another_package_is_refused_in_one_sentence():
    code, _, line = said_beside("safety-gymnasium", "1.2.0")
    assert code == 1
    assert line == "ImportError: fast_safety_gymnasium is for safety-gymnasium 1.0.0, and here is 1.2.0."

@pytest.mark.parametrize("package, version, known", [
    ("mujoco", "2.3.7", "2.3.3"), ("gymnasium", "0.29.0", "0.28.1 or 0.29.1")])
def test_beside_other_versions_the_original_code_runs_and_one_sentence_says_so(package, version, known):
    code, printed, line = said_beside(package, version)
    assert (code, printed) == (0, "6 safety_gymnasium.builder")
    assert line.endswith(f"fast_safety_gymnasium is for {package} {known}, and here is {version}: "
                         "the original code runs.")

def test_where_the_package_cannot_be_imported_the_sentence_names_the_other_version():
    broken = "sys.modules['gymnasium.wrappers.compatibility'] = None  # as in Gymnasium 1.0"
    code, _, line = said_beside("gymnasium", "1.0.0", broken)
    assert code == 1
    assert line.startswith("ImportError: fast_safety_gymnasium is for gymnasium 0.28.1 or 0.29.1, and here "
                           "is 1.0.0, where safety-gymnasium cannot be imported: ")

if __name__ == "__main__":
    if sys.argv[1] == "sweep":
        for task in sys.argv[2:] or NAVIGATION + VELOCITY:
            try:
                print(compare(task), flush=True)
            except AssertionError as error:
                print("DIFFERENT", error, flush=True)
    else:
        main()
