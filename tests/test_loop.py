"""What stands between the closed forms and a trained policy: episodes, normalisation, advantages,
critics, units, the update from a batch. Part of `uv run test_updates.py`.

The three scripts train as users start them, in this process: once on the grid, where they learn,
and once on a course with Gaussian actions, awkward units and both ways to end. What `train` hands
on is recorded, and each test computes it anew from the episodes. `tests/mutants.py` shows that
these tests see mistakes.
"""

import contextlib, csv, inspect, io, math, os, subprocess, sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
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
from tabular_cmdp import garnet, log_policy, two_state
from test_updates import (
    check,
    exclusion_vectors,
    first_order,
    joint_advantage,
    n_step_advantages,
    slow,
)

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
    "--cost-limit=2.3",
]
PID = (2.0, 0.5, 0.1)
PID_OPTIONS = [f"--pid-{name}={gain}" for name, gain in zip("pid", PID)]
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
    (sbtrpo, "course"): [*COURSE, "--advantage=gae", "--batch-growth=2", "--total-steps=2700"],
    (ctrpo, "course"): [*COURSE, "--hysteresis=.6", "--total-steps=3600"],
    (ctrpo, "window"): [*COURSE, "--hysteresis=.6", "--total-steps=3600", "--cost-window=30"],
    (strpo, "course"): [*COURSE, "--unsafe-steps=600", *PID_OPTIONS],
}
RECORDED = (
    "collect",
    "run_episode",
    "fit_critic",
    "estimate_advantages",
    "pid_multiplier",
    "update_policy",
)


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
                episodes=estimate.episodes,
                inputs=estimate.inputs,
                state=estimate.state,
                fits=[e for e in since if e.name == "fit_critic"],
                stage=getattr(event.config, "stage", "safe"),
            )
        )
        since = []
    return epochs


def in_recovery(epoch) -> bool:
    return epoch.update.margin == 0


def network_values(critic: np.ndarray, sizes: tuple, inputs: np.ndarray) -> np.ndarray:
    """Outputs of a network of one hidden layer, computed by hand."""
    n, hidden, outputs = sizes
    W, b, V, c = np.split(critic, np.cumsum([n * hidden, hidden, hidden * outputs]))
    return np.tanh(inputs @ W.reshape(n, hidden) + b) @ V.reshape(hidden, outputs) + c


class Run(SimpleNamespace):
    """A finished run: script, folder, events, epochs of the (second) stage, rows of its log, what
    it said."""


def shaken(initial_state):
    """Initial weights large enough that actions depend on observations; the log std stays."""

    def state(config):
        found = initial_state(config)
        if not found["discrete"]:
            noise = np.random.default_rng(1).normal(size=len(found["theta"]))
            noise[-found["sizes"][-1] :] = 0
            found["theta"] = found["theta"] + 0.8 * noise
        return found

    return state


