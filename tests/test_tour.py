"""The learner's tour, docs/tour.py: its ten cells run, again and again, and show what their text says.

The cells run in order in one namespace, as in a notebook. Each is run as it stands, then with the change that
its text proposes, then as it stands once more.
"""
import math
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import sbtrpo

TOUR = Path(sbtrpo.__file__).resolve().parent / "docs" / "tour.py"


def cells():
    """The code before the first numbered cell; and (title, before, after, code) of each: its text proposes
    to change `before` to `after`."""
    setup, *numbered = re.split(r"^# %% \[markdown\]\n# ## ", TOUR.read_text(), flags=re.M)
    result = []
    for cell in numbered:
        text, code = cell.split("# %%\n")
        proposal = re.search(r"\*Change\* `(.+?)` to `(.+?)`", text.replace("\n# ", " "))
        result.append((text.split("\n")[0], *proposal.groups(), code))
    return setup, result


@pytest.fixture(scope="module")
def tour():
    """(shown, changed, again), by the number of the cell: all names after it as it stands, with its change,
    and once more as it stands."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    setup, numbered = cells()
    names, runs = {}, ({}, {}, {})
    exec(setup, names)
    for number, (_, before, after, code) in enumerate(numbered, start=1):
        assert code.count(before) == 1, f"cell {number} proposes to change {before}"
        for run, text in zip(runs, (code, code.replace(before, after), code)):
            exec(text, names)
            run[number] = dict(names)
        plt.close("all")
    return runs


def cost(names, theta):
    return names["world"].J(theta, names["world"].c)


def reward(names, theta):
    return names["world"].J(theta, names["world"].r)


def test_the_tour_has_ten_numbered_cells():
    titles = [title for title, *_ in cells()[1]]
    assert [title.split(".")[0] for title in titles] == [str(k) for k in range(1, 11)]


def test_a_cell_can_be_run_again(tour):
    """No cell adds up on itself: once more, it leaves the same arrays and numbers."""
    shown, _, again = tour
    compared = 0
    for number, names in shown.items():
        for name, value in names.items():
            if isinstance(value, (float, int)) or getattr(value, "dtype", None) is np.dtype(float):
                assert np.array_equal(value, again[number][name]), (number, name)
                compared += 1
    assert compared > 100


def test_1_the_world(tour):
    shown, changed = (each[1] for each in tour[:2])
    assert shown["best_safe"] == pytest.approx(shown["world"].optimum(0).value, abs=1e-12)
    assert 8 < changed["J_r"] / shown["J_r"] < 12 and 1.7 < changed["J_c"] / shown["J_c"] < 2.3


def test_2_the_best_steps_have_kl_delta_and_grow_with_its_root(tour):
    shown, changed = (each[2] for each in tour[:2])
    F = shown["world"].fisher(shown["start"])
    for name in ("step_r", "step_c"):
        assert shown[name] @ F @ shown[name] / 2 == pytest.approx(shown["delta"], rel=1e-10)
        assert changed[name] == pytest.approx(2 * shown[name], rel=1e-10)
    assert shown["g_r"] @ shown["step_c"] < 0 < shown["g_r"] @ shown["step_r"]


def test_3_rho_is_the_cosine_in_the_metric_of_f(tour):
    shown, changed = (each[3] for each in tour[:2])
    for names in (shown, changed):
        cosine = names["step_r"] @ names["fisher"] @ names["step_c"] / (2 * names["delta"])
        assert -names["rho"] == pytest.approx(cosine, abs=1e-10)
    assert 90 < math.degrees(math.acos(-changed["rho"])) < 97 < math.degrees(math.acos(-shown["rho"]))


def test_4_the_convex_step_keeps_beta_and_loses_reward_where_rho_exceeds_1_minus_beta(tour):
    for names, loses in zip((each[4] for each in tour[:2]), (True, False)):
        beta, rho, info = names["beta"], names["rho"], names["sb"]
        assert info["mu"] == pytest.approx((beta + rho) / (1 + rho), abs=1e-10)
        line = names["step_r"] + info["mu"] * (names["step_c"] - names["step_r"])
        assert names["convex"] == pytest.approx(line, abs=1e-10)
        assert info["cost_change"] == pytest.approx(-beta * info["best_cost"], rel=1e-10)
        assert names["squared_length"](names["convex"]) < 0.9
        assert (rho > 1 - beta) == loses == (info["reward_change"] < 0)


def test_5_the_optimal_step_keeps_beta_too_earns_more_and_fills_the_region(tour):
    shown, changed = (each[5] for each in tour[:2])
    convex, optimal = shown["sb"], shown["sb_optimal"]
    assert optimal["cost_change"] == pytest.approx(convex["cost_change"], rel=1e-10)
    assert optimal["reward_change"] > 0 > convex["reward_change"]
    assert shown["squared_length"](shown["optimal"]) == pytest.approx(1, abs=1e-10)
    assert changed["optimal"] == pytest.approx(changed["step_c"], abs=1e-10)


def test_6_a_narrow_margin_turns_the_step_until_it_leaves_the_cost_alone(tour):
    shown, changed = (each[6] for each in tour[:2])
    wide, _, narrow = shown["barrier_steps"]
    assert np.all(np.diff(shown["keeps"]) < 0) and shown["keeps"][0] > 0.95
    assert np.linalg.norm(wide - shown["step_r"]) < 0.05 * np.linalg.norm(wide)
    assert abs(shown["g_c"] @ narrow) < 0.01 * shown["margins"][-1]
    assert max(shown["shares"]) < 1 < changed["shares"][-1]


def test_7_the_excluding_step_moves_away_as_demanded(tour):
    shown, changed = (each[7] for each in tour[:2])
    most = shown["phi"] @ shown["away"]
    assert shown["phi"] @ shown["excluding"] == pytest.approx(0.75 * most, rel=1e-10)
    assert cost(shown, shown["unsafe"]) > 3 * cost(shown, shown["start"])
    assert changed["excluding"] == pytest.approx(changed["step_r"], abs=1e-10)
    rise = 1e-4 * shown["phi"] @ shown["excluding"]  # phi against a difference
    nearby = shown["theta"] + 1e-4 * shown["excluding"].reshape(10, 5)
    assert shown["exclusion"](nearby) - shown["exclusion"](shown["theta"]) == pytest.approx(rise, rel=1e-3)


def test_8_the_line_search_ends_where_the_kl_is_small_enough(tour):
    shown, changed = (each[8] for each in tour[:2])
    for names in (shown, changed):
        found, theta = names["found"], names["theta"]
        longer = theta + found["fraction"] / 0.8 * names["long_step"]
        assert found["kl"] <= names["delta"] < names["world"].kl(theta, longer)
        assert found["cost"] < 0 and found["stopped_by"] == "kl"
    length = [names["stretch"] * names["found"]["fraction"] for names in (shown, changed)]
    assert 0.8 < length[1] / length[0] < 1.25


def test_9_where_forty_steps_lead(tour):
    shown, changed = (each[9] for each in tour[:2])
    world, ends = shown["world"], {name: path[-1] for name, path in shown["paths"].items()}
    assert reward(shown, ends["trpo"]) == pytest.approx(world.optimum(np.inf).value, abs=1e-4)
    assert cost(shown, ends["trpo"]) > 0.5
    assert reward(shown, ends["sb_trpo"]) == pytest.approx(shown["best_safe"], abs=1e-4)
    assert cost(shown, ends["sb_trpo"]) < 1e-10
    costs = [cost(shown, theta) for theta in shown["paths"]["c_trpo"]]
    assert max(costs[2:]) < shown["budget"] == pytest.approx(costs[-1], abs=1e-3)
    assert reward(shown, ends["c_trpo"]) == pytest.approx(world.optimum(0.1).value, abs=1e-3)
    assert reward(changed, changed["paths"]["c_trpo"][-1]) < 0.05 * shown["best_safe"]


def test_10_strpo_swings_around_the_budget_and_its_level_is_soon_reached(tour):
    shown, changed = (each[10] for each in tour[:2])
    last = [cost(shown, theta) for theta in shown["paths"]["s_trpo"][-10:]]
    assert min(last) < 0.8 * shown["budget"] < 1.2 * shown["budget"] < max(last)
    assert 0 < shown["changed"] <= 3
    reached = [shown["exclusion"](theta) >= shown["level"] for theta in shown["paths"]["s_trpo"]]
    assert not reached[0] and all(reached[shown["changed"]:])
    path = changed["paths"]["s_trpo"]
    moved = [np.abs(new - old).max() > 1e-9 for old, new in zip(path, path[1:])]
    assert changed["changed"] == 40 and moved == 3 * [True] + 37 * [False]
    assert 1 < changed["exclusion"](path[-1]) < changed["level"]
    assert reward(changed, path[-1]) < 0.1 * shown["best_safe"]
