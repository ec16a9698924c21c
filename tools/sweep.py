# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "tqdm==4.67.1", "scipy==1.15.3",
#                 "distributed==2026.8.0", "tomli==2.5.0; python_version < '3.11'"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Trains a grid of algorithm x task x seed x option: `uv run tools/sweep.py --seed 0 1 --beta 0.6 0.9`.

Every option of the scripts may have several values here; all combinations are run. Lists, as of
layers, are written 64,64. A file says the same, and may hold several grids, below what they share:

    experiment = "circle"                   # uv run tools/sweep.py circle.toml
    task = "SafetyCarCircle2-v0"
    seed = [0, 1, 2]
    [[grid]]
    algorithm = "sbtrpo"
    beta = [0.6, 0.75, 0.9]
    [[grid]]
    algorithm = "ctrpo"
    cost_limit = 0

What is given besides a file wins over the file. Each run is the script itself, in a process of its own, and
leaves what the script leaves in runs/EXPERIMENT/TASK/ALGORITHM/seed-SEED, with its output in log.txt. Its
experiment is named after its options, all but task, seed and total steps: circle_beta-0.6.

The runs are spread over a Dask cluster: --parallel processes on this machine, or the one at --scheduler,
whose workers need the same packages and see this folder. A run that has all its steps is skipped, one that
was interrupted is resumed, one that fails is tried once more and then reported; one that is there with other
options, or damaged, is refused. However a sweep ends, its
runs end with it, and the same command goes on from their last epochs.

Two processes never write into one folder. A run holds a lock on its folder as long as it lives, and the
kernel kills it when the Dask worker that has started it ends; the worker ends with its nanny, and the nanny
with the sweep. A worker that has lost its sweep, by whatever cause, kills the run that it was asked for.
"""

import argparse, contextlib, csv, dataclasses, fcntl, importlib, itertools, json, os, re, subprocess
import logging, sys, time
from concurrent.futures import CancelledError
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
try:
    import loky
    from distributed import Client, LocalCluster, Reschedule, as_completed, get_worker
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f"{error}: start this with `uv run`, or install what its first lines name.")

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ALGORITHMS = "sbtrpo", "ctrpo", "strpo"
OURS = "experiment", "workers", "scheduler"  # options of a script that the sweep sets
UNNAMED = "task", "seed", "total_steps"  # options that the name of an experiment leaves out
METRICS = {"EpRet": "return", "EpCost": "cost", "SafetyProbability": "safety", "SafeReward": "safe reward"}
# Runs a command that dies with the thread that has started it: PR_SET_PDEATHSIG, SIGKILL. Where the parent
# has ended before that was set, the command is not run.
BOUND = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(1, 9) == 0 and os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
sys.exit("the process that wanted this run has ended")
"""
# Dask workers leave Ctrl-C to the sweep.
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


class Mistake(Exception):
    """Of the user: one sentence."""


class Run(NamedTuple):
    algorithm: str
    folder: str  # where the sweep was started: runs/EXPERIMENT/TASK/ALGORITHM/seed-SEED
    options: tuple  # of the script, to start it
    config: dict  # as config.json will have it
    lengths: dict  # {folder within, "" or "unsafe": its total steps}


# what is to be run
def value_of(field: dataclasses.Field, text: str):
    """The value of an option, from how it is written."""
    try:
        if field.type is tuple:
            return tuple(map(type(field.default[0]) if field.default else str, text.split(",")))
        if field.name == "cost_limit" and "," in text:  # a budget for each of --costs
            return tuple(map(float, text.split(",")))
        return field.type(text)
    except ValueError:
        kind = {int: "a whole number", tuple: "numbers with commas"}.get(field.type, "a number")
        raise Mistake(f"--{field.name.replace('_', '-')} is {text!r} but needs {kind}.") from None


