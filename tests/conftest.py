"""Where the tests find the scripts, the mark of long ones, and what they leave: the figures and the ledger.

A test hands its figures to `check`. The summary ends with one line per figure, and with the ledger, a row
for each statement of the papers.
"""
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a job in the background; runs inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
RECORDS = {}  # name of a figure -> Record, of all tests so far
OF_THIS_TEST = {}  # the same, of the test that runs

with warnings.catch_warnings():  # without a configuration file, plain pytest does not know the mark
    warnings.simplefilter("ignore")
    SLOW = [pytest.mark.slow, pytest.mark.skipif("'slow' not in config.option.markexpr",
                                                 reason="slow: run with -m slow")]


def slow(test):
    """Skip unless `-m` mentions slow."""
    return SLOW[0](SLOW[1](test))


def pages() -> str:
    """README.md and docs/*.md, which show tables and commands: in which of them is free."""
    return "".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


# --------------------------------------------------------------------------- the ledger: what becomes of each

LEDGER = """
B4 TRPO | TRPO, Theorem 1 | holds
    J rises by L / (1 - gamma) - 4 gamma max|A_old| / (1 - gamma)^2 max_s TV^2 at least; or KL for TV^2
    any two policies, near to far; random CMDPs, gamma .1 to .99; a case: the bound is below eps / (1 - gamma)
B4 CPO 1 | CPO, Corollary 1 | holds
    J_r rises by L / (1 - gamma) - 2 gamma eps / (1 - gamma)^2 E_d TV at least; eps = max_s |E_new A_old|
    any two policies, near to far; random CMDPs, gamma .1 to .99; a case: the bound is below eps / (1 - gamma)
B4 CPO 2 | CPO, Corollary 2 | holds
    J_c rises by L_c / (1 - gamma) + 2 gamma eps_c / (1 - gamma)^2 E_d TV at most
    any two policies, near to far; random CMDPs, gamma .1 to .99; a case: the bound is below eps / (1 - gamma)
B4 CPO 3 | CPO, Corollary 3 | holds
    in Corollaries 1 and 2, sqrt(E_d KL / 2) may stand for E_d TV
    the same policies and CMDPs, reward and cost, both orders of KL; cases as above
B5 CPO 1 | CPO, Proposition 1 | holds
    a step from within the budget lowers J_r by sqrt(2 delta) gamma eps / (1 - gamma)^2 at most
    CPO's step and line search; random CMDPs, delta for which it says something; a case: J_r falls
B5 CPO 2 | CPO, Proposition 2 | holds
    a step from within the budget ends at J_c <= b + sqrt(2 delta) gamma eps_c / (1 - gamma)^2
    CPO's step and line search; random CMDPs, delta for which it says something; a case: J_c > b
A1 | SB-TRPO, Eq. 4 | holds
    mu = max(0, (beta + rho) / (1 + rho)) is the least weight that keeps beta of the best cost decrease
    random metrics, beta .05 to 1, against a search in steps of 1e-4; without the paper's kappa
A1 kappa printed | SB-TRPO, Eq. 4 with kappa | fails as printed
    with kappa added to the denominator of mu the step keeps beta of the best cost decrease
    a run on the grid, beta .75, kappa 1e-8 to 1e-4; summaries name kappa, but not its place
A1 kappa corrected | SB-TRPO, Eq. 4 with kappa | holds as corrected
    it misses the share k (beta + rho) / (1 + rho + k), k = kappa over the best decrease: kappa at most
    random metrics, beta .05 to 1, kappa 1e-10 to 1e-3, cost gradients of order 1e-8 to 1
A1 optimal | beyond SB-TRPO, --update optimal | holds
    k step_r + (beta + k rho) step_c, k^2 = (1 - beta^2) / (1 - rho^2), is the best that keeps it; rho > -beta
    random metrics, beta .05 to .99; certified by the dual
A1 CPO printed | SB-TRPO, beta = 1, Eq. 4 | fails as printed
    with beta = 1 the step is CPO's (the summary: "recovers CPO-like behaviour")
    random metrics, excess J_c - b from 0 to 1 of the best decrease; a run on the grid, b = 0
A1 CPO corrected | SB-TRPO, beta = 1, Eq. 4 | holds as corrected
    it is where the excess is out of reach; else they are sqrt(2 - 2 max(f, -rho)) radii apart
    the same; f is the excess over the best decrease, and out of reach from 1 on
CG | TRPO and SB-TRPO, conjugate gradients | holds
    n iterations find the best step, of KL delta, of the Krylov space g, F g, ..., F^(n-1) g alone
    networks of 26 to 68 parameters, 200 samples, F with damping; three dimensions, 1 iteration, where rho > 1
A5 | SB-TRPO, Eq. 1, from a batch | holds
    a step keeps 1 / (1 + n* / n) of its promise if rho and the noises' cosine are 0, else a law with both
    the grid, rho .11, n 16, 64, 256: within .1, 1.7 times; drawn gradients, n* / n .1 to 10, both to .9
B1 | SB-TRPO, Lemma 4.1 (wording of a summary) | holds
    the idealised update raises J_r where aligned, ends at the least J_c; --update optimal nears it
    brute force, two states, mean and largest KL; that J_c never rises holds by construction
B1 rest | SB-TRPO, Lemma 4.1(3), in double precision | holds
    it rests at the best of all policies, or where an action with A_c < 0 has died out of its gradients
    whole runs of the step, two states and sparse Garnets, beta .25, .75, both updates; linear programs
B1 flat | SB-TRPO, Lemma 4.1, where g_c = 0 | holds
    for logits g_c = 0 only where all policies cost the same; there the step raises J_r, and J_c stays
    Garnets with c = V - gamma P V; not where states share logits: there J_c may rise, of order 2
B1 KL | SB-TRPO, "approximations appear conservative" | holds
    for logits, a convex combination of two steps of KL <= delta has KL <= delta
    Garnets, both ends of exact KL .01; not so for --update optimal, nor for the cost that is predicted
B2 | SB-TRPO, Theorem 4.2(1) | holds
    if g_c != 0, a small enough step lowers J_c
    random policies of Garnets, both updates, beta .75; full steps at delta = .01, too
B3 | SB-TRPO, Theorem 4.2(2), beta < 1 | holds
    if g_r != 0 and g_r.step_c >= 0, a small enough step raises J_r
    random policies of Garnets with rho <= 0, beta .75
C1 printed | SB-TRPO, Theorem 4.2(2) | fails as printed
    if g_r != 0 and g_r.step_c >= 0, the step raises J_r to first order, for every beta in (0, 1]
    the plane, rho = 0, beta = 1: the step is the cost step
C1 corrected | SB-TRPO, Theorem 4.2(2) | holds as corrected
    the convex step raises J_r to first order if and only if rho < 1 - beta
    random policies of Garnets, beta .5, .75, .9, |rho - (1 - beta)| > .01
A2 | C-TRPO, the step | holds
    the natural reward step for H = F + w g_c g_c^T is along x_r - w (g_r.x_c) / (1 + w s) x_c
    random metrics, gradients of 1e-300 to 1e150, margins down to 1e-300; against a dense solve
A2 orders | C-TRPO, the divergence | holds
    it is D_Phi(old, new) + beta D_phi(new, old), of opposite orders; which ones, matters at order 3
    shipped KL and barriers, random policies of all worlds; Phi the negative conditional entropy
B6 | C-TRPO, surrogate divergence | holds
    it equals the exact one to second order (the summary claims first)
    along shipped steps from random policies of all worlds, both barriers, delta .1
A2 Hessian | C-TRPO, the divergence | holds
    its Hessian at the old policy is F + beta phi''(m) g_c g_c^T, with J_c itself or its surrogate
    random policies of 13 worlds, both barriers, by autograd
B7 | C-TRPO, cost of a step | holds
    normalised J_c rises by Psi^-1(delta / beta) + sqrt(2 delta) gamma eps_c / (1 - gamma) at most
    shipped steps, gamma .3 to .9; 5% of the last term is used; a case: the bound is below eps_c
B7 reward | C-TRPO, reward of a step | holds
    normalised J_r falls by sqrt(2 delta) gamma eps_r / (1 - gamma) at most
    shipped steps, costs nearly the reward; a case: J_r falls, and the bound is below eps_r
B8 | C-TRPO, safety during training | holds
    the exact divergence, infinite from J_c = b on, keeps all steps inside, by construction
    tried: rounding, and that they gain; margins of 1e-4 to 1e-2 and whole runs, delta .1
B8 surrogate | C-TRPO, safety as it is run | holds
    with the surrogate divergence a step ends at J_c <= b + C delta, C of world and policy, not always <= b
    margins of .001 to .1 delta, both barriers, three delta: C .08; with rare actions and gamma .99: 79
C9 printed | C-TRPO (summary), mechanism 1 | fails as printed
    the divergence, in the release's order D_phi(new, old), tends to infinity at the threshold
    x log x, the barrier of the paper's runs, at (1 - 1e-13) of margins from 1e-300 to 1e150
C9 corrected | C-TRPO (summary), mechanism 1 | holds as corrected
    for -log x it does; for x log x it tends to the margin and is infinite only from there on
    both barriers, at (1 - 1e-13) of margins from 1e-300 to 1e150, and beyond
C11 printed | C-TRPO (summary), design tradeoffs | fails as printed
    larger barrier parameters increase safety
    the plane, rho < 0, both barriers, beta .01, .1, 1: the cost falls by less, to first order
C11 corrected | C-TRPO (summary), design tradeoffs | holds as corrected
    a larger beta lets the cost rise by less where rho > 0, to first order
    the plane, rho .3, .6, .9, both barriers, beta .01, .1, 1
A4 step | C-TRPO with several budgets, the step | holds
    the natural reward step for H = F + sum w_i g_i g_i^T takes m + 1 products with F^-1, and m x m
    random metrics, 1 to 4 costs, w_i g_i.x_i of 0 and 1e-20 to 1e12, dependent and zero gradients, fractions
A4 safe | C-TRPO with several budgets, safety | holds
    the exact divergence, with a barrier for each budget, keeps all J_i below b_i, by construction
    tried: rounding, and that it gains; whole runs in a corridor and on Garnets of two costs, delta .1
A4 recovery | C-TRPO with several budgets, recovery | holds
    while one cost recovers, the barriers of the others, and the exact divergence, keep these below
    a corridor between two costs, from either side, 200 steps, both barriers
A4 two | C-TRPO with several budgets, recovery | holds
    of two costs in recovery, unless opposed, each falls by sqrt((1 + rho) / 2) of its best, to first order
    no third budget; random metrics and gradients, costs in units of their own
A4 three | C-TRPO with several budgets, recovery | holds
    of three costs in recovery one may rise, to first order; of two, beside a third's barrier, too
    three gradients in the plane, at 20, -20 and 180 degrees, and at 0, 100 and 20
A4 flow | C-NPG with several budgets | holds
    V_t tends to the optimum with all budgets; for -log x as m beta / t, if m of them bind
    a corridor between two costs, both barriers, beta .1
A4 zero | SB-TRPO with several costs | holds
    budgets of zero for costs, none negative, are one budget of zero, for any sum with positive weights
    the optimum of sparse Garnets of two costs; SB-TRPO in a corridor, with two pairs of weights
B14 | C-TRPO, limits | holds
    the step is TRPO's as beta -> 0 and as m -> infinity; with the exact barrier CPO's as beta -> 0
    the plane, rho = .6, both barriers
C-NPG | C-NPG as the limit of C-TRPO | holds
    C-TRPO's steps of length h follow the flow with an error of order h
    two states, safe starts, both barriers, beta .1
B9 | C-NPG, invariance of the safe set | holds
    m = b - J_c > 0 at all times
    ten starts; exp(log m) > 0 by construction: is it b - J_c, t <= 60? and, t <= 5, without log
B10 | C-NPG, central path | holds
    log pi_t / pi_0 - beta (phi'(m_t) - phi'(m_0)) c - t r is orthogonal to all changes of the occupancy
    two states, ten safe starts, both barriers, beta .01, .1, 1, t <= 60; a case is a policy on the way
B11 | C-NPG, global convergence | holds
    V* - V_t <= D(rho*, rho_0) / t
    two states, x log x, beta .01, .1, 1, five safe starts, t <= 60; a case is a policy on the way
B11 log | C-NPG, global convergence, -log x | holds
    V* - V_t <= (KL(rho*, rho_0) + beta (1 - sqrt(m* / m_0))^2) / t; on the edge t (V* - V_t) -> beta
    two states, beta .01, .1, 1; CMDPs with a face of optimal policies, inside and on the edge
B11 shared | C-NPG, logits shared by states | holds
    m > 0 at all times; but V_t need not tend to the best of its class, nor B11 hold for that
    a CMDP whose two states act alike, both barriers; Garnets whose states share in pairs, -log x
B12 | C-NPG, limit | holds
    of all optimal policies the flow finds the projection of its start
    random CMDPs with a face of optimal policies, inside and on the edge of the budget, beta .1
B12 edge | C-NPG, limit, -log x on the edge | holds
    all of the optimal face is infinitely far from the start; the limit is the nearest by KL alone
    ten CMDPs with a face of optimal policies on the edge, beta .1; the distance falls as 1 / t
B13 | C-NPG, rates of the margin | holds
    m ~ exp(-nu t / beta) for x log x, m ~ beta / (nu t) for -log x; nu is the price of the budget
    two states, beta .1, 1, five safe starts, between t = 40 and 60
C10 printed | C-TRPO's release, c-npg.jl | fails as printed
    its vector, sum c grad log eta, is grad J_c
    random policies of two states
C10 corrected | C-TRPO's release, c-npg.jl | holds as corrected
    grad J_c = sum c grad eta; what stays safe is the flow (B9)
    random policies of two states, autograd
B15 | sTRPO, Theorem 1(i) | holds
    the step of Eq. 9 has s.H s / 2 = delta
    random metrics, lambda_2 .001 to 100
B15 ascent | sTRPO, 4.3, lambda_1* and dual ascent | holds
    direction / lambda_1* is Eq. 9's step; raising lambda_2 meets phi.s >= delta_2 if a step can exceed it
    random metrics, lambda_2 to 1e6, demands of .999 and 1.001 of the most
C2 printed | sTRPO, Theorem 1(ii), fixed lambda_2 | fails as printed
    the step of Eq. 9 has phi.s > delta, or gets it by backtracking
    the plane; random CMDPs where Eq. 8 is feasible, lambda_2 .01 and 1
C2 corrected | sTRPO, Theorem 1(ii) | holds as corrected
    with the exact dual phi.s >= delta_2 wherever Eq. 8 is feasible: E chi^2 >= delta_2^2 / 2 delta_1
    random CMDPs and policies
C3 printed | sTRPO, Theorem 2 | fails as printed
    J rises by -sqrt(2 delta) gamma eps / (1 - gamma)^2 at least
    a bandit, gamma .5 to .999; exact steps on random CMDPs; a case: the bound is below eps / (1 - gamma)
C3 corrected | sTRPO, Theorem 2 | holds as corrected
    J rises by L / (1 - gamma) - sqrt(2 delta) gamma eps / (1 - gamma)^2 at least
    exact steps on random CMDPs, gamma .3 to .99; cases as above
C3 A.1 printed | sTRPO, (A.1) | fails as printed
    J rises by E_d[E_new A_new - 2 gamma eps / (1 - gamma) sqrt(KL(new, old) / 2)] / (1 - gamma) at least
    a bandit; exact steps on random CMDPs, gamma .3 to .99; cases as above
C3 A.1 corrected | sTRPO, (A.1) | holds as corrected
    it does with A_old for A_new, whose mean is 0: CPO's Corollary 1
    exact steps on random CMDPs, gamma .3 to .99; cases as above
C3 A.3 printed | sTRPO, (A.3) | fails as printed
    where E_d KL(old, new) <= delta, E_d sqrt(KL(new, old)) <= sqrt(E_d KL(new, old)) <= sqrt(2 delta)
    a bandit; exact steps from random policies, theta ~ N(0, 25), on random CMDPs
C3 A.3 corrected | sTRPO, (A.3) | holds as corrected
    E_d sqrt(KL(old, new)) <= sqrt(delta), by Jensen; of it the constant of (A.4) is made
    the same steps
C4 printed | sTRPO, Theorem 3 | fails as printed
    J_c rises by 2 sqrt(2 delta) gamma eps / (1 - gamma)^2 at most; eps of A_new, which is 0, or of A_old
    a bandit, gamma .5 to .999; exact steps on random CMDPs with lambda = 0; cases as of C3
C4 corrected | sTRPO, Theorem 3 | holds as corrected
    J_c rises by L_c / (1 - gamma) + sqrt(2 delta) gamma eps / (1 - gamma)^2 at most; eps of A_old
    exact steps on random CMDPs, gamma .3 to .99; cases as of C3
C5 printed | sTRPO, lemma of the joint advantage | fails as printed
    J_lambda rises by L - 4 gamma (eps_base + eps_est) sqrt(2 delta) / (1 - gamma)^2 at least
    a bandit; exact steps on random CMDPs, gamma .3 to .99; cases as of C3
C5 corrected | sTRPO, lemma of the joint advantage | holds as corrected
    J_lambda rises by (L - eps_est) / (1 - gamma) - sqrt(2 delta) gamma eps_base / (1 - gamma)^2 at least
    exact steps on random CMDPs, gamma .3 to .99; without eps_est, too; cases as of C3
C6 printed | sTRPO, Eq. 8 for Eq. 5 | fails as printed
    phi.s >= delta_2 raises E_{d_u} KL(u || pi), and leaves the best safe policy where it is
    exact steps on random CMDPs; the optimum of two states
C6 corrected | sTRPO, Eq. 8 for Eq. 5 | holds as corrected
    it leads away with phi over the unsafe policy's states; where g = 0, a level that is met leaves it
    exact steps on random CMDPs; the optimum of two states, where the second is so by construction
C7 printed | sTRPO, Eq. 4 | fails as printed
    xi = c + gamma V_CVaR(s') - V_CVaR(s), as an advantage, has mean 0 and prefers the larger CVaR
    two actions, alpha = .1, gamma = .9, exact CVaR
C7 corrected | sTRPO, Eq. 4 | holds as corrected
    it has and does for alpha = 1, where V is the mean
    two actions, gamma = .9
C8 printed | sTRPO, Eq. 10 | fails as printed
    where Eq. 8 is infeasible, the reverse step keeps away from the unsafe policy
    policies near the unsafe one, random CMDPs, lambda_2 .01 and 10; delta_2 of delta_1 and ten times it
C8 corrected | sTRPO, Eq. 10 | holds as corrected
    if E chi^2 <= delta_1 / 18, steps of KL delta_1, <= 3 radii, lead away; reversed, lambda_2 small, lose J
    random CMDPs, near the unsafe policy; small: lambda_2^2 E chi^2 < g.x; J: J_r, lambda = 0; else joint
C12 printed | sTRPO, 4.2, performance relation | fails as printed
    the mean of the joint advantage over the new policy, over 1 - gamma, is the change of the Lagrangian
    a bandit, lambda = 1; any two policies of random CMDPs: the signs may differ
C12 corrected | sTRPO, 4.2, performance relation | holds as corrected
    it is that of J_r / sigma_r - lambda J_c / sigma_c
    any two policies of random CMDPs
C13 printed | sTRPO, Eq. 2, cost surrogate | fails as printed
    J_c + E_d[A_c] / (1 - gamma), without the ratio of the objective, tells new policies that exceed d
    a bandit; random CMDPs from J_c = d, TRPO's step, radius .01
C13 corrected | sTRPO, Eq. 2, cost surrogate | holds as corrected
    with the ratio it is J_c of the new policy but for the second order, as in CPO
    random CMDPs and directions, halved steps
C14 printed | sTRPO, 4.2, PID control | fails as printed
    lambda increases when violations persist, and relaxes when safety improves
    its own form and gains, smoothing .5; costs 60, 40, 30, 26, and 60 to 57, a budget of 25
C14 corrected | sTRPO, 4.2, PID control | holds as corrected
    with K_I alone it rises while J_c > b, falls while J_c < b; with all, >= K_I sum (J_c - b) while above
    random sequences of costs, gains and budgets; above: the smoothed J_c, since the start
C15 printed | sTRPO, C.3, lambda_2 | fails as printed
    increasing lambda_2 consistently prioritizes safety: the step's cost falls by more
    a bandit, lambda = 1, lambda_2 0 to 10; random CMDPs, to first order
C15 corrected | sTRPO, C.3, lambda_2 | holds as corrected
    it leads away from the unsafe policy by more, and gains less of the joint advantage
    random CMDPs, to first order
C16 printed | sTRPO, 1, "without regressions" | fails as printed
    where Eq. 8 is met, each update improves or maintains reward and safety, and keeps the constraint
    random CMDPs, the costliest policy for the unsafe one, exact KL and exclusion, d = J_c
C16 corrected | sTRPO, 1, "without regressions" | holds as corrected
    to first order the joint advantage rises if and only if rho > -sqrt(1 - f^2), f = delta_2 / most
    the same; and J_r / sigma_r - lambda J_c / sigma_c does, by 1e-4 of the step
fast | fast_safety_gymnasium.py | holds
    no bit of any number differs from Safety Gymnasium as it is installed
    whole episodes, the package and the file in processes of their own; a case is a step
"""  # row | paper and number | verdict, the statement, what it is tried on
LEDGER = LEDGER.strip().splitlines()
LEDGER = {head.split(" | ")[0]: (*head.split(" | ")[1:], statement.strip(), tried_on.strip())
          for head, statement, tried_on in zip(LEDGER[::3], LEDGER[1::3], LEDGER[2::3])}


