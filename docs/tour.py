# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["numpy==2.2.6", "autograd==1.8.0", "gymnasium==0.29.1", "scipy==1.15.3",
#                 "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7", "threadpoolctl==3.6.0"]
# ///

# %% [markdown]
# # A tour in ten cells
#
# One small world in which nothing is estimated, and the steps that `sbtrpo.py`, `ctrpo.py` and
# `strpo.py` take in it. Every step comes from the function that trains. Each cell has one thing to
# change: change it, and run the cell again.
#
# You have read the first two pages of `sbtrpo.py`. The letters are the same: $g$ is a gradient,
# $x = F^{-1} g$ its natural direction, $\delta$ the radius of the trust region.
#
# `uvx juv@0.5.0 run docs/tour.py` makes a notebook of this file, `docs/tour.ipynb`, and opens it.
# `uv run docs/tour.py` prints the numbers.

# %%
import math
import sys

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle, Rectangle

sys.path += ["..", "."]  # the scripts, seen from docs/ and from the top
import ctrpo
import sbtrpo
import strpo
from tabular_cmdp import GRID_MAPS, hazard_grid, log_policy, policy

GREEN, RED, BLUE, PINK, SKY = "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#56B4E9"


# Two kinds of pictures; skip how they are drawn.
def draw_grid(axis, theta, changes=None):
    """The share of time in each cell; changes (10, 5): arrows, green where likelier."""
    shares, rows = world.state_occupancy(theta), GRID_MAPS["A"]
    for s, cell in enumerate("".join(rows)):
        y, x = divmod(s, len(rows[0]))
        axis.add_patch(Rectangle((x, y), 1, 1, facecolor=(0, 0.45, 0.7, min(1, 1.5 * shares[s])),
                                 edgecolor=RED if cell == "H" else "lightgrey", linewidth=2,
                                 zorder=2 if cell == "H" else 1))
        axis.text(x + 0.08, y + 0.1, cell.strip("."), va="top", weight="bold")
        for a, (dx, dy) in enumerate([(0, -1), (1, 0), (0, 1), (-1, 0)]):
            size = 0 if changes is None else 0.45 * changes[s, a]
            if abs(size) > 0.02:
                axis.arrow(x + 0.5, y + 0.5, abs(size) * dx, abs(size) * dy, head_width=0.08,
                           color=GREEN if size > 0 else PINK, length_includes_head=True, zorder=3)
    axis.set(xlim=(-0.05, 5.05), ylim=(2.05, -0.05), aspect="equal")
    axis.axis("off")


def squared_length(step):
    """In F / 2 delta: to second order, the KL of a step at theta, in units of delta."""
    return step @ fisher @ step / (2 * delta)


def plane(first, second):
    """Two vectors that span the plane of two steps, of length 1 and at right angles."""
    across = second - (first @ fisher @ second) / (2 * delta) * first
    return np.array([first, across / math.sqrt(squared_length(across))])


def draw_disc(axis, basis, inside=None, **arrows):
    """The disc; dashed, where the true KL is delta; shaded, where inside(step) > 0; name=step."""
    def values(function, count):
        lines = np.linspace(-1.4, 1.4, count)
        return lines, lines, [[function((x, y) @ basis) for x in lines] for y in lines]

    axis.contour(*values(lambda step: world.kl(theta, theta + step.reshape(10, 5)), 31), (delta,),
                 colors="grey", linestyles="--")
    axis.add_patch(Circle((0, 0), 1, fill=False, color="grey"))
    if inside:
        axis.contourf(*values(inside, 121), (0, np.inf), colors=[SKY], alpha=0.5)
    for name, step in arrows.items():
        x, y = basis @ fisher @ step / (2 * delta)
        colour = {"step_r": GREEN, "step_c": RED, "away": PINK}.get(name, "black")
        axis.annotate("", (x, y), (0, 0), arrowprops={
            "arrowstyle": "-|>", "color": colour, "linewidth": 2})
        side = (20 * y, -20 * x) if colour == "black" else (14 * x, 14 * y)
        axis.annotate(name, (x, y), side, textcoords="offset points", color=colour, ha="center",
                      va="center")
    axis.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", xticks=(), yticks=())


