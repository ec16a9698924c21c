"""Runs with several costs: what an environment names, what each script makes of it, and what a run leaves."""
import contextlib
import csv
import functools
import io
import json
import math
import sys

import numpy as np
import pytest

import ctrpo
import sbtrpo
import strpo
from ctrpo import barrier_divergence
from conftest import ROOT
from problems import network, plane

sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "studies")]
import evaluate
import report
import sweep
import two_budgets

TWO = "--costs left right"
TINY = ("--task tabular_cmdp:Corridor-v0 --discount 0.9 --hidden 6 --batch-steps 400 --total-steps 1600 "
        "--workers 1")


def run(script, folder, options: str, monkeypatch) -> tuple:
    """(config, state, rows of progress.csv, what was printed) of a short run in this process."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
        assert script.main(options.split()) == 0, printed.getvalue()
    [path] = folder.glob("runs/*/*/*/seed-*")
    config, state = script.load_run(path)
    return config, state, list(csv.DictReader(io.StringIO(state["progress"].decode()))), printed.getvalue()


def refused(script, options: str, capsys) -> str:
    assert script.main(options.split()) == 1
    return capsys.readouterr().err


# ------------------------------------------------------------------------------------------- the environment


def test_costs_are_named_in_info_or_in_a_dictionary():
    """An array in the order of the names; a number without names. A name that is not there, several costs of
    which none is chosen, and no cost at all: a sentence with the names that there are."""
    info = {"cost_b": 2.0, "cost": 5.0, "cost_a": np.array([1.0]), "other": 7}
    for step_cost in (sbtrpo.step_cost, ctrpo.step_cost, strpo.step_cost):
        assert step_cost(info, ()) == 5.0 and step_cost(info, ("a", "b")).tolist() == [1.0, 2.0]
        assert step_cost({"cost": {"x": 1, "y": 3}}, ("y",)).tolist() == [3.0]
        for wrong, names, text in ((info, ("a", "c"), "not all of a, c; for --costs: b, a"),
                                   ({"cost": {"x": 1, "y": 3}}, (), "for --costs: x, y"),
                                   ({}, ("a",), "not all of a; for --costs: none")):
            with pytest.raises(ValueError, match=text):
                step_cost(wrong, names)


class Signals:
    """Two costs a step, the second of which is `second`."""
    observation_space = action_space = ctrpo.gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, second: float):
        self.second = second

    def step(self, action):
        return np.zeros(1), 0.0, False, False, {"cost_a": 1.0, "cost_b": self.second}


@pytest.mark.parametrize("second", [-1.0, math.nan, math.inf])
def test_each_of_several_costs_is_finite_and_not_negative(second):
    """Though the sum might be. Control: 1 is fine."""
    assert ctrpo.env_step(Signals(1.0), np.zeros(1), ("a", "b"))[2].tolist() == [1.0, 1.0]
    with pytest.raises((ValueError, ArithmeticError), match="less than 0|not finite"):
        ctrpo.env_step(Signals(second), np.zeros(1), ("a", "b"))


def test_several_barriers_refuse_what_one_refuses():
    """An unknown barrier, a budget that is exceeded without recovery; tiny costs, 1e-170, keep their barrier.
    Control: of such costs one barrier makes the same step."""
    g_r, x_r, g_c, x_c = plane(0.3)
    for barrier, margin, text in (("cube", 0.05, "no barrier 'cube'"), ("xlogx", -0.05, "beyond the budget")):
        with pytest.raises(ctrpo.Failure, match=text):
            ctrpo.several_barriers_step(g_r, x_r, np.array([g_c]), np.array([x_c]), 0.01, 0.1,
                                        np.array([margin]), barrier, np.array([False]))
    tiny, margin = 1e-170, 0.05e-170
    one, _ = ctrpo.barrier_step(g_r, x_r, tiny * g_c, tiny * x_c, 0.01, 0.1, margin)
    rows = np.array([tiny * g_c]), np.array([tiny * x_c])
    several, _ = ctrpo.several_barriers_step(g_r, x_r, *rows, 0.01, 0.1, np.array([margin]), "log",
                                             np.array([False]))
    trpo = sbtrpo.steepest_step(g_r, x_r, 0.01)[0]
    assert np.abs(several - one).max() < 1e-12 and np.abs(one - trpo).max() > 0.01


# ---------------------------------------------------------------------------------------------- wrong options


@pytest.mark.parametrize("script", [sbtrpo, ctrpo, strpo])
def test_wrong_costs_end_in_one_sentence(script, tmp_path, monkeypatch, capsys):
    """Another number of budgets than of costs, a cost named twice, a negative budget, a name that the world
    lacks; and several budgets where there can be one."""
    monkeypatch.chdir(tmp_path)
    limits = "0" if script is sbtrpo else "1 2"
    cases = [(f"{TINY} {TWO} --cost-limit 1 2 3", "--costs has 2 names, and --cost-limit 3 values"),
             (f"{TINY} --cost-limit 1 2", "--costs has 0 names, and --cost-limit 2 values"),
             (f"{TINY} --costs left left --cost-limit 1", "which differ"),
             (f"{TINY} --costs left,right --cost-limit 1", "must have no comma, quote or new line"),
             (f"{TINY} {TWO} --cost-limit 1 -2", "must be in [0, inf)"),
             (f"{TINY} --costs left middle --cost-limit {limits}",
              "not all of left, middle; for --costs: left, right")]
    if script is sbtrpo:
        cases.append((f"{TINY} {TWO} --cost-limit 1 2", "ctrpo.py and strpo.py take one for each"))
    if script is strpo:
        cases.append((f"{TINY} {TWO} --cost-limit 1 2 --stage unsafe", "give one --cost-limit"))
    for options, text in cases:
        errors = refused(script, options, capsys)
        assert text in errors and "Traceback" not in errors, errors
    assert not (tmp_path / "runs").exists()  # so that the same command, put right, begins


# ------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("script", [sbtrpo, ctrpo, strpo])
def test_one_budget_for_named_costs_is_one_for_their_sum(script, tmp_path, monkeypatch):
    """The corridor gives both costs and their sum: with one --cost-limit, named or not, the same bits;
    named, the log has a column for each besides. Control: the left cost alone gives others."""
    limit = "--cost-limit 4" + (" --unsafe-steps 400" if script is strpo else "")
    plain, both, left = (run(script, tmp_path / name, f"{TINY} {limit} {costs}", monkeypatch)
                         for name, costs in (("plain", ""), ("both", TWO), ("left", "--costs left")))
    assert np.array_equal(plain[1]["theta"], both[1]["theta"])
    assert not np.array_equal(plain[1]["theta"], left[1]["theta"])
    for one, two in zip(plain[2], both[2]):
        assert two.keys() - one.keys() == {"Metrics/EpCost_left", "Metrics/EpCost_right"}
        assert one["Metrics/EpCostRegret"] == two["Metrics/EpCostRegret"]
        parts = float(two["Metrics/EpCost_left"]) + float(two["Metrics/EpCost_right"])
        assert parts == pytest.approx(float(two["Metrics/EpCost"]))
        each = [f"{name} {float(two[f'Metrics/EpCost_{name}']):.4g}" for name in ("left", "right")]
        assert f"safe {float(two['Metrics/SafetyProbability']):.2f}, {', '.join(each)}\n" in both[3]


@pytest.mark.parametrize("script", [ctrpo, strpo])
def test_runs_with_several_budgets_resume_in_the_same_bits_with_any_workers(script, tmp_path, monkeypatch):
    """Two epochs and two more, with two workers, are four with one. The log: the regret is the sum of what
    is above each budget, so it is none of the sum's; a critic for each cost, and they differ."""
    more = f"{TWO} --cost-limit 2 4" + (" --unsafe-steps 400" if script is strpo else "")
    config, state, rows, _ = run(script, tmp_path / "whole", f"{TINY} {more}", monkeypatch)
    half = TINY.replace("1600", "800").replace("--workers 1", "--workers 2")
    run(script, tmp_path / "parts", f"{half} {more}", monkeypatch)
    [path] = (tmp_path / "parts").glob("runs/*/*/*/seed-0")
    assert script.main(["--resume", str(path), "--total-steps", "1600"]) == 0
    _, other = script.load_run(path)
    assert len(rows) >= 3 and np.array_equal(state["theta"], other["theta"])
    regret, of_sum = 0.0, 0.0
    for row in rows:
        parts = np.array([float(row[f"Metrics/EpCost_{name}"]) for name in ("left", "right")])
        regret, of_sum = regret + np.maximum(parts - [2, 4], 0).sum(), of_sum + max(0, parts.sum() - 6)
        assert float(row["Metrics/EpCostRegret"]) == pytest.approx(regret)
    assert abs(regret - of_sum) > 0.1 and list(config.cost_limit) == [2, 4]
    critics = state["cost_left_critic"], state["cost_right_critic"]
    assert "cost_critic" not in state and not np.allclose(*critics)


