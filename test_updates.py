# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = [
#   "safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6", "autograd==1.8.0",
#   "matplotlib==3.10.8", "tqdm==4.67.1",
#   "scipy==1.15.3", "pytest==9.2.0", "hypothesis==6.148.0", "distributed==2026.8.0",
# ]
# [tool.uv]
# override-dependencies = [  # what safety-gymnasium 1.0.0 pins and never uses, or pins too low
#   "gymnasium==0.29.1", "numpy==2.2.6", "mujoco==2.3.3",
#   "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'",
# ]
# ///
"""The theorems behind the scripts, tested on what ships: name = statement, docstring = assumptions.

Run `uv run test_updates.py` (options are pytest's: `-k budget`, `-x`, ...) or `pytest test_updates.py`. The
summary ends with one line per statement: the worst figure met and the bound it had to keep. A `<=` is a
guarantee or an identity; a `>=` is a count, or a negative control: a case outside the assumptions, where the
guarantee visibly fails. Long sweeps are skipped unless asked for: `-m slow` runs those alone, and
`-m "slow or not slow"` everything.

g is a gradient and x = F^-1 g its natural direction; q = g_r.x_r, r = g_r.x_c, s = g_c.x_c, and
rho = r / sqrt(q s). The greatest linear change that a trust region of radius delta allows is sqrt(2 delta q)
for the reward and sqrt(2 delta s) for the cost: steps are judged in those units, named in [brackets].
"""
import functools
import math
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from autograd import hessian, jacobian
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import sbtrpo
from sbtrpo import optimal_safety_biased_step, safety_biased_step
from tabular_cmdp import TabularCMDP, garnet, hazard_grid, policy, two_state

IDENTITY, GOLDEN, LP = 1e-10, 1e-9, 1e-8  # tolerances: float64 identities, printed figures, linear programs
RECORDS = {}  # statement -> (worst figure, "<=" or ">=", bound)

with warnings.catch_warnings():  # without a configuration file, plain pytest does not know the mark
    warnings.simplefilter("ignore")
    SLOW = pytest.mark.slow


def slow(test):
    """Skip unless `-m` mentions slow."""
    unless = pytest.mark.skipif("'slow' not in config.option.markexpr", reason="slow: run with -m slow")
    return SLOW(unless(test))


def check(statement: str, worst: float, at_most: float | None = None, at_least: float | None = None) -> None:
    """Records the figure for the closing table, then asserts the bound (NaN fails)."""
    sign, bound, worse = ("<=", at_most, max) if at_least is None else (">=", at_least, min)
    worst = float(worst)
    previous = RECORDS.get(statement, (worst,))[0]
    RECORDS[statement] = (worst if math.isnan(worst) else worse(previous, worst), sign, bound)
    holds = worst <= bound if at_least is None else worst >= bound
    assert holds, f"{statement}: {worst:.3g}, not {sign} {bound:.3g}"


