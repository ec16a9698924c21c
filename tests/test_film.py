"""studies/film.py, figures/at_work.gif and figures/tasks.gif. Part of `uv run test_updates.py`."""

import csv, ctypes.util, os, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "studies")]
import evaluate
import film
import sbtrpo


class Corridor(gymnasium.Env):
    """Ten steps to the right; each pays its number, the last three cost 1, the fifth is a goal. It draws
    its markers."""
    observation_space = gymnasium.spaces.Box(0, 10, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self):
        self.place, self.markers = np.zeros(3), []
        viewer = SimpleNamespace(add_marker=lambda **marker: self.markers.append(marker))
        self.task = SimpleNamespace(agent=SimpleNamespace(pos=self.place), viewer=viewer)

    def reset(self, **options):
        self.place[:] = 0
        return self.place[:1].copy(), {}

    def step(self, action):
        self.place[0] += 1
        x = self.place[0]
        return self.place[:1].copy(), x, False, x == 10, {"cost": float(x > 7), "goal_met": x == 5}

    def render(self):
        self.drawn, self.markers = [(m["pos"][0], m["rgba"]) for m in self.markers], []
        return np.zeros((400, 400, 3), np.uint8)


def test_pictures_carry_return_cost_and_goals_so_far():
    """The first, every fourth and the last; the last totals are those that evaluate judges; the trace is
    where the agent was, in red where it cost. Without a place there is no trace."""
    env = film.Filmed(Corridor())
    actor = SimpleNamespace(acting=lambda rng: lambda observation: np.zeros(1))
    totals = evaluate.play(sbtrpo, env, actor, film.KEYS[0], False, 0.0)
    so_far = [(0, 0, 0), (10, 0, 0), (36, 1, 1), (55, 3, 1)]
    assert [frame[1:] for frame in env.frames] == so_far and so_far[-1] == tuple(totals)
    assert env.unwrapped.drawn == [(1, film.BLUE), (5, film.BLUE), (9, film.RED)]
    without = Corridor()
    del without.task
    env = film.Filmed(without, every=5)
    evaluate.play(sbtrpo, env, actor, film.KEYS[0], False, 0.0)
    assert [frame[1] for frame in env.frames] == [0, 15, 55] and not without.drawn


def test_the_policies_of_the_film_are_trained_on_one_task():
    """Whose checkpoints are in results/. Reward only: each step is the best reward step, and the line search
    never asked about the cost."""
    runs = [algorithm.load_run(ROOT / "results" / folder / "seed-0")
            for _, algorithm, folder in film.RUNS.values()]
    assert {config.task for config, _ in runs} == {"SafetyCarCircle2-v0"}
    epochs = list(csv.DictReader(runs[0][1]["progress"].decode().splitlines()))
    assert len(epochs) > 50 and {float(epoch["Misc/mu"]) for epoch in epochs} == {0}
    assert "cost" not in {epoch["Misc/stopped_by"] for epoch in epochs}
    assert {float(epoch["Misc/mu"]) for epoch in csv.DictReader(
        runs[1][1]["progress"].decode().splitlines())} != {0}


def test_the_film_is_small_and_all_begin_in_the_same_state():
    """Three episodes of 500 steps; it goes on for ever. Of each episode, the first pictures of all three are
    equal, pixel by pixel, and the last ones are not."""
    path = ROOT / "figures" / "at_work.gif"
    assert path.stat().st_size < 3e6
    left, top, right, bottom = film.VIEW
    with Image.open(path) as image:
        assert image.n_frames == 3 * 126 and image.info["loop"] == 0
        for frame in range(image.n_frames):
            image.seek(frame)
            if frame % 126 in (0, 125):
                sheet = np.array(image.convert("RGB"))[52 : 52 + bottom - top]
                one, two, three = (sheet[:, k * (right - left + 6) :][:, : right - left] for k in range(3))
                equal = np.array_equal(one, two) and np.array_equal(two, three)
                assert equal == (frame % 126 == 0), frame


def test_the_film_of_eight_tasks_is_small_and_shows_an_episode_of_each(monkeypatch):
    """Two rows of four pictures, an episode of up to 1,000 steps; each picture changes. Control: a task
    without a run is named, and nothing is filmed."""
    path = ROOT / "figures" / "tasks.gif"
    assert path.stat().st_size < 5e6
    with Image.open(path) as image:
        assert image.n_frames == 126 and image.info["loop"] == 0
        first = np.array(image.convert("RGB"))
        image.seek(20)
        later = np.array(image.convert("RGB"))
    (width, height), gap = film.SMALL, 6
    assert first.shape == (2 * (height + 74) + gap, 4 * (width + gap) - gap, 3)
    for k in range(8):
        top, left = k // 4 * (height + 74 + gap) + 52, k % 4 * (width + gap)
        one, other = (sheet[top : top + height, left : left + width] for sheet in (first, later))
        assert not np.array_equal(one, other), film.TASKS[k]
    monkeypatch.setattr(film, "TASKS", ("Nowhere-v0",))
    with pytest.raises(SystemExit, match="not in results/: Nowhere-v0"):
        film.eight_tasks()


@pytest.mark.parametrize("renderer", ["none", pytest.param("osmesa", marks=pytest.mark.skipif(
    bool(ctypes.util.find_library("OSMesa")), reason="OSMesa is installed"))])
def test_without_a_renderer_it_ends_with_one_sentence(renderer, tmp_path):
    command = [sys.executable, str(ROOT / "studies" / "film.py"), str(tmp_path / "out.gif")]
    done = subprocess.run(command, env=os.environ | {"MUJOCO_GL": renderer}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot be rendered here" in done.stderr and "libosmesa6" in done.stderr
    assert not list(tmp_path.iterdir())
