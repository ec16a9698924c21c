"""What stands between the closed forms and a trained policy: episodes, normalisation, advantages,
critics, units, the update from a batch. Part of `uv run test_updates.py`.

The three scripts train as users start them, in this process: once on the grid, where they learn,
and once on a course with Gaussian actions, awkward units and both ways to end. What `train` hands
on is recorded, and each test computes it anew from the episodes. `tests/mutants.py` shows that
these tests see mistakes.
"""

import contextlib, csv, dataclasses, inspect, io, math, os, subprocess, sys
from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import autograd.numpy as anp
import gymnasium
import numpy as np
import pytest

import ctrpo
import sbtrpo
import strpo
from conftest import check, slow
from problems import exclusion_vectors, first_order, joint_advantage, n_step_advantages
from tabular_cmdp import garnet, log_policy, two_state

SCRIPTS = [sbtrpo, ctrpo, strpo]
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)

# -------------------------------------- what knows the options, signatures and files of the scripts

GRID = [
    "--task=tabular_cmdp:HazardGrid-v0",
    "--hidden=8",
    "--batch-steps=2000",
    "--total-steps=30000",
]
COURSE = [
    "--task=Course-v0",
    "--hidden=8",
    "--batch-steps=150",
    "--total-steps=1800",
    "--discount=0.8",
    "--gae-lambda=0.7",
    "--initial-std=0.5",
    "--cost-limit=1.9",
]
PID = (2.0, 0.5, 0.1)
PID_OPTIONS = ["--pid", *map(str, PID)]
OPTIONS = {
    (sbtrpo, "grid"): [*GRID, "--discount=1", "--delta=.03", "--beta=.5"],
    (ctrpo, "grid"): [*GRID, "--discount=.999", "--delta=.03", "--cost-limit=.3"],
    (strpo, "grid"): [
        *GRID,
        "--discount=1",
        "--delta-1=.03",
        "--cost-limit=.3",
        "--unsafe-steps=10000",
        *PID_OPTIONS,
    ],
    (sbtrpo, "course"): [
        *COURSE,
        "--advantage=gae",
        "--batch-growth=2",
        "--delta=.03",
        "--total-steps=3600",
    ],
    (ctrpo, "course"): [*COURSE, "--hysteresis=.7", "--total-steps=4500"],
    (ctrpo, "window"): [*COURSE, "--hysteresis=.7", "--total-steps=3600", "--cost-window=30"],
    (ctrpo, "release"): [
        *COURSE,
        "--hysteresis=.7",
        "--beta=.5",
        "--damping=.01",
        "--official-units=1",
        "--total-steps=3600",
    ],
    (strpo, "course"): [*COURSE, "--unsafe-steps=600", *PID_OPTIONS],
}
RECORDED = (
    "collect",
    "run_episode",
    "make_batch",
    "fit_critic",
    "estimate_advantages",
    "cvar_advantages",
    "unsafe_advantages",
    "pid_multiplier",
    "update_policy",
)


WARM_UP, ROLLOUTS = 2**41, 2**40  # where the indices of such episodes begin


def record(script, patch) -> list:
    """The calls of the functions above from now on, in the order in which they end: name, arguments
    by the name of their parameter, and what is returned."""
    events = []

    def recording(name: str, original):
        signature = inspect.signature(original)

        def call(*arguments, **options):
            returned, bound = original(*arguments, **options), signature.bind(*arguments, **options)
            bound.apply_defaults()
            events.append(SimpleNamespace(name=name, returned=returned, **bound.arguments))
            return returned

        return call

    for name in RECORDED:
        if hasattr(script, name):
            patch.setattr(script, name, recording(name, getattr(script, name)))
    return events


def epochs_of(events: list) -> list:
    """One record an epoch: what was collected and estimated in it and handed to its update."""
    epochs, since = [], []
    for event in events:
        since.append(event)
        if event.name != "update_policy":
            continue
        last = {each.name: each for each in since}
        estimate = last["estimate_advantages"]
        fits = [e for e in since if e.name == "fit_critic"]
        critics = last.get("unsafe_advantages", estimate).returned[-1]  # which are fitted
        signals = "reward_advantages", "cost_advantages", "advantages"
        epochs.append(
            SimpleNamespace(
                update=event,
                config=event.config,
                policy=event.policy,
                theta=event.theta,
                observations=event.observations,
                actions=event.actions,
                pid=last.get("pid_multiplier"),
                advantages=[getattr(event, name) for name in signals if hasattr(event, name)],
                actor=last["collect"].actor,
                size=last["collect"].size,
                episodes=last["make_batch"].episodes,
                batch=last["make_batch"].returned,
                inputs=estimate.batch.inputs,
                state=estimate.state,
                warm_ups=[e for e in since if e.name == "collect" and e.first == WARM_UP],
                estimate=estimate,
                cvar=last.get("cvar_advantages"),
                fits=fits,
                learned={name: e.returned for name, e in zip(critics, fits)},
                stage=getattr(event.config, "stage", "safe"),
            )
        )
        since = []
    return epochs


def network_values(critic: np.ndarray, sizes: tuple, inputs: np.ndarray) -> np.ndarray:
    """Outputs of a network of one hidden layer, computed by hand."""
    n, hidden, outputs = sizes
    W, b, V, c = np.split(critic, np.cumsum([n * hidden, hidden, hidden * outputs]))
    return np.tanh(inputs @ W.reshape(n, hidden) + b) @ V.reshape(hidden, outputs) + c


class Run(SimpleNamespace):
    """A finished run: script, folder, events, epochs of the (second) stage, rows of its log, what
    it said."""


def shaken(initial_state):
    """Initial weights so large that actions depend on observations, of means 0 and -.4 where these
    are 0; the log std stays."""

    def state(config):
        found = initial_state(config)
        if not found["discrete"]:
            n, hidden, outputs = found["sizes"]
            noise = np.random.default_rng(1).normal(size=len(found["theta"]))
            theta = found["theta"] + 0.8 * np.append(noise[:-outputs], np.zeros(outputs))
            theta[-2 * outputs : -outputs] = 0
            middle = network_values(theta[:-outputs], (n, hidden, outputs), np.zeros((1, n)))
            theta[-2 * outputs : -outputs] = [0, -0.4] - middle[0]
            found["theta"] = theta
        return found

    return state


class AtOnce(Executor):
    """Calls functions as they are submitted, so that what is recorded has one order."""

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