class Record(NamedTuple):
    """The worst figure met, the bound it has to keep, and what it says of which row of the ledger."""
    worst: float
    sign: str  # "<=" or ">="
    bound: float
    supports: str = ""
    refutes: str = ""
    cases: int = 0
    place: tuple[str, int] = ("", 0)  # file and line of the test that comes first

    def holds(self) -> bool:
        return self.worst <= self.bound if self.sign == "<=" else self.worst >= self.bound


def add(records: dict, figure: str, record: Record) -> None:
    """Of a figure that is there already, the worse one is kept (NaN is the worst), and cases add up."""
    before = records.get(figure, record._replace(cases=0))
    assert (before.sign, before.bound) == (record.sign, record.bound), f"two bounds of one figure: {figure}"
    worse = max if record.sign == "<=" else min
    worst = record.worst if math.isnan(record.worst) else worse(before.worst, record.worst)
    records[figure] = record._replace(worst=worst, cases=before.cases + record.cases,
                                      place=min(before.place, record.place))


def check(figure: str, worst: float, at_most: float | None = None, at_least: float | None = None,
          supports: str = "", refutes: str = "", cases: int = 0) -> None:
    """Records the figure for the closing tables, then asserts the bound (NaN fails). It may speak for or
    against a row of the ledger, as the worst of so many cases that no other figure of the row has counted."""
    sign, bound = ("<=", at_most) if at_least is None else (">=", at_least)
    record = Record(float(worst), sign, float(bound), supports, refutes, int(cases))
    assert {supports, refutes} <= {*LEDGER, ""}
    add(OF_THIS_TEST, figure, record)
    assert record.holds(), f"{figure}: {worst:.3g}, not {sign} {bound:.3g}"


