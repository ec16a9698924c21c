# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Sampling is faster than with Safety Gymnasium as shipped, an update on one thread faster than PyTorch's:
results/speed.json, by `uv run studies/speed.py` (Linux, 40 minutes).

Every measurement has a process of its own and a warm-up, and takes turns with its competitors. Rates and
times are medians over repetitions, ratios the medians of the ratios within each repetition. The table goes
to the screen, and all values to results/speed.json; with --quick, --only or --tasks, only to --output.

sampling: environment steps a second, resets included
    ours      sbtrpo.collect: whole episodes of a fresh 64x64 policy in 2 workers, until the last has ended
    single    Safety Gymnasium as shipped: one environment in one process, whole episodes
    async     as shipped: safety_gymnasium.vector.make, a SafetyAsyncVectorEnv with 10 environments
    physics   mj_step times frame skip in one process, no resets: what one process could do at best
  A fresh policy acts like N(0, 0.6^2), clipped to [-1, 1]; the others are given such actions for nothing.

environment: steps per second of CPU, one environment in one process, whole episodes, resets included
    shipped   Safety Gymnasium 1.0.0 as it comes
    dropped   its textures dropped where nothing is rendered, which a line of regular expression does
    file      with fast_safety_gymnasium.py
  in mj_step: the share of `file` that is spent in MuJoCo's own simulation steps, measured inside; no way of
  running the same episodes can be faster than 1 / share. The file's other calls of MuJoCo are not in it.

update: seconds for 20,000 x 60 observations, 2 actions, 64x64 units, 15 Fisher products for each of two
  directions, and a line search, all with 1 thread as sbtrpo.py has it, and with 2
    ours          sbtrpo.update_policy
    torch         a product is a second backward pass through the gradient of the KL, built anew for each
                  product as in SafePO, OmniSafe and the release of C-TRPO
    torch, kept   the same, but the gradient of the KL is built once for all products
  Conjugate gradients, step and line search are the same code in all. `difference` compares the accepted
  step with ours, relative to its size. Where torch is not installed, only ours is measured.

epoch: seconds of a training epoch of ctrpo.py, 20,000 steps with 2 workers, rollout + update, after a first
  one. The bars are 1/5 and 1/7 of what the official release of C-TRPO took on two such cores, quiet.

memory: MiB of sbtrpo.py with 2 workers, 4 epochs of the default task, all its processes together: the
  largest sum of proportional set sizes (PSS; 20 looks a second), and the sum of the largest resident sets