class Table:
    """Prints the records after pytest's own summary and before its closing line."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter):
        yield
        terminalreporter.section("statement, worst figure, bound")
        for statement, (worst, sign, bound) in RECORDS.items():
            mark = "" if (worst <= bound if sign == "<=" else worst >= bound) else "  FAILED"
            terminalreporter.write_line(f"{statement:<84} {worst:>10.2e} {sign} {bound:.2e}{mark}")


@pytest.fixture(scope="session", autouse=True)
def table(request):
    request.config.pluginmanager.register(Table(), "table of statements")


# ------------------------------------------------------------------------------------------ problems to solve


@functools.cache
def garnets(n: int, sparse_cost: bool = False) -> list[TabularCMDP]:
    return [garnet(seed, sparse_cost) for seed in range(n)]


def worlds() -> list[TabularCMDP]:
    return [two_state(), hazard_grid("A"), hazard_grid("C"), *garnets(20)]


def logits(world: TabularCMDP, seed: int = 0) -> np.ndarray:
    """A random policy, theta ~ N(0, 1)."""
    return np.random.default_rng([7, seed]).normal(size=world.r.shape)


def cases(n: int = 20):
    """(world, theta): the hand-made worlds and n Garnets, each at a random policy."""
    return [(world, logits(world, i)) for i, world in enumerate([*worlds()[:3], *garnets(n)])]


def dot(a, b) -> float:
    return float(np.sum(a * b))


def first_order(world: TabularCMDP, theta: np.ndarray, delta: float = 0.01) -> tuple:
    """(g_r, x_r, g_c, x_c) flattened, as an update takes them.

    A gradient counts as zero when the best step changes its objective by less than 1e-8 of the largest reward
    or cost. Exact runs exhaust the cost; rounding then leaves g.x near 1e-17, of either sign, and a best
    change of 1e-9 that means nothing (see `test_exhausted_cost_leaves_the_reward_step`).
    """
    vectors = []
    for f in (world.r, world.c):
        g, x = world.gradient(theta, f).ravel(), world.natural_direction(theta, f).ravel()
        significant = 2 * delta * (g @ x) > (1e-8 * np.abs(f).max()) ** 2
        vectors += [g * significant, x * significant]
    return tuple(vectors)


def random_problem(rng, n: int = 6) -> tuple:
    """Metric F (random SPD) and (g_r, x_r, g_c, x_c) with normal gradients."""
    B = rng.normal(size=(n, n))
    F = B @ B.T + 0.1 * np.eye(n)
    g_r, g_c = rng.normal(size=(2, n))
    return F, (g_r, np.linalg.solve(F, g_r), g_c, np.linalg.solve(F, g_c))


def plane(rho: float) -> tuple:
    """(g_r, x_r, g_c, x_c) in the Euclidean plane with q = s = 1 and the given cosine."""
    g_r, g_c = np.array([1.0, 0]), np.array([rho, math.sqrt(1 - rho**2)])
    return g_r, g_r, g_c, g_c


def units(g_r, x_r, g_c, x_c, delta: float) -> tuple[float, float, float]:
    """sqrt(2 delta q), sqrt(2 delta s), rho."""
    q, r, s = g_r @ x_r, g_r @ x_c, g_c @ x_c
    return math.sqrt(2 * delta * q), math.sqrt(2 * delta * s), r / math.sqrt(q * s)


def train_exactly(world, update, beta, iterations, limit=None, theta=None, delta=0.01, until=None) -> tuple:
    """Iterates the shipped update and line search on exact quantities; returns theta and the path [(J_r,
    J_c)].

    A step is accepted if its exact KL is at most delta and its surrogate cost does not rise, or not above the
    margin b - J_c that is left of a budget. Stops early when `until(J_r, J_c)`.
    """
    theta = np.zeros(world.r.shape) if theta is None else theta
    path = [(world.J(theta, world.r), world.J(theta, world.c))]
    for _ in range(iterations):
        if until and until(*path[-1]):
            break
        old, excess = theta, None if limit is None else path[-1][1] - limit
        step, _ = update(*first_order(world, old, delta), delta, beta, excess)
        margin = max(0.0, -(excess or 0.0)) + 1e-12

        def evaluate(new, old=old):
            return {"kl": world.kl(old, new), "cost": world.surrogate(old, new, world.c)}

        def conditions(measured, margin=margin):
            return "kl" if measured["kl"] > delta else "cost" if measured["cost"] > margin else ""

        theta, _ = sbtrpo.line_search(evaluate, old, step.reshape(old.shape), conditions)
        path.append((world.J(theta, world.r), world.J(theta, world.c)))
    return theta, np.array(path)


# ------------------------------------------------------------------------ the exact world (THEORY, section 0)


def test_policy_gradient_theorem():
    """g = d pi A for softmax logits, against autograd through the linear solve of J."""
    worst = 0.0
    for world, theta in cases():
        for f in (world.r, world.c):
            error = world.gradient(theta, f) - world.gradient_by_autograd(theta, f)
            worst = max(worst, np.abs(error).max())
    check("policy gradient = occupancy * advantage (autograd)", worst, at_most=IDENTITY)


def test_fisher_is_the_hessian_of_the_mean_kl():
    """At new = old, with the state weights of old held fixed; autograd twice through the KL."""
    worst = 0.0
    for world, theta in cases(8):
        second = hessian(lambda new, world=world, theta=theta: world.kl(theta, new))(theta)
        worst = max(worst, np.abs(second.reshape(theta.size, -1) - world.fisher(theta)).max())
    check("Fisher matrix = Hessian of mean KL(old, new) (autograd)", worst, at_most=IDENTITY)


def test_fisher_is_the_pullback_of_conditional_entropy():
    """F = J^T H J, with J = d occupancy / d theta and H the Hessian of sum rho log(rho / d) in the
    occupancy."""
    worst = 0.0
    for world, theta in cases(8):
        J = jacobian(world.occupancy)(theta).reshape(theta.size, theta.size)
        rho, d, A = world.occupancy(theta).ravel(), world.state_occupancy(theta), theta.shape[1]
        H = np.diag(1 / rho) - np.kron(np.diag(1 / d), np.ones((A, A)))
        worst = max(worst, np.abs(J.T @ H @ J - world.fisher(theta)).max())
    check("Fisher matrix = pullback of the conditional entropy", worst, at_most=IDENTITY)


def test_fisher_times_advantage_is_the_gradient():
    """F A_f = g_f in every gauge: the advantage itself and the row-centred direction."""
    worst = 0.0
    for world, theta in cases():
        for f in (world.r, world.c):
            for x in (world.advantage(theta, f), world.natural_direction(theta, f)):
                error = world.fisher(theta) @ x.ravel() - world.gradient(theta, f).ravel()
                worst = max(worst, np.abs(error).max())
    check("Fisher * advantage = gradient", worst, at_most=IDENTITY)


def test_pseudo_inverse_direction_is_the_row_centred_advantage():
    """x = F^+ g without inverting anything; every state visited (d > 0). Control: the uncentred advantage."""
    worst, uncentred = 0.0, []
    for world, theta in cases():
        for f in (world.r, world.c):
            inverse = np.linalg.pinv(world.fisher(theta), 1e-10, hermitian=True)
            x = inverse @ world.gradient(theta, f).ravel()
            scale = np.abs(x).max()
            worst = max(worst, np.abs(x - world.natural_direction(theta, f).ravel()).max() / scale)
            uncentred.append(np.abs(x - world.advantage(theta, f).ravel()).max() / scale)
    check("pinv(F) g = row-centred advantage [relative]", worst, at_most=IDENTITY)
    check("  control: the uncentred advantage differs (largest)", max(uncentred), at_least=0.1)


def test_performance_difference_lemma():
    """J(new) - J(old) = E_{occupancy of new}[A_old]; any two policies. Control: the state weights of old."""
    worst, control = 0.0, 0.0
    for world, old in cases():
        new = logits(world, 1000)
        for f in (world.r, world.c):
            gain = world.J(new, f) - world.J(old, f)
            worst = max(worst, abs(gain - dot(world.occupancy(new), world.advantage(old, f))))
            control = max(control, abs(gain - world.surrogate(old, new, f)))
    check("performance-difference lemma", worst, at_most=IDENTITY)
    check("  control: with the states of the old policy it fails (largest)", control, at_least=0.01)


def test_linear_program_is_the_best_policy():
    """The LP's policy, evaluated exactly, attains the LP's value and cost; and strong duality: the best
    policy for r - dual * c without a budget is worth value - dual * limit."""
    attained, duality = 0.0, 0.0
    for world in worlds():
        best = world.optimum()
        with np.errstate(divide="ignore"):
            theta = np.log(best.policy)
        reward, cost = world.J(theta, world.r), world.J(theta, world.c)
        attained = max(attained, abs(reward - best.value), abs(cost - best.cost))
        lagrangian = world.optimum(np.inf, world.r - best.dual * world.c).value
        duality = max(duality, abs(lagrangian - (best.value - best.dual * world.limit)))
    check("LP optimum is attained by its policy", attained, at_most=LP)
    check("LP strong duality (Lagrangian without budget)", duality, at_most=LP)


def test_impossible_budget_is_refused():
    with pytest.raises(ValueError, match="No policy of this world"):
        two_state().optimum(limit=0.001)


# ------------------------------------------------------------------------ golden figures (THEORY, D1, D2, D3)


def test_golden_two_state():
    """D1: uniform policy, delta = .01, beta = .75."""
    world, theta = two_state(), np.zeros((2, 2))
    g_r, x_r, g_c, x_c = vectors = first_order(world, theta)
    _, _, rho = units(*vectors, 0.01)
    measured = [world.J(theta, world.r), world.J(theta, world.c), *world.state_occupancy(theta),
                g_r @ x_r, g_r @ x_c, g_c @ x_c]
    golden = [0.735, 0.26385, 0.53, 0.47, 0.745375, 0.38032625, 0.2428277375]
    step, info = safety_biased_step(*vectors, 0.01, 0.75)
    measured += [info["mu"], *step]
    golden += [0.8680016738, 0.0444954031, -0.0444954031, -0.1478258578, 0.1478258578]
    step, _ = optimal_safety_biased_step(*vectors, 0.01, 0.75)
    measured += [*step]
    golden += [0.1583947288, -0.1583947288, -0.1194213731, 0.1194213731]
    worst = np.abs(np.subtract(measured, golden)).max()
    check("two states: golden values of J, d, q, r, s and both steps", worst, at_most=GOLDEN)
    check("two states: golden rho (7 digits printed)", abs(rho - 0.8939634), at_most=5e-8)


def test_golden_linear_programs():
    """D1-D3, printed to 8 digits or more; shorter ones to what is printed."""
    small, grid = two_state(), hazard_grid("A")
    eight = [(small.optimum().value, 1.1031903190), (grid.optimum(0.0).value, 0.1018665597)]
    limits, values = (0.41341171, 0.27318384, 0.28989998), (0.80804180, 0.66175821, 0.67418455)
    for world, b, value in zip(garnets(3), limits, values, strict=True):
        eight += [(world.limit, b), (world.optimum().value, value)]
    free = small.optimum(np.inf)
    short = [(small.optimum(0.1).value, 0.9821782), (small.optimum().policy[1, 0], 0.9271402),
             (free.value, 1.84), (free.cost, 0.92), (small.optimum(np.inf, -small.c).cost, 0.0048421),
             (grid.optimum(0.02).value, 0.1038259), (grid.optimum(0.1).value, 0.1116635),
             (grid.optimum(np.inf).value, 0.1602159), (hazard_grid("C").optimum(0.1).value, 0.1116635)]
    check("linear programs: golden values, 8 digits", max(abs(a - b) for a, b in eight), at_most=LP)
    check("linear programs: golden values, 7 digits", max(abs(a - b) for a, b in short), at_most=1e-7)
    check("linear programs: golden dual of the grid", abs(grid.optimum(0.02).dual - 0.097969), at_most=5e-7)


def test_golden_uniform_policies():
    """D2, D3 at theta = 0."""
    grid = hazard_grid("A")
    theta = np.zeros(grid.r.shape)
    worst = max(abs(w.J(np.zeros(w.r.shape), w.r) - J) for w, J in
                zip(garnets(3), (0.54050906, 0.39537488, 0.42807187), strict=True))
    check("Garnets: golden reward of the uniform policy", worst, at_most=LP)
    worst = max(abs(grid.J(theta, grid.r) - 0.0065057), abs(grid.J(theta, grid.c) - 0.2430970))
    check("grid: golden reward and cost of the uniform policy (7 digits)", worst, at_most=1e-7)
    _, _, rho = units(*first_order(grid, theta), 0.01)
    check("grid: golden rho (4 digits)", abs(rho - 0.1077), at_most=5e-5)


# ----------------------------------------------------------------------------- the update, in any metric (A1)


def test_mu_is_the_smallest_feasible_weight():
    """mu in closed form, against a search over 10,001 convex combinations; delta = .01, random SPD
    metrics."""
    rng, grid, worst, delta = np.random.default_rng(0), np.linspace(0, 1, 10_001), 0.0, 0.01
    for _ in range(300):
        _, (g_r, x_r, g_c, x_c) = random_problem(rng)
        beta = rng.uniform(0.05, 1)
        best_r, best_c, _ = units(g_r, x_r, g_c, x_c, delta)
        cost_r, cost_c = 2 * delta * (g_c @ x_r) / best_r, -best_c
        feasible = (1 - grid) * cost_r + grid * cost_c <= beta * cost_c * (1 - 1e-12)
        _, info = safety_biased_step(g_r, x_r, g_c, x_c, delta, beta)
        worst = max(worst, abs(grid[feasible][0] - info["mu"]))
    check("mu = smallest feasible weight (grid of 1e-4)", worst, at_most=1.01e-4)


def test_step_keeps_its_share_of_the_best_cost_decrease():
    """g_c.step = -beta sqrt(2 delta s) if rho > -beta, and no more than that otherwise; g_c != 0. Both
    updates.

    Control: the reward step alone.
    """
    rng, equal, guarantee, control, delta = np.random.default_rng(1), 0.0, -1.0, -1.0, 0.01
    for _ in range(1000):
        _, vectors = random_problem(rng, rng.integers(2, 8))
        beta = rng.uniform(0.05, 1)
        _, best, rho = units(*vectors, delta)
        for update in (safety_biased_step, optimal_safety_biased_step):
            step, _ = update(*vectors, delta, beta)
            share = vectors[2] @ step / best
            guarantee = max(guarantee, share + beta)
            equal = max(equal, abs(share + beta)) if rho > -beta else equal
        step, _ = safety_biased_step(*vectors[:2], 0 * vectors[2], 0 * vectors[3], delta, beta)
        control = max(control, vectors[2] @ step / best + beta)
    check("cost decrease >= beta * best decrease, both updates [best decrease]", guarantee, at_most=IDENTITY)
    check("  with equality when rho > -beta", equal, at_most=IDENTITY)
    check("  control: the reward step alone misses it (by, largest)", control, at_least=1.0)


def test_predicted_changes_in_closed_form():
    """Reward (1 - beta - rho) sqrt(2 delta q), KL delta (1 - 2 (beta + rho)(1 - beta)/(1 + rho)) for rho >
    -beta, and k = sqrt((1 - beta^2)/(1 - rho^2)) of the optimum; predictions in `info` against dense
    algebra."""
    rng, delta, formula, dense = np.random.default_rng(2), 0.02, 0.0, 0.0
    for _ in range(1000):
        F, vectors = random_problem(rng)
        beta = rng.uniform(0.05, 1)
        best_r, best_c, rho = units(*vectors, delta)
        for update in (safety_biased_step, optimal_safety_biased_step):
            step, info = update(*vectors, delta, beta)
            reward, kl = vectors[0] @ step / best_r, step @ F @ step / 2 / delta
            dense = max(dense, abs(info["reward_change"] / best_r - reward), abs(info["kl"] / delta - kl),
                        abs(info["cost_change"] - vectors[2] @ step) / best_c,
                        abs(info["required"] / best_c - beta), abs(info["rho"] - rho))
            if rho <= -beta:
                formula = max(formula, abs(reward - 1), abs(kl - 1))
            elif update is safety_biased_step:
                used = 1 - 2 * (beta + rho) * (1 - beta) / (1 + rho)
                formula = max(formula, abs(reward - (1 - beta - rho)), abs(kl - used))
            else:
                optimum = -beta * rho + math.sqrt((1 - beta**2) * (1 - rho**2))
                formula = max(formula, abs(reward - optimum), abs(kl - 1))
    check("reward and KL of both steps = closed forms [best change, delta]", formula, at_most=1e-9)
    check("predictions in info = dense algebra [best change, delta]", dense, at_most=1e-9)


def test_optimal_step_is_certified_by_its_dual():
    """max g_r.step subject to g_c.step <= -required, KL <= delta. Any nu >= 0 bounds the optimum from above
    by sqrt(2 delta |g_r - nu g_c|^2_{F^-1}) - nu required; the step is feasible and reaches the least such
    bound."""
    rng, gap, feasible, delta = np.random.default_rng(3), 0.0, -1.0, 0.01
    for _ in range(200):
        F, vectors = random_problem(rng)
        beta, (best_r, best_c, rho) = rng.uniform(0.05, 0.99), units(*vectors, delta)
        step, _ = optimal_safety_biased_step(*vectors, delta, beta)

        def bound(nu, rho=rho, beta=beta):  # in units of the best changes
            return math.sqrt(max(0.0, 1 - 2 * nu * rho + nu**2)) - nu * beta

        least = minimize_scalar(bound, bounds=(0, 300), method="bounded", options={"xatol": 1e-9}).fun
        gap = max(gap, abs(vectors[0] @ step / best_r - min(bound(0.0), least)))
        feasible = max(feasible, step @ F @ step / 2 / delta - 1, vectors[2] @ step / best_c + beta)
    check("optimal step: duality gap [best reward change]", gap, at_most=1e-9)
    check("optimal step: violation of KL or cost constraint [relative]", feasible, at_most=IDENTITY)


def test_optimal_step_beats_the_convex_combination():
    """Same problem, larger feasible set: never less reward. Printed table at beta = .75; rewards in sqrt(2
    delta q)."""
    table = {-0.5: (0.75, 0.948, 0.75), -0.25: (0.50, 0.828, 0.667), 0: (0.25, 0.661, 0.625),
             0.25: (0, 0.453, 0.60), 0.5: (-0.25, 0.198, 0.583)}
    worst, unit = 0.0, math.sqrt(2 * 0.01)
    for rho, printed in table.items():
        _, convex = safety_biased_step(*plane(rho), 0.01, 0.75)
        _, optimal = optimal_safety_biased_step(*plane(rho), 0.01, 0.75)
        measured = convex["reward_change"] / unit, optimal["reward_change"] / unit, convex["kl"] / 0.01
        worst = max(worst, np.abs(np.subtract(measured, printed)).max())
    check("printed table of both updates at beta = .75 (3 digits)", worst, at_most=5.1e-4)
    behind = 0.0
    for rho in np.linspace(-0.999, 0.999, 201):
        for beta in (0.1, 0.5, 0.75, 0.9, 1.0):
            gains = [update(*plane(rho), 0.01, beta)[1]["reward_change"] for update in
                     (safety_biased_step, optimal_safety_biased_step)]
            behind = max(behind, (gains[0] - gains[1]) / unit)
    check("optimal step earns no less than the convex combination [best change]", behind, at_most=IDENTITY)


@pytest.mark.parametrize("update", [safety_biased_step, optimal_safety_biased_step])
def test_every_degenerate_row_is_finite(update):
    """The table of A1: zero gradients, parallel, antiparallel, beta = 1; in the plane, delta = .01."""
    e, zero, beta = np.array([1.0, 0]), np.zeros(2), 0.75
    unit, convex = math.sqrt(0.02), update is safety_biased_step
    rows = [("g_c = 0: the reward step", (e, e, zero, zero, 0.01, beta), unit * e),
            ("g_r = 0: beta * the cost step", (zero, zero, e, e, 0.01, beta), -beta * unit * e),
            ("both 0: stay", (zero, zero, zero, zero, 0.01, beta), zero),
            ("rho = 1: beta * the cost step", (e, e, e, e, 0.01, beta), -beta * unit * e),
            ("rho = -1: the reward step", (e, e, -e, -e, 0.01, beta), unit * e),
            ("rho = -1, beta = 1 (0/0): the reward step", (e, e, -e, -e, 0.01, 1.0), unit * e),
            ("beta = 1: the cost step", (*plane(0.3), 0.01, 1.0), -unit * plane(0.3)[2])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no division by zero on the way
        for name, arguments, expected in rows:
            check(f"degenerate, {'convex' if convex else 'optimal'}, {name}",
                  np.abs(update(*arguments)[0] - expected).max(), at_most=IDENTITY)


def test_full_bias_and_orthogonal_gradients_gain_nothing():
    """C1: q = s = 1, rho = 0, beta = 1 gives mu = 1 and gain exactly 0, so 'reward rises if g_r != 0 and
    g_r.step_c >= 0' needs beta < 1. The corrected rule, rho < 1 - beta, is silent there."""
    _, info = safety_biased_step(*plane(0.0), 0.01, 1.0)
    check("erratum: beta = 1, rho = 0 has mu = 1 ...", abs(info["mu"] - 1), at_most=IDENTITY)
    check("  ... and no reward to first order", abs(info["reward_change"]), at_most=IDENTITY)
    _, info = safety_biased_step(*plane(0.0), 0.01, 0.9)
    check("  control: beta = .9 gains", info["reward_change"], at_least=0.01)


