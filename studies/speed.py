# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Sampling is faster than with Safety Gymnasium as shipped, an update than PyTorch's, an epoch than that of
C-TRPO's release: results/speed.json, by `uv run studies/speed.py` (Linux, 39 minutes).

It also writes the tables of docs/speed.md and of docs/fast_safety_gymnasium.md, between comments.
With --quick, --only or --tasks: nothing but --output.

Every measurement has a process of its own and a warm-up, and takes turns with its competitors. Rates and
times are medians, ratios the medians of the ratios within each repetition. Whole episodes, resets included,
actions of a fresh policy of 64x64 units, N(0, 0.6^2), clipped to [-1, 1].

sampling: environment steps a second
    ours      sbtrpo.collect: 2 workers, until the last episode has ended
    async     as shipped: safety_gymnasium.vector.make, a SafetyAsyncVectorEnv with 10 environments, which
              are given actions for nothing
environment: steps per second of CPU, one environment in one process
    shipped   Safety Gymnasium 1.0.0 as it comes
    dropped   its textures dropped where nothing is rendered, as sbtrpo.py does without the file
    file      with fast_safety_gymnasium.py
update: seconds for 20,000 x 60 observations, 2 actions, 64x64 units, 15 Fisher products for each of two
  directions, and a line search
    ours          sbtrpo.update_policy, as it comes: two threads, in the Fisher products alone
    torch         a product is a second backward pass through the gradient of the KL, built anew for each
                  product as in SafePO, OmniSafe and the release of C-TRPO; with 1 and with 2 threads
    torch, kept   the same, but the gradient of the KL is built once for all products
  Conjugate gradients, step and line search are the same code in all. `difference` compares the accepted
  step with ours, relative to its size.
growth: seconds of an update and of a critic, and the largest resident set, as observations, units or steps
  grow; the exponents are slopes of straight lines through logarithms
epoch: seconds of an epoch of 20,000 steps, rollout + update
    ctrpo.py and sbtrpo.py with the papers' settings and 2 workers: four epochs, after a first one
    release   C-TRPO's, https://github.com/milosen/ctrpo, cloned into release/, with 1 and with 2 threads of
              PyTorch: one epoch. It asks for PyTorch 2.0.1 and Python 3.9, and has 2.13 and 3.11
memory: MiB of sbtrpo.py with 2 workers, 4 epochs of the default task, all its processes together: the
  largest sum of proportional set sizes (PSS; 20 looks a second), and the sum of the largest resident sets