# %% [markdown]
# ## 1. The world
#
# Walk from S to G. G pays 1 and leads back to S; each step in a hazard H costs 1. There are five
# actions: up, right, down, left, stay. A policy is a table of logits, 10 states by 5 actions. $J_r$
# and $J_c$ are its reward and cost per step, discounted with $\gamma = 0.9$. The darker a cell, the
# more time is spent there.
#
# The uniform policy, all logits 0, is in a hazard a quarter of the time. What the best policy
# without any cost earns is known from a linear program.
#
# *Change* `[0.0, 0, 0, 0, 0]` to `[0.0, 2, 0, 0, 0]`: a policy that mostly goes right. It earns ten
# times as much, and costs 1.7 times as much.

# %%
world = hazard_grid("A")
start = np.tile([0.0, 0, 0, 0, 0], (10, 1))
J_r, J_c = world.J(start, world.r), world.J(start, world.c)
best_safe = world.optimum(limit=0).value

draw_grid(plt.figure(figsize=(5, 2.2)).gca(), start)
plt.show()
print(f"J_r {J_r:.4f}, J_c {J_c:.4f}; the best J_r without cost {best_safe:.4f}")

# %% [markdown]
# ## 2. Two best steps
#
# `steepest_step` is TRPO. Of all steps of KL $\delta$ it takes the one that raises the reward most.
# With $-x_c$ it takes the one that lowers the cost most. Green moves become likelier, pink ones
# less likely. The reward step goes to G. The cost step leaves the hazards, and G does not matter.
#
# *Change* `delta = 0.01` to `delta = 0.04`: with four times the radius, the step is twice as long,
# and promises twice as much.

# %%
delta = 0.01


def first_order(theta, f):
    """(g, x) of J_f, flat, exact. Both 0 where the best step changes 1e-8 of f: rounding."""
    g, x = world.gradient(theta, f).ravel(), world.natural_direction(theta, f).ravel()
    visible = 2 * delta * (g @ x) > (1e-8 * np.abs(f).max()) ** 2
    return g * visible, x * visible


g_r, x_r = first_order(start, world.r)
g_c, x_c = first_order(start, world.c)
step_r, _ = sbtrpo.steepest_step(g_r, x_r, delta)
step_c, _ = sbtrpo.steepest_step(g_c, -x_c, delta)

axes = plt.figure(figsize=(10, 2.4)).subplots(1, 2)
for axis, title, step in zip(axes, ("best reward step", "best cost step"), (step_r, step_c)):
    changes = policy(start + step.reshape(10, 5)) - policy(start)
    draw_grid(axis, start, changes / np.abs(changes).max())
    axis.set_title(title)
plt.show()
print(f"reward step: J_r {g_r @ step_r:+.4f}, J_c {g_c @ step_r:+.4f}; "
      f"cost step: J_r {g_r @ step_c:+.4f}, J_c {g_c @ step_c:+.4f}")

# %% [markdown]
# ## 3. The trust region is a disc, and rho an angle
#
# A step has 50 numbers, but all that SB-TRPO does happens in the plane of these two. Measure length
# by the Fisher matrix, $|s|^2 = s \cdot F s / 2\delta$. Then both steps have length 1, the trust
# region is the unit disc, and the cosine of the angle between the steps is $-\rho$.
#
# Dashed is the line where the true KL is $\delta$. The disc is its second-order approximation.
#
# At the uniform policy $\rho$ is small: reward and cost hardly conflict. We go on from a policy
# that four TRPO steps have made bolder.
#
# *Change* `bold = 4` to `bold = 0`: the uniform policy. The angle is nearly a right one.

# %%
bold = 4
theta = start
for _ in range(bold):
    step, _ = sbtrpo.steepest_step(*first_order(theta, world.r), delta)
    theta = theta + step.reshape(10, 5)
fisher = world.fisher(theta)

g_r, x_r = first_order(theta, world.r)
g_c, x_c = first_order(theta, world.c)
step_r, _ = sbtrpo.steepest_step(g_r, x_r, delta)
step_c, per_best_cost = sbtrpo.steepest_step(g_c, -x_c, delta)
rho = per_best_cost @ step_r  # what step_r costs, in units of the best cost decrease

draw_disc(plt.figure(figsize=(4, 4)).gca(), plane(step_r, step_c), step_r=step_r, step_c=step_c)
plt.show()
print(f"rho {rho:.4f}: {math.degrees(math.acos(-rho)):.0f} degrees between the two steps")