@slow
def test_share_of_reward_that_the_convex_combination_leaves():
    """Random isotropic gradients: mean reward of the convex combination over that of the optimum (2
    digits)."""
    rng, worst = np.random.default_rng(4), 0.0
    printed = {0.6: (0.59, 0.53, 0.50), 0.75: (0.48, 0.40, 0.38), 0.9: (0.34, 0.25, 0.23)}
    for beta, ratios in printed.items():
        for n, ratio in zip((2, 10, 75), ratios, strict=True):
            gains = np.zeros(2)
            for g_r, g_c in rng.normal(size=(10_000, 2, n)):
                for k, update in enumerate((safety_biased_step, optimal_safety_biased_step)):
                    _, info = update(g_r, g_r, g_c, g_c, 0.01, beta)
                    gains[k] += info["reward_change"] / np.linalg.norm(g_r)
            worst = max(worst, abs(gains[0] / gains[1] - ratio))
    check("share of the optimum's mean reward, random directions (2 digits)", worst, at_most=0.015)


# -------------------------------------------------------------------------- hypothesis: any metric, any scale


@st.composite
def problems(draw):
    """Unit problem (F, g_r, x_r, g_c, x_c) with F SPD of condition <= 1e4, and scales of the two
    gradients."""
    n = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    F = Q @ np.diag(10.0 ** rng.uniform(-2, 2, n)) @ Q.T
    g_r, g_c = rng.normal(size=(2, n))
    alike = draw(st.sampled_from([None, None, 0.0, 1e-12, 1e-9, 1e-7, 1e-6, 1e-5, 1e-3]))
    if alike is not None:  # parallel or antiparallel up to this much
        g_c = draw(st.sampled_from([-1, 1])) * g_r + alike * g_c
    scales = [10.0 ** draw(st.sampled_from([-300, -150, -20, 0, 20, 150])) for _ in range(2)]
    return F, g_r, np.linalg.solve(F, g_r), g_c, np.linalg.solve(F, g_c), *scales


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(problems(), st.floats(0.01, 1.0), st.sampled_from([1e-4, 0.01, 0.5]))
def test_every_metric_and_scale_keeps_the_guarantees(problem, beta, delta):
    """Gradients from 1e-300 to 1e150, parallel, antiparallel and nearly so: finite, KL <= delta, share of the
    cost."""
    F, g_r, x_r, g_c, x_c, scale_r, scale_c = problem
    best = math.sqrt(2 * delta * (g_c @ x_c))
    for update in (safety_biased_step, optimal_safety_biased_step):
        name = "convex" if update is safety_biased_step else "optimal"
        step, info = update(scale_r * g_r, scale_r * x_r, scale_c * g_c, scale_c * x_c, delta, beta)
        assert np.all(np.isfinite(step)) and np.isfinite([info["kl"], info["reward_change"]]).all()
        check(f"any metric and scale, {name}: KL / delta - 1", step @ F @ step / 2 / delta - 1, at_most=1e-9)
        check(f"any metric and scale, {name}: cost share missed", g_c @ step / best + beta, at_most=1e-9)
        check(f"any metric and scale, {name}: predicted KL / dense KL - 1 [delta]",
              abs(info["kl"] - step @ F @ step / 2) / delta, at_most=1e-9)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(problems(), st.floats(0.01, 1.0), st.floats(-3.0, 3.0))