"""

import argparse, csv, functools, json, math, multiprocessing, os, platform, resource, subprocess, sys
import tempfile, time, unittest.mock
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata, util
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import numpy as np
from pages import fill

import sbtrpo

BARS = {"SafetyCarCircle2-v0": 6.0, "SafetyPointGoal1-v0": 3.3, "SafetyPointGoal2-v0": 1.4,
        "SafetyPointButton2-v0": None, "SafetyHopperVelocity-v1": 2.3, "SafetySwimmerVelocity-v1": None}
EPOCH_BARS = {"SafetyHopperVelocity-v1": 7, "SafetyPointGoal1-v0": 12, "SafetyCarCircle2-v0": 12}
UPDATE_BAR, MEMORY_BAR = 1.5, 1024  # times as fast as PyTorch, graph kept, 2 threads; MiB
RELEASE = ROOT / "release"


def alone(function, *args, **environment):
    """The result of a function in a fresh process, with these environment variables."""
    before = {name: os.environ.get(name, "1") for name in environment}
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
            return executor.submit(function, *args).result()
    finally:
        os.environ.update(before)


def ratios(over: list, under: list) -> list:
    """[median, least, largest] of the ratios within each repetition."""
    quotients = [a / b for a, b in zip(over, under)]
    return [median(quotients), min(quotients), max(quotients)]


# sampling
def longest(task: str) -> int:
    """Steps of an episode that is not terminated before; Safety Gymnasium has been imported."""
    import gymnasium
    return gymnasium.spec(task).max_episode_steps


def like_ours(n: int, space) -> np.ndarray:
    return np.clip(np.random.default_rng(0).normal(0, 0.6, (n, *space.shape)), -1, 1)


def sample_ours(task: str, steps: int) -> float:
    config = sbtrpo.Config(task=task, workers=2)
    executor, actor = sbtrpo.make_executor(config), sbtrpo.make_actor(sbtrpo.initial_state(config))
    executor, warm_up = sbtrpo.collect(executor, config, actor, 0, 2 * longest(task))
    started = time.perf_counter()
    executor, episodes = sbtrpo.collect(executor, config, actor, len(warm_up), steps)
    elapsed = time.perf_counter() - started
    executor.shutdown()
    return sum(len(episode.rewards) for episode in episodes) / elapsed


def as_shipped(textures: bool = True):
    """Safety Gymnasium without fast_safety_gymnasium.py, which lies beside the scripts."""
    import mujoco
    compile_model, find = mujoco.MjModel.from_xml_string, util.find_spec
    with unittest.mock.patch.object(
            util, "find_spec", lambda name: None if name == "fast_safety_gymnasium" else find(name)):
        package = sbtrpo.safety_gymnasium()
    if textures:
        mujoco.MjModel.from_xml_string = compile_model
    return package


def sample_single(task: str, steps: int, name: str) -> float:
    """Steps a second of CPU, as shipped, with textures dropped, or with the file."""
    package = sbtrpo.safety_gymnasium() if name == "file" else as_shipped(name == "shipped")
    env, done = package.make(task), 0
    actions = like_ours(steps + longest(task), env.action_space)
    env.reset(seed=0)
    started = time.process_time()
    while done < steps:
        env.reset()
        ended = truncated = False
        while not (ended or truncated):
            *_, ended, truncated, _ = env.step(actions[done])
            done += 1
    return done / (time.process_time() - started)


def sample_async(task: str, steps: int, copies: int = 10) -> float:
    """Rounds are a multiple of the longest episode: as many resets as episodes are on the clock."""
    multiprocessing.set_start_method("fork", force=True)  # Linux's own, but spawned processes inherit spawn
    env = as_shipped().vector.make(task, num_envs=copies)
    rounds = longest(task) * math.ceil(steps / copies / longest(task))
    actions = like_ours(rounds * copies, env.single_action_space).reshape(rounds, copies, -1)
    env.reset(seed=0)
    started = time.perf_counter()
    for action in actions:
        env.step(action)
    elapsed = time.perf_counter() - started
    env.close()
    return rounds * copies / elapsed


SAMPLERS = {"ours": sample_ours, "async": sample_async}
ENVIRONMENTS = "shipped", "dropped", "file"


def steps_of(task: str, quick: bool) -> int:
    return (1_000 if quick else 3_000) * (4 if "Velocity" in task else 1)


def measure_sampling(tasks: list[str], repeats: int, quick: bool) -> dict:
    results = {}
    for task in tasks:
        rates = {name: [] for name in SAMPLERS}
        for _ in range(repeats):
            for name, sampler in SAMPLERS.items():
                factor = 8 if name == "ours" else 1  # about as long as the other takes
                rates[name].append(alone(sampler, task, factor * steps_of(task, quick)))
        over = ratios(rates["ours"], rates["async"])
        results[task] = {"steps_per_second": rates, "over_async": over, "bar": BARS[task]}
        print(task, {name: round(median(values)) for name, values in rates.items()}, over, flush=True)
    return results


def measure_environment(tasks: list[str], repeats: int, quick: bool) -> dict:
    results = {}
    for task in tasks:
        rates = {name: [] for name in ENVIRONMENTS}
        for _ in range(repeats):
            for name in ENVIRONMENTS:
                rates[name].append(alone(sample_single, task, steps_of(task, quick), name))
        over = {name: ratios(rates["file"], rates[name]) for name in ("shipped", "dropped")}
        results[task] = {"steps_per_cpu_second": rates, "file_over": over}
        print(task, {name: round(median(values)) for name, values in rates.items()}, over, flush=True)
    return results


# the update
def problem(precision: int, size: int = 60, units: int = 64, steps: int = 20_000) -> tuple:
    """Arguments of sbtrpo.update_policy; advantages depend on the actions, as they do in training."""
    rng, sizes = np.random.default_rng(0), (size, units, units, 2)
    config = sbtrpo.Config(cg_iterations=15)
    policy = sbtrpo.Policy(sizes, discrete=False)
    theta = sbtrpo.initial_parameters(sizes, np.full(2, math.log(config.initial_std)), rng)
    observations = rng.standard_normal((steps, size)).astype(f"float{precision}")
    mean, log_std = np.split(sbtrpo.distributions(policy, theta, observations), 2, axis=1)
    actions = (mean + np.exp(log_std) * rng.standard_normal(mean.shape)).astype(observations.dtype)
    reward, cost = (actions * observations[:, :2]).T.astype(float) + rng.standard_normal((2, steps))
    return config, policy, theta, observations, actions, reward, cost + reward / 2, None


def torch_outputs(parameters: list, observations):
    """Mean and log std; parameters are W, b of every layer and the log std."""
    import torch
    *layers, log_std = parameters
    for W, b in zip(layers[:-2:2], layers[1:-2:2]):
        observations = torch.tanh(torch.addmm(b, observations, W))
    return torch.addmm(layers[-1], observations, layers[-2]), log_std


def torch_log_probabilities(outputs: tuple, actions):
    mean, log_std = outputs
    z = (actions - mean) * (-log_std).exp()
    return (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(1)


def torch_kl(old: tuple, new: tuple):
    (mean, log_std), (new_mean, new_log_std) = old, new
    ratio = ((2 * log_std).exp() + (mean - new_mean) ** 2) * (-2 * new_log_std).exp()
    return (new_log_std - log_std + (ratio - 1) / 2).sum(1).mean()


def torch_parameters(theta: np.ndarray, like) -> list:
    import torch
    layers, log_std = sbtrpo.unflatten(torch.from_numpy(theta).to(like.dtype), (60, 64, 64, 2))
    return [parameter.clone() for layer in layers for parameter in layer] + [log_std.clone()]


def torch_derivative(scalar, parameters: list, **options):
    import torch
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(scalar, parameters, **options)])


def update_torch(config, policy, theta, observations, actions, *advantages, keep: bool = False) -> tuple:
    """sbtrpo.update_policy, with PyTorch for all that touches the batch; `keep` builds the KL graph once."""
    import torch
    observations, actions = torch.from_numpy(observations), torch.from_numpy(actions)
    rewards, costs = (torch.from_numpy(a) for a in advantages[:2])
    parameters = [parameter.requires_grad_() for parameter in torch_parameters(theta, observations)]
    new = torch_outputs(parameters, observations)
    log_probs = torch_log_probabilities(new, actions)
    old, old_log_probs = tuple(output.detach() for output in new), log_probs.detach()
    g_r, g_c = (torch_derivative((log_probs * a.to(log_probs.dtype)).mean(), parameters, retain_graph=True)
                .double().numpy() for a in (rewards, costs))

    def kl_gradient():
        kl = torch_kl(old, torch_outputs(parameters, observations))
        return torch_derivative(kl, parameters, create_graph=True)

    kept = kl_gradient() if keep else None

    def fisher(v):
        slope = kept if keep else kl_gradient()
        product = torch_derivative(slope @ torch.from_numpy(v).to(slope.dtype), parameters, retain_graph=keep)
        return product.double().numpy() + config.damping * v

    def judge(theta):
        with torch.no_grad():
            new = torch_outputs(torch_parameters(theta, observations), observations)
            gains = torch.expm1((torch_log_probabilities(new, actions) - old_log_probs).double())
            kl, cost = torch_kl(old, new).item(), (gains * costs).mean().item()
            reward = (gains * rewards).mean().item()
        return "kl" if kl > config.delta else "cost" if cost > 1e-6 else "", {"surrogate_reward": reward}

    x_r, x_c = (sbtrpo.conjugate_gradients(fisher, g, config.cg_iterations)[0] for g in (g_r, g_c))
    step, info = sbtrpo.safety_biased_step(g_r, x_r, g_c, x_c, config.delta, config.beta)
    return sbtrpo.line_search(judge, theta, step)


def time_update(update, precision: int, threads: int, times: int) -> dict:
    """Median seconds of an update after a first one, and of a trial of the line search; trials; difference
    of the steps."""
    sbtrpo.threadpoolctl.threadpool_limits(1, "blas")  # as train does
    if update is not sbtrpo.update_policy:
        import torch
        torch.set_num_threads(threads)
    arguments, seconds, trials, line_search = problem(precision), [], [], sbtrpo.line_search

    def timed(*given):
        started = time.perf_counter()
        theta, found = line_search(*given)
        trials.append((time.perf_counter() - started) / found["trials"])
        return theta, found

    sbtrpo.line_search = timed
    for _ in range(times + 1):
        started = time.perf_counter()
        theta, info = update(*arguments)
        seconds.append(time.perf_counter() - started)
    expected = sbtrpo.update_policy(*arguments)[0]
    difference = np.linalg.norm(theta - expected) / np.linalg.norm(expected - arguments[2])
    return {"seconds": median(seconds[1:]), "a_trial": median(trials[1:]), "trials": info["trials"],
            "difference": float(difference)}


def measure_update(repeats: int, quick: bool) -> dict:
    updates, results = {("ours", 2): sbtrpo.update_policy}, {}
    if util.find_spec("torch"):
        kept = functools.partial(update_torch, keep=True)
        updates |= {("torch", 1): update_torch, ("torch", 2): update_torch,
                    ("torch, kept", 1): kept, ("torch, kept", 2): kept}
    for precision in (32, 64):
        runs = {key: [] for key in updates}
        for _ in range(repeats):
            for (name, threads), update in updates.items():
                runs[name, threads].append(alone(time_update, update, precision, threads, 1 if quick else 3))
        ours = [run["seconds"] for run in runs["ours", 2]]
        for (name, threads), found in runs.items():
            seconds = [run["seconds"] for run in found]
            against = ratios(seconds, ours)
            label = f"float{precision}, {name}, {threads} threads"
            results[label] = {**found[0], "seconds": seconds, "over_ours": against}
            print(f"{label} {median(seconds):.3f} s, {found[0]}", flush=True)
    return results


# how time and memory grow
GROWTH = {"observations": ("size", (30, 60, 120)), "units of a layer": ("units", (64, 128, 256)),
          "steps": ("steps", (10_000, 20_000, 40_000))}


def time_growth(name: str, value: int, times: int) -> dict:
    """Median seconds of an update and of a critic's fit, and the largest resident set [MiB]."""
    sbtrpo.threadpoolctl.threadpool_limits(1, "blas")
    arguments, seconds = problem(32, **{name: value}), {"update": [], "critic": []}
    _, policy, _, observations, *_ = arguments
    rng, sizes, n = np.random.default_rng(0), (*policy.sizes[:-1], 1), len(observations)
    critic, targets = sbtrpo.initial_parameters(sizes, [], rng), rng.standard_normal(n)
    orders = [rng.permutation(n) for _ in range(10)]
    for _ in range(times + 1):
        marks = [time.perf_counter()]
        sbtrpo.update_policy(*arguments)
        marks.append(time.perf_counter())
        sbtrpo.fit_critic(critic, sizes, observations, targets, orders)
        marks.append(time.perf_counter())
        for each, begun, ended in zip(seconds.values(), marks, marks[1:]):
            each.append(ended - begun)
    found = {name: median(values[1:]) for name, values in seconds.items()}
    return found | {"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure_growth(quick: bool) -> dict:
    results = {}
    for label, (name, values) in GROWTH.items():
        found = [alone(time_growth, name, value, 1 if quick else 3) for value in values]
        table = {key: [each[key] for each in found] for key in found[0]}
        exponents = {key: float(np.polyfit(np.log(values), np.log(table[key]), 1)[0])
                     for key in ("update", "critic")}
        results[label] = {"values": list(values), **table, "exponents": exponents}
        print(label, results[label], flush=True)
    return results


# a training epoch
OURS = {task: ("ctrpo", task) for task in EPOCH_BARS} | {
    "sbtrpo.py, SafetyPointGoal1-v0": ("sbtrpo", "SafetyPointGoal1-v0")}
RELEASED = """
import runpy, sys
import mujoco, torch
root, script, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.argv = [script, *sys.argv[4:]]
sys.path[:0] = [f"{root}/studies", script.rpartition("/")[0]]
import speed
speed.as_shipped()
import baselines.common.env as env
env.make_sa_isaac_env = None  # imported, but not there
torch.set_num_threads(threads)
torch.set_num_threads = lambda number: None
runpy.run_path(script, run_name="__main__")
"""


def times_of(folder: str, skipped: int) -> dict:
    """Seconds of the epochs of the one run below this folder, but for the first ones."""
    [file] = Path(folder).glob("**/progress.csv")
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))[skipped:]
    return {name: [float(row[f"Time/{name}"]) for row in rows] for name in ("Rollout", "Update", "Total")}