# %% [markdown]
# ## 4. SB-TRPO: mu
#
# SB-TRPO wants a fraction $\beta$ of the best cost decrease. To first order, the steps that give it
# lie beyond a straight line across `step_c`. Inside the disc, that is the shaded cap. The paper's
# step goes from `step_r` straight towards `step_c` until it reaches the cap, and
# $\mu = (\beta + \rho) / (1 + \rho)$ is how much of the way that is, if it is not there already.
#
# The step ends inside the disc: it is shorter than it could be. And where $\rho > 1 - \beta$, as
# here, it loses reward.
#
# *Change* `beta = 0.75` to `beta = 0.3`: now it gains. Where is the border?

# %%
beta = 0.75
convex, sb = sbtrpo.safety_biased_step(g_r, x_r, g_c, x_c, delta, beta)


def in_the_cap(step):
    """Positive in the trust region, where the promised cost decrease is large enough."""
    return min(1 - squared_length(step), -per_best_cost @ step - beta)


axis = plt.figure(figsize=(4, 4)).gca()
draw_disc(axis, plane(step_r, step_c), in_the_cap, step_r=step_r, step_c=step_c, convex=convex)
axis.plot([1, -rho], [0, math.sqrt(1 - rho**2)], color="black", linewidth=0.8)
plt.show()
print(f"mu {sb['mu']:.4f}; of the best change, cost {sb['cost_change'] / sb['best_cost']:+.4f}, "
      f"reward {sb['reward_change'] / sb['best_reward']:+.4f}")

# %% [markdown]
# ## 5. The best step of the cap
#
# `--update optimal` takes the corner of the cap that is farthest along `step_r`. It promises the
# same cost decrease, earns more, and uses all of the trust region.
#
# *Change* `delta, beta, update` to `delta, 1, update`: with $\beta = 1$ the step is `step_c`.

# %%
optimal, sb_optimal = sbtrpo.safety_biased_step(
    g_r, x_r, g_c, x_c, delta, beta, update="optimal")

draw_disc(plt.figure(figsize=(4, 4)).gca(), plane(step_r, step_c), in_the_cap, step_r=step_r,
          step_c=step_c, convex=convex, optimal=optimal)
plt.show()
for name, info in (("convex", sb), ("optimal", sb_optimal)):
    print(f"{name}: reward {info['reward_change'] / info['best_reward']:+.4f} of the best, "
          f"KL {info['kl'] / delta:.4f} of delta")

# %% [markdown]
# ## 6. C-TRPO: a barrier flattens the region
#
# C-TRPO has a budget $b$, and the margin $m = b - J_c$ is what is left of it. Its region is where
# KL $+ \beta \Psi \leq \delta$. The barrier $\Psi$, `log`, is infinite where the cost rises by $m$.
#
# Left, the margin is wide: the region is nearly the disc, and the step nearly `step_r`. The
# narrower the margin, the flatter the region. The step turns, until it leaves the cost alone.
# `keep` is how much is left of its part along `step_c`.
#
# *Change* `barrier = "log"` to `barrier = "xlogx"`, the paper's. It is finite at the budget: on the
# right, the region ends there in a straight cut, and the step wants to go further than that.

# %%
barrier = "log"
weight = 0.1  # C-TRPO's beta
margins = (1.0, 0.05, 0.005)
barrier_steps, keeps = [], []
axes = plt.figure(figsize=(11, 4)).subplots(1, 3)
for axis, margin in zip(axes, margins):
    step, info = ctrpo.barrier_step(g_r, x_r, g_c, x_c, delta, weight, margin, barrier)
    barrier_steps.append(step)
    keeps.append(info["keep"])

    def in_the_region(step, margin=margin):
        """Positive where KL + beta Psi < delta, to second order in the KL."""
        psi = ctrpo.barrier_divergence(g_c @ step, margin, barrier)
        return max(-1.0, 1 - squared_length(step) - weight * psi / delta)

    draw_disc(axis, plane(step_r, step_c), in_the_region, step_r=step_r, step_c=step_c, step=step)
    axis.set_title(f"margin {margin:g}: keep {info['keep']:.3f}")
plt.show()
shares = [g_c @ step / margin for step, margin in zip(barrier_steps, margins)]
print("what the steps spend of their margins:", *[f"{share:.4f}" for share in shares])

# %% [markdown]
# ## 7. sTRPO: away from an unsafe policy
#
# sTRPO first trains a policy to be unsafe. Here, 40 steps raise the cost as much as they can. From
# then on each step of the task policy has to raise KL(unsafe || policy) by $\delta_2$. That is
# again a straight line across the disc. The picture is that of cell 5, with `away` in place of
# `step_c`. The dashed line shows that here the disc is a rough approximation.
#
# The demand is drawn large, 0.75 of what is possible. The default is tiny.
#
# *Change* `demanded = 0.75` to `demanded = 0.1`: `step_r` moves away enough by
# itself, and is the step.