def name_of(value) -> str:
    """A value as part of a folder's name."""
    text = f"{value:.12g}" if isinstance(value, float) else "-".join(map(str, value)) \
        if isinstance(value, tuple) else str(value)
    return re.sub(r"[^\w.-]", "-", text)


def make_run(algorithm: str, experiment: str, options: dict[str, str]) -> Run:
    """Raises Mistake if the script would not take the options."""
    module = importlib.import_module(algorithm)
    fields = {field.name: field for field in dataclasses.fields(module.Config) if field.name not in OURS}
    if of_sweep := [name for name in ("workers", "parallel", "scheduler") if name in options]:
        raise Mistake(f"--{of_sweep[0]} is an option of the sweep: give it on the command line.")
    if unknown := [name for name in options if name not in fields]:
        raise Mistake(f"{algorithm}.py has no option --{unknown[0].replace('_', '-')}.")
    if "unsafe" in options:  # a run has one name, that of its folder
        options = {**options, "unsafe": str(module.run_folder(options["unsafe"]))}
    try:
        values = {name: value_of(fields[name], options[name]) for name in fields if name in options}
        named = [name for name in values if name not in UNNAMED]
        parts = [f"{name.replace('_', '-')}-{name_of(values[name])}" for name in named]
        experiment = "_".join([experiment, *parts])
        preset = module.PRESETS.get(values.get("preset"), {})
        config = module.Config(**{**preset, **values, "experiment": experiment})
        config.check_new()
    except module.Failure as error:
        raise Mistake(str(error)) from None
    words = [word for name in values for word in ("--" + name.replace("_", "-"), *(
        options[name].split(",") if fields[name].type is tuple or name == "cost_limit"
        else [options[name]]))]
    folder = Path("runs", experiment, re.sub(r"[^\w.-]", "-", config.task), algorithm, f"seed-{config.seed}")
    lengths = {"": config.total_steps}
    if algorithm == "strpo" and config.stage == "safe" and config.exclusion != "none" and not config.unsafe:
        lengths["unsafe"] = config.unsafe_steps
    return Run(algorithm, str(folder), ("--experiment", experiment, *words),
               json.loads(json.dumps(dataclasses.asdict(config))), lengths)


def expand(grid: dict[str, list[str]]) -> list[Run]:
    """All combinations of {option: values}."""
    runs = []
    for values in itertools.product(*grid.values()):
        options = dict(zip(grid, values))
        algorithm, experiment = options.pop("algorithm", "sbtrpo"), options.pop("experiment", "sweep")
        if algorithm not in ALGORITHMS:
            raise Mistake(f"the algorithm is {algorithm!r} but needs to be one of {', '.join(ALGORITHMS)}.")
        runs.append(make_run(algorithm, experiment, options))
    return runs


def read_grids(path: Path) -> list[dict[str, list[str]]]:
    """The grids of a TOML file; tables other than [[grid]] are refused."""
    def texts(name: str, values) -> list[str]:
        values = values if isinstance(values, list) else [values]
        values = [",".join(map(str, value)) if isinstance(value, list) else value for value in values]
        if not values or not all(isinstance(value, (str, int, float)) for value in values):
            raise Mistake(f"{path}: {name} needs to be a value or a list of values.")
        return list(map(str, values))

    try:
        shared = with_underscores(tomllib.loads(path.read_text()), path)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Mistake(f"{path} cannot be read as TOML: {error}") from None
    grids = shared.pop("grid", [{}])
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise Mistake(f"{path}: grids are tables, each under a line [[grid]].")
    return [{name: texts(name, values) for name, values in {**shared, **with_underscores(grid, path)}.items()}
            for grid in grids]


def with_underscores(table: dict, path: Path) -> dict:
    """The same under the names of options as the scripts have them."""
    renamed = {name.replace("-", "_"): values for name, values in table.items()}
    if len(renamed) < len(table):
        raise Mistake(f"{path}: a name stands in one table twice, once with - and once with _.")
    return renamed


