"""Environments that do what users' environments have been seen to do; `--task faulty:NAME-v0`."""
import contextlib
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time

import gymnasium
import numpy as np
from environments import Walk
from gymnasium import spaces


class Buffer(Walk):
    """Gives its own array away, and clips the action in place."""

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.x, {}

    def step(self, action):
        np.clip(action, -1e-3, 1e-3, out=action)
        self.x += action
        self.t += 1
        return self.x, self.x.item(), False, self.t == 50, {"cost": 0.0}


class Six(Walk):
    """The cost as the sixth value, as in Safety Gymnasium."""

    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, info["cost"], terminated, False, {}


class Last(Walk):
    """The cost as the last of six values."""

    def step(self, action):
        *values, info = super().step(action)
        return *values, info, info["cost"]


class Negative(Walk):
    def cost(self):
        return -1.0 if self.t == 7 else 1.0


class OneNumber(Walk):
    """Reward and cost of shape (1,)."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, np.full(1, reward), terminated, truncated, {"cost": np.zeros(1)}


class TwoCosts(Walk):
    def cost(self):
        return np.zeros(2)


class NoCost(Walk):
    def step(self, action):
        return *super().step(action)[:4], {}


class Far(Walk):
    """What differs between observations is a billionth of them."""

    def step(self, action):
        observation, *rest = super().step(action)
        return 1e9 + observation, *rest


class BadStart(Walk):
    """An observation of its third reset is infinite."""
    resets = 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.resets += 1
        return (np.full(1, np.inf) if self.resets == 3 else self.x.copy()), {}


class Empty(Walk):
    observation_space = spaces.Box(-1, 1, (0,))


class Blind(Walk):
    """Sensors that see nothing say the largest float32; and float16 whose sum is infinite."""
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}

    def step(self, action):
        return self.seen(), *super().step(action)[1:]

    def seen(self):
        return np.array([self.x.item(), 3.4e38, 3.4e38], np.float32)


class Half(Blind):
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float16)

    def seen(self):
        return np.array([self.x.item(), 6e4, 6e4], np.float16)


class Column(Walk):
    def step(self, action):
        observation, *rest = super().step(action)
        return observation[:, None], *rest


class OldReset(Walk):
    def reset(self):
        return super().reset()


class RaisesInReset(Walk):
    def reset(self, seed=None, options=None):
        raise RuntimeError("the licence has expired")


class NeedsArgument(Walk):
    def __init__(self, port):
        self.port = port


class Exits(Walk):
    def step(self, action):
        sys.exit("the simulator has left")


class Dies(Walk):
    """Ends its process in step 3 of the third episode that begins in it."""

    def step(self, action):
        if self.t == 3 and os.environ.get("DIES") == "yes":
            os._exit(7)
        return super().step(action)


class Global(Walk):
    """Random numbers of NumPy's and Python's global generators, when it is made and in each episode."""

    def __init__(self):
        self.map = np.random.normal() + random.random()

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = np.random.normal(size=1) + random.random() + self.map
        return self.x.copy(), {}


class CloseRaises(Walk):
    """A viewer without a display, say."""

    def close(self):
        raise RuntimeError("the display is gone")


class Endless(Walk):
    """An episode that never ends, and does not like to be interrupted; leaves the file `stepping`."""

    def step(self, action):
        if self.t == 10:
            open("stepping", "w").close()
        with contextlib.suppress(BaseException):
            time.sleep(1e-4)
        return *super().step(action)[:2], False, False, {"cost": 0.0}


class Simulator(Walk):
    """Has a process of its own, which close() ends."""

    def __init__(self):
        self.process = subprocess.Popen(["sleep", "600"])
        with open(os.environ["SIMULATORS"], "a") as log:
            print(self.process.pid, file=log)

    def close(self):
        self.process.kill()
        self.process.wait()


class Threaded(Walk):
    """Has a thread of its own, which close() ends."""

    def __init__(self):
        self.end = threading.Event()
        threading.Thread(target=self.end.wait).start()

    def close(self):
        self.end.set()


class NeverClosed(Walk):
    """In a worker, close() waits for ever."""

    def close(self):
        if multiprocessing.current_process().name.startswith("Loky"):
            threading.Event().wait()


class Raised(gymnasium.RewardWrapper, gymnasium.utils.RecordConstructorArgs):
    """5 more for each step."""

    def __init__(self, env):
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def reward(self, reward):
        return reward + 5


class Expensive(Walk):
    def cost(self):
        return 0.1


class Member(Walk):
    """Insists on members of its action space."""

    def step(self, action):
        assert self.action_space.contains(action), repr(action)
        return super().step(np.ravel(action)[:1])


class Scalar(Member):
    action_space = spaces.Box(-1, 1, ())


class Matrix(Member):
    action_space = spaces.Box(-2, 3, (2, 2))


class Whole(Member):
    action_space = spaces.Box(0, 9, (1,), np.int64)


class Thrust(Member):
    action_space = spaces.Box(0, np.inf, (1,))


class FromTwo(Member):
    action_space = spaces.Discrete(3, start=2)


for name, environment in list(vars().items()):
    if getattr(environment, "__module__", None) == __name__ and issubclass(environment, Walk):
        gymnasium.register(f"{name}-v0", environment)
gymnasium.register("Limited-v0", Six, max_episode_steps=20)
gymnasium.register("Autoreset-v0", Six, max_episode_steps=20)
gymnasium.spec("Autoreset-v0").autoreset = True  # as an argument it warns
wrappers = (Raised.wrapper_spec(),)
gymnasium.register("Wrapped-v0", Six, max_episode_steps=20, additional_wrappers=wrappers)


fit = None  # the original of what these replace


def fit_and_die(*arguments):
    """A worker that fits a critic dies; the main process does it."""
    if multiprocessing.current_process().name.startswith("Loky"):
        os._exit(7)
    return fit(*arguments)


def fit_and_hang(*arguments):
    """Never ends; leaves the file `fitting`."""
    open("fitting", "w").close()
    time.sleep(1e6)