def test_budget_is_honoured_to_first_order(problem, beta, excess):
    """g_c.step <= -min(beta * best decrease, excess), `excess` = J_c - b here in units of the best decrease;
    negative inside the budget, where the cost may rise by the margin at most. Beyond 1 the whole decrease is
    not enough."""
    F, g_r, x_r, g_c, x_c, _, _ = problem
    delta = 0.01
    best = math.sqrt(2 * delta * (g_c @ x_c))
    for update in (safety_biased_step, optimal_safety_biased_step):
        step, _ = update(g_r, x_r, g_c, x_c, delta, beta, excess * best)
        check("budget: cost change <= -min(beta best, J_c - b) [best decrease]",
              g_c @ step / best + min(beta, excess), at_most=1e-9)
        check("budget: KL / delta - 1", step @ F @ step / 2 / delta - 1, at_most=1e-9)


# --------------------------------------------- theorems of the paper on exact worlds (B1-B3, orders of error)


def test_cost_falls_wherever_its_gradient_is_not_zero():
    """Theorem 4.2(1): g_c != 0, random policies of 300 Garnets. The small step proves the first-order claim;
    the full step at delta = .01 is measured. Control: the reward step alone, where rho > .01."""
    small, full, control = -np.inf, -np.inf, np.inf
    for world, theta in cases(300)[3:]:
        vectors = first_order(world, theta)
        cost, (_, best, rho) = world.J(theta, world.c), units(*vectors, 0.01)
        for update in (safety_biased_step, optimal_safety_biased_step):
            step = update(*vectors, 0.01, 0.75)[0].reshape(theta.shape)
            small = max(small, (world.J(theta + 1e-4 * step, world.c) - cost) / (1e-4 * best))
            full = max(full, (world.J(theta + step, world.c) - cost) / best)
        if rho > 0.01:
            step = safety_biased_step(*vectors[:2], 0 * vectors[2], 0 * vectors[3], 0.01, 0.75)[0]
            moved = theta + 1e-4 * step.reshape(theta.shape)
            control = min(control, (world.J(moved, world.c) - cost) / (1e-4 * best))
    check("cost change of 1e-4 of a step, 300 Garnets [best decrease]", small, at_most=-0.74)
    check("cost change of a full step, 300 Garnets [best decrease]", full, at_most=-0.1)
    check("  control: the reward step raises cost when rho > 0 (least)", control, at_least=0.0)