def arguments(argv: list[str] | None) -> tuple[list[Run], argparse.Namespace]:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0],
                                     usage="%(prog)s [GRID.toml] [--option value ...] ...")
    parser.add_argument("grid", nargs="?", type=Path, metavar="GRID.toml", help="as on top of this file")
    parser.add_argument("--scheduler", metavar="tcp://host:port", help="of a Dask cluster (default: our own)")
    parser.add_argument("--workers", type=int, default=1, help="processes of each run, for its episodes; "
                        "changes no result (default 1)")
    parser.add_argument("--parallel", type=int, help="runs at a time, without --scheduler; "
                        "default: as many as there are cores for")
    parser.add_argument("--dry-run", action="store_true", help="only print the runs, and how far they are")
    parser.add_argument("--experiment", nargs=1, default=argparse.SUPPRESS, metavar="name",
                        help="how the names of experiments begin (default sweep)")
    parser.add_argument("--algorithm", nargs="+", default=argparse.SUPPRESS, metavar="name",
                        help=", ".join(ALGORITHMS) + " (default sbtrpo)")
    names = {field.name: None for algorithm in ALGORITHMS
             for field in dataclasses.fields(importlib.import_module(algorithm).Config)}
    for name in names:
        if name not in OURS:
            parser.add_argument("--" + name.replace("_", "-"), nargs="+", default=argparse.SUPPRESS,
                                metavar="x", help="of the scripts, see their --help")
    options = parser.parse_args(argv)
    given = {name: values for name, values in vars(options).items() if isinstance(values, list)}
    if options.workers < 1 or options.parallel is not None and options.parallel < 1:
        raise Mistake("--workers and --parallel must be at least 1.")
    if options.scheduler and not re.fullmatch(r"(tcp|tls|wss?)://.+:\d+", options.scheduler):
        raise Mistake(f"--scheduler is {options.scheduler!r} but needs to be tcp://host:port.")
    options.parallel = options.parallel or max(1, loky.cpu_count() // options.workers)
    grids = read_grids(options.grid) if options.grid else [{}]
    runs = [run for grid in grids for run in expand({**grid, **given})]
    folders = [run.folder for run in runs]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise Mistake(f"{twice[0]} would be run twice.")
    for task, run in {run.config["task"]: run for run in runs}.items():
        module = importlib.import_module(run.algorithm)
        try:
            module.close(module.make_env(task))
        except module.Failure as error:
            raise Mistake(str(error)) from None
    return sorted(runs, key=lambda run: run.config["seed"]), options  # a first seed of everything comes first


# one run, in a Dask worker
def rows(file: Path) -> list[dict]:
    """Steps and metrics in progress.csv; none without it, or if it was edited: a run writes it anew."""
    names = ["Train/TotalSteps", *(f"Metrics/{name}" for name in METRICS)]
    try:
        with open(file, newline="") as lines:
            return [{name: float(row[name]) for name in names} for row in csv.DictReader(lines)]
    except (FileNotFoundError, NotADirectoryError, LookupError, ValueError, TypeError):
        return []


def steps_so_far(run: Run, home: str) -> int:
    """Of all stages of a run, by progress.csv; beyond the total does not count."""
    last = {stage: rows(Path(home, run.folder, stage, "progress.csv"))[-1:] for stage in run.lengths}
    return sum(min(int(row["Train/TotalSteps"]), run.lengths[stage]) for stage in last for row in last[stage])


def in_checkpoint(run: Run, home: str) -> int | None:
    """Steps of the run, None if it has not begun. Raises Mistake if it was made with other options."""
    folder, module = Path(home, run.folder), importlib.import_module(run.algorithm)
    if not (folder / "config.json").exists():
        return None
    config, state = module.load_run(folder)
    for name, found in json.loads(json.dumps(dataclasses.asdict(config))).items():
        if found != run.config[name] and name not in (*OURS, "total_steps"):
            raise Mistake(f"{folder} was made with {name} {found!r}, not {run.config[name]!r}: "
                          "choose another --experiment.")
    return state["steps"]


def locked(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def summary(run: Run, home: str, outcome: str, seconds: float, said: str = "") -> dict:
    """What the table says of a run up to its total steps; means are over the last tenth of the epochs."""
    table = rows(Path(home, run.folder, "progress.csv"))
    table = table[: 1 + sum(row["Train/TotalSteps"] < run.lengths[""] for row in table)]
    last = table[-max(1, len(table) // 10):]
    means = {name: sum(row[f"Metrics/{name}"] for row in last) / len(last)
             for name in METRICS if last}
    return {"outcome": outcome, "seconds": seconds, "steps": steps_so_far(run, home), "means": means,
            "said": said}


def wanted(worker, key) -> bool:
    """Dask cannot stop a task that runs, but its worker knows whether anyone still waits for the result."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state == "executing" and worker.status.name in ("running", "paused")


def launch(command: list[str], home: str, lock, log) -> subprocess.Popen:
    """A script that ends with this thread, and holds the lock until then."""
    return subprocess.Popen([sys.executable, "-c", BOUND, str(os.getpid()), *command], cwd=home, stdout=log,
                            stderr=log, stdin=subprocess.DEVNULL, pass_fds=[lock.fileno()])


def train(run: Run, root: str, home: str, workers: int, topic: str) -> dict:
    """Starts or resumes a run and waits for its end; tells the topic how far it is. Skips a finished one."""
    if root not in sys.path:
        sys.path.insert(0, root)
    worker, started, folder = get_worker(), time.monotonic(), Path(home, run.folder)
    key = worker.get_current_task()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "sweep.lock", "w") as lock, open(folder / "log.txt", "a+b") as log:
        while not locked(lock):  # another sweep has this run, or a process that is being killed
            if not wanted(worker, key):
                raise Reschedule
            time.sleep(0.2)
        try:
            before = in_checkpoint(run, home)
        except Exception as error:  # a damaged run, or another one: it will be the same once more
            return summary(run, home, "refused", 0.0, str(error))
        total = run.lengths[""]
        if before is not None and before >= total:
            return summary(run, home, "skipped", 0.0)
        begin = log.seek(0, os.SEEK_END)
        options = run.options if before is None else ("--resume", run.folder, "--total-steps", str(total))
        process = launch([f"{root}/{run.algorithm}.py", *options, "--workers", str(workers)], home, lock, log)
        try:
            while process.poll() is None:
                if not wanted(worker, key):
                    raise Reschedule
                worker.log_event(topic, [run.folder, steps_so_far(run, home)])
                time.sleep(0.5)
        finally:
            process.kill()
            process.wait()
        log.seek(begin)
        said = "\n".join(log.read().decode(errors="replace").splitlines()[-8:])
    if process.returncode or (in_checkpoint(run, home) or 0) < total:
        return summary(run, home, "failed", time.monotonic() - started,
                       f"exit code {process.returncode}; the end of {run.folder}/log.txt:\n{said}")
    return summary(run, home, "finished" if before is None else "resumed", time.monotonic() - started)


# all of them
class Bar(tqdm):
    """Steps of the whole grid; what was there before is not counted into the speed."""

    def __init__(self, runs: list[Run], home: str):
        self.steps = {run.folder: steps_so_far(run, home) for run in runs}
        self.before = sum(self.steps.values())
        super().__init__(total=sum(sum(run.lengths.values()) for run in runs), initial=self.before,
                         smoothing=0, unit_scale=True, unit=" steps", disable=not sys.stderr.isatty())

    def show(self, folder: str, steps: int) -> None:
        self.steps[folder] = steps
        new = sum(self.steps.values()) - self.before
        if self.disable:
            return
        if new > 0:
            seconds = self.format_dict["elapsed"] * (self.total - self.before - new) / new
            end = datetime.now() + timedelta(seconds=seconds)
            self.set_postfix_str(f"ends {end:%a %H:%M}", refresh=False)
        self.update(self.before + new - self.n)


def sweep(client: Client, runs: list[Run], workers: int) -> dict[str, dict]:
    """{folder: summary} of all runs; those that fail are tried twice."""
    home, topic, results = str(Path.cwd()), f"sweep-{client.id}", {}
    bar, failed = Bar(runs, home), set()
    client.subscribe_topic(topic, lambda event: bar.show(*event[1]))

    def submit(run: Run):
        future = client.submit(train, run, str(ROOT), home, workers, topic, pure=False)
        futures[future] = run
        return future

    futures = {}
    for future in (queue := as_completed([submit(run) for run in runs])):
        run = futures.pop(future)
        try:
            result = future.result()
        except CancelledError:
            raise Mistake("the scheduler has gone; the same command goes on from the last epochs") from None
        except Exception as error:  # workers died, again and again, or cannot see this folder
            result = summary(run, home, "failed", 0.0, f"{type(error).__name__}: {error}")
        if result["outcome"] == "failed" and run.folder not in failed:
            failed.add(run.folder)
            tqdm.write(f"{run.folder}: failed, once more")
            queue.add(submit(run))
            continue
        results[run.folder] = result
        bar.set_description(f"{len(results)}/{len(runs)} runs", refresh=False)
        bar.show(run.folder, result["steps"])
        tqdm.write(f"{len(results)}/{len(runs)} {run.folder}: {news(result)}")
    bar.close()
    return results


def news(result: dict) -> str:
    """What became of a run; of one that was skipped, no time."""
    text = f"{result['outcome']}, {result['steps']:,} steps"
    return text + (f" in {clock(result['seconds'])}" if result["seconds"] else "")


def clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def table(runs: list[Run], results: dict[str, dict]) -> str:
    lines = [("experiment", "task", "algorithm", "seed", "outcome", "steps", *METRICS.values(), "time")]
    for run in runs:
        result, (_, experiment, *_) = results[run.folder], Path(run.folder).parts
        cells = [f"{result['means'][name]:.3g}" if result["means"] else "" for name in METRICS]
        lines.append((experiment, run.config["task"], run.algorithm, str(run.config["seed"]),
                      result["outcome"], f"{result['steps']:,}", *cells, clock(result["seconds"])))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def connect(options: argparse.Namespace, runs: int, stack: contextlib.ExitStack) -> Client:
    """A client of the cluster at --scheduler, or of one on this machine, which ends with the stack."""
    try:
        address = options.scheduler or stack.enter_context(LocalCluster(
            n_workers=min(options.parallel, runs), threads_per_worker=1, memory_limit=0,
            dashboard_address="127.0.0.1:0", silence_logs="CRITICAL", preload=[DEAF]))
        logging.getLogger("distributed.client").setLevel("CRITICAL")  # sweep says what was lost
        return stack.enter_context(Client(address, timeout=10))
    except (OSError, TypeError, ValueError) as error:  # TypeError: tls without a certificate
        raise Mistake(f"--scheduler {options.scheduler} does not answer: {error}") from None


def main(argv: list[str] | None = None) -> int:
    try:
        runs, options = arguments(argv)
        if options.dry_run:
            for run in runs:
                print(f"{run.folder}: {steps_so_far(run, '.'):,} of {sum(run.lengths.values()):,} steps")
            return 0
        with contextlib.ExitStack() as stack:
            results = sweep(connect(options, len(runs), stack), runs, options.workers)
    except Mistake as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last epochs", file=sys.stderr, flush=True)
        os._exit(1)  # as kill -9 would: workers end with their parent, and runs with their worker
    print(table(runs, results))
    for folder, result in results.items():
        if result["outcome"] in ("failed", "refused"):
            print(f"\n{folder} {result['outcome']}: {result['said']}", file=sys.stderr)
    return int(any(result["outcome"] in ("failed", "refused") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