def verdict(row: str, records: list[Record]) -> str:
    """What the figures of a run say of a row: one counterexample is enough to refute it."""
    if not all(record.holds() for record in records):
        return "open: a check failed"
    if any(record.refutes for record in records):
        return "fails as printed"
    return "holds as corrected" if row.endswith("corrected") else "holds"


def ledger() -> list[dict]:
    """The rows of which this run has measured something; figures to two digits."""
    rows = []
    for row, (source, _, statement, tried_on) in LEDGER.items():
        records = {name: each for name, each in RECORDS.items() if row in (each.supports, each.refutes)}
        figures = [{"figure": name.strip(), "worst": float(f"{each.worst:.1e}"), "sign": each.sign,
                    "bound": each.bound} for name, each in records.items()]
        if records:
            rows.append({"row": row, "source": source, "statement": statement, "tried_on": tried_on,
                         "verdict": verdict(row, [*records.values()]),
                         "cases": sum(each.cases for each in records.values()), "figures": figures})
    return rows


def save_ledger(rows: list[dict], path: Path) -> None:
    """Writes the file, unless the one that is there differs in nothing but in figures and counts by a tenth,
    or by 1e-9, as they do between machines."""
    def measured(rows):
        return [x for row in rows for x in (row["cases"], *(figure["worst"] for figure in row["figures"]))]

    def stated(rows):
        return [{**row, "cases": 0, "figures": [{**f, "worst": 0} for f in row["figures"]]} for row in rows]

    old = json.loads(path.read_text()) if path.exists() else []
    if stated(old) != stated(rows) or not np.allclose(measured(old), measured(rows), rtol=0.1, atol=1e-9):
        path.write_text(json.dumps(rows, indent=1) + "\n")