def time_epochs(script: str, task: str, epochs: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / f"{script}.py", "--preset", "paper", "--task", task,
                   "--workers", "2", "--total-steps", str(20_000 * (epochs + 1))]
        subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
        return times_of(folder, 1)


def time_release(task: str, threads: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", RELEASED, ROOT, RELEASE / "algorithms" / "c-trpo.py", threads,
                   "--task", task, "--total-steps", 20_000, "--log-dir", folder]
        ended = subprocess.run([*map(str, command)], cwd=folder, text=True, capture_output=True)
        if ended.returncode:
            sys.exit(f"C-TRPO's release has failed: {ended.stderr.splitlines()[-1]}")
        return times_of(folder, 0)


def measure_epochs(tasks: list[str], repeats: int, quick: bool) -> dict:
    results = {}
    for label, (script, task) in OURS.items():
        if task not in tasks:
            continue
        runs = {"ours": functools.partial(time_epochs, script, task, 1 if quick else 4)}
        if (RELEASE / "algorithms").exists() and script == "ctrpo":
            runs |= {f"release, {threads} threads": functools.partial(time_release, task, threads)
                     for threads in (1, 2)}
        found = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                found[name].append(run())
        results[label] = {
            name: {part: [second for run in several for second in run[part]] for part in several[0]}
            for name, several in found.items()}
        for name, times in results[label].items():
            print(f"{label}, {name}: rollout {median(times['Rollout']):.2f} s, "
                  f"update {median(times['Update']):.2f} s", flush=True)
    return results