def run(script, world: str, folder: Path, *more: str) -> Run:
    """Trains in this process, by `main`, in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.chdir(folder)
        patch.setattr(script, "make_executor", lambda config: ThreadPoolExecutor(1))
        patch.setattr(script, "initial_state", shaken(script.initial_state))
        events = record(script, patch)
        assert script.main([*OPTIONS[script, world], *more]) == 0
    (found,) = folder.glob("runs/*/*/*/seed-*")
    rows = list(csv.DictReader((found / "progress.csv").open()))
    epochs = [epoch for epoch in epochs_of(events) if epoch.stage == "safe"]
    return Run(
        script=script, folder=found, events=events, epochs=epochs, rows=rows, said=said.getvalue()
    )


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


@each_script
def test_observations_are_scaled_by_the_moments_of_all_epochs_before(script, runs):
    """From the fourth epoch on the course, mean and std differ from those of all earlier
    observations by .15 std at most, as an epoch more or less does. Control: those of the epoch
    before alone."""
    epochs, control = runs(script, "course").epochs, []
    raw = [np.concatenate([episode.observations for episode in epoch.episodes]) for epoch in epochs]
    for i in range(3, len(epochs)):
        before, actor = np.concatenate(raw[:i])[:, :3], epochs[i].actor
        mean, std = before.mean(axis=0), before.std(axis=0)
        check(
            "moments: |mean - of all before| [std]",
            np.abs((actor.mean[:3] - mean) / std).max(),
            0.15,
        )
        check(
            "moments: |std / of all before - 1|",
            np.abs(actor.std[:3] / std - 1).max(),
            at_most=0.15,
        )
        control.append(np.abs((raw[i - 1][:, :3].mean(axis=0) - mean) / std).max())
        assert np.abs(epochs[i].inputs[:, 3]).max() < 1e-3 < actor.std[3] * 10  # the constant one
    check("  control: mean of the epoch before alone [std]", max(control), at_least=0.2)


def test_normalised_observations_are_clipped_at_ten():
    """Also those beyond, in what an actor sees; between, nothing is changed."""
    state = sbtrpo.initial_state(sbtrpo.Config(task="Course-v0", hidden=(8,)))
    actor = sbtrpo.make_actor(state)._replace(mean=np.full(4, 3.0), std=np.full(4, 2.0))
    seen = actor.normalise(np.array([3.0, -1e9, 1e9, 22.0]))
    assert np.allclose(seen, [0, -10, 10, 9.5])


@each_script
def test_a_first_policy_is_nearly_the_same_everywhere(script):
    """Of every seed another: means within .1 of 0, std --initial-std, at observations of order
    1."""
    thetas = []
    for seed in range(3):
        config = script.Config(task="Course-v0", seed=seed, initial_std=0.3)
        state = script.initial_state(config)
        actor = script.make_actor(state)
        observations = np.random.default_rng(0).normal(size=(100, 4))
        mean, log_std = np.split(
            script.distributions(actor.policy, actor.theta, observations), 2, axis=1
        )
        assert 0 < np.abs(mean).max() < 0.1 and np.allclose(np.exp(log_std), 0.3)
        assert (
            not np.allclose(state["critics"][0], state["critics"][1]) or not state["critics"].any()
        )
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
    assert len(set(np.round(draws, 3))) > 0.9 * len(episodes)


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
            assert epoch.size == round(config.batch_steps * growth ** (steps / config.total_steps))
            assert sum(lengths[:-1]) < epoch.size <= sum(lengths) == len(epoch.actions)
            kept = [index[id(episode)] for episode in epoch.episodes]
            assert kept == list(range(following, following + len(kept)))
            following, steps = following + len(lengths), steps + sum(lengths)
        assert steps >= config.total_steps > steps - sum(lengths)


# --------------------------------------------------------------------------- advantages and critics


def signals(epoch) -> list:
    return [[getattr(episode, name) for episode in epoch.episodes] for name in ("rewards", "costs")]


def gae(epoch, k: int, values: np.ndarray | None = None, gae_lambda: float | None = None) -> tuple:
    """Generalised advantages of reward (k = 0) or cost, by their definition, and the values of the
    steps."""
    if values is None:
        sizes = (*epoch.policy.sizes[:-1], 1)
        values = network_values(np.asarray(epoch.state["critics"][k], float), sizes, epoch.inputs)[
            :, 0
        ]
    gae_lambda = epoch.config.gae_lambda if gae_lambda is None else gae_lambda
    ends = np.cumsum([len(episode.observations) for episode in epoch.episodes])
    parts = [
        n_step_advantages(signal, value, episode.terminated, epoch.config.discount, gae_lambda)
        for signal, value, episode in zip(signals(epoch)[k], np.split(values, ends), epoch.episodes)
    ]
    return np.concatenate(parts), np.delete(values, ends - 1)


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
    before: the last value counts if an episode was truncated. SB-TRPO: as they are; C-TRPO: less
    their means, costs times the steps of an episode; sTRPO: z_r - lambda z_c. Control: reward and
    cost exchanged."""
    for epoch in runs(script, "course").epochs[1:]:
        (reward, _), (cost, _) = gae(epoch, 0), gae(epoch, 1)
        if script is sbtrpo:
            expected = [reward, cost]
        elif script is ctrpo:
            expected = [reward - reward.mean(), (cost - cost.mean()) * steps_per_episode(epoch)]
        else:
            expected = [scores(reward) - epoch.pid.returned[0] * scores(cost)]
        for found, right, wrong in zip(epoch.advantages, expected, [cost, reward]):
            check("advantages of the update - GAE [rms]", difference(found, right), at_most=1e-3)
            check("  control: the other signal [rms]", difference(found, wrong), at_least=0.5)
        assert {episode.terminated for episode in epoch.episodes} == {True, False}