def start(script, folder: Path, arguments: list) -> tuple:
    """`main` in this process, with this folder as the current one: what was recorded and said."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.chdir(folder)
        patch.setattr(script, "make_executor", lambda config: AtOnce())
        patch.setattr(script, "initial_state", shaken(script.initial_state))
        events = record(script, patch)
        assert script.main(arguments) == 0
    return events, said.getvalue()


def run(script, world: str, folder: Path, *more: str) -> Run:
    """Trains in this process, by `main`, in a folder of its own."""
    events, said = start(script, folder, [*OPTIONS[script, world], *more])
    (found,) = folder.glob("runs/*/*/*/seed-*")
    rows = list(csv.DictReader((found / "progress.csv").open()))
    epochs = [epoch for epoch in epochs_of(events) if epoch.stage == "safe"]
    return Run(script=script, folder=found, events=events, epochs=epochs, rows=rows, said=said)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """(script, world) -> its run, made when it is first asked for."""
    made = {}

    def get(script, world: str) -> Run:
        if (script, world) not in made:
            folder = tmp_path_factory.mktemp(f"{script.__name__}-{world}")
            made[script, world] = run(script, world, folder)
        return made[script, world]

    return get


# ----------------------------------------------------------------------- a world with awkward units


class Course(gymnasium.Env):
    """A point x driven by the first action, with noise. Ends where |x| > 2.5, else is truncated
    after 4 to 14 steps. Observations: x far from 0, noise in thousandths, a level drawn at reset,
    and a constant. Reward -x^2; a step costs 1 where the second action, in the units of its bounds,
    is above 5."""

    observation_space = gymnasium.spaces.Box(-math.inf, math.inf, (4,))
    action_space = gymnasium.spaces.Box(
        np.array([-1.0, 0.0]), np.array([3.0, 10.0]), dtype=np.float64
    )
    received = []

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.level = self.np_random.normal(size=2)
        self.left = self.np_random.integers(4, 15)
        return self.observe(), {}

    def observe(self):
        return np.array([100 + 5 * self.x, 2e-3 * self.np_random.normal(), self.level, 7.0])

    def step(self, action):
        Course.received.append(np.array(action))
        self.x += 0.4 * (action[0] - 1) + 0.3 * self.np_random.normal()
        self.left -= 1
        ended = bool(abs(self.x) > 2.5)
        cost = float(action[1] > 5)
        return self.observe(), -(self.x**2), ended, not ended and self.left == 0, {"cost": cost}


gymnasium.register("Course-v0", Course)

# ----------------------------------------------------------------------------------------- learning


@each_script
def test_training_on_samples_ends_safe_and_productive(script, runs):
    """30,000 steps on the grid with a hidden layer of 8: at the start a random walk, cost 2.4 and
    return .07 per episode; the mean of the last three epochs. SB-TRPO has budget 0, the others
    .3."""
    rows = runs(script, "grid").rows
    cost, reward = ([float(row[f"Metrics/{name}"]) for row in rows] for name in ("EpCost", "EpRet"))
    check("learning on the grid, control: cost at the start", cost[0], at_least=1.5)
    check("learning on the grid: cost at the end", np.mean(cost[-3:]), at_most=0.3)
    check(
        "learning on the grid: return at the end over the start",
        np.mean(reward[-3:]) / reward[0],
        at_least=1.5,
    )


def test_first_stage_ends_more_unsafe_than_chance(runs):
    """The unsafe policy costs far more per episode than a random walk, 2.4."""
    cost = float(runs(strpo, "grid").rows[0]["Misc/unsafe_cost"])
    check("sTRPO, first stage on the grid: cost of the unsafe policy", cost, at_least=4)


# ------------------------------------------------------------------------------------ who sees what


@each_script
def test_actions_are_drawn_from_the_distributions_that_the_update_sees(script, runs):
    """Gaussian actions, standardised by the distributions of the update's own observations: mean 0
    and variance 1, 5 sigma; those of different steps are not correlated, nor ever equal. Control:
    the same with the observations of the step before."""
    z, late = [], []
    for epoch in runs(script, "course").epochs[1:]:
        mean, log_std = np.split(
            script.distributions(epoch.policy, epoch.theta, epoch.observations), 2, axis=1
        )
        z.append((epoch.actions - mean) / np.exp(log_std))
        late.append((epoch.actions - np.roll(mean, 1, axis=0)) / np.exp(log_std))
    z, late = np.concatenate(z), np.concatenate(late)
    n = z.size

    def sigmas(z):
        after = np.mean(z[1:] * z[:-1]) * math.sqrt(n)
        between = np.mean(z[:, 0] * z[:, 1]) * math.sqrt(len(z))
        return [
            abs(z.mean()) * math.sqrt(n),
            abs((z**2).mean() - 1) * math.sqrt(n / 2),
            abs(after),
            abs(between),
        ]

    check("actions, standardised: mean, variance, correlations [sigma]", max(sigmas(z)), at_most=5)
    assert len(np.unique(z)) > 0.99 * n  # but for rounding
    check("  control: observations of the step before [sigma]", max(sigmas(late)), at_least=7)


@each_script
def test_indices_are_drawn_with_the_probabilities_that_the_update_sees(script, runs):
    """How often each of five actions is taken on the grid, against the sum of its probabilities: 5
    sigma, in the last epochs, where they are far from equal. Control: probabilities of the step
    before."""
    found, control = [], []
    for epoch in runs(script, "grid").epochs[-5:]:
        seen = np.exp(script.distributions(epoch.policy, epoch.theta, epoch.observations)).astype(
            float
        )
        for sigmas, p in ((found, seen), (control, np.roll(seen, 1, axis=0))):
            hits = np.eye(5)[epoch.actions] - p
            informed = hits * (p - p.mean(axis=0))  # correlates what was taken with what was likely
            sigmas += [
                *np.abs(hits.sum(0) / np.sqrt((p * (1 - p)).sum(0) + 1e-9)),
                *np.abs(informed.sum(0) / np.sqrt((informed**2).sum(0) + 1e-9)),
            ]
    check("indices: how often against how likely [sigma]", max(found), at_most=5)
    check("  control: probabilities of the step before [sigma]", max(control), at_least=8)


@each_script
def test_the_update_sees_each_action_with_its_normalised_observation(script, runs):
    """(o - mean) / std of the actor that acted, clipped at 10, of all observations but the last of
    an episode; the actions are those of the episodes, in order."""
    for world in ("course", "grid"):
        for epoch in runs(script, world).epochs:
            actor = epoch.actor
            acted = np.concatenate([episode.observations[:-1] for episode in epoch.episodes])
            every = np.concatenate([episode.observations for episode in epoch.episodes])
            for seen, raw in ((epoch.observations, acted), (epoch.inputs, every)):
                expected = np.clip((raw - actor.mean) / actor.std, -10, 10)
                assert np.allclose(seen, expected, rtol=1e-5, atol=1e-5)
            actions = np.concatenate([episode.actions for episode in epoch.episodes])
            assert np.allclose(epoch.actions, actions, rtol=1e-6)
            assert np.array_equal(epoch.theta, actor.theta)


def joined(episodes: list) -> np.ndarray:
    return np.concatenate([episode.observations for episode in episodes])


@each_script
def test_observations_are_scaled_by_the_moments_of_all_before(script, runs):
    """Mean and std of an epoch are those of the warm-up and of all epochs before; the std of a
    constant counts as 1e-3. Control: those of the epoch before alone."""
    for world in ("course", "grid"):
        epochs, control = runs(script, world).epochs, []
        (warm_up,) = epochs[0].warm_ups
        raw = [joined(warm_up.returned[1])]
        for epoch in epochs:
            before = np.concatenate(raw)
            mean, std = before.mean(axis=0), np.maximum(before.std(axis=0), 1e-3)
            gaps = [(epoch.actor.mean - mean) / std, epoch.actor.std / std - 1]
            check("moments - of all before [std]", np.abs(gaps).max(), at_most=1e-9)
            control.append(np.abs((raw[-1].mean(axis=0) - mean) / std).max())
            raw.append(joined(epoch.episodes))
        check("  control: mean of the epoch before alone [std]", max(control), at_least=0.05)


@each_script
def test_a_warm_up_batch_teaches_scale_and_nothing_else(script, runs):
    """Before the first epoch, of --batch-steps steps, by the first policy on observations as they
    are; each stage of sTRPO has its own. The first epoch begins with the parameters of before, and
    with episode 0 and step 0; its episodes are others."""
    found = runs(script, "course")
    all_epochs = epochs_of(found.events)
    first = [epoch for epoch in all_epochs if epoch.state["epoch"] == 0]
    assert len(first) == (2 if script is strpo else 1)
    assert [len(epoch.warm_ups) for epoch in all_epochs] == [
        int(epoch.state["epoch"] == 0) for epoch in all_epochs
    ]
    for epoch in first:
        (warm_up,) = epoch.warm_ups
        lengths = [len(episode.costs) for episode in warm_up.returned[1]]
        assert warm_up.size == epoch.config.batch_steps == 150
        assert sum(lengths[:-1]) < 150 <= sum(lengths)
        assert not warm_up.actor.mean.any() and (warm_up.actor.std == 1).all()
        start = shaken(script.initial_state)(epoch.config)["theta"]
        assert np.array_equal(epoch.theta, start) and np.array_equal(warm_up.actor.theta, start)
        assert epoch.state["steps"] == epoch.state["next_episode"] == 0
        one, other = (
            {episode.observations[0, 0] for episode in episodes}
            for episodes in (warm_up.returned[1], epoch.episodes)
        )
        assert not one & other


@each_script
def test_a_new_scale_moves_neither_policy_nor_critics(script, runs):
    """From an epoch to the next, mean and std move; policy and critics stay the functions of raw
    observations that the update and the fit have made, but where observations are clipped. Control:
    the same parameters under the new mean and std."""
    kept, moved = [], []
    epochs = epochs_of(runs(script, "course").events)
    for epoch, after in zip(epochs, epochs[1:]):
        if after.stage != epoch.stage:
            continue
        raw = joined(epoch.episodes)
        old, new = (each.actor.normalise(raw) for each in (epoch, after))
        inside = (np.abs([old, new]) < 10).all(axis=(0, 2))
        assert inside.mean() > 0.9
        old, new, sizes = old[inside], new[inside], epoch.policy.sizes
        learned = {"theta": epoch.update.returned[0]} | epoch.learned
        for name, parameters in learned.items():
            width = (len(parameters) - (sizes[0] + 1) * sizes[1]) // (sizes[1] + 1)
            if name == "theta":
                width = sizes[-1]
                assert np.array_equal(parameters[-width:], after.theta[-width:])  # log std
            weights = (sizes[0] + 1) * sizes[1] + (sizes[1] + 1) * width
            said, says, would = (
                network_values(each[:weights], (*sizes[:-1], width), inputs)
                for each, inputs in ((parameters, old), (after.state[name], new), (parameters, new))
            )
            kept.append(np.abs(says - said).max())
            moved.append(np.abs(would - said).max())
    check("policy and critics under a new scale: change", max(kept), at_most=1e-9)
    check("  control: the same parameters", max(moved), at_least=0.02)


@each_script
def test_weights_of_an_input_that_was_constant_do_not_grow(script):
    """A lidar that saw no hazard, a flag that was never set: when it varies first, its weights stay, and
    so does the policy where it was constant. Control: the weights of an input that varied before, by a
    tenth of the new std, grow tenfold, for the policy stays everywhere."""
    state = script.initial_state(script.Config(task="Course-v0", hidden=(8,)))
    rng, rows = np.random.default_rng(0), 4000
    early = rng.normal(size=(rows, 4)) * [1, 1, 0.1, 0] + 3
    late = rng.normal(size=(100 * rows, 4)) + 3
    late[: len(late) // 2, 3] = 3  # constant for half of the time
    state = script.with_moments(state, early)
    batch = SimpleNamespace(raw=late, cost=np.zeros(1), lengths=np.ones(1, int))
    after = script.advance(state, batch, state["theta"], {}, 0.0)
    growth = after["theta"][:32].reshape(4, 8) / state["theta"][:32].reshape(4, 8)
    check("weights of an input that was constant: change", np.abs(growth[3] - 1).max(), at_most=1e-12)
    check("  control: of one that varied by a tenth, factor", growth[2].min(), at_least=9)

    old, new = (script.make_actor(each) for each in (state, after))
    sizes = old.policy.sizes
    inside = early[(np.abs([old.normalise(early), new.normalise(early)]) < 10).all(axis=(0, 2))]
    assert len(inside) > 0.9 * rows
    said, says = (
        network_values(each.theta[: -sizes[-1]], sizes, each.normalise(inside)) for each in (old, new)
    )
    check("  policy where it was constant: change", np.abs(says - said).max(), at_most=1e-9)


def test_normalised_observations_are_clipped_at_ten():
    """Also those beyond, in what an actor sees; between, nothing is changed."""
    state = sbtrpo.initial_state(sbtrpo.Config(task="Course-v0", hidden=(8,)))
    actor = sbtrpo.make_actor(state)._replace(mean=np.full(4, 3.0), std=np.full(4, 2.0))
    seen = actor.normalise(np.array([3.0, -1e9, 1e9, 22.0]))
    assert np.allclose(seen, [0, -10, 10, 9.5])


@each_script
def test_a_first_policy_is_nearly_the_same_everywhere(script):
    """Of every seed another: means within .1 of 0, std --initial-std, at observations of order 1.
    Critics say 0, each with hidden layers of its own."""
    thetas = []
    for seed in range(3):
        config = script.Config(task="Course-v0", seed=seed, initial_std=0.3, hidden=(64,))
        state = script.initial_state(config)
        actor = script.make_actor(state)
        observations = np.random.default_rng(0).normal(size=(100, 4))
        mean, log_std = np.split(
            script.distributions(actor.policy, actor.theta, observations), 2, axis=1
        )
        assert 0 < np.abs(mean).max() < 0.1 and np.allclose(np.exp(log_std), 0.3)
        critics = [state[f"{name}_critic"] for name in script.CRITIC_OUTPUTS]
        for critic, width in zip(critics, script.CRITIC_OUTPUTS.values()):
            assert not network_values(critic, (4, 64, width), observations).any()
            assert np.std(critic[: 4 * 64]) > 0.1  # what is 0 everywhere would never learn
        assert not np.allclose(critics[0], critics[1])
        thetas.append(state["theta"])
    assert not np.allclose(thetas[0], thetas[1]) and not np.allclose(thetas[1], thetas[2])


# ----------------------------------------------------------------------------------------- episodes


def test_actions_reach_the_bounds_of_a_box():
    """-1 is the lower bound, 1 the upper one, and what is beyond is clipped; in an episode, too."""
    env = sbtrpo.make_env("Course-v0")
    for action, bounded in (
        ([-1.0, 1.0], [-1, 10]),
        ([0.0, 0.0], [1, 5]),
        ([-0.5, 9.0], [0, 10]),
        ([7.0, -7.0], [3, 0]),
    ):
        env.reset(seed=0)
        sbtrpo.env_step(env, np.array(action))
        assert np.allclose(Course.received[-1], bounded)
    actor = sbtrpo.make_actor(
        sbtrpo.initial_state(sbtrpo.Config(task="Course-v0", initial_std=2.0))
    )
    episode, n = sbtrpo.run_episode("Course-v0", 0, 0, actor), len(Course.received)
    expected = np.array([-1, 0]) + (episode.actions.clip(-1, 1) + 1) / 2 * np.array([4, 10])
    assert np.allclose(Course.received[n - len(expected) :], expected)
    assert np.abs(episode.actions).max() > 1  # control: what is kept is not clipped


def test_an_episode_is_what_its_environment_said():
    """Rewards and costs recomputed from observations and actions received; T + 1 observations;
    terminated beyond 2.5, else truncated. Both occur."""
    actor = sbtrpo.make_actor(
        sbtrpo.initial_state(sbtrpo.Config(task="Course-v0", initial_std=2.0))
    )
    ends = set()
    for index in range(20):
        n, episode = len(Course.received), sbtrpo.run_episode("Course-v0", 3, index, actor)
        x, received = (episode.observations[:, 0] - 100) / 5, np.array(Course.received[n:])
        assert len(received) == len(episode.actions) == len(x) - 1 == len(episode.costs)
        assert np.allclose(episode.rewards, -(x[1:] ** 2))
        assert np.array_equal(episode.costs, received[:, 1] > 5)
        assert (np.abs(x[:-1]) <= 2.5).all() and episode.terminated == (abs(x[-1]) > 2.5)
        ends.add(episode.terminated)
    assert ends == {True, False}


@each_script
def test_no_episode_is_played_twice(script, runs):
    """Over all epochs: no two first observations are equal, nor are the draws behind two first
    actions; another --seed gives others."""
    epochs, draws = runs(script, "course").epochs, []
    episodes = [episode for epoch in epochs for episode in epoch.episodes]
    config, actor = epochs[0].config, epochs[0].actor
    other = script.run_episode(config.task, config.seed + 1, 0, actor)
    first = [episode.observations[0, 0] for episode in [*episodes, other]]
    assert len(set(first)) == len(episodes) + 1
    for epoch in epochs:
        starts = np.cumsum([0, *(len(episode.actions) for episode in epoch.episodes[:-1])])
        seen = epoch.observations[starts]
        mean, log_std = np.split(script.distributions(epoch.policy, epoch.theta, seen), 2, axis=1)
        draws += ((epoch.actions[starts] - mean) / np.exp(log_std))[:, 0].tolist()
    assert len(set(np.round(draws, 4))) > 0.9 * len(episodes)


@each_script
def test_a_batch_is_the_first_episodes_that_reach_its_size(script, runs):
    """In the order of their indices, which go on from epoch to epoch; without the last one, the
    size is not reached. With --batch-growth g, it is batch_steps times g to the share of the
    training that is done."""
    for world in ("course", "grid"):
        found = runs(script, world)
        index = {
            id(event.returned): event.index for event in found.events if event.name == "run_episode"
        }
        following, steps = 0, 0
        for epoch in found.epochs:
            config, lengths = epoch.config, [len(episode.rewards) for episode in epoch.episodes]
            growth = getattr(config, "batch_growth", 1.0)
            assert epoch.size == round(config.batch_steps * growth ** (steps / 1e6))
            assert sum(lengths[:-1]) < epoch.size <= sum(lengths) == len(epoch.actions)
            kept = [index[id(episode)] for episode in epoch.episodes]
            assert kept == list(range(following, following + len(kept)))
            following, steps = following + len(lengths), steps + sum(lengths)
        assert steps >= config.total_steps > steps - sum(lengths)


@each_script
def test_hardly_an_episode_is_played_that_no_batch_needs(script, runs):
    """Where they have some ten steps on average, and the first one may have two. What is planned is
    told the mean length of the episodes in the batch before, be it the warm-up."""
    played = used = usual = 0
    for event in runs(script, "grid").events:
        if event.name == "run_episode":
            played += len(event.returned.costs)
        elif event.name == "collect":
            steps = sum(len(episode.costs) for episode in event.returned[1])
            used += steps
            if event.first < ROLLOUTS:
                assert event.usual == pytest.approx(usual)
            if not ROLLOUTS <= event.first < WARM_UP:
                usual = steps / len(event.returned[1])
    check("short episodes: steps played over steps of batches", played / used, at_most=1.1)


@each_script
def test_long_episodes_are_planned_as_those_before_them(script, monkeypatch):
    """For 10,000 steps two of 5,000. Control: ten, where nothing is known of those before."""
    played = []

    def run_episode(task, seed, index, actor, costs):
        played.append(index)
        return SimpleNamespace(costs=np.zeros(5000))

    monkeypatch.setattr(script, "run_episode", run_episode)
    for usual, expected in ((5000, [3, 4]), (1000, list(range(3, 13)))):
        played.clear()
        _, episodes = script.collect(AtOnce(), script.Config(), None, 3, 10_000, usual)
        assert len(episodes) == 2 and played == expected


@pytest.mark.parametrize(
    "script, world, more",
    [(sbtrpo, "course", ["--batch-growth=1"]), (ctrpo, "window", []), (strpo, "course", [])],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_resumed_run_goes_on_where_it_stood(script, world, more, tmp_path):
    """450 steps and 450 more are 900 steps, in all that is logged but time; the second half does
    not warm up. Control: its rows are not those of the first."""
    rows = {}
    for steps in ("900", "450"):
        (folder := tmp_path / steps).mkdir()
        found = run(script, world, folder, *more, f"--total-steps={steps}")
        rows[steps] = found.rows
    events, _ = start(script, folder, ["--resume", str(found.folder), "--total-steps=900"])
    assert not any(event.name == "collect" and event.first == WARM_UP for event in events)
    resumed = list(csv.DictReader((found.folder / "progress.csv").open()))
    whole, halves = (
        [{name: row[name] for name in row if not name.startswith("Time/")} for row in each]
        for each in (rows["900"], resumed)
    )
    assert whole == halves and len(whole) > len(rows["450"]) >= 3
    assert whole[-1]["Metrics/EpRet"] != rows["450"][-1]["Metrics/EpRet"]


# --------------------------------------------------------------------------- advantages and critics


CRITICS = "reward_critic", "cost_critic"


def signals(epoch) -> list:
    return [[getattr(episode, name) for episode in epoch.episodes] for name in ("rewards", "costs")]


def gae(epoch, k: int, values: np.ndarray | None = None, gae_lambda: float | None = None) -> tuple:
    """Generalised advantages of reward (k = 0) or cost, by their definition, and the values of the
    steps."""
    if values is None:
        sizes = (*epoch.policy.sizes[:-1], 1)
        critic = epoch.state[CRITICS[k]]
        values = network_values(critic, sizes, epoch.inputs)[:, 0]
    gae_lambda = epoch.config.gae_lambda if gae_lambda is None else gae_lambda
    ends = np.cumsum([len(episode.observations) for episode in epoch.episodes])
    parts = [
        n_step_advantages(signal, value, episode.terminated, epoch.config.discount, gae_lambda)
        for signal, value, episode in zip(signals(epoch)[k], np.split(values, ends), epoch.episodes)
    ]
    return np.concatenate(parts), np.delete(values, ends - 1)


def centred(A: np.ndarray) -> np.ndarray:
    return A - A.mean()


def scores(A: np.ndarray) -> np.ndarray:
    return (A - A.mean()) / A.std()


def steps_per_episode(epoch) -> float:
    return float(np.mean([len(episode.rewards) for episode in epoch.episodes]))


def difference(found, expected) -> float:
    """Largest difference, in units of the root mean square of what is expected."""
    return float(np.abs(found - expected).max() / np.sqrt(np.mean(np.square(expected))))


@each_script
def test_updates_are_handed_generalised_advantages_in_their_units(script, runs):
    """On the course, with lambda .7 and discount .8, by the definition of GAE with the critics of
    before: the last value counts if an episode was truncated. They are less their means; C-TRPO:
    costs times the steps of an episode; sTRPO: z_r - lambda z_c. Control: reward and cost
    exchanged."""
    ends = set()
    for epoch in runs(script, "course").epochs[1:]:
        (reward, _), (cost, _) = gae(epoch, 0), gae(epoch, 1)
        if script is sbtrpo:
            expected = [reward - reward.mean(), cost - cost.mean()]
        elif script is ctrpo:
            expected = [reward - reward.mean(), (cost - cost.mean()) * steps_per_episode(epoch)]
        else:
            expected = [scores(reward) - epoch.pid.returned[0] * scores(cost)]
        for found, right, wrong in zip(epoch.advantages, expected, [cost, reward]):
            check("advantages of the update - GAE [rms]", difference(found, right), at_most=1e-3)
            check("  control: the other signal [rms]", difference(found, wrong), at_least=0.5)
        ends |= {episode.terminated for episode in epoch.episodes}
    assert ends == {True, False}


def returns_and_baselines(episodes: list, name: str, discount: float) -> tuple:
    """Discounted returns to go; those less the mean of the others at equal time, 0 where there is
    none; and those less the mean of all."""
    returns = []
    for episode in episodes:
        y = 0.0
        back = [y := each + discount * y for each in getattr(episode, name)[::-1]]
        returns.append(np.array(back[::-1]))
    times = np.concatenate([np.arange(len(each)) for each in returns])
    returns = np.concatenate(returns)
    count, total = np.bincount(times)[times], np.bincount(times, returns)[times]
    others = np.where(count > 1, returns - (total - returns) / np.maximum(count - 1, 1), 0.0)
    return returns, others, returns - total / count


def test_time_advantages_are_returns_less_the_mean_of_the_others_at_equal_time(runs):
    """SB-TRPO on the grid, discount 1, whose updates are handed no other. Controls: returns as they
    are, and less the mean of all."""
    control = []
    for epoch in runs(sbtrpo, "grid").epochs[:3]:
        for found, name in zip(epoch.advantages, ("rewards", "costs")):
            returns, expected, all_ = returns_and_baselines(epoch.episodes, name, 1.0)
            check(
                "time advantages - returns less the others' mean",
                np.abs(found - expected).max(),
                at_most=1e-9,
            )
            check("  control: returns as they are", difference(returns, expected), at_least=0.03)
            control.append(difference(all_, expected))
    check("  control: less the mean of all [rms]", max(control), at_least=0.1)


@each_script
@pytest.mark.parametrize("advantage", ["mc", "time"])
def test_advantages_without_a_critic_are_returns_with_or_without_a_baseline(
    script, advantage, runs
):
    """On the episodes of the course, discount .8, neither of which is shortened by lambda .7; no
    critic is fitted."""
    epoch = runs(script, "course").epochs[1]
    config = dataclasses.replace(epoch.config, advantage=advantage)
    *found, fits = script.estimate_advantages(config, epoch.batch, epoch.state)
    assert fits == {}
    for each, name in zip(found, ("rewards", "costs")):
        returns, others, _ = returns_and_baselines(epoch.episodes, name, 0.8)
        expected = {"mc": returns, "time": others}[advantage]
        check(f"{advantage} advantages - by definition", np.abs(each - expected).max(), 1e-9)


@each_script
@pytest.mark.parametrize("advantage", ["mc", "time", "gae"])
def test_a_signal_that_no_action_changes_has_no_advantages(script, advantage):
    """A cost of .1 at each step of six episodes is none, whatever a critic says. With one more in
    the first step of the second episode, there are; with the others' mean for a baseline not at
    later times, where returns are equal up to rounding."""
    rng = np.random.default_rng(0)
    policy = script.Policy((2, 8, 1), False)
    actor = script.Actor(policy, np.zeros(0), np.zeros(2), np.ones(2))
    state = {"sizes": np.array([2, 8, 1]), "epoch": 0}
    state |= {name: rng.normal(size=3 * 8 + 9) for name in CRITICS}
    config = script.Config(advantage=advantage, hidden=(8,))
    for bump in (0.0, 1.0):
        costs = np.full((6, 7), 0.1)
        costs[1, 0] += bump
        costs[2] *= 1 + 1e-15  # by rounding
        episodes = [
            script.Episode(*rng.normal(size=(2, 8, 2)), rng.normal(size=7), cost, True)
            for cost in costs
        ]
        episodes = [each._replace(actions=each.actions[:7, :1]) for each in episodes]
        batch = script.make_batch(episodes, actor)
        rewards, found, _ = script.estimate_advantages(config, batch, state)
        assert np.abs(rewards).max() > 0.1
        if bump:
            later = found.reshape(6, 7)[:, 1:]
            assert np.abs(found).max() > 0.5 and later.any() == (advantage != "time")
        else:
            assert not found.any()
            if script is strpo:
                assert not strpo.standardised(found).any()


@each_script
def test_critics_are_fitted_to_the_targets_of_their_own_signal(script, runs):
    """Reward first, then cost: from the critic of before, on the observations with an action, to
    advantage + value; what is learned is what the next epoch uses, as a function of raw
    observations. Control: the advantage without the value."""
    epochs, drawn, control = runs(script, "course").epochs, [], 0.0
    for epoch, after in zip(epochs, [*epochs[1:], None]):
        assert len(epoch.fits) == 2
        for k, fit in enumerate(epoch.fits):
            advantage, value = gae(epoch, k)
            assert np.array_equal(fit.critic, epoch.state[CRITICS[k]])
            assert np.allclose(fit.inputs, epoch.observations)
            check(
                "targets of a critic - (GAE + value) [rms]",
                difference(fit.targets, advantage + value),
                1e-3,
            )
            if after:
                assert np.array_equal(epoch.learned[CRITICS[k]], fit.returned)
                sizes, raw = (*epoch.policy.sizes[:-1], 1), joined(epoch.episodes)
                scaled = np.abs([each.actor.normalise(raw) for each in (epoch, after)])
                raw = raw[(scaled < 10).all(axis=(0, 2))]
                learned, used = (
                    network_values(critic, sizes, each.actor.normalise(raw))
                    for critic, each in ((fit.returned, epoch), (after.state[CRITICS[k]], after))
                )
                check("critic of the next epoch - fitted", np.abs(used - learned).max(), 1e-9)
                control = max(control, difference(advantage, advantage + value))
        drawn.append(epoch.fits[0].returned)
    check("  control: GAE alone [rms]", control, at_least=0.05)
    assert len({each.tobytes() for each in drawn}) == len(epochs)


def first_stage_epoch(run: Run) -> tuple:
    """The first epoch of the first stage, and how many quantiles its critic has."""
    epoch = next(each for each in epochs_of(run.events) if each.stage == "unsafe")
    n, hidden, _ = epoch.policy.sizes
    return epoch, (len(epoch.state["quantile_critic"]) - (n + 1) * hidden) // (hidden + 1)


def test_first_stage_uses_the_costly_tail_of_the_quantiles(runs):
    """Quantiles spread out at random: the advantages that the unsafe policy climbs are GAE, less
    its mean, with the mean of the highest quarter as values; for alpha = .1 of the highest four of
    32, its next whole number. Controls: the lowest quarter, the mean of all; and three for .1."""
    epoch, n = first_stage_epoch(runs(strpo, "course"))
    sizes, rng, state = epoch.policy.sizes, np.random.default_rng(2), dict(epoch.state)
    state["quantile_critic"] = rng.normal(size=len(state["quantile_critic"]))
    found, _ = strpo.cvar_advantages(epoch.config, epoch.batch, state)
    outputs = network_values(state["quantile_critic"], (*sizes[:-1], n), epoch.inputs)
    outputs, quarter = np.sort(outputs, axis=1), math.ceil(n / 4)
    expected, tenth, third, *wrong = (
        centred(gae(epoch, 1, values.mean(axis=1))[0])
        for values in (outputs[:, -quarter:], outputs[:, -4:], outputs[:, -3:], outputs[:, :quarter], outputs)
    )
    check("first stage: advantages - GAE of the CVaR [rms]", difference(found, expected), 1e-3)
    for each in wrong:
        check("  control: another tail [rms]", difference(each, expected), at_least=0.5)
    config = dataclasses.replace(epoch.config, cvar_alpha=0.1)
    found, _ = strpo.cvar_advantages(config, epoch.batch, state)
    check("first stage, alpha = .1: advantages - GAE of the CVaR [rms]", difference(found, tenth), 1e-3)
    check("  control: three quantiles [rms]", difference(found, third), at_least=0.05)


def test_first_stage_climbs_the_cost(runs):
    """What its updates are handed are the z-scores of its CVaR advantages, and nothing is excluded.
    The critic of quantiles alone is fitted, to returns to go with its own mean where an episode was
    truncated."""
    epochs = [each for each in epochs_of(runs(strpo, "course").events) if each.stage == "unsafe"]
    assert len(epochs) >= 4
    for epoch in epochs:
        (found,), xi = epoch.advantages, epoch.cvar.returned[0]
        assert np.allclose(found, scores(xi)) and epoch.update.exclusion is None
        assert [fit.slope is strpo.quantile_slope for fit in epoch.fits] == [True]
        n, hidden, _ = epoch.policy.sizes
        [fit] = epoch.fits
        assert np.array_equal(fit.critic, epoch.state["quantile_critic"])
        assert np.array_equal(fit.inputs, epoch.observations)
        outputs = network_values(fit.critic, (n, hidden, 32), epoch.inputs).mean(axis=1)
        advantage, value = gae(epoch, 1, outputs, gae_lambda=1.0)
        gap = np.abs(fit.targets - advantage - value).max()
        check("targets of the quantiles - returns", gap, at_most=1e-4)


def test_scores_have_mean_0_and_std_1_unless_constant():
    """sTRPO standardises what has another mean and std; zeros stay."""
    found = strpo.standardised(np.array([1.0, 3.0, 8.0, 8.0]))
    assert found == pytest.approx(scores(np.array([1.0, 3.0, 8.0, 8.0])))
    assert np.array_equal(strpo.standardised(np.zeros(3)), np.zeros(3))


def test_first_stage_with_a_mean_critic_climbs_generalised_advantages(tmp_path):
    """`--critic mean`: z-scores of GAE of the cost, without quantiles or a critic of the reward."""
    options = "--stage=unsafe", "--critic=mean", "--total-steps=300"
    epochs = epochs_of(start(strpo, tmp_path, [*OPTIONS[strpo, "course"], *options])[0])
    for epoch in epochs:
        check(
            "first stage, mean critic: advantages - GAE [rms]",
            difference(epoch.advantages[0], scores(gae(epoch, 1)[0])),
            at_most=1e-3,
        )
        assert epoch.cvar is None and [*epoch.learned] == ["cost_critic"]
        assert np.array_equal(epoch.fits[0].critic, epoch.state["cost_critic"])
    assert len(epochs) == 2


def test_quantile_slope_is_the_derivative_of_the_quantile_loss():
    """Mean over k levels of (target - output) (level - [target < output]), which is piecewise
    linear, by central differences away from its kinks."""
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(50, 8)), rng.normal(size=(50, 1))
    levels = (np.arange(8) + 0.5) / 8

    def loss(outputs):
        return np.mean((targets - outputs) * (levels - (targets < outputs)), axis=1)

    for j, step in enumerate(1e-7 * np.eye(8)):
        slope = (loss(outputs + step) - loss(outputs - step)) / 2e-7
        found = strpo.quantile_slope(outputs, targets)[:, j]
        assert np.abs(targets[:, 0] - outputs[:, j]).min() > 1e-7
        check("quantile slope - central difference", np.abs(found - slope).max(), at_most=1e-6)


def test_quantiles_of_truncated_episodes_go_on(runs):
    """Without any cost, but with outputs of 5 where an episode ends, the quantiles of its steps are
    fitted to 5 if it was truncated and to 0 if it terminated."""
    _, n = first_stage_epoch(runs(strpo, "course"))
    config, rng = strpo.Config(stage="unsafe", discount=1.0, hidden=(8,)), np.random.default_rng(0)
    observations = np.eye(2)[[0, 1]]
    sizes, found = (2, 8, n), []
    start = np.append(0.1 * rng.normal(size=2 * 8 + 8 + 8 * n), np.full(n, 5.0))
    actor = strpo.Actor(strpo.Policy((2, 8, 2), True), np.zeros(0), np.zeros(2), np.ones(2))
    for terminated in (False, True):
        episode = strpo.Episode(observations, np.zeros(1, int), *np.zeros((2, 1)), terminated)
        batch = strpo.make_batch([episode] * 500, actor)
        state = {"sizes": np.array([2, 8, 2]), "epoch": 0, "quantile_critic": start}
        for _ in range(20):
            _, fit = strpo.cvar_advantages(config, batch, state)
            state["quantile_critic"] = fit()
        found.append(network_values(state["quantile_critic"], sizes, observations)[0].mean())
    assert found[0] > 3 and found[1] < found[0] - 1, found


# -------------------------------------------------------------------- units of budgets, and the log


def test_excess_is_cost_above_the_budget_per_step(runs):
    """SB-TRPO: (J_c - b) / steps per episode; of both signs on the course. Without a budget there
    is none."""
    signs = set()
    for epoch in runs(sbtrpo, "course").epochs:
        costs = [episode.costs.sum() for episode in epoch.episodes]
        expected = (np.mean(costs) - epoch.config.cost_limit) / steps_per_episode(epoch)
        check("excess - (J_c - b) / T", abs(epoch.update.excess - expected), at_most=1e-9)
        signs.add(expected > 0)
    assert signs == {True, False} and runs(sbtrpo, "grid").epochs[0].update.excess is None


@pytest.mark.parametrize("world", ["course", "window"])
def test_margin_is_budget_less_cost_and_recovery_ends_below_its_share(world, runs):
    """C-TRPO: recovery at the start and from J_c >= b on, until J_c < h b; J_c is the mean cost of
    the batch, or over a window the mean of the running means of the last 30 episodes. J_c between h
    b and b occurs in recovery and out of it."""
    recovery, between, last = True, set(), deque(maxlen=30)
    for epoch in runs(ctrpo, world).epochs:
        costs, running = [episode.costs.sum() for episode in epoch.episodes], []
        for cost in costs:
            last.append(cost)
            running.append(np.mean(last))
        J_c, b = np.mean(running if world == "window" else costs), epoch.config.cost_limit
        recovery = J_c >= b * (epoch.config.hysteresis if recovery else 1)
        assert epoch.update.recovery == bool(recovery)
        check(f"margin - (b - J_c), {world}", abs(epoch.update.margin - (b - J_c)), at_most=1e-9)
        between.add((recovery, bool(epoch.config.hysteresis * b <= J_c < b)))
    assert {recovery for recovery, _ in between} == {True, False}
    assert world == "window" or {(True, True), (False, True)} <= between, between


def test_training_of_ctrpo_starts_in_recovery(tmp_path):
    """Even far within the budget, if J_c is above its share h."""
    (epoch,) = run(
        ctrpo, "course", tmp_path, "--total-steps=150", "--cost-limit=20", "--hysteresis=.001"
    ).epochs
    assert 0.02 <= np.mean([episode.costs.sum() for episode in epoch.episodes]) < 20
    assert epoch.update.recovery


def test_official_units_are_those_of_the_release(runs):
    """C-TRPO, `--official-units 1`, on two action dimensions: costs are discounted sums,
    GAE / (1 - discount); KL averaged over actions plus beta Psi is at most delta, and the damping
    of F / 2 is that of the option. On the grid, with indices, nothing is converted."""
    epochs, used = runs(ctrpo, "release").epochs, []
    for epoch in epochs:
        expected = centred(gae(epoch, 1)[0]) / (1 - 0.8)
        check(
            "official units: cost advantages - GAE / (1 - discount) [rms]",
            difference(epoch.advantages[1], expected),
            at_most=1e-3,
        )
        old, new = (
            ctrpo.distributions(epoch.policy, theta, epoch.observations)
            for theta in (epoch.theta, epoch.update.returned[0])
        )
        before, after = (
            ctrpo.log_probabilities(epoch.policy, each, epoch.actions).astype(float)
            for each in (old, new)
        )
        divergence = gaussian_kl(old, new) / 2
        if not epoch.update.recovery:
            change = np.mean(np.expm1(after - before) * epoch.advantages[1])
            share = change / epoch.update.margin
            divergence += 0.5 * (-share - math.log1p(-share))
        used.append(divergence / 0.01)
        config = epoch.config
        assert (config.delta, config.beta, config.damping) == pytest.approx((0.02, 1.0, 0.02))
    check("official units: divergence [delta]", max(used), at_most=1.01)
    check("official units: the same divergence [delta], not less", max(used), at_least=0.6)
    assert {epoch.update.recovery for epoch in epochs} == {True, False}
    grid = runs(ctrpo, "grid").epochs[0]
    converted = ctrpo.in_our_units(
        dataclasses.replace(grid.config, official_units=1), grid.actor.policy
    )
    assert (converted.delta, converted.damping) == (grid.config.delta, grid.config.damping)


def test_a_run_of_ones_own_code_keeps_the_options_it_was_given(tmp_path, monkeypatch):
    """train(config, run, state) of a new run: config.json has the release's units, which a resumed run
    converts, once. Four action dimensions."""
    monkeypatch.setattr(ctrpo, "make_executor", lambda config: ThreadPoolExecutor(1))
    config = ctrpo.Config(task="faulty:Matrix-v0", hidden=(8,), batch_steps=200, total_steps=200,
                          official_units=1)
    ctrpo.train(config, tmp_path / "run", ctrpo.initial_state(config))
    found, state = ctrpo.load_run(tmp_path / "run")
    assert (found.delta, found.beta, found.damping) == (config.delta, config.beta, config.damping)
    assert found.official_units == 1 and state["steps"] >= 200 and state["sizes"][-1] == 4


def multipliers(costs: list, b: float) -> list:
    """The recursion of Stooke et al., written out, with the gains of the runs."""
    p, i, d = PID
    integral, level, found = 0.0, costs[0], []
    for cost in costs:
        before, level = level, 0.5 * level + 0.5 * cost
        integral = max(0.0, integral + i * (cost - b))
        found.append(max(0.0, p * (level - b) + integral + d * max(0.0, level - before)))
    return found


def test_multiplier_follows_the_cost_per_episode(runs):
    """sTRPO: lambda is a recursion on J_c of each epoch; what multiplies the advantages is what is
    logged. And on costs that are far below the budget for long, before they rise, fall and rise.
    Control: the recursion on the cost per step."""
    found = runs(strpo, "course")
    b = found.epochs[0].config.cost_limit
    costs = [np.mean([each.costs.sum() for each in epoch.episodes]) for epoch in found.epochs]
    per_step = [cost / steps_per_episode(epoch) for cost, epoch in zip(costs, found.epochs)]
    expected, control = multipliers(costs, b), multipliers(per_step, b)
    for epoch, row, multiplier in zip(found.epochs, found.rows, expected):
        gap = abs(epoch.pid.returned[0] - multiplier)
        check("multiplier - its recursion", gap, at_most=1e-9)
        assert math.isclose(float(row["Misc/LagrangianMultiplier"]), multiplier, abs_tol=1e-9)
    gap = np.abs(np.subtract(expected, control)).max()
    check("  control: of the cost per step", gap, at_least=0.1)
    costs, memory, hand_made = [0, 0, 0, 9, 9, 2, 0, 0, 8, 3], np.full(2, math.nan), []
    for cost in costs:
        multiplier, memory = strpo.pid_multiplier(memory, cost, 3.0, PID)
        hand_made.append(multiplier)
    assert hand_made == pytest.approx(multipliers(costs, 3.0))


def gaussian_kl(old: np.ndarray, new: np.ndarray) -> float:
    """KL(old || new) of means and log stds in rows, summed over actions, mean over states."""
    (mean, log_std), (other, other_log_std) = np.split(old, 2, axis=1), np.split(new, 2, axis=1)
    squares = np.exp(2 * log_std) + (mean - other) ** 2
    return float(
        np.mean(np.sum(other_log_std - log_std + squares / np.exp(2 * other_log_std) / 2 - 0.5, 1))
    )


def test_exclusion_compares_the_policies_each_with_its_own_normaliser(runs):
    """sTRPO on the course: KL(unsafe || pi) over the states of the unsafe policy's own episodes,
    which are of its final parameters; each policy sees them scaled by its own moments. Control: by
    the other's."""
    found = runs(strpo, "course")
    _, state = strpo.load_run(found.folder / "unsafe")
    unsafe = strpo.make_actor(state)
    (visit,) = (e for e in found.events if e.name == "collect" and e.first == ROLLOUTS)
    for one, other in zip(visit.actor[1:], unsafe[1:]):
        assert np.array_equal(one, other)  # parameters, mean and std
    rollouts = visit.returned[1]
    assert visit.size == 150 <= sum(len(episode.costs) for episode in rollouts) < 165
    raw = np.concatenate([episode.observations[:-1] for episode in rollouts])
    costs = np.mean([episode.costs.sum() for episode in rollouts])
    control = 0.0
    for epoch, row in zip(found.epochs, found.rows):
        mine, its = ((raw - actor.mean) / actor.std for actor in (epoch.actor, unsafe))
        new = strpo.distributions(epoch.policy, epoch.theta, mine.clip(-10, 10))
        expected, wrong = (
            gaussian_kl(strpo.distributions(unsafe.policy, unsafe.theta, o.clip(-10, 10)), new)
            for o in (its, mine)
        )
        check(
            "exclusion - KL(unsafe || pi) [relative]",
            abs(float(epoch.update.exclusion(epoch.theta)) / expected - 1),
            at_most=1e-4,
        )
        control = max(control, abs(wrong / expected - 1))
        assert math.isclose(float(row["Misc/unsafe_cost"]), costs, rel_tol=1e-9)
    check("  control: observations scaled by the task policy's moments", control, at_least=0.01)


