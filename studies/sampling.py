# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""What share of sampling is physics, now and before: `uv run studies/sampling.py` (Linux, 20 minutes) prints
the table and writes all values to results/sampling.json; with --quick or --tasks, to --output.

One environment of fast_safety_gymnasium.py, whole episodes, resets included, actions like those of a fresh
policy. Times are processor time in microseconds a step.

    physics   MuJoCo's simulation steps (mj_step) as Safety Gymnasium asks for them, sensors and all
    before    everything, with fast_safety_gymnasium.py of another commit (--before)
    now       everything, with the file as it is here

The three take turns in one process, every 1,000 steps or so (velocity tasks: 5,000), and go through the same
episodes: other work on the machine slows all of them down. The shares are physics over before, and physics
over now, turn by turn: medians, with the quartiles. The bar is 75%. Bits are the same in all three, which
test_fast.py proves.

Then, for the file as it is here, where the time goes, function by function: a look every few milliseconds of
processor time at the line that runs. What a function spends in numpy is its own. MuJoCo's functions are named
as MuJoCo does; `mj_step` is less than physics above, for the file leaves out sensors that nobody reads.
"""

import argparse, collections, importlib.util, json, signal, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import speed

ROOT, BAR = speed.ROOT, 0.75
BEFORE = "944a8f3"  # the last commit before this was measured
MUJOCO = ("mj_step", "mj_forward", "mj_forwardSkip", "mj_rnePostConstraint", "mj_jacBody", "mj_normalizeQuat",
          "from_xml_string")


def load(path: str):
    """A version of fast_safety_gymnasium.py, not installed."""
    spec = importlib.util.spec_from_file_location(f"fast_{len(sys.modules)}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.uninstall()
    return module


def environment(task: str) -> tuple:
    """The environment as the scripts make it, the steps of a turn, and actions for the longest one."""
    import safety_gymnasium
    env, steps = safety_gymnasium.make(task, disable_env_checker=True), 5_000 if "Velocity" in task else 1_000
    env.reset(seed=0)
    return env, steps, speed.like_ours(steps + speed.longest(task), env.action_space)


def episodes(env, steps: int, actions, seed: int) -> int:
    """Whole episodes, until there are as many steps, or more; returns how many."""
    done = 0
    while done < steps:
        env.reset(seed=seed + done)
        ended = truncated = False
        while not (ended or truncated):
            *_, ended, truncated, _ = env.step(actions[done])
            done += 1
    return done


class Physics:
    """In the place of mj_step: with sensors, and timed; a look at the clock is taken off."""

    def __init__(self) -> None:
        import mujoco
        self.simulate, self.seconds = mujoco.mj_step, 0.0
        self.no_sensors = int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
        looks = [time.thread_time() for _ in range(10_000)]
        self.look = statistics.median(b - a for a, b in zip(looks, looks[1:]))

    def __call__(self, model, *arguments, **options) -> None:
        flags = model.opt.disableflags
        model.opt.disableflags = flags & ~self.no_sensors
        started = time.thread_time()
        self.simulate(model, *arguments, **options)
        self.seconds += time.thread_time() - started - self.look
        model.opt.disableflags = flags


def take_turns(before: str, now: str, task: str, turns: int) -> dict:
    """{name: microseconds a step in each turn}, after one turn of each to warm up."""
    import mujoco
    before, now = load(before), load(now)
    world, physics, times = environment(task), Physics(), {"physics": [], "before": [], "now": []}
    for turn in range(turns + 1):
        for name, file in (("physics", now), ("before", before), ("now", now)):
            file.install()
            mujoco.mj_step = physics if name == "physics" else physics.simulate
            physics.seconds, started = 0.0, time.thread_time()
            steps = episodes(*world, 10_000 * turn)
            seconds = physics.seconds if name == "physics" else time.thread_time() - started
            times[name].append(1e6 * seconds / steps)
            file.uninstall()
    return {name: values[1:] for name, values in times.items()}


def named(name: str, function):
    """The same function, as a function of Python, whose name a look finds."""
    space = {"function": function}
    exec(f"def {name}(*arguments, **options):\n    return function(*arguments, **options)", space)
    return space[name]


def look(path: str, task: str, turns: int) -> dict:
    """Function -> its share of the looks."""
    import mujoco
    *functions, compile_model = MUJOCO
    for name in functions:
        setattr(mujoco, name, named(name, getattr(mujoco, name)))
    mujoco.MjModel.from_xml_string = staticmethod(named(compile_model, mujoco.MjModel.from_xml_string))
    load(path).install()
    world, looks = environment(task), collections.Counter()

    def handler(_, frame) -> None:
        while True:
            file, name = frame.f_code.co_filename, frame.f_code.co_name
            if name in MUJOCO or file == path and name[0] != "<":
                break
            if "gymnasium/" in file:
                name = "gymnasium, safety_gymnasium"
                break
            if name == "episodes" or frame.f_back is None:
                name = "this loop"
                break
            frame = frame.f_back
        looks[name] += 1

    signal.signal(signal.SIGPROF, handler)
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
    for turn in range(turns):
        episodes(*world, 10_000 * turn)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return {name: count / looks.total() for name, count in looks.most_common()} | {"looks": looks.total()}


def measure(task: str, before: str, now: str, repeats: int, turns: int) -> dict:
    runs = [speed.alone(take_turns, before, now, task, turns) for _ in range(repeats)]
    times = {name: [x for run in runs for x in run[name]] for name in runs[0]}
    shares, text = {}, ""
    for name in ("before", "now"):
        ratios = [a / b for a, b in zip(times["physics"], times[name])]
        low, middle, high = shares[name] = statistics.quantiles(ratios, n=4, method="inclusive")
        text += f"  {middle:.1%} ({low:.1%}-{high:.1%})"
    medians = "".join(f"{statistics.median(values):9.1f}" for values in times.values())
    print(f"{task:26}{medians}{text}  bar {BAR:.0%}: {speed.verdict(shares['now'][1] >= BAR)}", flush=True)
    return {"microseconds": times, "quartiles_of_physics_over": shares}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=speed.BARS, default=list(speed.BARS), metavar="TASK",
                        help="of " + ", ".join(speed.BARS))
    parser.add_argument("--before", default=BEFORE, help=f"commit to compare with (default {BEFORE})")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each task (default 3)")
    parser.add_argument("--quick", action="store_true", help="one process, few turns")
    parser.add_argument("--output", type=Path,
                        help="JSON (default results/sampling.json, if all is measured)")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if sys.platform != "linux":
        sys.exit("sampling.py needs Linux's timers.")
    command = ["git", "-C", ROOT, "show", f"{options.before}:fast_safety_gymnasium.py"]
    try:
        text = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        sys.exit(f"sampling.py finds no fast_safety_gymnasium.py of commit {options.before}: "
                 "it needs git, and the repository with its history.")
    repeats, turns = (1, 3) if options.quick else (options.repeats, 20)
    results = {"machine": speed.machine(), "before": options.before, "processes": repeats, "turns": turns,
               "tasks": {}}
    print(results["machine"])
    print(f"{'microseconds a step':26}  physics   before      now  physics over before, over now (quartiles)")
    now = str(ROOT / "fast_safety_gymnasium.py")
    with tempfile.TemporaryDirectory() as folder:
        (before := Path(folder) / "before.py").write_bytes(text)
        for task in options.tasks:
            results["tasks"][task] = measure(task, str(before), now, repeats, turns)
    for task in options.tasks:
        functions = speed.alone(look, now, task, 3 * turns)
        results["tasks"][task]["functions"] = functions
        shares = [f"{name} {share:.1%}" for name, share in functions.items() if 0.005 <= share <= 1]
        library = sum(functions.get(name, 0.0) for name in MUJOCO)
        print(f"{task}, {functions['looks']:,} looks, MuJoCo in all {library:.0%}: " + ", ".join(shares),
              flush=True)
    whole = not options.quick and len(options.tasks) == len(speed.BARS)
    if output := options.output or (ROOT / "results" / "sampling.json" if whole else None):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