def test_monte_carlo_advantages_are_returns_less_the_mean_at_equal_time(runs):
    """SB-TRPO on the grid, discount 1; at times that 30 episodes and more reach, where a
    leave-one-out mean changes them by 4% at most. Control: returns as they are."""
    for epoch in runs(sbtrpo, "grid").epochs[:3]:
        times = np.concatenate([np.arange(len(episode.rewards)) for episode in epoch.episodes])
        often = np.bincount(times)[times] >= 30
        for found, signal in zip(epoch.advantages, signals(epoch)):
            returns = np.concatenate([np.cumsum(each[::-1])[::-1] for each in signal])
            means = np.bincount(times, returns) / np.bincount(times)
            expected = (returns - means[times])[often]
            gap = np.abs(found[often] - expected) - 0.05 * np.abs(expected)
            check("Monte Carlo advantages - less 5% - returns less means", gap.max(), at_most=1e-5)
            check(
                "  control: returns as they are",
                difference(returns[often], expected),
                at_least=0.03,
            )


@each_script
def test_critics_are_fitted_to_the_targets_of_their_own_signal(script, runs):
    """Reward first, then cost: from the critic of before, on the observations with an action, to
    advantage + value; what is learned is what the next epoch uses. Control: the advantage without
    the value."""
    epochs, drawn, control = runs(script, "course").epochs, [], 0.0
    for epoch, after in zip(epochs, [*epochs[1:], None]):
        assert len(epoch.fits) == 2
        for k, fit in enumerate(epoch.fits):
            advantage, value = gae(epoch, k)
            assert np.array_equal(fit.critic, epoch.state["critics"][k])
            assert np.allclose(fit.inputs, epoch.observations)
            check(
                "targets of a critic - (GAE + value) [rms]",
                difference(fit.targets, advantage + value),
                1e-3,
            )
            if after:
                assert np.allclose(after.state["critics"][k], fit.returned)
                control = max(control, difference(advantage, advantage + value))
        drawn.append(epoch.fits[0].returned)
    check("  control: GAE alone [rms]", control, at_least=0.05)
    assert len({each.tobytes() for each in drawn}) == len(epochs)


def first_stage_epoch(run: Run) -> tuple:
    """The first epoch of the first stage, and how many quantiles its critic has."""
    epoch = next(each for each in epochs_of(run.events) if each.stage == "unsafe")
    n, hidden, _ = epoch.policy.sizes
    return epoch, (len(epoch.state["quantiles"]) - (n + 1) * hidden) // (hidden + 1)