# %%
demanded = 0.75


def floor(theta):
    """No logit more than 12 below the largest of its state: sTRPO divides by probabilities."""
    return np.maximum(theta - theta.max(axis=1, keepdims=True), -12)


unsafe = start
for _ in range(40):
    step, _ = sbtrpo.steepest_step(*first_order(unsafe, world.c), delta)
    unsafe = floor(unsafe + step.reshape(10, 5))
unsafe_occupancy = world.occupancy(unsafe)


def exclusion(theta):
    """KL(unsafe || policy), in the mean over the states of the unsafe policy [nats]."""
    return np.sum(unsafe_occupancy * (log_policy(unsafe) - log_policy(theta)))


def away_from_unsafe(theta):
    """Its gradient phi, and F^-1 phi, flat."""
    phi = unsafe_occupancy.sum(axis=1, keepdims=True) * policy(theta) - unsafe_occupancy
    y = phi / world.occupancy(theta)
    return phi.ravel(), (y - y.mean(axis=1, keepdims=True)).ravel()


phi, y = away_from_unsafe(theta)
away, per_best_away = sbtrpo.steepest_step(phi, y, delta)
excluding, st = strpo.exclusion_step(g_r, x_r, phi, y, delta, demanded * (phi @ away))

draw_disc(plt.figure(figsize=(4, 4)).gca(), plane(step_r, away),
          lambda step: min(1 - squared_length(step), per_best_away @ step - demanded),
          step_r=step_r, away=away, step=excluding)
plt.show()
print(f"J_c of the unsafe policy {world.J(unsafe, world.c):.4f}; the step moves away by "
      f"{phi @ excluding:.4f} nats; step_r alone would, by {phi @ step_r:.4f}")

# %% [markdown]
# ## 8. The line search
#
# All this holds to first order only. So the scripts shorten a step until the true KL and the
# surrogate of the cost are as they should be. `line_search` tries 1, 0.8, 0.64, ... of the step.
# `judge` names what fails. The picture shows both along the optimal step of cell 5, made too long.
#
# *Change* `stretch = 2` to `stretch = 8`: it is cut to about the same length. The KL decides.

# %%
stretch = 2


def judge(new):
    kl, cost = world.kl(theta, new), world.surrogate(theta, new, world.c)
    failed = ""
    if not kl <= delta:
        failed = "kl"
    elif cost > 0:
        failed = "cost"
    return failed, {"kl": kl, "cost": cost}


long_step = stretch * optimal.reshape(10, 5)
_, found = sbtrpo.line_search(judge, theta, long_step)

fractions = np.linspace(0, 1, 50)
along = [judge(theta + fraction * long_step)[1] for fraction in fractions]
axis = plt.figure(figsize=(5, 3)).gca()
axis.plot(fractions, [each["kl"] / delta for each in along], color=BLUE, label="KL / delta")
axis.plot(fractions, [each["cost"] / sb["best_cost"] for each in along], color=RED,
          label="cost / best decrease")
axis.axvline(found["fraction"], color="grey", linestyle="--")
axis.set(xlabel="fraction of the step")
axis.legend()
plt.show()
print(f"fraction {found['fraction']:.3f}, stopped by {found['stopped_by']}; there the KL is "
      f"{found['kl'] / delta:.4f} of delta")

# %% [markdown]
# ## 9. Forty steps
#
# From the first policy, with exact gradients, surrogates and KL. TRPO runs through the hazards.
# SB-TRPO first leaves them, and then finds the way around. C-TRPO first gets below its budget, and
# then earns what the budget allows. Dashed are the budgets, 0 and b, and the best $J_r$ within
# them.
#
# *Change* `budget = 0.1` to `budget = 0.0`: no policy is below it, so C-TRPO recovers for ever, and
# hardly earns.

# %%
budget = 0.1


def rise(old, new):
    return world.surrogate(old, new, world.c)


def improve(old, step, failed):
    """The line search: KL at most delta, and what else a method asks for."""
    def judge(new):
        return ("kl" if not world.kl(old, new) <= delta else failed(new)), {}

    return sbtrpo.line_search(judge, old, step.reshape(10, 5))[0]


def trpo(old):
    step, _ = sbtrpo.steepest_step(*first_order(old, world.r), delta)
    return improve(old, step, lambda new: "")


