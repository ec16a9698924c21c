# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "scipy==1.15.3"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""Small constrained MDPs in which nothing is estimated: the exact world behind the tests and figures.

Every quantity the algorithms need (returns, gradients, Fisher matrix, KL, the constrained optimum) is
computed here to machine precision, so a theorem can be checked without sampling error. The same worlds are
Gymnasium environments, so that `sbtrpo.py --task tabular_cmdp:TwoState-v0` trains on them from samples.
`uv run tabular_cmdp.py` draws the figures of the README, by studies/figures.py.

    J_f(pi)   = (1 - gamma) E sum_t gamma^t f(s_t, a_t) = sum_{s,a} d(s) pi(a|s) f(s,a)  normalised, unit of f
    d         = (1 - gamma) mu + gamma P_pi^T d                                          sums to 1
    A_f       = f + gamma P V_f - V_f,     V_f = f_pi + gamma P_pi V_f                   not normalised
    grad J_f  = d(s) pi(a|s) A_f(s,a)                                                    = g
    F         = blockdiag_s d(s) (diag(pi_s) - pi_s pi_s^T),   F^+ g = A_f - row mean    = x

symbol   code       shape      meaning
P        P          (S, A, S)  P[s, a, t] = probability of moving from s to t under a
r, c     r, c       (S, A)     reward and cost of one step; several costs: c is (m, S, A)
gamma    gamma      ()         discount, below 1
mu       mu         (S,)       distribution of the first state
b        limit      ()         budget of the normalised cost: safe means J_c <= b; of several costs (m,)
theta    theta      (S, A)     logits of the policy pi(.|s) = softmax(theta[s])
d        d          (S,)       discounted state occupancy
rho      occupancy  (S, A)     discounted state-action occupancy d(s) pi(a|s)
"""
import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import autograd.numpy as np
import gymnasium as gym
from autograd import grad

Array = np.ndarray


def log_policy(theta: Array) -> Array:
    """log pi(a|s) = theta - logsumexp_a theta, shape (S, A); finite however far the logits are apart."""
    shifted = theta - np.max(theta, axis=1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))


def policy(theta: Array) -> Array:
    """pi(a|s) = softmax(theta[s])[a], shape (S, A)."""
    return np.exp(log_policy(theta))


class Optimum(NamedTuple):
    """Solution of the linear program: `dual` is the price of the budget, d(value)/d(limit). Both of several
    costs are (m,)."""

    value: float
    cost: float | Array
    dual: float | Array
    occupancy: Array
    policy: Array


@dataclass(frozen=True)
class TabularCMDP:
    """A finite constrained MDP and its exact calculus; `f` is `self.r`, `self.c` or any (S, A) array, such as
    one of several costs, which `names` names."""

    P: Array
    r: Array
    c: Array
    gamma: float
    mu: Array
    limit: float | Array
    names: tuple[str, ...] = ()

    def budgets(self) -> list[tuple[Array, float]]:
        """(cost (S, A), limit) of each budget."""
        return list(zip(self.c.reshape(-1, *self.r.shape), np.atleast_1d(self.limit)))

    # --- values ---

    def state_occupancy(self, theta: Array) -> Array:
        """d = (1 - gamma) (I - gamma P_pi^T)^-1 mu, shape (S,), sums to 1."""
        P_pi = np.einsum("sa,sat->st", policy(theta), self.P)
        return (1 - self.gamma) * np.linalg.solve(np.eye(len(self.mu)) - self.gamma * P_pi.T, self.mu)

    def occupancy(self, theta: Array) -> Array:
        """rho(s,a) = d(s) pi(a|s), shape (S, A), sums to 1."""
        return self.state_occupancy(theta)[:, None] * policy(theta)

    def J(self, theta: Array, f: Array) -> float:
        """J_f = sum_{s,a} rho(s,a) f(s,a): normalised return, in the unit of one step's f."""
        return np.sum(self.occupancy(theta) * f)

    def value(self, theta: Array, f: Array) -> Array:
        """V_f = f_pi + gamma P_pi V_f, shape (S,): not normalised, unit of f times a horizon."""
        pi = policy(theta)
        P_pi = np.einsum("sa,sat->st", pi, self.P)
        return np.linalg.solve(np.eye(len(self.mu)) - self.gamma * P_pi, np.sum(pi * f, axis=1))

    def advantage(self, theta: Array, f: Array) -> Array:
        """A_f = Q_f - V_f, shape (S, A): not normalised, as V_f."""
        V = self.value(theta, f)
        return f + self.gamma * self.P @ V - V[:, None]

    # --- first and second order ---

    def gradient(self, theta: Array, f: Array) -> Array:
        """dJ_f/dtheta = d(s) pi(a|s) A_f(s,a), shape (S, A): the policy-gradient theorem for logits."""
        return self.occupancy(theta) * self.advantage(theta, f)

    def gradient_by_autograd(self, theta: Array, f: Array) -> Array:
        """The same gradient, by differentiating the linear solve in `J`: an oracle that knows no theorem."""
        return grad(self.J)(theta, f)

    def fisher(self, theta: Array) -> Array:
        """F = blockdiag_s d(s) (diag(pi_s) - pi_s pi_s^T), shape (S*A, S*A), rank S (A - 1)."""
        d, pi = self.state_occupancy(theta), policy(theta)
        S, A = pi.shape
        F = np.zeros((S, A, S, A))
        for s in range(S):
            F[s, :, s, :] = d[s] * (np.diag(pi[s]) - np.outer(pi[s], pi[s]))
        return F.reshape(S * A, S * A)

    def natural_direction(self, theta: Array, f: Array) -> Array:
        """x = F^+ grad J_f = A_f - mean_a A_f, shape (S, A), where each state is reached: no inverse.

        F A_f = grad J_f holds for A_f plus any constant per state, since adding a constant to all logits of a
        state leaves the policy alone (the null space of F). Rows that sum to zero are orthogonal to that null
        space, so this gauge is the solution of least norm: the one of the pseudo-inverse, comparable between
        algorithms."""
        A_f = self.advantage(theta, f)
        return A_f - np.mean(A_f, axis=1, keepdims=True)

    # --- what a trust region looks at ---

    def kl(self, old: Array, new: Array) -> float:
        """Mean KL(old || new) = sum_s d_old(s) sum_a pi_old log(pi_old / pi_new), in nats per state."""
        return np.sum(self.occupancy(old) * (log_policy(old) - log_policy(new)))

    def surrogate(self, old: Array, new: Array, f: Array) -> float:
        """sum_s d_old(s) sum_a pi_new(a|s) A_f^old(s,a): J_f(new) - J_f(old), but for second order."""
        return np.sum(self.state_occupancy(old)[:, None] * policy(new) * self.advantage(old, f))

    # --- the limit of small trust regions ---

    def flow(self, theta: Array, times: Array, beta: float, barrier: str = "log") -> tuple[Array, Array]:
        """C-NPG, the natural gradient in the metric H = F + w g_c g_c^T with w = beta phi''(m), m = b - J_c:

            theta' = H^+ g_r = x_r - w r / (1 + w s) x_c,     w = beta / m^2 for phi = -log x    ("log")
            m'     = -g_c.theta' = -r / (1 + w s)             w = beta / m   for phi = x log x   ("xlogx")

        where r = g_c.x_r, s = g_c.x_c. The log of m is integrated beside theta: m itself reaches 1e-30, where
        b - J_c is nothing but rounding. Several costs: H = F + sum_i w_i g_i g_i^T, r and m are vectors, s is
        a matrix, w diagonal. Flow of C-TRPO (arXiv 2411.02957); `beta` = 0 is plain NPG, which knows no
        margin. Returns theta (n, S, A) and log m (n,) or (n, m), NaN for NPG, at n increasing times from 0
        on; unit of time: nats per unit of normalised reward. Raises ValueError if `theta` is not safe."""
        margins = np.array([limit - self.J(theta, c) for c, limit in self.budgets()])
        if beta and not np.all(margins > 0):
            raise ValueError(f"C-NPG starts at J_c < {self.limit}, but J_c is {-np.min(margins):g} higher.")
        power = {"log": 2, "xlogx": 1}[barrier]  # w = beta / m^power
        count = len(margins)

        def velocity(_, state):
            theta, m = state[:-count].reshape(self.r.shape), np.exp(state[-count:])
            x_r = self.natural_direction(theta, self.r).ravel()
            if not beta:
                return np.append(x_r, np.zeros(count))
            g = np.array([self.gradient(theta, c).ravel() for c, _ in self.budgets()])
            x = np.array([self.natural_direction(theta, c).ravel() for c, _ in self.budgets()])
            per_w = np.diag(m**power) + beta * g @ x.T  # (1 / w + s) beta
            share = np.linalg.solve(per_w, g @ x_r)
            return np.append(x_r - beta * share @ x, -share * m ** (power - 1))

        start = np.append(theta, np.log(margins) if beta else np.zeros(count))
        from scipy.integrate import solve_ivp  # here: to act in a world takes no scipy
        result = solve_ivp(velocity, (0, times[-1]), start, "LSODA", times, rtol=1e-12, atol=1e-13)
        if not result.success:
            raise ArithmeticError(f"C-NPG could not be integrated: {result.message}")
        log_m = result.y[-count:].T.reshape(-1, *np.shape(self.limit))
        return result.y[:-count].T.reshape(-1, *self.r.shape), log_m if beta else np.nan * log_m

    # --- the best that any policy can do ---

    def optimum(self, limit: float | Array | None = None, objective: Array | None = None) -> Optimum:
        """max_rho <rho, objective> subject to <rho, c> <= limit and rho an occupancy: a linear program.

        Defaults: `limit` = the world's own, `objective` = r. `limit=np.inf` drops the budget, or all of them.
        In a state that is never visited the policy is uniform. Transition probabilities below 1e-9 are
        taken for 0. Raises ValueError if no policy is that cheap, with the weights that prove it
        (`least_excess`)."""
        S, A = self.r.shape
        limit = self.limit if limit is None else limit
        objective = self.r if objective is None else objective
        costs = self.c.reshape(-1, S * A)
        limits = np.broadcast_to(limit, len(costs))
        finite = limits != np.inf  # NaN is refused by the solver
        # whose tolerances are absolute: in units of the largest reward, and of the largest of each cost
        unit, units = np.abs(objective).max() or 1.0, np.abs(costs).max(axis=1)
        units[units == 0] = 1.0
        result = self._program(-objective.ravel() / unit, (costs / units[:, None])[finite],
                               (limits / units)[finite])
        if result.status == 2:
            weights, excess = self.least_excess(limit)
            raise ValueError(f"No policy of this world has J_c <= {limit}: in the mean, with weights "
                             f"{weights.round(3)}, any exceeds its budget by {excess:.3g} or more.")
        if not result.success:
            raise ArithmeticError(f"The linear program could not be solved: {result.message}")
        rho = np.maximum(result.x.reshape(S, A), 0)
        if abs(rho.sum() - 1) > 1e-6:
            raise ArithmeticError(f"The linear program was not solved: gamma = {self.gamma} is too near 1.")
        d = rho.sum(axis=1, keepdims=True)
        pi = np.where(d > 0, rho / np.where(d > 0, d, 1), 1 / A)
        cost, dual = costs @ rho.ravel(), np.zeros(len(costs))
        dual[finite] = -result.ineqlin.marginals * unit / units[finite]
        if self.c.ndim == 2:
            cost, dual = float(cost[0]), float(dual[0])
        return Optimum(float(-result.fun * unit), cost, dual, rho, pi)

    def least_excess(self, limit: float | Array | None = None) -> tuple[Array, float]:
        """Weights (m,) >= 0 of sum 1, and the least weighted excess, min_rho sum_i weights_i (J_i - b_i).

        It is also the least that the largest J_i - b_i can be, since the weights are the dual variables of

            min_rho t   subject to   <rho, c_i> - b_i <= t.

        So a positive one certifies that no policy meets all budgets, and some policy does otherwise. A budget
        of infinity has weight 0.
        """
        S, A = self.r.shape
        costs = self.c.reshape(-1, S * A)
        limits = np.broadcast_to(self.limit if limit is None else limit, len(costs))
        finite, weights = limits != np.inf, np.zeros(len(costs))
        unit = np.abs(costs).max() or 1.0
        result = self._program(np.append(np.zeros(S * A), 1.0),
                               np.hstack([costs / unit, -np.ones((len(costs), 1))])[finite],
                               limits[finite] / unit)
        if not result.success:
            raise ArithmeticError(f"The linear program could not be solved: {result.message}")
        weights[finite] = -result.ineqlin.marginals
        return weights, float(result.fun * unit)

    def _program(self, objective: Array, costs: Array, limits: Array):
        """min objective.x subject to costs.x <= limits, where x begins with an occupancy, which is >= 0."""
        S, A = self.r.shape
        # Bellman flow: what leaves t equals what starts in t plus what arrives there.
        flow = np.zeros((S, len(objective)))
        flow[:, : S * A] = np.repeat(np.eye(S), A, axis=1) - self.gamma * self.P.reshape(S * A, S).T
        bounds = [(0, None)] * (S * A) + [(None, None)] * (len(objective) - S * A)
        tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
        from scipy.optimize import linprog
        return linprog(objective, costs, limits, flow, (1 - self.gamma) * self.mu, bounds, "highs",
                       options=tight)