def test_reward_rises_iff_rho_is_below_one_minus_beta():
    """Theorem 4.2(2) in its sharp form: sign of the exact reward change of a small step, cases with
    |rho - (1 - beta)| > .01; 300 Garnets, three beta."""
    wrong, rising, falling = 0, 0, 0
    for i, (world, theta) in enumerate(cases(300)[3:]):
        vectors, beta = first_order(world, theta), (0.5, 0.75, 0.9)[i % 3]
        margin = 1 - beta - units(*vectors, 0.01)[2]
        if abs(margin) > 0.01:
            step = safety_biased_step(*vectors, 0.01, beta)[0].reshape(theta.shape)
            change = world.J(theta + 1e-4 * step, world.r) - world.J(theta, world.r)
            wrong += (change > 0) != (margin > 0)
            rising, falling = rising + (margin > 0), falling + (margin < 0)
    check("reward rises iff rho < 1 - beta: exceptions", wrong, at_most=0)
    check("  cases where it rises", rising, at_least=30)
    check("  cases where it falls", falling, at_least=30)


def test_aligned_gradients_raise_reward():
    """Theorem 4.2(2) as stated: g_r != 0 and g_r.step_c >= 0 (rho <= 0), beta < 1; 300 Garnets, exact small
    step."""
    worst, met = np.inf, 0
    for world, theta in cases(300)[3:]:
        vectors = first_order(world, theta)
        best, _, rho = units(*vectors, 0.01)
        if rho <= 0:
            step = safety_biased_step(*vectors, 0.01, 0.75)[0].reshape(theta.shape)
            met += 1
            gain = world.J(theta + 1e-4 * step, world.r) - world.J(theta, world.r)
            worst = min(worst, gain / (1e-4 * best))
    check("reward gain when rho <= 0, beta = .75 [best gain], at least 1 - beta", worst, at_least=0.249)
    check("  cases", met, at_least=30)


