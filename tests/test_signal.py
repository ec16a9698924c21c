"""A gradient without a signal is no gradient: what no action changes takes no part of the trust region."""
import contextlib
import csv
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import ctrpo
import sbtrpo
import strpo

SMALL = "--workers 1 --hidden 8 --batch-steps 500 --total-steps 3000 --task"


def trained(script, options: str, folder: Path, monkeypatch) -> dict:
    """The state at the end of a run in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(script, "make_executor", lambda config: ThreadPoolExecutor(1))
    config, run, state, _ = script.open_run(options.split())
    return script.train(config, run, state)


def rows(state: dict) -> list[dict]:
    """Of progress.csv."""
    return list(csv.DictReader(state["progress"].decode().splitlines()))


@pytest.mark.parametrize("script, options", [
    (sbtrpo, "--advantage mc"), (sbtrpo, "--advantage gae"), (sbtrpo, "--advantage time"),
    (sbtrpo, "--update optimal --beta 0.99"), (ctrpo, "--cost-limit 60"), (strpo, "--exclusion none"),
    (strpo, "--stage unsafe")], ids=str)
def test_a_cost_that_no_action_changes_leaves_the_run_as_it_is(script, options, tmp_path, monkeypatch):
    """No cost, a constant one, and a function of time: the same policy, bit for bit. So the whole trust
    region is the reward's; or nobody's, where a policy is to be as unsafe as possible. Control: a cost that
    depends on actions changes the policy."""
    thetas, kl = {}, {}
    for task in ("Walk", "Toll", "Clock", "Unpaid"):
        arguments = f"{SMALL} environments:{task}-v0 --experiment {task} {options}"
        state = trained(script, arguments, tmp_path, monkeypatch)
        thetas[task], kl[task] = state["theta"], [float(row["Train/KL"]) for row in rows(state)]
    assert max(kl["Walk"]) < 1e-6 if "unsafe" in options else min(kl["Walk"]) > 1e-3
    assert np.array_equal(thetas["Walk"], thetas["Toll"])
    assert np.array_equal(thetas["Walk"], thetas["Clock"])
    assert np.abs(thetas["Unpaid"] - thetas["Walk"]).max() > 0.01


@pytest.mark.parametrize("advantage", ["time", "gae"])
def test_a_reward_that_no_action_changes_leaves_all_to_the_cost(advantage, tmp_path, monkeypatch):
    """The reward is 1 in every step: the step is the whole best cost step, of KL delta to first order."""
    options = f"{SMALL} environments:Unpaid-v0 --advantage {advantage}"
    state = trained(sbtrpo, options, tmp_path, monkeypatch)
    for row in rows(state):
        assert float(row["Misc/mu"]) == 1 and float(row["Misc/reward_change"]) == 0
        assert abs(float(row["Misc/kl"]) / 0.01 - 1) < 1e-6 and float(row["Misc/cost_change"]) < 0


def kept(signals: list) -> np.ndarray:
    """What is left of advantages 1, 2, ... of episodes with these signals."""
    lengths, signal = np.array([len(each) for each in signals]), np.concatenate(signals)
    returns = sbtrpo.discounted_sums(signal, lengths, 0.99)
    return sbtrpo.with_signal(np.arange(1.0, len(signal) + 1), signal, returns, lengths)


def test_rounding_is_no_signal_and_what_is_above_it_is():
    """Returns that differ by their rounding give 0, by 1e-9 of themselves they do not. A single episode has
    nothing to be compared with but itself."""
    rewards = [np.full(5, 0.1) for _ in range(3)]
    assert not kept(rewards).any()
    rewards[1] = rewards[1] * (1 + 1e-15)
    assert not kept(rewards).any()
    rewards[1] = rewards[1] * (1 + 1e-9)
    assert np.array_equal(kept(rewards), np.arange(1.0, 16))
    assert kept([np.array([0.0, 0.0, 1.0])]).all() and not kept([np.ones(3)]).any()


@pytest.mark.parametrize("script", [sbtrpo, ctrpo, strpo], ids=lambda script: script.__name__)
def test_every_stream_of_random_numbers_is_another(script):
    """Weights, critics and episodes of several seeds, with index 0 as well. Control: numpy pads a list with
    zeros, so that [s, 0] and [s, 0, 0] are one stream."""
    purposes = script.WEIGHTS, script.CRITICS, script.EPISODE
    keys = [(seed, purpose, index) for seed in (0, 1, 2**32, 2**40) for purpose in purposes
            for index in (0, 1, 2, 2**32, 2**40)]
    assert len({script.stream(*key).integers(2**63) for key in keys}) == len(keys) == 60
    first, second = (np.random.default_rng(key).integers(2**63) for key in ([7, 0], [7, 0, 0]))
    assert first == second


def test_a_batch_has_two_episodes_where_they_are_compared(tmp_path, monkeypatch):
    """With the others' mean for a baseline, though one of 50 steps would fill it, as in a run whose episodes
    grow. Control: a critic learns from one episode."""
    one = f"{SMALL} environments:Walk-v0 --total-steps 100 --batch-steps 50"
    for options, epochs in (("--advantage time", 1), ("--experiment critic --advantage gae", 2)):
        state = trained(sbtrpo, f"{one} {options}", tmp_path, monkeypatch)
        assert (state["steps"], state["next_episode"], state["epoch"]) == (100, 2, epochs)


@pytest.mark.parametrize("script", [sbtrpo, ctrpo, strpo], ids=lambda script: script.__name__)
def test_scaling_of_observations_moves_neither_policy_nor_critics(script, tmp_path, monkeypatch):
    """What the update has accepted is what acts in the next epoch: with each step of mean and std, the first
    layers change so that outputs stay. Control: the same parameters under the new mean and std."""
    options, seen = f"{SMALL} environments:Unpaid-v0 --advantage gae", []
    extra = " --exclusion none" if script is strpo else ""
    advance = script.advance

    def watched(state, batch, theta, critics, regret):
        after = advance(state, batch, theta, critics, regret)
        seen.append((script.make_actor(state), critics | {"theta": theta}, after))
        return after

    monkeypatch.setattr(script, "advance", watched)
    trained(script, options + extra, tmp_path, monkeypatch)
    raw = np.random.default_rng(0).normal(size=(200, 1))
    moved, kept = [], []
    for before, accepted, after in seen:
        last = script.make_actor(after)
        assert {*accepted} == {"theta", "reward_critic", "cost_critic"}
        for name in accepted:
            def outputs(parameters, actor):
                layers, _ = script.unflatten(parameters, (*actor.policy.sizes[:-1], 1))
                return script.network(layers, actor.normalise(raw))

            old = outputs(accepted[name], before)
            kept.append(np.abs(outputs(after[name], last) - old).max())
            moved.append(np.abs(outputs(accepted[name], last) - old).max())
    assert len(seen) == 6 and max(kept) < 1e-12 and max(moved) > 0.01


@pytest.mark.parametrize("script", [sbtrpo, ctrpo, strpo], ids=lambda script: script.__name__)
def test_a_critic_that_overflows_ends_the_run(script, tmp_path, monkeypatch):
    """A finite reward of 1e25, in one step of the third epoch, is too large for float32: the run says so, and
    does not go on with advantages of 0 for ever. Control: a reward of 1e6 does not."""
    options = f"{SMALL} environments:Walk-v0 --advantage gae" + " --exclusion none" * (script is strpo)
    collect = script.collect

    def spoilt(executor, config, actor, first, size, *more):
        executor, episodes = collect(executor, config, actor, first, size, *more)
        if 20 <= first < script.UNSAFE:
            episodes[0].rewards[3] = largest
        return executor, episodes

    monkeypatch.setattr(script, "collect", spoilt)
    for largest in (1e6, 1e25):
        ends = pytest.raises(script.Diverged, match="a critic is not finite")
        with np.errstate(all="ignore"), ends if largest > 1e6 else contextlib.nullcontext():
            trained(script, f"{options} --experiment {largest:.0f}", tmp_path, monkeypatch)


def test_a_cost_that_only_the_longest_episode_meets_is_a_signal():
    """One cost in the last step of 3,000; the others end after five. By the time when a second episode is as
    long, the discount leaves 1e-13 of it. Control: no cost at all."""
    others = [np.zeros(5) for _ in range(19)]
    assert kept([*others, np.append(np.zeros(2999), 1.0)]).any()
    assert not kept([*others, np.zeros(3000)]).any()


def test_many_episodes_with_equal_returns_have_no_signal():
    """The sum of 100,000 equal returns is rounded 100,000 times. Control: one return is larger by 1e-9."""
    returns, lengths = np.full(100_000, 0.1), np.ones(100_000, int)
    for larger, signal in ((0.0, False), (1e-9, True)):
        returns[7] += larger
        left = sbtrpo.with_signal(sbtrpo.less_the_others(returns, lengths), returns, returns, lengths)
        assert left.any() == signal


def test_no_number_becomes_no_signal():
    """An advantage that is NaN stays NaN, so that the step says so."""
    signal, lengths = np.array([1.0, 0.0, 0.0, 2.0]), np.array([2, 2])
    left = sbtrpo.with_signal(np.array([1.0, np.nan, 0.0, 3.0]), signal, signal, lengths)
    assert np.isnan(left[1]) and np.array_equal(left[[0, 2, 3]], [1, 0, 3])