def test_ctrpo_has_a_recovery_a_window_and_a_margin_for_each_cost(tmp_path, monkeypatch):
    """Recomputed from the log: J_i is the mean of a window of one, cost i is in recovery from the start
    until it is below .8 b_i, and again from b_i on; the step is judged by the sum of the barriers of the
    others. A budget out of reach is never in recovery."""
    options = f"{TINY.replace('1600', '4000')} {TWO} --cost-limit 2.5 1000"
    _, _, rows, _ = run(ctrpo, tmp_path, options, monkeypatch)
    recovery = np.ones(2, bool)
    for row in rows:
        J = np.array([float(row[f"Metrics/EpCost_{name}"]) for name in ("left", "right")])
        recovery = np.greater_equal(J, np.array([2.5, 1000]) * np.where(recovery, 0.8, 1.0))
        for name, cost, flag in zip(("left", "right"), J, recovery):
            assert float(row[f"Misc/mean_cost_{name}"]) == pytest.approx(cost)
            assert int(row[f"Misc/recovery_{name}"]) == flag
        assert float(row["Misc/realised_divergence"]) <= 0.01
    assert {row["Misc/recovery_left"] for row in rows} == {"0", "1"}
    assert {row["Misc/recovery_right"] for row in rows} == {"0"}


def test_official_units_and_windows_act_on_each_cost():
    """Windows of 50 episodes over two costs are those of each alone, over three epochs."""
    rng, before, alone = np.random.default_rng(0), np.zeros((2, 0)), [np.zeros(0)] * 2
    for episodes in (3, 60, 20):
        costs = rng.exponential(size=(2, episodes))
        found, before = ctrpo.per_budget(functools.partial(ctrpo.windowed_cost, window=50), costs, before)
        for i in range(2):
            one, alone[i] = ctrpo.windowed_cost(costs[i], alone[i], 50)
            assert found[i] == pytest.approx(one, rel=1e-14) and np.array_equal(before[i], alone[i])


