# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""What share of sampling is physics, now and before: `uv run studies/sampling.py`. It
writes results/sampling.json (Linux, 25 minutes).

One environment of fast_safety_gymnasium.py, whole episodes, resets included, actions like those of a fresh
policy, the same in all runs. Times are processor time of one process in microseconds a step, so that other
work on the machine counts little. Each measurement has a process of its own, and they take turns.

    physics   MuJoCo's simulation steps (mj_step) as Safety Gymnasium asks for them, sensors and all
    before    everything, with fast_safety_gymnasium.py of another commit (--before)
    now       everything, with the file as it is here

The shares are physics over before, and physics over now; medians over repetitions, with their range. The bar
is 75%. Bits are the same in all three, which tests/test_fast.py proves.

Then, for the file as it is here, where the time goes, function by function: a look every few milliseconds of
processor time at the line that runs. What a function spends in numpy is its own. MuJoCo's functions are named
as MuJoCo does; `mj_step` is less than physics above, for the file leaves out sensors that nobody reads.

The table goes to the screen, and all values to the file; with --quick or --tasks, to --output.
"""

import argparse, collections, json, signal, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median

import speed

ROOT, BAR = speed.ROOT, 0.75
BEFORE = "944a8f3"  # the last commit before this was measured
MUJOCO = ("mj_step", "mj_forward", "mj_forwardSkip", "mj_rnePostConstraint", "mj_jacBody", "mj_normalizeQuat",
          "from_xml_string")


def episodes(folder: str, task: str, steps: int):
    """Begins `steps` steps or more of whole episodes each time it is called; returns how many there were."""
    sys.path.insert(0, folder)
    import fast_safety_gymnasium
    import safety_gymnasium
    assert Path(fast_safety_gymnasium.__file__).parent == Path(folder)
    env = safety_gymnasium.make(task, disable_env_checker=True)  # as the scripts make it
    actions = speed.like_ours(steps + speed.longest(task), env.action_space)
    env.reset(seed=0)

    def run() -> int:
        done = seed = 0
        while done < steps:
            env.reset(seed=seed)
            seed, ended, truncated = seed + 1, False, False
            while not (ended or truncated):
                *_, ended, truncated, _ = env.step(actions[done])
                done += 1
        return done

    return run


def time_everything(folder: str, task: str, steps: int) -> float:
    run = episodes(folder, task, steps)
    started = time.process_time()
    return run() / (time.process_time() - started)


def time_physics(folder: str, task: str, steps: int) -> float:
    """Steps a second of mj_step with sensors, inside the episodes; reading the clock is taken off."""
    import mujoco
    run, simulate, clock = episodes(folder, task, steps), mujoco.mj_step, time.thread_time
    spent, calls = 0.0, 0
    no_sensors = int(mujoco.mjtDisableBit.mjDSBL_SENSOR)

    def timed(model, *arguments, **options) -> None:
        nonlocal spent, calls
        flags = model.opt.disableflags
        model.opt.disableflags = flags & ~no_sensors
        started = clock()
        simulate(model, *arguments, **options)
        spent, calls = spent + clock() - started, calls + 1
        model.opt.disableflags = flags

    mujoco.mj_step = timed
    done = run()
    readings = [clock() for _ in range(10_000)]
    return done / (spent - calls * median(b - a for a, b in zip(readings, readings[1:])))


def named(name: str, function):
    """The same function, as a function of Python, whose name a look finds."""
    space = {"function": function}
    exec(f"def {name}(*arguments, **options):\n    return function(*arguments, **options)", space)
    return space[name]


def look(folder: str, task: str, steps: int) -> dict:
    """Function -> its share of the looks."""
    import mujoco
    *functions, compile_model = MUJOCO
    for name in functions:
        setattr(mujoco, name, named(name, getattr(mujoco, name)))
    mujoco.MjModel.from_xml_string = staticmethod(named(compile_model, mujoco.MjModel.from_xml_string))
    run, looks = episodes(folder, task, steps), collections.Counter()
    file = str(Path(folder) / "fast_safety_gymnasium.py")

    def handler(_, frame) -> None:
        while True:
            code, name = frame.f_code, frame.f_code.co_name
            if name in MUJOCO or code.co_filename == file and name[0] != "<":
                break
            if "gymnasium" in code.co_filename.replace(file, ""):
                name = "gymnasium, safety_gymnasium"
                break
            if name == "run" or frame.f_back is None:
                name = "this loop"
                break
            frame = frame.f_back
        looks[name] += 1

    signal.signal(signal.SIGPROF, handler)
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
    run()
    signal.setitimer(signal.ITIMER_PROF, 0)
    return {name: count / looks.total() for name, count in looks.most_common()} | {"looks": looks.total()}


def measure(task: str, before: str, repeats: int, steps: int) -> dict:
    runs = {"physics": [], "before": [], "now": []}
    for _ in range(repeats):
        runs["physics"].append(1e6 / speed.alone(time_physics, str(ROOT), task, steps))
        runs["before"].append(1e6 / speed.alone(time_everything, before, task, steps))
        runs["now"].append(1e6 / speed.alone(time_everything, str(ROOT), task, steps))
    shares = {name: speed.ratios(runs["physics"], runs[name]) for name in ("before", "now")}
    times = "".join(f"{median(values):9.1f}" for values in runs.values())
    texts = "".join(f"  {middle:4.0%} ({low:.0%}-{high:.0%})" for middle, low, high in shares.values())
    print(f"{task:26}{times}{texts}  bar {BAR:.0%}: {speed.verdict(shares['now'][0] >= BAR)}", flush=True)
    return {"microseconds": runs, "physics_over": shares}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=speed.BARS, default=list(speed.BARS), metavar="TASK",
                        help="of " + ", ".join(speed.BARS))
    parser.add_argument("--before", default=BEFORE, help=f"commit to compare with (default {BEFORE})")
    parser.add_argument("--repeats", type=int, default=7, help="of every measurement (default 7)")
    parser.add_argument("--quick", action="store_true", help="one repetition, few steps")
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
    repeats, length = (1, 2_000) if options.quick else (options.repeats, 6_000)
    results = {"machine": speed.machine(), "before": options.before, "repeats": repeats, "tasks": {}}
    print(results["machine"])
    print(f"{'microseconds a step':26}  physics   before      now  physics over before, over now (range)")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "fast_safety_gymnasium.py").write_bytes(text)
        for task in options.tasks:
            steps = length * (4 if "Velocity" in task else 1)
            results["tasks"][task] = measure(task, folder, repeats, steps)
    for task in options.tasks:
        steps = length * (40 if "Velocity" in task else 10)
        results["tasks"][task]["functions"] = functions = speed.alone(look, str(ROOT), task, steps)
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