def test_first_stage_uses_the_costly_tail_of_the_quantiles(runs):
    """Quantiles spread out at random: the advantages that the unsafe policy climbs are the z-scores
    of GAE with the mean of the highest quarter as values. Controls: the lowest quarter, the mean of
    all."""
    epoch, n = first_stage_epoch(runs(strpo, "course"))
    sizes, rng, state = epoch.policy.sizes, np.random.default_rng(2), dict(epoch.state)
    state["quantiles"] = rng.normal(size=len(state["quantiles"]))
    lasts = np.cumsum([len(episode.observations) for episode in epoch.episodes]) - 1
    _, found, *_ = strpo.estimate_advantages(
        epoch.config, epoch.episodes, epoch.inputs, lasts, state
    )
    outputs = np.sort(network_values(state["quantiles"], (*sizes[:-1], n), epoch.inputs), axis=1)
    quarter = math.ceil(n / 4)
    expected, *wrong = (
        scores(gae(epoch, 1, values.mean(axis=1))[0])
        for values in (outputs[:, -quarter:], outputs[:, :quarter], outputs)
    )
    check(
        "first stage: advantages - GAE of the CVaR [rms]", difference(scores(found), expected), 1e-3
    )
    for each in wrong:
        check("  control: another tail [rms]", difference(each, expected), at_least=0.5)


def test_first_stage_climbs_the_cost(runs):
    """What its updates are handed are its cost advantages, and nothing is excluded."""
    found = runs(strpo, "course")
    estimates = [
        e for e in found.events if e.name == "estimate_advantages" and e.config.stage == "unsafe"
    ]
    updates = [e for e in found.events if e.name == "update_policy" and e.config.stage == "unsafe"]
    assert len(estimates) == len(updates) >= 4
    for estimate, update in zip(estimates, updates):
        assert np.allclose(update.advantages, estimate.returned[1]) and update.exclusion is None


def test_quantiles_of_truncated_episodes_go_on(runs):
    """Without any cost, but with outputs of 5 where an episode ends, the quantiles of its steps are
    fitted to 5 if it was truncated and to 0 if it terminated."""
    _, n = first_stage_epoch(runs(strpo, "course"))
    config, rng = strpo.Config(stage="unsafe", discount=1.0, hidden=(8,)), np.random.default_rng(0)
    observations = np.eye(2)[[0, 1]]
    sizes, found = (2, 8, n), []
    start = np.append(0.1 * rng.normal(size=2 * 8 + 8 + 8 * n), np.full(n, 5.0))
    critics = np.zeros((2, 2 * 8 + 8 + 8 + 1))
    for terminated in (False, True):
        episodes = [
            strpo.Episode(observations, np.zeros(1, int), *np.zeros((2, 1)), terminated)
        ] * 500
        state = {"sizes": np.array([2, 8, 2]), "epoch": 0, "quantiles": start, "critics": critics}
        for _ in range(20):
            *_, quantiles = strpo.estimate_advantages(
                config, episodes, np.tile(observations, (500, 1)), np.arange(1, 1000, 2), state
            )
            state["quantiles"] = quantiles
        found.append(network_values(quantiles, sizes, observations)[0].mean())
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
        assert in_recovery(epoch) == recovery
        if not recovery:
            check(
                f"margin - (b - J_c), {world}", abs(epoch.update.margin - (b - J_c)), at_most=1e-9
            )
        between.add((recovery, bool(epoch.config.hysteresis * b <= J_c < b)))
    assert {recovery for recovery, _ in between} == {True, False}
    assert world == "window" or {(True, True), (False, True)} <= between, between


def test_training_of_ctrpo_starts_in_recovery(tmp_path):
    """Even far within the budget, if J_c is above its share h."""
    (epoch,) = run(
        ctrpo, "course", tmp_path, "--total-steps=100", "--cost-limit=20", "--hysteresis=.001"
    ).epochs
    assert 0.02 <= np.mean([episode.costs.sum() for episode in epoch.episodes]) < 20
    assert in_recovery(epoch)