def test_the_unsafe_policy_may_have_another_network():
    """KL(unsafe || pi) for a run --unsafe with other --hidden. Control: the same layers, other weights."""
    rng, states = np.random.default_rng(71), np.random.default_rng(72).normal(size=(20, 3))
    policies = [strpo.Policy(sizes, False) for sizes in ((3, 4, 2), (3, 7, 5, 2), (3, 4, 2))]
    thetas = [strpo.initial_parameters(policy.sizes, np.zeros(2), rng, last=1.0) for policy in policies]
    actor, *others = (strpo.Actor(policy, theta, np.zeros(3), np.ones(3))
                      for policy, theta in zip(policies, thetas))
    found = []
    for unsafe in others:
        exclusion, _ = strpo.make_exclusion(strpo.Config(), actor, unsafe, states, None)
        old, new = (strpo.distributions(one.policy, one.theta, states) for one in (unsafe, actor))
        found.append(float(exclusion(actor.theta)))
        assert math.isclose(found[-1], gaussian_kl(old, new), rel_tol=1e-10)
    assert abs(found[0] / found[1] - 1) > 0.01


def test_metrics_of_hand_made_episodes():
    """Three episodes: costs 0, 3 and 0; returns 6, 10 and -4; lengths 3, 2 and 1. Safe reward
    counts safe episodes alone, and divides by all."""
    for script in SCRIPTS:
        episodes = [
            script.Episode(
                np.zeros((len(r) + 1, 1)), np.zeros(len(r)), np.array(r), np.array(c), True
            )
            for r, c in (([1.0, 2, 3], [0.0, 0, 0]), ([4.0, 6], [1.0, 2]), ([-4.0], [0.0]))
        ]
        found = script.episode_metrics(episodes)
        expected = {
            "EpRet": 4,
            "EpCost": 1,
            "EpLen": 2,
            "SafetyProbability": 2 / 3,
            "SafeReward": 2 / 3,
        }
        assert found == pytest.approx(expected)


