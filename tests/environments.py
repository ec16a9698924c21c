"""Environments whose right answer is known; `--task environments:NAME` with this folder on the path."""
import gymnasium
import numpy as np
from gymnasium import spaces


class Walk(gymnasium.Env):
    """The reward is the position, which the action moves by a tenth; 50 steps; no cost."""
    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=1)
        self.t = 0
        return self.x.copy(), {}

    def step(self, action):
        self.x = self.x + 0.1 * action
        self.t += 1
        return self.x.copy(), self.x.item(), False, self.t == 50, {"cost": self.cost()}

    def cost(self):
        return 0.0


class Toll(Walk):
    """Each step costs a tenth, whatever is done."""

    def cost(self):
        return 0.1


class Clock(Walk):
    """The cost is a function of time alone."""

    def cost(self):
        return 1 / (1 + self.t)


class Unpaid(Walk):
    """No reward: only the cost, the distance from 0, depends on what is done."""

    def step(self, action):
        observation, _, terminated, truncated, _ = super().step(action)
        return observation, 1.0, terminated, truncated, {"cost": abs(self.x.item())}


for environment in (Walk, Toll, Clock, Unpaid):
    gymnasium.register(f"{environment.__name__}-v0", environment)