@pytest.mark.parametrize("recovery", [[False, False], [True, False], [True, True]])
def test_line_search_of_several_budgets_judges_their_sum(recovery):
    """Random samples and networks: the accepted step, recomputed, has KL + beta sum Psi <= delta, over the
    costs that do not recover; the reward does not fall, or no recovering cost rises; and the next larger
    step fails one of these. The divergence decides somewhere."""
    stopped, recovery = set(), np.array(recovery)
    for seed in range(30):
        rng = np.random.default_rng([70, seed])
        policy = ctrpo.Policy((3, 4, 2), False)
        theta, observations = network(policy, 200, seed)
        actions = rng.normal(size=(200, 2))
        rewards, costs = rng.normal(size=200), rng.normal(size=(2, 200))
        margin = np.array([0.02, 0.05]) * rng.uniform(0.5, 5)
        config = ctrpo.Config(task="none", delta=0.05, cg_iterations=20)
        new, info = ctrpo.update_policy(config, policy, theta, observations, actions, rewards, costs, margin,
                                        recovery)
        full = (new - theta) / info["fraction"] if info["fraction"] else None

        def passes(candidate, margin=margin, rewards=rewards, costs=costs, info=info, theta=theta,
                   policy=policy, observations=observations, actions=actions):
            old, pi = (ctrpo.distributions(policy, each, observations) for each in (theta, candidate))
            logs = [ctrpo.log_probabilities(policy, each, actions) for each in (pi, old)]
            gains = np.exp(logs[0] - logs[1]) - 1
            changes, divergence = (gains * costs).mean(axis=1), ctrpo.mean_kl(policy, old, pi)
            for i in np.flatnonzero(~recovery):
                divergence += 0.1 * barrier_divergence(changes[i], margin[i], "log")
            better = (changes <= np.maximum(1e-14, info["cost_change"]))[recovery].all()
            return divergence <= 0.05 and (better if recovery.any() else np.mean(gains * rewards) >= 0)

        assert full is not None and passes(new)
        assert info["fraction"] == 1 or not passes(theta + info["fraction"] / 0.8 * full)
        stopped.add(info["stopped_by"])
    assert "divergence" in stopped