# --- the steps of TRPO and CPO, for comparison only ---


def trpo_step(g_r: Array, x_r: Array, g_c: Array, x_c: Array, delta: float) -> tuple[Array, dict]:
    """argmax g_r.s subject to s.F s / 2 <= delta [nats]: s = sqrt(2 delta / g_r.x_r) x_r, and 0 if g_r = 0.

    From gradients g and natural directions x = F^+ g, flat; the cost is not looked at. TRPO (Schulman et al.,
    arXiv 1502.05477), appendix C. Returns the step and its first-order changes."""
    q = float(g_r @ x_r)
    step = math.sqrt(2 * delta / q) * x_r if q > 0 else np.zeros_like(x_r)
    return step, {"reward_change": float(g_r @ step), "cost_change": float(g_c @ step)}


def cpo_step(g_r: Array, x_r: Array, g_c: Array, x_c: Array, delta: float,
             excess: float) -> tuple[Array, dict]:
    """argmax g_r.s subject to excess + g_c.s <= 0 and s.F s / 2 <= delta [nats], by its dual in closed form:

        s  = (x_r - nu x_c) / lambda,      lambda = sqrt((q - p^2 / t) / (2 delta - excess^2 / t)),
        nu = (lambda excess + p) / t,      q = g_r.x_r,   p = g_r.x_c,   t = g_c.x_c

    where TRPO's step breaks the budget; else TRPO's step, nu = 0. Where no step meets it, excess > sqrt(2
    delta t), CPO recovers by the best cost step, -sqrt(2 delta / t) x_c, whatever the reward. Where g_c = 0,
    which the paper leaves open, it is TRPO's step. `excess` = J_c - b, in the unit of g_c. CPO (Achiam et
    al., arXiv 1705.10528), section 6. Returns the step and a dict: nu, infinite in recovery, whether the
    problem is feasible, first-order changes.
    """
    q, p, t = float(g_r @ x_r), float(g_r @ x_c), float(g_c @ x_c)
    step, changes = trpo_step(g_r, x_r, g_c, x_c, delta)
    nu, feasible = 0.0, excess + changes["cost_change"] <= 0
    if not feasible and t > 0:
        feasible = excess**2 < 2 * delta * t  # the negative root is out of the question: TRPO's step would do
        across = x_r - p / t * x_c  # what of the reward step leaves the cost alone
        rest = float(g_r @ across)  # q - p^2 / t, 0 if the gradients are parallel
        if not feasible:
            step, nu = -math.sqrt(2 * delta / t) * x_c, math.inf
        elif rest > 1e-12 * q:
            length = math.sqrt((2 * delta - excess**2 / t) / rest)  # 1 / lambda
            step, nu = length * across - excess / t * x_c, (excess / length + p) / t
        else:
            step, nu = -excess / t * x_c, p / t
    changes = {"reward_change": float(g_r @ step), "cost_change": float(g_c @ step)}
    return step, {"nu": nu, "feasible": bool(feasible)} | changes