"""

import argparse, csv, functools, json, math, multiprocessing, os, platform, re, subprocess, sys
import tempfile, time, unittest.mock
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata, util
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import numpy as np

import sbtrpo

BARS = {"SafetyCarCircle2-v0": 6.0, "SafetyPointGoal1-v0": 3.3, "SafetyPointGoal2-v0": 1.4,
        "SafetyPointButton2-v0": None, "SafetyHopperVelocity-v1": 2.3, "SafetySwimmerVelocity-v1": None}
EPOCH_BARS = {"SafetyHopperVelocity-v1": 13 / 5, "SafetyPointGoal1-v0": 33 / 5, "SafetyCarCircle2-v0": 48 / 7}
UPDATE_BAR, MEMORY_BAR = 2.0, 1024  # times as fast as PyTorch; MiB


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
    limit = longest(task)
    executor, warm_up = sbtrpo.collect(executor, config, actor, 0, 2 * limit)
    started = time.perf_counter()
    executor, episodes = sbtrpo.collect(executor, config, actor, len(warm_up), steps)
    elapsed = time.perf_counter() - started
    executor.shutdown()
    return sum(len(episode.rewards) for episode in episodes) / elapsed


def as_shipped():
    """Safety Gymnasium without fast_safety_gymnasium.py, which lies beside the scripts."""
    with unittest.mock.patch.object(util, "find_spec", lambda name: None):
        return sbtrpo.safety_gymnasium()


def drop_textures() -> None:
    """From every model that is compiled in this process."""
    import mujoco
    compile_model = mujoco.MjModel.from_xml_string
    pattern = re.compile(r'<texture\b[^>]*?(/>|></texture>)|\stexture="[^"]*"')
    mujoco.MjModel.from_xml_string = staticmethod(lambda xml: compile_model(pattern.sub("", xml)))


def sample_single(task: str, steps: int, textures: bool = True, file: bool = False) -> tuple:
    """Steps a second, steps a second of CPU, and, with the file, the share of the time in mj_step."""
    import mujoco
    package = sbtrpo.safety_gymnasium() if file else as_shipped()
    if not (textures or file):
        drop_textures()
    env, done, physics = package.make(task), 0, 0.0
    simulate = mujoco.mj_step

    def timed(*arguments, **options):
        nonlocal physics
        before = time.perf_counter()
        simulate(*arguments, **options)
        physics += time.perf_counter() - before

    if file:  # the others are not slowed down by a clock
        mujoco.mj_step = timed
    actions = like_ours(steps + longest(task), env.action_space)
    env.reset(seed=0)
    physics, started, started_cpu = 0.0, time.perf_counter(), time.process_time()
    while done < steps:
        env.reset()
        ended = truncated = False
        while not (ended or truncated):
            *_, ended, truncated, _ = env.step(actions[done])
            done += 1
    elapsed = time.perf_counter() - started
    return done / elapsed, done / (time.process_time() - started_cpu), physics / elapsed


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


def sample_physics(task: str, steps: int) -> float:
    import mujoco
    env = sbtrpo.make_env(task).unwrapped
    navigation = hasattr(env, "task")
    world, skip = (env.task, env.task.sim_conf.frameskip_binom_n) if navigation else (env, env.frame_skip)
    actions = like_ours(steps, env.action_space)
    started = time.perf_counter()
    for action in actions:
        world.data.ctrl[:] = action
        mujoco.mj_step(world.model, world.data, nstep=skip)
    return steps / (time.perf_counter() - started)


SAMPLERS = sample_ours, sample_single, sample_async, sample_physics


ENVIRONMENTS = {"shipped": (True, False), "dropped": (False, False), "file": (False, True)}  # textures, file


def measure_environment(tasks: list[str], repeats: int, quick: bool) -> dict:
    results = {}
    for task in tasks:
        steps = (2_000 if quick else 5_000) * (4 if "Velocity" in task else 1)
        runs = {name: [] for name in ENVIRONMENTS}
        for _ in range(repeats):
            for name, options in ENVIRONMENTS.items():
                runs[name].append(alone(sample_single, task, steps, *options))
        rates = {name: [rate for _, rate, _ in values] for name, values in runs.items()}
        over = {name: ratios(rates["file"], rates[name]) for name in ("shipped", "dropped")}
        share = median(share for *_, share in runs["file"])
        results[task] = {"steps_per_cpu_second": rates, "file_over": over, "in_mj_step": share}
        medians = "".join(f"{median(values):10,.0f}" for values in rates.values())
        quotients = "".join(f"  {ratio:5.2f} ({low:.2f}-{high:.2f})" for ratio, low, high in over.values())
        print(f"{task:26}{medians}{quotients}  in mj_step {share:.0%}", flush=True)
    return results


def measure_sampling(tasks: list[str], repeats: int, quick: bool) -> dict:
    results = {}
    for task in tasks:
        steps = (2_000 if quick else 6_000) * (4 if "Velocity" in task else 1)
        rates = {sampler.__name__[7:]: [] for sampler in SAMPLERS}
        for _ in range(repeats):
            for sampler in SAMPLERS:
                several = 4 * steps if sampler is sample_ours else steps  # about as long as the others take
                rate = alone(sampler, task, several)
                rates[sampler.__name__[7:]].append(rate[0] if sampler is sample_single else rate)
        against = {name: ratios(rates["ours"], rates[name]) for name in ("single", "async", "physics")}
        results[task] = {"steps_per_second": rates, "ours_over": against, "bar_async": BARS[task]}
        medians = "".join(f"{median(values):10,.0f}" for values in rates.values())
        quotients = "".join(f"  {ratio:5.2f} ({low:.2f}-{high:.2f})" for ratio, low, high in against.values())
        bar = f"  bar {BARS[task]}: {verdict(against['async'][0] >= BARS[task])}" if BARS[task] else ""
        print(f"{task:26}{medians}{quotients}{bar}", flush=True)
    return results


# the update
def problem(precision: int) -> tuple:
    """Arguments of sbtrpo.update_policy; advantages depend on the actions, as they do in training."""
    rng, sizes = np.random.default_rng(0), (60, 64, 64, 2)
    config = sbtrpo.Config(cg_iterations=15)
    policy = sbtrpo.Policy(sizes, discrete=False)
    theta = sbtrpo.initial_parameters(sizes, np.full(2, math.log(config.initial_std)), rng)
    observations = rng.standard_normal((20_000, 60)).astype(f"float{precision}")
    mean, log_std = np.split(sbtrpo.distributions(policy, theta, observations), 2, axis=1)
    actions = (mean + np.exp(log_std) * rng.standard_normal(mean.shape)).astype(observations.dtype)
    reward, cost = (actions * observations[:, :2]).T.astype(float) + rng.standard_normal((2, 20_000))
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
    """Median seconds of an update after a first one; trials of the line search; difference of the steps."""
    if update is not sbtrpo.update_policy:
        import torch
        torch.set_num_threads(threads)
    arguments, seconds = problem(precision), []
    for _ in range(times + 1):
        started = time.perf_counter()
        theta, info = update(*arguments)
        seconds.append(time.perf_counter() - started)
    expected = sbtrpo.update_policy(*arguments)[0]
    difference = np.linalg.norm(theta - expected) / np.linalg.norm(expected - arguments[2])
    return {"seconds": median(seconds[1:]), "trials": info["trials"], "difference": float(difference)}


def measure_update(repeats: int, quick: bool) -> dict:
    updates, results = {"ours": sbtrpo.update_policy}, {}
    if util.find_spec("torch"):
        updates |= {"torch": update_torch, "torch, kept": functools.partial(update_torch, keep=True)}
    else:
        print("torch is not installed: `uv run --with torch==2.13.0 studies/speed.py` measures it too")
    for precision in (32, 64):
        runs = {(name, threads): [] for name in updates for threads in (1, 2)}
        for _ in range(repeats):
            for name, threads in runs:
                runs[name, threads].append(alone(time_update, updates[name], precision, threads,
                                                 1 if quick else 3, OPENBLAS_NUM_THREADS=str(threads)))
        seconds = {key: [run["seconds"] for run in run_list] for key, run_list in runs.items()}
        for (name, threads), (run, *_) in runs.items():
            times, label = seconds[name, threads], f"float{precision}, {name}, {threads} thread"
            middle, low, high = against = ratios(times, seconds["ours", 1])
            results[label] = {**run, "seconds": times, "over_ours_1_thread": against}
            bar = f"  bar {UPDATE_BAR}: {verdict(middle >= UPDATE_BAR)}" if name == "torch" else ""
            print(f"{label:32}{median(times):7.3f} s{middle:7.2f} ({low:.2f}-{high:.2f}), "
                  f"{run['trials']} trials, difference {run['difference']:.0e}{bar}", flush=True)
    return results


# a training epoch
def measure_epochs(repeats: int) -> dict:
    results = {}
    for task, bar in EPOCH_BARS.items():
        with tempfile.TemporaryDirectory() as folder:
            steps = 20_000 * (repeats + 1)
            command = [sys.executable, ROOT / "ctrpo.py", "--task", task, "--workers", "2",
                       "--batch-steps", "20000", "--total-steps", str(steps)]
            subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
            [file] = Path(folder).glob("runs/*/*/*/*/progress.csv")
            with open(file, newline="") as lines:
                rows = list(csv.DictReader(lines))[1:]
        names = ("Total", "Rollout", "Update")
        times = {name: [float(row[f"Time/{name}"]) for row in rows] for name in names}
        total, rollout, update = (median(values) for values in times.values())
        results[task] = {"seconds": times, "bar": bar}
        print(f"{task:26}{total:7.2f} s = rollout {rollout:.2f} + update {update:.2f}"
              f"  bar {bar:.1f}: {verdict(total <= bar)}", flush=True)
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


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    names = ("safety-gymnasium", "gymnasium", "mujoco", "numpy", "autograd", "torch")
    versions = {name: metadata.version(name) for name in names if util.find_spec(name.replace("-", "_"))}
    return {"cpu": model, "cores": os.cpu_count(), "load_before": os.getloadavg()[0],
            "system": platform.system(), "python": platform.python_version(), **versions}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parts = "sampling", "environment", "update", "epoch", "memory"
    parser.add_argument("--only", choices=parts, help="just this")
    parser.add_argument("--tasks", nargs="+", choices=BARS, default=list(BARS), metavar="TASK",
                        help="to sample: " + ", ".join(BARS))
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement (default 5)")
    parser.add_argument("--quick", action="store_true", help="one repetition, half as many steps")
    parser.add_argument("--output", type=Path, help="JSON (default results/speed.json, if all is measured)")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if sys.platform != "linux":
        sys.exit("speed.py reads /proc and needs processes that fork: it runs on Linux.")
    repeats = 1 if options.quick else options.repeats
    whole = not (options.only or options.quick or len(options.tasks) < len(BARS))
    results = {"machine": machine(), "repeats": repeats}
    print(results["machine"])
    if options.only in (None, "sampling"):
        print("steps a second".ljust(26) + "".join(f"{sampler.__name__[7:]:>10}" for sampler in SAMPLERS)
              + "  ours over single, async, physics (range)")
        results["sampling"] = measure_sampling(options.tasks, repeats, options.quick)
    if options.only in (None, "environment"):
        print("steps a CPU second".ljust(26) + "".join(f"{name:>10}" for name in ENVIRONMENTS)
              + "  file over shipped, dropped (range)")
        results["environment"] = measure_environment(options.tasks, repeats, options.quick)
    if options.only in (None, "update"):
        print("update: seconds, times ours with 1 thread (range)")
        results["update"] = measure_update(repeats, options.quick)
    if options.only in (None, "epoch"):
        print("epoch of ctrpo.py: median")
        results["epoch"] = measure_epochs(repeats)
    if options.only in (None, "memory"):
        results["memory"] = measure_memory(options.quick)
    if output := options.output or (ROOT / "results" / "speed.json" if whole else None):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