# memory
def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has just ended
        return []
    return [pid] + [one for text in lists for child in text.split() for one in family(int(child))]


def kibibytes(pid: int, file: str, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def measure_memory(quick: bool) -> dict:
    steps, pss, resident = 10_000 if quick else 40_000, 0, {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "sbtrpo.py", "--workers", "2", "--total-steps", str(steps)]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            pids = family(process.pid)
            pss = max(pss, sum(kibibytes(pid, "smaps_rollup", "Pss") for pid in pids) / 1024)
            for pid in pids:
                resident[pid] = max(resident.get(pid, 0), kibibytes(pid, "status", "VmHWM") / 1024)
            time.sleep(0.05)
    if process.returncode:
        sys.exit("sbtrpo.py failed while its memory was measured; its message stands above.")
    result = {"steps": steps, "peak_pss_mib": pss, "sum_of_peak_rss_mib": sum(resident.values()),
              "processes": len(resident), "bar_mib": MEMORY_BAR}
    print(f"memory: peak PSS {pss:.0f} MiB, sum of peak RSS {sum(resident.values()):.0f} MiB "
          f"of {len(resident)} processes  bar {MEMORY_BAR}: {verdict(pss < MEMORY_BAR)}", flush=True)
    return result


def verdict(met: bool) -> str:
    return "met" if met else "NOT met"


# the pages
def spread(values: list, digits: int) -> str:
    """A median, with the range where there is one."""
    middle, low, high = values
    text = f"{middle:.{digits}f}"
    return text if low == high else f"{text} ({low:.{digits}f} to {high:.{digits}f})"


def row(*cells) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(*rows: str) -> str:
    first, *rest = rows
    return "\n".join([first, "|---" * (first.count("|") - 1) + "|", *rest])


def tables(results: dict) -> dict:
    """{name: table in Markdown}"""
    sampling, environment = [], []
    for task, found in results["sampling"].items():
        ours, other = (f"{median(found['steps_per_second'][name]):,.0f}" for name in SAMPLERS)
        sampling.append(row(task, ours, other, spread(found["over_async"], 1), found["bar"] or ""))
    for task, found in results["environment"].items():
        rates = (f"{median(found['steps_per_cpu_second'][name]):,.0f}" for name in ENVIRONMENTS)
        environment.append(row(task, *rates, *(spread(ratio, 2) for ratio in found["file_over"].values())))
    update = [row(label, f"{median(found['seconds']):.2f} s", f"{1e3 * found['a_trial']:.0f} ms",
                  spread(found["over_ours"], 2))
              for label, found in results["update"].items()]
    growth = [row(label, ", ".join(f"{value:,}" for value in found["values"]),
                  *(cell for key in ("update", "critic")
                    for cell in (", ".join(f"{second:.2f}" for second in found[key]),
                                 f"{found['exponents'][key]:.2f}")),
                  ", ".join(f"{value:.0f}" for value in found["mib"]))
              for label, found in results["growth"].items()]
    epoch = []
    for label, runs in results["epoch"].items():
        ours = [median(epochs) for epochs in np.split(np.array(runs["ours"]["Total"]), results["repeats"])]
        for name, times in runs.items():
            parts = (f"{median(times[part]):.2f} s" for part in ("Rollout", "Update", "Total"))
            compared = "", ""
            if name != "ours":
                compared = spread(ratios(times["Total"], ours), 1), EPOCH_BARS.get(label)
            epoch.append(row(label, name, *parts, *compared))
    memory = results["memory"]
    pss, resident = (f"{memory[name]:.0f}" for name in ("peak_pss_mib", "sum_of_peak_rss_mib"))
    return {
        "sampling": table(row("task", "ours", "async", "ours / async", "bar"), *sampling),
        "environment": table(row("task", "as shipped", "textures dropped", "with this file", "/ shipped",
                                 "/ dropped"), *environment),
        "update": table(row("", "an update", "a trial of the line search", "times ours"), *update),
        "growth": table(row("what grows", "to", "update [s]", "exponent", "a critic [s]", "exponent",
                            "memory [MiB]"), *growth),
        "epoch": table(row("task", "", "rollout", "update", "epoch", "times ours", "bar"), *epoch),
        "memory": table(row("", "MiB"), row("all processes, PSS", pss),
                        row(f"sum of {memory['processes']} resident sets", resident))}


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    names = ("safety-gymnasium", "gymnasium", "mujoco", "numpy", "autograd", "torch")
    versions = {name: metadata.version(name) for name in names if util.find_spec(name.replace("-", "_"))}
    command = ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, text=True, capture_output=True).stdout.strip()
    return {"commit": commit, "cpu": model, "cores": os.cpu_count(), "load_before": os.getloadavg()[0],
            "system": platform.system(), "python": platform.python_version(), **versions}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parts = "sampling", "environment", "update", "growth", "epoch", "memory"
    parser.add_argument("--only", choices=parts, help="just this")
    parser.add_argument("--tasks", nargs="+", choices=BARS, default=list(BARS), metavar="TASK",
                        help="of " + ", ".join(BARS))
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement (default 3)")
    parser.add_argument("--quick", action="store_true", help="one repetition, shorter")
    parser.add_argument("--output", type=Path, help="JSON (default results/speed.json, if all is measured)")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if sys.platform != "linux":
        sys.exit("speed.py reads /proc and needs processes that fork: it runs on Linux.")
    repeats = 1 if options.quick else options.repeats
    whole = not (options.only or options.quick or len(options.tasks) < len(BARS))
    if whole and not (util.find_spec("torch") and (RELEASE / "algorithms").exists()):
        sys.exit("For results/speed.json, PyTorch and C-TRPO's release have to be there: docs/speed.md.")
    results, begun = {"machine": machine(), "repeats": repeats}, time.perf_counter()
    print(results["machine"])
    measure = {"sampling": lambda: measure_sampling(options.tasks, repeats, options.quick),
               "environment": lambda: measure_environment(options.tasks, repeats, options.quick),
               "update": lambda: measure_update(repeats, options.quick),
               "growth": lambda: measure_growth(options.quick),
               "epoch": lambda: measure_epochs(options.tasks, repeats, options.quick),
               "memory": lambda: measure_memory(options.quick)}
    for part in [options.only] if options.only else parts:
        print(f"{part}, after {time.perf_counter() - begun:.0f} s", flush=True)
        results[part] = measure[part]()
    if output := options.output or (ROOT / "results" / "speed.json" if whole else None):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")
    if whole:
        fill("speed.py", tables(results))


if __name__ == "__main__":
    main()
