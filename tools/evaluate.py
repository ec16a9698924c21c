# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "tqdm==4.67.1", "scipy==1.15.3", "pillow==12.0.0"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Judges trained policies on fresh episodes: `uv run tools/evaluate.py RUN [RUN ...] --episodes 100`.

RUN is a folder that sbtrpo.py, ctrpo.py or strpo.py has left: runs/EXPERIMENT/TASK/ALGORITHM/seed-N, or
results/ALGORITHM-TASK-SETTING/seed-N. Its config.json names the algorithm, or else its path does. Two
policies are judged: `sampled` draws its actions, and is the one that was trained; `deterministic` takes the
mean action, or the most likely one. Both meet the same worlds.

return       sum of rewards of an episode, undiscounted                         mean over episodes
cost         sum of costs of an episode, undiscounted                           mean over episodes
cost_NAME    the same of a cost that the run's --costs names, whose sum is cost  in --output alone
safety       an episode is safe if its cost is 0                                share of the episodes
safe reward  the return of a safe episode, and 0 for any other one              mean over episodes
goals        steps of a safe episode with info["goal_met"], as Safety           mean over safe episodes
             Gymnasium's Goal, Button, Push and Race say; where no
             environment says anything of it there are none

Intervals are at 95%: the percentile bootstrap for means (5,000 resamples), Wilson's for the share. The mean
of one episode has none, and of no safe episode there is no mean. After several runs of one folder come the
mean and standard deviation (n - 1) of the runs' means.

Episode i is keyed by (evaluation seed, training seed, i) with the spawn key 1. Training has
other spawn keys, 2 to 4, so no stream of random numbers is met twice. (The seed of a world has 32 bits: the
chance that any of 100 is also one of the 40,000 of a long training is 1 in 1,000.) Nothing else is random, so
the results do not depend on the number of workers. `--action-noise p` replaces each action, with probability
p, by a uniformly random one; for several p, `--figure` draws return and cost of the sampled policies over p,
a line for each folder of runs: their mean and standard deviation, or a single run's mean and interval.
`--video` films episode 0 of the sampled policy, the first one that is judged: every fourth step, 25 images a
second.
"""

import argparse, ctypes.util, importlib, importlib.metadata, itertools, json, multiprocessing
import os, random, re, sys, threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one BLAS thread: the same bits in every process
try:
    import gymnasium, loky
    import numpy as np
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f"{error}: start this with `uv run`, or install what its first lines name.")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
METRICS = ("return", "cost", "safety", "safe reward", "goals")
POLICIES = ("sampled", "deterministic")


class Goals(gymnasium.Wrapper):
    """Counts the goals of an episode; NaN where the environment says nothing of any."""

    def reset(self, **options):
        self.count = np.nan
        return self.env.reset(**options)

    def step(self, action):
        values = self.env.step(action)
        if "goal_met" in values[-1]:
            self.count = np.nan_to_num(self.count) + bool(values[-1]["goal_met"])
        return values


def has_goals(task: str) -> bool:
    """Of Safety Gymnasium's tasks: these say nothing until a goal is met."""
    return re.search(r"(Goal|Button|Push|Race)\d", task) is not None


def play(algorithm, env, actor, key: tuple, deterministic: bool, noise: float, watch=lambda: None, costs=()):
    """[return, cost, goals, and each cost that `costs` names] of one episode, undiscounted; `watch` is called
    before every step."""
    streams = np.random.SeedSequence(key, spawn_key=(1,)).spawn(3)
    world, choice, disturbance = map(np.random.default_rng, streams)
    start, totals, ended = int(world.integers(2**32)), np.zeros(2 + len(costs)), False
    np.random.seed(start)  # for environments with random numbers of their own
    random.seed(start)
    env, act = Goals(env), actor.acting(None if deterministic else choice)
    try:
        observation = algorithm.to_vector(env.observation_space, env.reset(seed=start)[0])
        while not ended:
            watch()
            action = act(observation)
            if disturbance.random() < noise:
                action = uniform_action(env.action_space, disturbance)
            observation, reward, cost, terminated, truncated = algorithm.env_step(env, action, costs)
            totals += np.append([reward, np.sum(cost)], cost if costs else [])
            ended = terminated or truncated
    except (Exception, SystemExit) as error:
        text = f"evaluation episode {key[-1]}: {type(error).__name__}: {error}"
        raise algorithm.Failure(text) from None
    return np.array([*totals[:2], env.count, *totals[2:]])