def test_strpo_subtracts_the_penalties_of_all_costs(tmp_path, monkeypatch):
    """A = A_r / std - sum_i lambda_i A_i / std_i, with the multipliers of the log; the first stage raises
    the sum of the costs. Control: one of the two left out."""
    handed, given = [], []
    update, estimate = strpo.update_policy, strpo.estimate_advantages
    monkeypatch.setattr(strpo, "update_policy", lambda *a: handed.append(a[5]) or update(*a))
    monkeypatch.setattr(strpo, "estimate_advantages", lambda *a: given.append(estimate(*a)) or given[-1])
    options = f"{TINY} {TWO} --cost-limit 1 2 --unsafe-steps 400"
    _, state, rows, _ = run(strpo, tmp_path, options, monkeypatch)
    [first] = tmp_path.glob("runs/*/*/*/seed-0/unsafe")
    config = json.loads((first / "config.json").read_text())["config"]
    assert config["cost_limit"] == 3 and config["costs"] == ["left", "right"]
    count = len(rows)
    for A, (rewards, costs, _), row in zip(handed[-count:], given[-count:], rows):
        z = (costs - costs.mean(axis=1, keepdims=True)) / costs.std(axis=1, keepdims=True)
        multipliers = [float(row[f"Misc/LagrangianMultiplier_{name}"]) for name in ("left", "right")]
        expected = (rewards - rewards.mean()) / rewards.std() - multipliers @ z
        assert np.allclose(A, expected, rtol=0, atol=1e-9)
        assert not np.allclose(A, expected + multipliers[1] * z[1], rtol=0, atol=1e-3)
    assert state["pid"].shape == (2, 2) and np.asarray(given[0][1]).ndim == 1


# ------------------------------------------------------------------------------------------------------ tools


def test_tools_judge_the_sum_and_each_named_cost(tmp_path, monkeypatch):
    """Evaluation of a run with two budgets: cost is the sum, and --output has each. A report's limit is the
    sum of the budgets, and draws it."""
    run(ctrpo, tmp_path, f"{TINY} {TWO} --cost-limit 2 4", monkeypatch)
    [path] = tmp_path.glob("runs/*/*/*/seed-0")
    evaluate.main([str(path), "--episodes", "20", "--workers", "1", "--output", "judged.json"])
    [judged] = json.loads((tmp_path / "judged.json").read_text())["by_action_noise"]["0.0"]["runs"].values()
    for policy in ("sampled", "deterministic"):
        means = {name: value[0] for name, value in judged[policy].items()}
        assert means["cost_left"] + means["cost_right"] == pytest.approx(means["cost"])
    assert judged["sampled"]["cost_right"][0] > 0
    assert report.read(path, "two").limit == 6


def test_a_sweep_takes_lists_of_costs_and_of_budgets():
    """As commas on the command line, and as lists of lists in studies/two_budgets.toml."""
    options = {"task": "tabular_cmdp:Corridor-v0", "costs": "left,right", "cost_limit": "2,4"}
    made = sweep.make_run("ctrpo", "two", options)
    assert made.config["costs"] == ["left", "right"] and made.config["cost_limit"] == [2, 4]
    words = " ".join(made.options)
    assert "--costs left right" in words and "--cost-limit 2 4" in words and "left-right" in made.folder
    assert sweep.make_run("ctrpo", "two", {**options, "cost_limit": "6"}).config["cost_limit"] == 6
    grids = sweep.read_grids(ROOT / "studies" / "two_budgets.toml")
    runs = [run for grid in grids for run in sweep.expand(grid)]
    assert len(runs) == 6 and [run.config["cost_limit"] for run in runs[::3]] == [[25, 10], 35]


def test_the_figure_of_two_budgets_tells_which_one_binds(tmp_path, monkeypatch, capsys):
    """The corridor: a tight budget for the left lane and one out of reach; the table has the means of the
    last epoch and the shares of the log. Runs that are not such end in a sentence."""
    for name, limit in (("two", "1 1000"), ("sum", "1001")):
        options = f"{TINY.replace('1600', '4800')} {TWO} --cost-limit {limit}"
        run(ctrpo, tmp_path / name, options, monkeypatch)
    folders = [next((tmp_path / name).glob("runs/*/*/ctrpo")) for name in ("two", "sum")]
    two_budgets.main([*map(str, folders), "--figure", str(tmp_path / "figure.png")])
    head, _, two, of_sum = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[-4:]]
    rows = list(csv.DictReader((folders[0] / "seed-0" / "progress.csv").open()))
    left = np.array([float(row["Metrics/EpCost_left"]) for row in rows])
    assert head[3:5] == ["left", "right"] and two[0] == "| budgets 1 and 1000"
    assert of_sum[0] == "| 1001 for the sum"
    assert 10 <= len(left) < 20 and two[3] == f"{left[-1]:.3g}" and two[5] == f"{np.mean(left >= 1):.0%}"
    assert two[6] == "0% |" and (tmp_path / "figure.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="first folder"):
        two_budgets.main([*map(str, folders[::-1]), "--figure", str(tmp_path / "figure.png")])