def test_idealised_update_lowers_cost_and_keeps_reward_at_least_cost():
    """Lemma 4.1: exact J_r, J_c and KL, maximised by brute force over the square of two-state policies within
    max-KL .02; the cost falls by beta of what is possible, and where nothing is possible the reward does not
    fall."""
    world, p = two_state(), np.linspace(0.005, 0.995, 100)
    pi = np.array([[[a, 1 - a], [b, 1 - b]] for a in p for b in p])
    reward, cost = np.array([[world.J(np.log(each), f) for f in (world.r, world.c)] for each in pi]).T
    rises, drops, stationary = 0, 0, 0
    for beta in (0.25, 0.75, 1.0):
        for start in (0, 4949, 7520, 9999):
            k = start
            for _ in range(120):
                kl = np.sum(pi[k] * np.log(pi[k] / pi), axis=2).max(axis=1)
                near = np.flatnonzero(kl <= 0.02)
                least = cost[near].min()
                near = near[cost[near] <= cost[k] - beta * (cost[k] - least) + 1e-15]
                new = near[np.argmax(reward[near])]
                rises += cost[new] > cost[k] + 1e-15
                stationary += least == cost[k]
                drops += least == cost[k] and reward[new] < reward[k]
                k = new
    check("idealised update: cost increases (1,440 brute-force updates)", rises, at_most=0)
    check("idealised update: reward drops where no cost decrease is possible", drops, at_most=0)
    check("  updates at cost-stationary policies", stationary, at_least=30)


def observed_order(error, fractions=(0.02, 0.01)) -> float:
    """log-log slope of error(fraction), which tends to the order of convergence as the fractions shrink."""
    return math.log(error(fractions[0]) / error(fractions[1])) / math.log(fractions[0] / fractions[1])


def model_errors(world, theta, step) -> dict:
    """{model: fraction of the step -> its error}, for the cost and the KL along theta + fraction * step."""
    F, g, f = world.fisher(theta), world.gradient(theta, world.c), world.c
    square = step.ravel() @ F @ step.ravel()

    def gain(t):
        return world.J(theta + t * step, f) - world.J(theta, f)

    return {"surrogate": lambda t: abs(gain(t) - world.surrogate(theta, theta + t * step, f)),
            "linear": lambda t: abs(gain(t) - t * dot(g, step)),
            "kl": lambda t: abs(world.kl(theta, theta + t * step) - t * t * square / 2)}


def test_orders_of_the_local_models():
    """Along shipped steps of 40 Garnets, delta = .1: the surrogate, and the linear model, are exact to first
    order (errors of order 2), the quadratic KL to second (order 3). Medians."""
    orders = {"surrogate": [], "linear": [], "kl": []}
    for world, theta in cases(40)[3:]:
        step = safety_biased_step(*first_order(world, theta), 0.1, 0.5)[0].reshape(theta.shape)
        for name, error in model_errors(world, theta, step).items():
            orders[name].append(observed_order(error))
    for name, order in (("surrogate", 2), ("linear", 2), ("kl", 3)):
        check(f"{name} model: |observed order - {order}|", abs(np.median(orders[name]) - order), at_most=0.15)


# ---------------------------------------------------------------------------------- whole exact runs (D2, D3)


def reached(world, limit: float = 0.0):
    """Stop when within 1e-3 of the linear program's value, and of the budget."""
    best = world.optimum(limit).value
    return lambda J_r, J_c: J_r > best - 1e-3 and J_c < limit + 1e-3


def test_safety_bias_ends_safe_and_productive_on_the_grid():
    """Uniform start, delta = .01, budget 0; iterations are no more than printed in D2. The count depends on
    how the vanishing cost gradient is treated; the end does not. Control: cost only is safe and useless."""
    world, best = hazard_grid("A"), hazard_grid("A").optimum().value
    for name, update, beta, printed in (("convex .5", safety_biased_step, 0.5, 29),
                                        ("convex .75", safety_biased_step, 0.75, 41),
                                        ("convex .9", safety_biased_step, 0.9, 83),
                                        ("optimal .75", optimal_safety_biased_step, 0.75, 20)):
        _, path = train_exactly(world, update, beta, 100, until=reached(world))
        check(f"grid, {name}: iterations until 1e-3 from the optimum", len(path) - 1, at_most=printed)
    path = train_exactly(world, safety_biased_step, 0.75, 100)[1]
    check("grid, convex .75: gap to the optimum after 100 iterations", best - path[-1, 0], at_most=1e-6)
    check("grid, convex .75: cost after 100 iterations", path[-1, 1], at_most=1e-6)
    check("grid, convex .75: largest cost increase in an iteration", np.diff(path[:, 1]).max(), at_most=1e-12)

    def cost_only(g_r, x_r, *rest):
        return safety_biased_step(0 * g_r, 0 * x_r, *rest)

    useless = train_exactly(world, cost_only, 1.0, 100)[1][-1]
    check("  control: cost only ends safe ...", useless[1], at_most=1e-6)
    check("  ... and far from the optimum (gap)", best - useless[0], at_least=0.09)


def test_exhausted_cost_leaves_the_reward_step():
    """When the cost is below rounding, its gradient counts as zero and both updates return the full reward
    step. Control: without that, g.x is negative in some iteration, which no positive metric can give."""
    world, theta, products = hazard_grid("A"), None, []
    for _ in range(20):
        theta, path = train_exactly(world, safety_biased_step, 0.75, 1, theta=theta)
        products.append(dot(world.gradient(theta, world.c), world.natural_direction(theta, world.c)))
    vectors = first_order(world, theta)
    check("exhausted cost: |J_c| after 20 iterations on the grid", abs(path[-1, 1]), at_most=1e-12)
    check("exhausted cost: gradient kept", np.abs(vectors[2]).max(), at_most=0.0)
    best = math.sqrt(2 * 0.01 * (vectors[0] @ vectors[1]))
    for update in (safety_biased_step, optimal_safety_biased_step):
        step, _ = update(*vectors, 0.01, 0.75)
        check("exhausted cost: |reward gain - best| [best]", abs(vectors[0] @ step / best - 1), at_most=1e-9)
    check("  control: iterations with g.x < 0", sum(product < 0 for product in products), at_least=1)