def sb_trpo(old):
    step, _ = sbtrpo.safety_biased_step(
        *first_order(old, world.r), *first_order(old, world.c), delta, beta)
    return improve(old, step, lambda new: "cost" if rise(old, new) > 1e-12 else "")


def c_trpo(old):
    margin = budget - world.J(old, world.c)
    recovery = margin <= 0
    step, _ = ctrpo.barrier_step(*first_order(old, world.r), *first_order(old, world.c),
                                 delta, weight, margin, barrier, recovery)

    def failed(new):
        if recovery:
            return "cost" if rise(old, new) > 1e-12 else ""
        psi = ctrpo.barrier_divergence(rise(old, new), margin, barrier)
        return "divergence" if world.kl(old, new) + weight * psi > delta else ""

    return improve(old, step, failed)


def draw_paths():
    axes = plt.figure(figsize=(10, 3)).subplots(1, 2)
    for axis, name, f in zip(axes, ("J_r", "J_c"), (world.r, world.c)):
        for path, colour in zip(paths.values(), (RED, BLUE, GREEN, PINK)):
            axis.plot([world.J(each, f) for each in path], color=colour)
        axis.set(xlabel="update", title=name)
    for limit in (0, budget):
        axes[0].axhline(world.optimum(limit).value, color="grey", linestyle="--", linewidth=0.8)
        axes[1].axhline(limit, color="grey", linestyle="--", linewidth=0.8)
    axes[1].legend(paths)
    plt.show()
    for name, path in paths.items():
        J_r, J_c = (world.J(path[-1], f) for f in (world.r, world.c))
        print(f"{name:7} J_r {J_r:.4f}, J_c {J_c:.4f}")


paths = {}
for rule in (trpo, sb_trpo, c_trpo):
    path = [start]
    for _ in range(40):
        path.append(rule(path[-1]))
    paths[rule.__name__] = path
draw_paths()

# %% [markdown]
# ## 10. Forty steps of sTRPO, and where all have arrived
#
# From about the twentieth step on sTRPO holds the same budget on average. A controller,
# `pid_multiplier`, sets the weight of the cost in a joint advantage: the more the budget is
# exceeded, the larger. It swings around the budget. Besides, KL(unsafe || policy) has to reach a
# level, as with `--exclusion level`. It soon does, and from then on the exclusion changes no step.
#
# *Change* `level = 1.0` to `level = 3.0`. Three steps lead away. The fourth promises, to first
# order, to reach the level, and cannot: nothing passes the line search, and the policy stays
# where it earns next to nothing.

# %%
level = 1.0
gains = (2, 1, 2)


def standardised(theta, f):
    A = world.advantage(theta, f)
    return A / math.sqrt(np.sum(world.occupancy(theta) * A**2))


def s_trpo(old, multiplier):
    A = standardised(old, world.r) - multiplier * standardised(old, world.c)
    g, x = (world.occupancy(old) * A).ravel(), (A - A.mean(axis=1, keepdims=True)).ravel()
    phi, y = away_from_unsafe(old)
    demand = level - exclusion(old)  # negative, once the level is reached
    step, info = strpo.exclusion_step(g, x, phi, y, delta, demand)
    met = phi @ step >= demand - 1e-9 * abs(demand)
    least = demand if met else min(0, phi @ step)

    def judge(new):
        new, failed = floor(new), ""
        if not world.kl(old, new) <= delta:
            failed = "kl"
        elif not exclusion(new) - exclusion(old) >= least:
            failed = "exclusion"
        elif not world.surrogate(old, new, A) >= min(0, g @ step):
            failed = "surrogate"
        return failed, {}

    return floor(strpo.line_search(judge, old, step.reshape(10, 5))[0]), info["lambda_2"] > 0


path, memory, changed = [start], np.full(2, math.nan), 0
for _ in range(40):
    multiplier, memory = strpo.pid_multiplier(memory, world.J(path[-1], world.c), budget, gains)
    new, binds = s_trpo(path[-1], multiplier)
    path.append(new)
    changed += binds
paths = paths | {"s_trpo": path}
draw_paths()

axes = plt.figure(figsize=(10, 4.4)).subplots(2, 2)
for axis, (name, path) in zip(axes.flat, paths.items()):
    draw_grid(axis, path[-1])
    axis.set_title(name)
plt.show()
print(f"The exclusion changed {changed} of 40 steps.")
for name in ("c_trpo", "s_trpo"):
    over = sum(world.J(each, world.c) > budget for each in paths[name])
    print(f"{name}: {over} of 41 policies are over budget")