class Tables:
    """Gathers figures by the reports of tests, which also come from other processes (pytest -n 2). Prints
    them and the ledger after pytest's own summary and before its closing line, and saves the ledger of a
    whole run in which nothing failed, but for the tests that compare the saved one with this file."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call):
        report = yield
        if call.when == "call":
            report.user_properties += [("figure", [name, *each]) for name, each in OF_THIS_TEST.items()]
            OF_THIS_TEST.clear()
        return report

    def pytest_runtest_logreport(self, report):
        place = report.location[0], report.location[1] or 0
        for kind, value in report.user_properties if report.when == "call" else ():
            if kind == "figure":
                name, *fields = value
                add(RECORDS, name, Record(*fields)._replace(place=place))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter, exitstatus, config):
        yield
        if not RECORDS:
            return
        in_order = sorted(RECORDS.items(), key=lambda item: item[1].place)  # of the pages, whoever was first
        RECORDS.clear()
        RECORDS.update(in_order)
        write, stats, rows = terminalreporter.write_line, terminalreporter.stats, ledger()
        terminalreporter.section("figure, worst met, bound")
        for figure, record in RECORDS.items():
            mark = "" if record.holds() else "  FAILED"
            write(f"{figure:<84} {record.worst:>10.2e} {record.sign} {record.bound:.2e}{mark}")
        terminalreporter.section(f"the ledger: {len(rows)} of {len(LEDGER)} statements")
        for row in rows:
            write(f"{row['row']:<18} {row['source']}: {row['statement']}")
            write(f"{'':<18} {row['verdict']}; {row['cases']:,} cases: {row['tried_on']}")
            for each in row["figures"]:
                write(f"{'':<18} {each['worst']:.1e} {each['sign']} {each['bound']:.1e}  {each['figure']}")
        failed = [r for kind in ("failed", "error") for r in stats.get(kind, [])
                  if "::test_ledger_" not in r.nodeid]
        option = config.option
        chosen = option.keyword or option.markexpr or option.deselect or any("::" in x for x in config.args)
        verdicts = {row["row"]: row["verdict"] for row in rows}
        if (exitstatus in (0, 1) and not (failed or chosen)
                and verdicts == {row: columns[1] for row, columns in LEDGER.items()}):
            save_ledger(rows, ROOT / "results" / "ledger.json")


def keep_bytecode(config) -> None:
    """Tests start hundreds of processes. Where Python is told to write no bytecode, each compiles some 600
    modules, half of its time: so bytecode is kept for the length of the session, in a folder of its own."""
    if os.environ.get("PYTHONDONTWRITEBYTECODE") and "PYTHONPYCACHEPREFIX" not in os.environ:
        os.environ["PYTHONPYCACHEPREFIX"] = folder = tempfile.mkdtemp(prefix="bytecode-")
        told = os.environ.pop("PYTHONDONTWRITEBYTECODE")

        def put_back():
            os.environ["PYTHONDONTWRITEBYTECODE"] = told
            del os.environ["PYTHONPYCACHEPREFIX"]
            shutil.rmtree(folder, ignore_errors=True)

        config.add_cleanup(put_back)


def pytest_configure(config):
    keep_bytecode(config)
    config.addinivalue_line("markers", "slow: long sweeps, skipped without -m slow")
    if not config.pluginmanager.has_plugin("tables"):
        config.pluginmanager.register(Tables(), "tables")