def test_multiplier_follows_the_cost_per_episode(runs):
    """sTRPO: lambda is the recursion of Stooke et al., written out, on J_c of each epoch; what
    multiplies the advantages is what is logged. Control: the recursion on returns."""
    found = runs(strpo, "course")
    p, i, d = PID
    level = integral = None
    for epoch, row in zip(found.epochs, found.rows):
        b = epoch.config.cost_limit
        cost = np.mean([episode.costs.sum() for episode in epoch.episodes])
        before, integral = (cost, 0.0) if level is None else (level, integral)
        integral, level = max(0.0, integral + i * (cost - b)), 0.5 * before + 0.5 * cost
        expected = max(0.0, p * (level - b) + integral + d * max(0.0, level - before))
        check("multiplier - its recursion", abs(epoch.pid.returned[0] - expected), at_most=1e-9)
        assert math.isclose(float(row["Misc/LagrangianMultiplier"]), expected, abs_tol=1e-9)
    assert any(float(row["Misc/LagrangianMultiplier"]) > 0 for row in found.rows)


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
    (rollouts,) = (
        event.returned[1]
        for event in found.events
        if event.name == "collect"
        and np.array_equal(event.actor.theta, unsafe.theta)
        and event.actor.theta is not None
    )
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
    budget; KL is that of the policies before and after the update; what is printed is the mean of
    the last tenth."""
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
        radius = getattr(epoch.config, "delta", None) or epoch.config.delta_1
        assert gaussian_kl(old, new) == pytest.approx(float(row["Train/KL"]), rel=0.01, abs=1e-6)
        check("realised KL [radius]", float(row["Train/KL"]) / radius, at_most=1 + 1e-9)
    assert regret > 0 and len(found.rows) == len(epochs)
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
) -> None:
    """New logits less old ones are a fraction .3 to 1 of a step of the tabular world, up to
    constants per state; and J_f has changed by what the step predicts, to a fifth, for (f, its
    gradient) in objectives."""
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
        rule = {"convex": sbtrpo.safety_biased_step, "optimal": sbtrpo.optimal_safety_biased_step}[
            update
        ]
        vectors = first_order(world, logits)
        step, _ = rule(*vectors, delta, 0.6, excess)
        objectives = [(world.c, vectors[2])] if excess is None else []
        compare(f"SB-TRPO {update}", world, logits, theta, step, objectives)


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
    """C-TRPO's update_policy, as above; near the budget, far from it, and in recovery, margin 0,
    where it is the best cost step whatever the reward."""
    delta = 1e-5
    for world, logits in tabular_cases():
        observations, actions, pairs = batch(world, logits)
        config = ctrpo.Config(delta=delta, beta=0.1, barrier=barrier, **FINE)
        policy, start = linear(ctrpo, world, logits)
        rewards, costs = (world.advantage(logits, f)[pairs] for f in (world.r, world.c))
        vectors = first_order(world, logits)
        for margin in (0.0, 1e-2, 10.0):
            theta, _ = ctrpo.update_policy(
                config, policy, start, observations, actions, rewards, costs, margin
            )
            step, _ = ctrpo.barrier_step(*vectors, delta, 0.1, margin, barrier)
            objectives = [(world.c, vectors[2])] if margin == 0 else [(world.r, vectors[0])]
            compare("C-TRPO", world, logits, theta, step, objectives)


@pytest.mark.parametrize("share", [None, 0.8, 2.0])
def test_update_of_strpo_takes_the_exact_step(share):
    """sTRPO's update_policy, as above: TRPO without an exclusion; the exact solution where the
    demand is .8 of what the trust region allows, or twice that. Where a demand binds, no smaller
    step will do: damping leaves room for third-order terms, delta 1e-7."""
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
        step, _ = strpo.exclusion_step(*vectors, delta, demand)
        compare("sTRPO", world, logits, theta, step)
        if share == 0.8:
            rise = float(exclusion(theta) - exclusion(start))
            check(
                "sTRPO update: rise of the exclusion over the demand", rise / demand, at_least=0.999
            )


# -------------------------------------------------------------------- that these tests see mistakes


@slow
def test_every_committed_mistake_is_seen():
    """tests/mutants.py: each mistake of tests/mutations.py, made alone, fails a test."""
    tool = Path(__file__).with_name("mutants.py")
    process = subprocess.run([sys.executable, str(tool)], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert ", 0 survived" in process.stdout