def test_safety_bias_ends_safe_and_productive_on_sparse_garnets():
    """20 Garnets in which a policy free of cost exists, uniform start, delta = .01."""
    feasible = [world for world in garnets(24, sparse_cost=True) if world.limit == 0][:20]
    runs = [len(train_exactly(w, safety_biased_step, 0.75, 150, until=reached(w))[1]) - 1 for w in feasible]
    missed = sum(k == 150 for k in runs)
    check("sparse Garnets, convex .75: runs that miss the optimum (of 20)", missed, at_most=0)
    check("sparse Garnets, convex .75: median iterations", float(np.median(runs)), at_most=35)


@pytest.mark.parametrize("update", [safety_biased_step, optimal_safety_biased_step])
def test_budget_is_met_in_exact_training(update):
    """Extension, budget b > 0: two states, the grid and 10 Garnets, 120 iterations of delta = .01. Once J_c
    is within 1e-5 of b, it exceeds b by second order at most. Optimality is not promised, as the worst world
    shows: at J_c = b the line search admits no surrogate cost, and moves along the budget cost second order.
    """
    name, crossed, ends, gaps = "convex" if update is safety_biased_step else "optimal", [], [], []
    for world, b in [(two_state(), 0.2), (hazard_grid("A"), 0.02), *[(w, w.limit) for w in garnets(10)]]:
        reward, cost = train_exactly(world, update, 0.75, 120, limit=b)[1].T
        assert cost.min() <= b + 1e-5
        crossed.append(cost[np.argmax(cost <= b + 1e-5):].max() - b)
        ends.append(cost[-1] - b)
        gaps.append(1 - reward[-1] / world.optimum(b).value)
    check(f"budget, {name}: J_c - b once inside [delta]", max(crossed) / 0.01, at_most=0.2)
    check(f"budget, {name}: J_c - b at the end", max(ends), at_most=1e-4)
    check(f"budget, {name}: reward short of the linear program, median world", np.median(gaps), at_most=0.01)
    check(f"budget, {name}: reward short of the linear program, worst world", max(gaps), at_most=0.5)


def test_line_search_is_needed():
    """Full optimal steps of 40 Garnets use delta = .1 of the quadratic KL; the exact KL overshoots (control),
    and the line search brings it back."""
    overshoot, accepted = 0.0, 0.0
    for world, theta in cases(40)[3:]:
        step = optimal_safety_biased_step(*first_order(world, theta, 0.1), 0.1, 0.75)[0].reshape(theta.shape)
        overshoot = max(overshoot, world.kl(theta, theta + step) / 0.1)
        new = train_exactly(world, optimal_safety_biased_step, 0.75, 1, theta=theta, delta=0.1)[0]
        accepted = max(accepted, world.kl(theta, new) / 0.1)
    check("exact KL of accepted steps [delta]", accepted, at_most=1.0)
    check("  control: exact KL of full steps, largest [delta]", overshoot, at_least=1.05)


# ----------------------------------------------------------------------------------- networks: Fisher, CG, KL


POLICIES = [sbtrpo.Policy(sizes, discrete) for discrete in (True, False)
            for sizes in ((3, 2), (3, 4, 2), (3, 5, 4, 2))]


def network(policy: sbtrpo.Policy, n: int = 6, seed: int = 0) -> tuple:
    """Random parameters (all layers of order 1) and observations, float64."""
    rng = np.random.default_rng(seed)
    theta = sbtrpo.initial_parameters(policy, rng, 0.6)
    return theta + 0.5 * rng.normal(size=theta.size), rng.normal(size=(n, policy.sizes[0]))


def outputs(theta, policy, observations):
    layers, log_std = sbtrpo.unflatten(theta, policy.sizes)
    return sbtrpo.forward(layers, observations)[-1], log_std


def dense(product, size: int) -> np.ndarray:
    return np.stack([product(e) for e in np.eye(size)], axis=1)