@each_script
def test_the_log_says_what_the_episodes_did(script, runs):
    """Return, cost, length, safety and steps of each epoch; regret is the sum of what exceeds the
    budget; KL is that of the policies before and after the update; what is printed is a line an
    epoch, and the mean of the last tenth."""
    found = runs(script, "course")
    steps, regret = 0, 0.0
    epochs = found.epochs
    for i, (epoch, row) in enumerate(zip(epochs, found.rows)):
        rewards, costs = ([signal.sum() for signal in each] for each in signals(epoch))
        steps, safe = steps + len(epoch.actions), np.equal(costs, 0)
        regret += max(0, np.mean(costs) - epoch.config.cost_limit)
        expected = {
            "Train/Epoch": i + 1,
            "Train/TotalSteps": steps,
            "Metrics/EpRet": np.mean(rewards),
            "Metrics/EpCost": np.mean(costs),
            "Metrics/EpLen": steps_per_episode(epoch),
            "Metrics/SafetyProbability": np.mean(safe),
            "Metrics/EpCostRegret": regret,
            "Metrics/SafeReward": np.mean(rewards * safe),
        }
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected)
        old, new = (
            script.distributions(epoch.policy, theta, epoch.observations)
            for theta in (epoch.theta, epoch.update.returned[0])
        )
        means = f"return {np.mean(rewards):.4g}, cost {np.mean(costs):.4g}"
        assert f"{steps:>11,} steps: {means}, safe {np.mean(safe):.2f}\n" in found.said
        radius = getattr(epoch.config, "delta", None) or epoch.config.delta_1
        assert gaussian_kl(old, new) == pytest.approx(float(row["Train/KL"]), rel=0.01, abs=1e-6)
        check("realised KL [radius]", float(row["Train/KL"]) / radius, at_most=1 + 1e-9)
    assert regret > 0 and len(found.rows) == len(epochs)
    assert found.said.count(" steps: return ") == len(epochs_of(found.events))  # of both stages
    last = np.mean(
        [float(row["Metrics/EpRet"]) for row in found.rows[-max(1, len(epochs) // 10) :]]
    )
    assert f"EpRet {last:.3g}" in found.said


# -------------------------------------------------------------------------- the update from a batch


def batch(world, logits: np.ndarray, n: int = 20_000) -> tuple:
    """One-hot observations, actions and their (s, a): as often as the occupancy says, of about
    n."""
    counts = np.rint(n * world.occupancy(logits)).astype(int).ravel()
    states, actions = np.divmod(np.repeat(np.arange(counts.size), counts), world.r.shape[1])
    return np.eye(len(world.mu))[states], actions, (states, actions)


def tabular_cases() -> list:
    rng = np.random.default_rng(7)
    return [
        (world, 0.7 * rng.normal(size=world.r.shape))
        for world in (two_state(), garnet(1), garnet(2))
    ]


def linear(script, world, logits: np.ndarray) -> tuple:
    """The policy without a hidden layer, whose logits are a table; and its parameters."""
    return script.Policy(world.r.shape, True), np.append(logits.ravel(), np.zeros(logits.shape[1]))


def table(theta, world):
    S, A = world.r.shape
    return theta[: S * A].reshape(S, A) + theta[S * A :]


def compare(
    title: str, world, old: np.ndarray, theta: np.ndarray, step: np.ndarray, objectives=()
) -> float:
    """New logits less old ones are a fraction .3 to 1 of a step of the tabular world, up to
    constants per state; and J_f has changed by what the step predicts, to a fifth, for (f, its
    gradient) in objectives. Returns the fraction."""
    change, step = table(theta, world) - old, step.reshape(old.shape)
    change, step = (v - v.mean(axis=1, keepdims=True) for v in (change, step))
    fraction = np.sum(change * step) / np.sum(step**2)
    assert 0.3 < fraction < 1.02, (title, fraction)
    gap = np.linalg.norm(change - fraction * step) / np.linalg.norm(step)
    check(f"update - exact step, {title} [its length]", gap, at_most=0.03)
    for f, gradient in objectives:
        predicted = fraction * np.sum(gradient * step.ravel())
        realised = world.J(table(theta, world), f) - world.J(old, f)
        check(
            f"update: J - predicted, {title} [predicted]",
            abs(realised / predicted - 1),
            at_most=0.2,
        )
    return fraction


FINE = {"cg_iterations": 60, "damping": 1e-9}


@pytest.mark.parametrize("update", ["convex", "optimal"])
@pytest.mark.parametrize("excess", [None, 0.0, -1e-3])
def test_update_of_sbtrpo_takes_the_exact_step(update, excess):
    """SB-TRPO's update_policy on samples in the exact proportions of two states and two Garnets,
    with exact advantages, delta 1e-5: the closed form from exact gradients. J_c falls, as
    predicted."""
    delta = 1e-5
    for world, logits in tabular_cases():
        observations, actions, pairs = batch(world, logits)
        config = sbtrpo.Config(delta=delta, beta=0.6, update=update, cost_limit=1.0, **FINE)
        policy, theta = linear(sbtrpo, world, logits)
        rewards, costs = (world.advantage(logits, f)[pairs] for f in (world.r, world.c))
        theta, _ = sbtrpo.update_policy(
            config, policy, theta, observations, actions, rewards, costs, excess
        )
        vectors = first_order(world, logits)
        step, _ = sbtrpo.safety_biased_step(*vectors, delta, 0.6, excess, update)
        objectives = [(world.c, vectors[2])] if excess is None else []
        compare(f"SB-TRPO {update}", world, logits, theta, step, objectives)


@pytest.mark.parametrize("update", ["convex", "optimal"])
def test_a_gradient_of_0_leaves_the_whole_region_of_sbtrpo_to_the_other(update):
    """Without advantages of cost, the best reward step; without those of reward, the best cost
    step: of KL delta, which the line search may shorten to .8. Beta .3: a share would be seen."""
    for world, logits in tabular_cases():
        observations, actions, pairs = batch(world, logits)
        config = sbtrpo.Config(delta=1e-5, beta=0.3, update=update, **FINE)
        policy, start = linear(sbtrpo, world, logits)
        vectors = first_order(world, logits)
        for k, sign in ((0, 1), (1, -1)):
            advantages = [world.advantage(logits, f)[pairs] for f in (world.r, world.c)]
            advantages[1 - k] = 0 * advantages[1 - k]
            theta, info = sbtrpo.update_policy(
                config, policy, start, observations, actions, *advantages, None
            )
            gradient, direction = vectors[2 * k : 2 * k + 2]
            step = sign * math.sqrt(2e-5 / float(gradient @ direction)) * direction
            fraction = compare("SB-TRPO, one signal", world, logits, theta, step)
            assert fraction > 0.75 and info["kl"] == pytest.approx(1e-5, rel=1e-9)
            assert info["mu"] == k


def test_line_search_of_sbtrpo_holds_kl_and_cost():
    """200 random samples, delta 3: the surrogate cost, recomputed, never rises, and KL <= delta.
    With room in the budget it may rise by that. Control: KL alone would have let larger fractions
    pass."""
    policy, stopped, used = sbtrpo.Policy((3, 6, 2), False), [], 0.0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        theta = sbtrpo.initial_parameters(policy.sizes, np.full(2, -0.5), rng)
        theta = theta + 0.5 * rng.normal(size=theta.size)
        observations = rng.normal(size=(200, 3))
        old = sbtrpo.distributions(policy, theta, observations)
        actions = old[:, :2] + np.exp(old[:, 2:]) * rng.normal(size=(200, 2))
        rewards, costs = rng.normal(size=(2, 200))
        for excess in (None, -0.3, 0.2):
            config = sbtrpo.Config(delta=3.0, beta=0.3)
            new, _ = sbtrpo.update_policy(
                config, policy, theta, observations, actions, rewards, costs, excess
            )
            room, measured = max(0.0, -(excess or 0.0)), []
            for parameters in (new, theta + (new - theta) / 0.8):  # and the next larger fraction
                pi = sbtrpo.distributions(policy, parameters, observations)
                before, after = (
                    sbtrpo.log_probabilities(policy, each, actions) for each in (old, pi)
                )
                measured += [gaussian_kl(old, pi), np.mean((np.exp(after - before) - 1) * costs)]
            kl, cost, larger_kl, larger_cost = measured
            check("SB-TRPO line search: KL [delta]", kl / 3, at_most=1)
            check("SB-TRPO line search: surrogate cost above its room", cost - room, at_most=1e-9)
            used = max(used, cost)
            stopped.append(larger_kl <= 3 and larger_cost > room)
    check(
        "  control: steps that KL alone would have let go further (of 36)", sum(stopped), at_least=5
    )
    check("  control: surrogate cost where there is room", used, at_least=0.1)


@pytest.mark.parametrize("barrier", ["log", "xlogx"])
def test_update_of_ctrpo_takes_the_exact_step(barrier):
    """C-TRPO's update_policy, as above; near the budget, far from it, and in recovery, above the
    budget or within, where it is the best cost step whatever the reward."""
    delta = 1e-5
    for world, logits in tabular_cases():
        observations, actions, pairs = batch(world, logits)
        config = ctrpo.Config(delta=delta, beta=0.1, barrier=barrier, **FINE)
        policy, start = linear(ctrpo, world, logits)
        rewards, costs = (world.advantage(logits, f)[pairs] for f in (world.r, world.c))
        vectors = first_order(world, logits)
        for margin, recovery in ((1e-2, False), (10.0, False), (1e-2, True), (-1.0, True)):
            theta, _ = ctrpo.update_policy(
                config, policy, start, observations, actions, rewards, costs, margin, recovery
            )
            step, _ = ctrpo.barrier_step(*vectors, delta, 0.1, margin, barrier, recovery)
            if recovery:
                step = -math.sqrt(2 * delta / float(vectors[2] @ vectors[3])) * vectors[3]
            objectives = [(world.c, vectors[2])] if recovery else [(world.r, vectors[0])]
            compare("C-TRPO", world, logits, theta, step, objectives)


def test_line_search_of_ctrpo_takes_the_largest_step_that_holds_what_it_promises():
    """200 random samples, delta 3, recomputed: KL + beta Psi <= delta, and the
    surrogate reward does not fall; in recovery KL <= delta, within the budget or above it, and the
    surrogate cost does not rise. The next larger fraction breaks one of these. Control: which one,
    where the other holds."""
    policy, broken = ctrpo.Policy((3, 6, 2), False), []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        theta = ctrpo.initial_parameters(policy.sizes, np.full(2, -0.5), rng)
        theta = theta + 0.5 * rng.normal(size=theta.size)
        observations = rng.normal(size=(200, 3))
        old = ctrpo.distributions(policy, theta, observations)
        actions = old[:, :2] + np.exp(old[:, 2:]) * rng.normal(size=(200, 2))
        rewards, costs = rng.normal(size=(2, 200))
        if seed % 2:  # of one sign: where ratios fall at all samples, so does the surrogate
            rewards, costs = np.abs(rewards), -np.abs(costs)
        for margin, recovery in ((0.03, False), (5.0, False), (0.05, True), (-0.3, True)):
            config = ctrpo.Config(delta=3.0, beta=0.5)
            new, info = ctrpo.update_policy(
                config, policy, theta, observations, actions, rewards, costs, margin, recovery
            )
            for parameters in (new, theta + (new - theta) / 0.8):  # and the next larger fraction
                pi = ctrpo.distributions(policy, parameters, observations)
                before, after = (
                    ctrpo.log_probabilities(policy, each, actions) for each in (old, pi)
                )
                gains = np.exp(after - before) - 1
                reward, cost = np.mean(gains * rewards), np.mean(gains * costs)
                divergence, share = gaussian_kl(old, pi), cost / margin
                if not recovery:
                    barrier = -share - math.log1p(-share) if share < 1 else math.inf
                    divergence += 0.5 * barrier
                near, good = divergence <= 3, cost <= 1e-9 if recovery else reward >= 0
                if parameters is new:
                    assert near and good
                elif info["fraction"] < 1:
                    assert not (near and good)
                    if near:
                        broken.append("cost" if recovery else "reward")
                    elif gaussian_kl(old, pi) <= 3:
                        broken.append("barrier")
    for kind in ("reward", "barrier", "cost"):
        stopped = broken.count(kind)
        check(f"  control: steps that the {kind} alone has stopped", stopped, at_least=2)


@pytest.mark.parametrize("share", [None, 0.8, 2.0])
def test_update_of_strpo_takes_the_exact_step(share):
    """sTRPO's update_policy, as above: TRPO without an exclusion; the exact solution for a demand
    of .8 of what the trust region allows, which is asked for .82, and for one of twice that."""
    delta = 1e-7
    for world, logits in tabular_cases():
        observations, actions, pairs = batch(world, logits)
        policy, start = linear(strpo, world, logits)
        unsafe = logits + np.random.default_rng(3).normal(size=logits.shape)
        advantages, d = joint_advantage(world, logits, 0.5)[pairs], world.state_occupancy(logits)

        def exclusion(theta, world=world, unsafe=unsafe, d=d):
            log_u = log_policy(unsafe)
            return anp.sum(d[:, None] * np.exp(log_u) * (log_u - log_policy(table(theta, world))))

        vectors = exclusion_vectors(world, logits, unsafe, 0.5)
        best = math.sqrt(2 * delta * float(vectors[2] @ vectors[3]))
        demand = (share or 0.0) * best
        if share is None:
            vectors = (*vectors[:2], 0 * vectors[2], 0 * vectors[3])
        config = strpo.Config(delta_1=delta, delta_2=demand, cg_iterations=60, damping=1e-4)
        theta, _ = strpo.update_policy(
            config, policy, start, observations, actions, advantages, exclusion if share else None
        )
        asked = 0.82 * best if share == 0.8 else demand  # with the room for the line search
        step, _ = strpo.exclusion_step(*vectors, delta, asked)
        compare("sTRPO", world, logits, theta, step)
        if share == 0.8:
            rise = float(exclusion(theta) - exclusion(start))
            check(
                "sTRPO update: rise of the exclusion over the demand", rise / demand, at_least=1
            )


def test_line_search_of_strpo_takes_the_largest_step_that_holds_what_it_promises():
    """200 random samples, delta_1 3, recomputed: KL <= delta_1; the exclusion, here concave, rises
    by the demand where the step promises that, to first order, and else falls by no more than the
    promise, as does the surrogate; or the policy stays. The next larger fraction breaks one of
    these. Control: which one alone."""
    policy, broken, stayed = strpo.Policy((3, 6, 2), False), [], 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        theta = strpo.initial_parameters(policy.sizes, np.full(2, -0.5), rng)
        theta = theta + 0.5 * rng.normal(size=theta.size)
        observations = rng.normal(size=(200, 3))
        slope = rng.normal(size=theta.size)
        old = strpo.distributions(policy, theta, observations)
        actions = old[:, :2] + np.exp(old[:, 2:]) * rng.normal(size=(200, 2))
        advantages = rng.normal(size=200)
        if seed % 2:  # of one sign: where ratios fall at all samples, so does the surrogate
            advantages = np.abs(advantages)

        def exclusion(new, slope=slope, old=theta):
            return anp.sum(slope * (new - old)) - anp.sum((new - old) ** 2)

        for dual, demand in (("exact", 0.5), ("exact", 1e3), ("fixed", 0.5)):
            config = strpo.Config(delta_1=3.0, delta_2=demand, dual=dual, lambda_2=0.0)
            new, info = strpo.update_policy(
                config, policy, theta, observations, actions, advantages, exclusion
            )
            met = info["exclusion_change"] >= demand - 1e-9 * demand
            least = demand if met else min(0.0, info["exclusion_change"])
            for parameters in (new, theta + (new - theta) / 0.8):  # and the next larger fraction
                pi = strpo.distributions(policy, parameters, observations)
                before, after = (
                    strpo.log_probabilities(policy, each, actions) for each in (old, pi)
                )
                surrogate = np.mean((np.exp(after - before) - 1) * advantages)
                failed = ["KL"] * int(gaussian_kl(old, pi) > 3)
                if exclusion(parameters) < least - 1e-9:
                    failed.append("rise")
                if surrogate < min(0.0, info["surrogate_change"]) - 1e-9:
                    failed.append("surrogate")
                if parameters is new:
                    assert not failed or info["fraction"] == 0
                elif 0 < info["fraction"] < 1:
                    broken.append(failed)
            stayed += info["fraction"] == 0
    assert all(broken)
    for kind in ("KL", "rise", "surrogate"):
        check(f"  control: steps that {kind} alone stopped", broken.count([kind]), at_least=2)
    check("  control: policies that stay (of 72)", stayed, at_least=2)
    check("  policies that move (of 72)", 72 - stayed, at_least=22)


# -------------------------------------------------------------------- that these tests see mistakes


@slow
def test_every_committed_mistake_is_seen():
    """tests/mutants.py: each mistake of tests/mutations.py, made alone, fails a test."""
    tool = Path(__file__).with_name("mutants.py")
    process = subprocess.run([sys.executable, str(tool)], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert ", 0 survived" in process.stdout