def uniform_action(space, rng: np.random.Generator):
    """As `env_step` takes it: it maps [-1, 1] to the bounds of a Box."""
    if hasattr(space, "n"):
        return int(rng.integers(space.n))
    if not space.is_bounded() or np.issubdtype(space.dtype, np.integer):
        raise ValueError(f"--action-noise needs bounded real actions; those of this task are in {space}")
    return rng.uniform(-1, 1, int(np.prod(space.shape)))


def run_key(name: str, task: str, actor, key: tuple, deterministic: bool, noise: float,
            costs: tuple = ()) -> np.ndarray:
    """`play` in a worker, which makes the environment once."""
    algorithm = importlib.import_module(name)
    env = algorithm.env_of_thread(task, threading.get_ident())
    return play(algorithm, env, actor, key, deterministic, noise, costs=costs)


def load(run: Path) -> tuple:
    """(algorithm, config, state, actor) of a run, given its folder."""
    from report import ALGORITHMS, algorithm_of
    try:
        about = json.loads((run / "config.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        sys.exit(f"{run} holds no run: there is no config.json in it.")
    except (OSError, ValueError) as error:
        sys.exit(f"{run}/config.json cannot be read: {error}")
    if not isinstance(about, dict):
        sys.exit(f"{run}/config.json is not that of a run: it has no names of options.")
    if (name := algorithm_of(run, about)) not in ALGORITHMS:
        sys.exit(f"{run}: neither its config.json nor its path names one of {', '.join(ALGORITHMS)}.")
    algorithm = importlib.import_module(name)
    try:
        config, state = algorithm.load_run(run)
    except algorithm.Failure as error:
        sys.exit(str(error))
    return algorithm, config, state, algorithm.make_actor(state)


def folders(paths: list[Path]) -> list[Path]:
    """Of runs, each given as it is or by its checkpoint.npz; in order, and no run twice."""
    found = sorted(path.parent if path.name == "checkpoint.npz" else path for path in paths)
    seen: dict[Path, Path] = {}
    for run in found:
        if (other := seen.setdefault(run.resolve(), run)) is not run:
            sys.exit(f"{run} is given twice." if run == other else f"{other} and {run} are the same run.")
    return found


def writable(path: Path) -> None:
    """Makes the folder of a file that will be written; ends here if the file cannot be, or is a run's."""
    files = ("config.json", "checkpoint.npz", "checkpoint.previous.npz", "progress.csv", "curves.png", "lock",
             "owner", "log.txt", "sweep.lock")
    if path.name in files and (path.parent / "config.json").exists():
        sys.exit(f"{path} belongs to a run: give the results another name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        path.open("ab").close()
        if not there:
            path.unlink()
    except OSError as error:
        sys.exit(f"{path} cannot be written: {error.strerror}.")


def all_writable(paths: list[Path]) -> None:
    """The same of all that will be written."""
    if len({path.resolve() for path in paths}) < len(paths):
        sys.exit("--video, --figure and --output must be different files.")
    for path in paths:
        writable(path)


def keep(write, path: Path, text: str) -> None:
    """All of it or nothing, where a link leads; but a device stays one."""
    if path.exists() and not path.is_file():
        path.write_text(text)
    else:
        write(path.resolve(), text.encode())


def mean_interval(values: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """95% percentile bootstrap interval of the mean; a single value has none, nor has no value."""
    from report import interval
    if len(values) <= 1:
        return None, None
    low, high = interval([values], np.mean, 5000)
    return float(low), float(high)


def share_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95% interval of Wilson for a probability; unlike the bootstrap's, it has a width at 0 and at 1."""
    centre, p = 1 / (1 + z**2 / n), successes / n
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, float(centre * (middle - half))), min(1.0, float(centre * (middle + half)))


def summary(totals: np.ndarray, names: tuple = (), has_goals: bool = False) -> dict:
    """{metric: (mean, low, high)} of (n, 3 + names) returns, costs, goals, and named costs. The mean of goals
    is None where no episode is safe, and where there are none, by the task or by any episode."""
    returns, costs, goals, *named = totals.T
    safe = costs == 0
    result = {"safety": (float(safe.mean()), *share_interval(int(safe.sum()), len(safe)))}
    for name, values in (("return", returns), ("cost", costs), ("safe reward", returns * safe)):
        result[name] = (float(values.mean()), *mean_interval(values))
    there = has_goals or np.isfinite(goals).any()
    counted = np.nan_to_num(goals[safe]) if there else np.array([])
    result["goals"] = (float(counted.mean()) if len(counted) else None, *mean_interval(counted))
    parts = {f"cost_{name}": (float(x.mean()), *mean_interval(x)) for name, x in zip(names, named)}
    return {name: result[name] for name in METRICS} | parts


def evaluate(executor, loaded: tuple, options: argparse.Namespace, noise: float) -> dict:
    """Both policies of a run, each on options.episodes episodes of the same worlds."""
    algorithm, config, state, actor = loaded
    name = algorithm.__name__
    result = {"algorithm": name, "task": config.task, "experiment": config.experiment,
              "training_seed": config.seed, "steps": state["steps"]}
    for policy in POLICIES:
        futures = [executor.submit(run_key, name, config.task, actor, (options.seed, config.seed, index),
                                   policy == "deterministic", noise, tuple(config.costs))
                   for index in range(options.episodes)]
        bar = tqdm(futures, policy, unit="episode", leave=False, disable=not sys.stderr.isatty())
        totals = np.array([future.result() for future in bar])
        result[policy] = summary(totals, config.costs, has_goals(config.task))
    return result


def over_runs(results: dict) -> dict:
    """{folder: {policy: {metric: (mean, standard deviation)}}} of the means of the runs in a folder, if they
    are of one algorithm and task."""
    spread, by_folder = {}, {}
    for run in results:
        by_folder.setdefault(str(Path(run).parent), []).append(run)
    for folder, runs in by_folder.items():
        kinds = {(results[run].get("algorithm"), results[run].get("task")) for run in runs}
        if len(runs) > 1 and len(kinds) == 1:
            spread[folder] = {"runs": len(runs)}
            for policy in POLICIES:
                means = {name: [results[run][policy][name][0] for run in runs] for name in METRICS}
                spread[folder][policy] = {name: (None, None) if None in each else
                                          (float(np.mean(each)), float(np.std(each, ddof=1)))
                                          for name, each in means.items()}
    return spread


def repair(viewer) -> None:
    """mujoco 2.3.3 predates numpy 2: of a renderer's small arrays, only the first number can be assigned."""
    import mujoco
    ctypes.memset(viewer.vopt.geomgroup.ctypes.data, 1, 6)  # hazards, goals and walls are in groups above 2

    def add_marker(marker: dict) -> None:
        place = marker["type"], marker["size"], marker["pos"], np.eye(3).ravel(), marker["rgba"]
        mujoco.mjv_initGeom(viewer.scn.geoms[viewer.scn.ngeom], *place)
        viewer.scn.ngeom += 1

    viewer._add_marker_to_scene = add_marker


def uses_mujoco(env) -> bool:
    """Whether a screen, or what MuJoCo does without one, is needed for images."""
    base = env.unwrapped
    return any(type(model).__module__.startswith("mujoco") for model in (
        getattr(base, "model", None), getattr(getattr(base, "task", None), "model", None)))


def camera(algorithm, task: str):
    """The environment, ready to be filmed."""
    mujoco = False
    try:
        plain = algorithm.make_env(task)
        mujoco = uses_mujoco(plain)
        algorithm.close(plain)
        if "rgb_array" not in (plain.metadata.get("render_modes") or ()):
            sys.exit(f"--video: {task} has no images: its environment would have to take "
                     "render_mode='rgb_array', name it in metadata['render_modes'], and render() an array.")
        env = algorithm.make_env(task, render_mode="rgb_array")
        navigation = hasattr(base := env.unwrapped, "render_parameters")
        if navigation:  # these tasks have several cameras
            base.render_parameters.camera_name = "fixedfar"
            base.render_parameters.width = base.render_parameters.height = 400
        if env.render() is None:
            raise TypeError("it has no images")
        if navigation:
            repair(base.task.viewer)
        return env
    except Exception as error:  # a missing renderer has many faces
        advice = ""
        if mujoco or re.search("MUJOCO_GL|glGetError", str(error)):
            advice = ("; without a screen, install libosmesa6 and set MUJOCO_GL=osmesa, or install libegl1 "
                      "and libgl1-mesa-dri and set MUJOCO_GL=egl")
        sys.exit(f"--video: {task} cannot be rendered here ({error}){advice}.")


def film(loaded: tuple, options: argparse.Namespace) -> str:
    """Writes episode 0 of the sampled policy as a GIF."""
    algorithm, config, _, actor = loaded
    env = camera(algorithm, config.task)
    from PIL import Image
    frames, count, key = [], itertools.count(), (options.seed, config.seed, 0)

    def watch():
        if next(count) % 4 == 0:
            frames.append(Image.fromarray(env.render()))

    try:
        total, cost, *_ = play(
            algorithm, env, actor, key, False, options.action_noise[0], watch, tuple(config.costs))
    finally:
        algorithm.close(env)
    frames[0].save(options.video, save_all=True, append_images=frames[1:], duration=40, loop=0)
    return f"{options.video}: return {total:.2f}, cost {cost:g}, {len(frames)} images"


def cell(mean: float | None, low: float | None, high: float | None) -> str:
    """A mean with its interval, as far as there are any."""
    if mean is None:
        return "-"
    return f"{mean:.3g}" + (f" [{low:.3g}, {high:.3g}]" if low is not None else "")


def last(path: str, folders: int) -> str:
    """The end of a path as it was given; of `.`, which has no name, of the whole one."""
    path = Path(path) if Path(path).name else Path(path).resolve()
    return "/".join(path.parts[-folders:])


def table(results: dict, spread: dict) -> str:
    """One row for a run and policy, then one for a folder of runs and policy."""
    rows = [("run", "policy", *METRICS)]
    for run, policy in itertools.product(results, POLICIES):
        cells = [cell(*value) for value in map(results[run][policy].get, METRICS)]
        rows.append((last(run, 4), policy, *cells))
    for folder, policy in itertools.product(spread, POLICIES):
        cells = ["-" if mean is None else f"{mean:.3g} +- {std:.2g}"
                 for mean, std in spread[folder][policy].values()]
        label = f"{last(folder, 3)}, mean +- std of {spread[folder]['runs']} runs"
        rows.append((label, policy, *cells))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def robustness(path: Path, judged: dict) -> None:
    """Return and cost over action noise, from {noise: {"runs": ..., "over_runs": ...}}."""
    from report import COLOURS, save
    from matplotlib.figure import Figure
    figure, noises = Figure(figsize=(11, 4.2), layout="constrained"), sorted(judged)
    first = next(iter(judged.values()))
    folders = {str(Path(run).parent): run for run in first["runs"]}
    for axis, metric in zip(figure.subplots(1, 2), ("return", "cost")):
        for (folder, run), colour in zip(folders.items(), itertools.cycle(COLOURS)):
            one = folder not in first["over_runs"]
            points = [judged[p]["runs"][run]["sampled"][metric] if one else
                      judged[p]["over_runs"][folder]["sampled"][metric] for p in noises]
            mean = [point[0] for point in points]
            band = np.transpose([point[1:] if one else (point[0] - point[1], point[0] + point[1])
                                 for point in points])
            label = "{algorithm}, {experiment}".format_map(first["runs"][run])
            axis.plot(noises, mean, "o-", color=colour, label=label, markersize=4)
            axis.fill_between(noises, *band.astype(float), color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel="share of actions replaced by random ones", ylabel=f"{metric} per episode")
    axis.legend()
    figure.suptitle(first["runs"][run]["task"])
    save(figure, path)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path,
                        help="the folder of a run, or the checkpoint.npz in it")
    parser.add_argument("--episodes", type=int, default=100, help="for each policy of each run (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the evaluation (default 0)")
    parser.add_argument("--workers", type=int, default=loky.cpu_count(),
                        help="processes; changes no result")
    parser.add_argument("--video", type=Path, metavar="out.gif", help="film one episode of the one RUN")
    parser.add_argument("--action-noise", type=float, nargs="+", default=[0.0], metavar="p",
                        help="probability that an action is replaced by a uniformly random one (default 0)")
    parser.add_argument("--figure", type=Path, metavar="out.png", help="draw return and cost over p")
    parser.add_argument("--output", type=Path, metavar="results.json", help="write the results here as well")
    options = parser.parse_args(argv)
    noises = options.action_noise
    for wrong, text in ((options.episodes < 1, "--episodes must be at least 1"),
                        (options.workers < 1, "--workers must be at least 1"),
                        (options.seed < 0, "--seed must not be negative"),
                        (not all(0 <= p <= 1 for p in noises), "--action-noise must be between 0 and 1"),
                        (options.figure and len(noises) < 2, "--figure needs several --action-noise"),
                        (options.figure and options.figure.suffix[1:] not in ("png", "pdf", "svg"),
                         "--figure writes a .png, .pdf or .svg"),
                        (options.video and len(options.runs) > 1, "--video takes one RUN"),
                        (options.video and options.video.suffix != ".gif", "--video writes a .gif")):
        if wrong:
            parser.error(text)
    return options


def stop(executor: ProcessPoolExecutor) -> None:
    """After a failure at once, whatever the environments do; else they are closed."""
    if sys.exc_info()[0]:
        for process in list((executor._processes or {}).values()):
            process.kill()
    executor.shutdown(wait=True, cancel_futures=True)


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    try:
        runs = {str(run): load(run) for run in folders(options.runs)}
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    if options.figure and len({config.task for _, config, *_ in runs.values()}) > 1:
        sys.exit("--figure takes runs of one task.")
    all_writable([path for path in (options.video, options.figure, options.output) if path])
    if options.video and sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl" if ctypes.util.find_library("EGL") else "osmesa")
    algorithms = [loaded[0] for loaded in runs.values()]
    errors = BrokenExecutor, OSError, *(algorithm.Failure for algorithm in algorithms)
    spawn = multiprocessing.get_context("spawn")
    os.environ["PYTHONHASHSEED"] = "0"  # as in training, for the processes begun here
    executor = ProcessPoolExecutor(options.workers, spawn, algorithms[0].guard_worker, (os.getpid(),))
    try:
        if options.video:
            print(film(next(iter(runs.values())), options), flush=True)
        judged = {p: {run: evaluate(executor, loaded, options, p) for run, loaded in runs.items()}
                  for p in options.action_noise}
    except errors as error:
        sys.exit(f"The evaluation ended early: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    finally:
        stop(executor)
    judged = {p: {"runs": results, "over_runs": over_runs(results)} for p, results in judged.items()}
    for p, results in judged.items():
        print(*[f"action noise {p:g}"] * (len(judged) > 1), table(*results.values()), sep="\n")
    if options.output:
        installed = {each.name for each in importlib.metadata.distributions()}
        packages = installed & {"numpy", "gymnasium", "mujoco"}
        versions = {name: importlib.metadata.version(name) for name in sorted(packages)}
        about = {"episodes": options.episodes, "seed": options.seed, "versions": versions,
                 "values": "runs: mean, ends of its 95% interval (null where there is none); "
                           "over_runs: mean, standard deviation (n - 1)",
                 "by_action_noise": judged}
        try:
            keep(algorithms[0].write, options.output, json.dumps(about, indent=1) + "\n")
        except errors as error:
            sys.exit(str(error))
    if options.figure:
        robustness(options.figure, judged)


if __name__ == "__main__":
    main()