def all_actions(policy, mean, log_std) -> list:
    """[(action (n, ...), weight (n,))]: every action, or the Gauss-Hermite nodes that are exact to degree
    5."""
    if policy.discrete:
        p = np.exp(mean - sbtrpo.log_sum_exp(mean))
        return [(np.full(len(mean), a), p[:, a]) for a in range(mean.shape[1])]
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    std, ones = np.exp(log_std), np.ones(len(mean))
    return [(mean + std * nodes[[i, j]], weights[i] * weights[j] * ones) for i in range(3) for j in range(3)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_fisher_product_is_dense_gauss_newton_and_score_covariance(policy):
    """(F + damping) v against J^T M J with J by autograd, and against E[score score^T] with the expectation
    taken over every action (exact quadrature for the Gaussian)."""
    theta, observations = network(policy)
    n, size = len(observations), theta.size
    F = dense(sbtrpo.fisher_product(theta, policy, observations, 0.0), size)
    J = jacobian(lambda t: outputs(t, policy, observations)[0])(theta)  # (n, outputs, parameters)
    mean, log_std = outputs(theta, policy, observations)
    p = np.exp(mean - sbtrpo.log_sum_exp(mean))
    M = [np.diag(p_i) - np.outer(p_i, p_i) if policy.discrete else np.diag(np.exp(-2 * log_std)) for p_i in p]
    gauss_newton = sum(J[i].T @ M[i] @ J[i] for i in range(n)) / n
    gauss_newton[size - len(log_std):, size - len(log_std):] += 2 * np.eye(len(log_std))
    covariance = np.zeros((size, size))
    for action, weight in all_actions(policy, mean, log_std):
        for i in range(n):
            score, _ = sbtrpo.score_function(theta, policy, observations[[i]], action[[i]])
            covariance += weight[i] / n * np.outer(*[score(np.ones(1))] * 2)
    check("Fisher product = dense J^T M J", np.abs(F - gauss_newton).max(), at_most=IDENTITY)
    check("Fisher product = covariance of the score", np.abs(F - covariance).max(), at_most=IDENTITY)
    damped = dense(sbtrpo.fisher_product(theta, policy, observations, 0.3), size)
    check("damping adds to the diagonal", np.abs(damped - F - 0.3 * np.eye(size)).max(), at_most=IDENTITY)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_mean_kl_is_the_expected_log_ratio(policy):
    """E_old[log old - log new] over every action, summed over action dimensions, averaged over states;
    arguments old, new. Its Hessian is the Fisher product (error of order 3). Control: the arguments
    exchanged."""
    theta, observations = network(policy)
    other, _ = network(policy, seed=1)
    old, new = outputs(theta, policy, observations), outputs(other, policy, observations)
    ratio = 0.0
    for action, weight in all_actions(policy, *old):
        logs = [sbtrpo.log_probabilities(*each, action, policy.discrete) for each in (old, new)]
        ratio += np.mean(weight * (logs[0] - logs[1]))
    kl = sbtrpo.mean_kl(old, new, policy.discrete)
    check("mean KL = expected log ratio", abs(kl - ratio), at_most=IDENTITY)
    check("  control: KL(new, old) differs (relative, least)",
          abs(sbtrpo.mean_kl(new, old, policy.discrete) / kl - 1), at_least=1e-3)
    step = 0.1 * (other - theta)
    product = sbtrpo.fisher_product(theta, policy, observations, 0.0)

    def error(t):
        moved = outputs(theta + t * step, policy, observations)
        return abs(sbtrpo.mean_kl(old, moved, policy.discrete) - t * t * step @ product(step) / 2)

    order = observed_order(error, (0.2, 0.1))
    check("network KL against its quadratic model: |observed order - 3|", abs(order - 3), at_most=0.25)


def test_conjugate_gradients_solve_and_report_their_residual():
    """n iterations solve an n-dimensional SPD system; the residual returned is the true one; any scale of
    b."""
    rng, solved, reported = np.random.default_rng(5), 0.0, 0.0
    for _ in range(50):
        F, (b, x, _, _) = random_problem(rng, 8)
        for scale in (1e-300, 1.0, 1e150):
            for iterations in (3, 40):
                found, residual = sbtrpo.conjugate_gradients(lambda v, F=F: F @ v, scale * b, iterations)
                true = np.linalg.norm(b - F @ (found / scale)) / np.linalg.norm(b)
                reported = max(reported, abs(true - residual))
            solved = max(solved, np.abs(found / scale - x).max() / np.abs(x).max())
    check("conjugate gradients: relative error of the solution", solved, at_most=1e-8)
    check("conjugate gradients: reported residual - true residual", reported, at_most=IDENTITY)
    assert not sbtrpo.conjugate_gradients(lambda v: v, np.zeros(3), 5)[0].any()


def test_line_search_takes_the_first_fraction_that_passes():
    """Names what the next larger fraction failed; returns the old parameters when nothing passes."""
    def evaluate(theta):
        return {"size": float(theta[0])}

    def at_most(bound):
        return lambda measured: "" if measured["size"] <= bound else "size"

    theta, info = sbtrpo.line_search(evaluate, np.zeros(1), np.ones(1), at_most(0.3), shrink=0.5)
    assert theta[0] == info["fraction"] == 0.25 and info["stopped_by"] == "size"
    assert sbtrpo.line_search(evaluate, np.zeros(1), np.ones(1), at_most(1.0))[1]["stopped_by"] == "full step"
    theta, info = sbtrpo.line_search(evaluate, np.zeros(1), np.ones(1), at_most(-1.0), trials=5)
    assert theta[0] == info["fraction"] == 0.0 and info["stopped_by"] == "size"


# --------------------------------------------------------------------------------- the worlds as environments


IDS = {"TwoState-v0": two_state, "HazardGrid-v0": hazard_grid, "Garnet-v0": garnet}


@pytest.mark.parametrize("name", IDS)
def test_environment_keeps_the_gymnasium_contract(name):
    """Gymnasium's own checker; and the same seed gives the same episode."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(f"tabular_cmdp:{name}").unwrapped)

    def episode():
        env = gym.make(f"tabular_cmdp:{name}")
        seen = [env.reset(seed=3)[0]]
        while True:
            observation, reward, terminated, truncated, info = env.step(len(seen) % env.action_space.n)
            seen += [observation, reward, info["cost"]]
            if terminated or truncated:
                return np.hstack(seen)

    assert np.array_equal(episode(), episode())


@pytest.mark.parametrize("name", IDS)
def test_undiscounted_episodes_estimate_the_normalised_gradient(name):
    """Ending with probability 1 - gamma is the discount: mean over steps of grad log pi * undiscounted return
    to go is g_c, mean cost per episode J_c / (1 - gamma). 3,000 episodes, fixed seeds, 6 standard errors of
    the ratio estimator, in states met often enough for a normal limit (d > .01)."""
    world, env = IDS[name](), gym.make(f"tabular_cmdp:{name}").unwrapped
    theta = 0.5 * logits(world)
    pi, rng = policy(theta), np.random.default_rng(8)
    totals, lengths, costs = [], [], []
    for k in range(3000):
        s, terminated, visits = int(np.argmax(env.reset(seed=k)[0])), False, []
        while not terminated:
            a = rng.choice(len(pi[s]), p=pi[s])
            observation, _, terminated, _, info = env.step(a)
            visits.append((s, a, info["cost"]))
            s = int(np.argmax(observation))
        total, to_go = np.zeros(theta.shape), 0.0
        for s, a, cost in reversed(visits):
            to_go += cost
            total[s] -= pi[s] * to_go
            total[s, a] += to_go
        totals.append(total)
        lengths.append(len(visits))
        costs.append(to_go)
    lengths, totals, g = np.array(lengths), np.array(totals), world.gradient(theta, world.c)
    residual = (totals - lengths[:, None, None] * g)[:, world.state_occupancy(theta) > 0.01]
    error = np.abs(residual.mean(axis=0)) / (residual.std(axis=0) / math.sqrt(len(lengths)) + 1e-12)
    check("environments: sampled gradient of the cost [standard errors]", error.max(), at_most=6)
    expected = world.J(theta, world.c) / (1 - world.gamma)
    check("environments: cost per episode [standard errors]",
          abs(np.mean(costs) - expected) / (np.std(costs) / math.sqrt(len(costs))), at_most=6)


def main() -> int:
    """Runs pytest on this file; arguments are pytest's."""
    options = ["-q", "-p", "no:cacheprovider", "-o", "markers=slow: long sweeps, skipped without -m slow",
               "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # this file has imported hypothesis already
    return pytest.main([__file__, *options, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