# --- the worlds ---


def two_state() -> TabularCMDP:
    """The smallest CMDP with a randomised optimum: action 0 stays in the state, action 1 leaves it.

    Being in state 1 and staying there pays most and costs most.
    """
    P = np.zeros((2, 2, 2))
    P[0, 0, 0] = P[0, 1, 1] = P[1, 0, 1] = P[1, 1, 0] = 1
    return TabularCMDP(P, r=np.array([[1.0, 0], [2, 0]]), c=np.array([[0.1, 0], [1, 0.01]]), gamma=0.9,
                       mu=np.array([0.8, 0.2]), limit=0.2)


GRID_MAPS = {"A": [".....", "SHHHG"], "C": ["HHHHH", ".....", "SHHHG"]}


def hazard_grid(map: str = "A") -> TabularCMDP:
    """Walk from S to G, through the hazards H (short, cost 1 a step) or around them (free): budget 0.

    Actions up, right, down, left, stay; a move against the border stays. G pays 1 for any action, back to S.
    """
    rows = GRID_MAPS[map]
    height, width = len(rows), len(rows[0])
    S, moves = height * width, [(-1, 0), (0, 1), (1, 0), (0, -1), (0, 0)]
    cells = "".join(rows)
    P, r, c = np.zeros((S, 5, S)), np.zeros((S, 5)), np.zeros((S, 5))
    for s, cell in enumerate(cells):
        for a, (down, right) in enumerate(moves):
            row = min(max(s // width + down, 0), height - 1)
            column = min(max(s % width + right, 0), width - 1)
            P[s, a, cells.index("S") if cell == "G" else row * width + column] = 1
        r[s], c[s] = float(cell == "G"), float(cell == "H")
    return TabularCMDP(P, r, c, gamma=0.9, mu=np.eye(S)[cells.index("S")], limit=0.0)


def garnet(seed: int = 0, sparse_cost: bool = False) -> TabularCMDP:
    """A random CMDP: 10 states, 4 actions, 3 successors each, uniform rewards and costs.

    The budget is halfway between the least possible cost and the cost of the reward-optimal policy. With
    `sparse_cost`, 30% of the state-action pairs cost 1, the others nothing, and the budget is the least
    possible.
    """
    rng = np.random.default_rng(seed)
    S, A, successors = 10, 4, 3
    P = np.zeros((S, A, S))
    for s in range(S):
        for a in range(A):
            reached = rng.choice(S, successors, replace=False)
            P[s, a, reached] = rng.dirichlet(np.ones(successors))
    r, c = rng.random((S, A)), rng.random((S, A))
    c = (c < 0.3).astype(float) if sparse_cost else c
    world = TabularCMDP(P, r, c, gamma=0.9, mu=rng.dirichlet(np.ones(S)), limit=np.inf)
    cheapest, dearest = world.optimum(objective=-c).cost, world.optimum().cost
    return replace(world, limit=cheapest if sparse_cost else (cheapest + dearest) / 2)


def corridor(limit: tuple[float, float] = (0.3, 0.15), slip: float = 0.2) -> TabularCMDP:
    """Two ways to be unsafe: three lanes, of which the left and the right one pay more, and cost 1 a step,
    each another cost; the corridor between them is free.

    Actions: a lane to the left, stay, a lane to the right; with the probability `slip` / 2 each one ends a
    lane to the left or to the right of the one that was meant, where there is one. So what avoids one cost
    incurs the other: each of the budgets (.05, .05) can be met alone, but not both."""
    P = np.zeros((3, 3, 3))
    for lane in range(3):
        for action in range(3):
            meant = min(max(lane + action - 1, 0), 2)
            P[lane, action, meant] += 1 - slip
            for side in (-1, 1):
                P[lane, action, min(max(meant + side, 0), 2)] += slip / 2
    lanes, pay = np.eye(3), np.array([2.0, 1.0, 1.5])
    r, c = np.repeat(pay[:, None], 3, axis=1), np.repeat(lanes[[0, 2], :, None], 3, axis=2)
    return TabularCMDP(P, r, c, 0.9, mu=lanes[1], limit=np.array(limit), names=("left", "right"))


# --- the same worlds, sampled ---


class TabularEnv(gym.Env):
    """A TabularCMDP as a Gymnasium environment: one-hot observations, `info["cost"]`, and no time limit.

    The discount is the probability of going on: each step ends the episode (`terminated`) with probability
    1 - gamma. An undiscounted episode return therefore has expectation J_f / (1 - gamma), a budget per
    episode is limit / (1 - gamma), the states met are distributed as d, and the mean over steps of
    grad log pi * (undiscounted return to go) estimates the normalised gradient, with no discount anywhere.
    """

    def __init__(self, make_world: Callable[..., TabularCMDP], **options):
        self.world = make_world(**options)
        S, A = self.world.r.shape
        self.observation_space = gym.spaces.Box(0.0, 1.0, (S,), dtype=np.float64)
        self.action_space = gym.spaces.Discrete(A)
        self.state = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Array, dict]:
        super().reset(seed=seed)
        self.state = self.np_random.choice(len(self.world.mu), p=self.world.mu)
        return self._observation(), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict]:
        s, a, world = self.state, int(action), self.world
        self.state = self.np_random.choice(len(world.mu), p=world.P[s, a])
        terminated = bool(self.np_random.random() < 1 - world.gamma)
        costs = {f"cost_{name}": float(cost[s, a]) for name, (cost, _) in zip(world.names, world.budgets())}
        info = {"cost": float(np.sum(world.c[..., s, a])), **costs}
        return self._observation(), float(world.r[s, a]), terminated, False, info

    def _observation(self) -> Array:
        return np.eye(len(self.world.mu))[self.state]


for _name, _world in {"TwoState-v0": two_state, "HazardGrid-v0": hazard_grid, "Garnet-v0": garnet,
                      "Corridor-v0": corridor}.items():
    gym.register(_name, entry_point=TabularEnv, kwargs={"make_world": _world})


def main() -> None:
    """Draws every figure of the README that shows these worlds."""
    argparse.ArgumentParser(description=main.__doc__, allow_abbrev=False).parse_args()
    sys.modules["tabular_cmdp"] = sys.modules[__name__]  # one copy of the worlds, under either name
    sys.path.insert(0, str(Path(__file__).resolve().parent / "studies"))
    import figures
    figures.main(["all"])


if __name__ == "__main__":
    main()
