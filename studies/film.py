# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["safety-gymnasium==1.0.0", "gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                 "autograd==1.8.0", "matplotlib==3.10.8", "loky==3.5.6", "filelock==3.32.7",
#                 "threadpoolctl==3.6.0", "tqdm==4.67.1", "pillow==12.0.0"]
# [tool.uv]  # what safety-gymnasium 1.0.0 pins too low, or asks for and does not need
# override-dependencies = ["gymnasium==0.29.1", "mujoco==2.3.3", "numpy==2.2.6",
#                          "pygame; python_version < '0'", "gymnasium-robotics; python_version < '0'"]
# ///
"""An agent at work: `uv run studies/film.py` draws figures/at_work.gif, three policies side by side.

The task is SafetyCarCircle2-v0. A car is paid for driving fast along the edge of the green circle, and each
step outside the four yellow walls costs 1. Seed 0 of three runs in results/, whose index has the commands:

reward only   sbtrpo-SafetyCarCircle2-v0-reward-only        the default options, but with --cost-limit 1e6. No
                                                            cost comes near that, so each step is TRPO's
SB-TRPO       sbtrpo-SafetyCarCircle2-v0-safe               no cost at all
C-TRPO        ctrpo-SafetyCarCircle2-v0-cost-limit-25-2.6M  25 an episode, in the mean

It shows the three episodes that tools/evaluate.py judges first, as they come. In each, all begin in the same
state, and their actions are drawn with the same random numbers. Return and cost of the episode so far stand
above each picture. Every fourth step leaves a dot: blue where that step was free, red where it cost. Three
episodes say little: below stand the means over the last tenth of the epochs of training.

`--tasks` draws figures/tasks.gif: the eight tasks of SB-TRPO's paper, seed 0 of results/sbtrpo-TASK-paper, of
each the first episode that tools/evaluate.py judges. Goals are those of Safety Gymnasium's Goal, Button and
Push.

It needs a renderer: on Debian, `apt install libosmesa6` and MUJOCO_GL=osmesa, or EGL. Without one it ends
with one sentence.
"""

import argparse, csv, ctypes.util, itertools, os, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
import evaluate
import gymnasium
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import ctrpo
import sbtrpo

RUNS = {"reward only": ("", sbtrpo, "sbtrpo-SafetyCarCircle2-v0-reward-only"),
        "SB-TRPO": ("no cost at all", sbtrpo, "sbtrpo-SafetyCarCircle2-v0-safe"),
        "C-TRPO": ("25 an episode", ctrpo, "ctrpo-SafetyCarCircle2-v0-cost-limit-25-2.6M")}
KEYS = (0, 0, 0), (0, 0, 1), (0, 0, 2)  # evaluation seed, training seed, episode: as in tools/evaluate.py
TASKS = ("PointPush2-v0", "PointButton2-v0", "PointGoal2-v0", "CarPush2-v0",
         "CarCircle2-v0", "CarGoal2-v0", "SwimmerVelocity-v1", "HopperVelocity-v1")
EVERY, MILLISECONDS = 4, 40  # steps from picture to picture
VIEW = 58, 92, 342, 328  # of 400 x 400 pixels, what is shown of the circle: left, top, right, bottom
WIDER, MOVING = (34, 68, 366, 345), (0, 40, 480, 440)  # of all other navigation; of 480 x 480, of the rest
SMALL = 240, 200  # pixels of one of eight pictures
BLUE, RED = (0.0, 0.45, 1.0, 1.0), (1.0, 0.1, 0.0, 1.0)
KEPT = "black", "#D55E00", "#E8112D", "#A00C20", "#0060D0", "#003A80", "#E01000", "#901000"  # in the palette


class Filmed(gymnasium.Wrapper):
    """Keeps (picture, return so far, cost so far, goals so far) of an episode, every so many steps; on
    navigation tasks the agent leaves a trace."""

    def __init__(self, env, view=VIEW, every=EVERY):
        super().__init__(env)
        self.view, self.every, self.traced = view, every, hasattr(env.unwrapped, "task")

    def reset(self, **options):
        result = self.env.reset(**options)
        self.frames, self.trace, self.totals = [], [], np.zeros(3)
        self.shoot()
        return result

    def step(self, action):
        result = self.env.step(action)
        _, reward, terminated, truncated, info = result
        self.totals += reward, info["cost"], bool(info.get("goal_met"))
        self.trace.append((self.place(), RED if info["cost"] > 0 else BLUE))
        if len(self.trace) % self.every == 0 or terminated or truncated:
            self.shoot()
        return result

    def place(self):
        return self.unwrapped.task.agent.pos.copy() if self.traced else None

    def shoot(self):
        for place, colour in self.trace[::EVERY] if self.traced else ():
            ball = {"pos": place, "size": np.full(3, 0.03), "rgba": colour, "label": ""}
            self.unwrapped.task.viewer.add_marker(type=2, **ball)  # 2: a sphere
        self.frames.append((Image.fromarray(self.env.render()).crop(self.view), *self.totals))


def camera(task: str, view=VIEW, every=EVERY) -> Filmed:
    """An environment, ready to be filmed."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl" if ctypes.util.find_library("EGL") else "osmesa")
    try:
        return Filmed(evaluate.camera(sbtrpo, task), view, every)
    except SystemExit as no_renderer:
        sys.exit(str(no_renderer).removeprefix("--video: "))


def film(env: Filmed, algorithm, folder: str, keys=KEYS) -> tuple[list[list], str]:
    """The frames of each episode; and what training ended with."""
    try:
        _, state = algorithm.load_run(ROOT / "results" / folder / "seed-0")
    except algorithm.Failure as error:
        sys.exit(str(error))
    episodes, actor = [], algorithm.make_actor(state)
    for key in keys:
        evaluate.play(algorithm, env, actor, key, deterministic=False, noise=0.0)
        episodes.append(env.frames)
    return episodes, end_of_training(state["progress"].decode())


def end_of_training(progress: str) -> str:
    rows = list(csv.DictReader(progress.splitlines()))
    rows = rows[-max(1, len(rows) // 10):]
    names = "EpRet", "EpCost", "SafetyProbability"
    total, cost, safe = (np.mean([float(row[f"Metrics/{name}"]) for row in rows]) for name in names)
    return f"in training: return {total:.1f}, cost {cost:.1f}, {safe:.0%} safe"


def panel(name: str, aim: str, end: str, picture: Image.Image, total: float, cost: float,
          goals: float) -> Image.Image:
    """A picture between its captions; goals are shown where there are any."""
    large, small = ImageFont.load_default(18), ImageFont.load_default(14)
    image = Image.new("RGB", (picture.width, picture.height + 74), "white")
    image.paste(picture, (0, 52))
    draw = ImageDraw.Draw(image)
    draw.text((4, image.height - 20), end, "#555555", small)
    draw.text((4, 4), name, "black", large)
    draw.text((image.width - 4, 7), aim, "#555555", small, anchor="ra")
    draw.text((4, 29), f"return {total:.1f}", "black", small)
    draw.text((110, 29), f"cost {cost:.0f}", "#D55E00" if cost > 0 else "black", small)
    if goals:
        draw.text((170, 29), f"goals {goals:.0f}", "black", small)
    return image


def side_by_side(images: list[Image.Image], gap: int = 6) -> Image.Image:
    width, height = images[0].size
    sheet = Image.new("RGB", (len(images) * (width + gap) - gap, height), "white")
    for k, image in enumerate(images):
        sheet.paste(image, (k * (width + gap), 0))
    return sheet


def write(path: Path, episodes: list[list[Image.Image]]) -> int:
    """A GIF in one palette; the last picture of an episode stays for a second."""
    sheets = list(itertools.chain(*episodes))
    sample = side_by_side([sheet for episode in episodes for sheet in episode[:: len(episode) - 1]])
    for k, colour in enumerate(KEPT):  # small things have few pixels to speak for them
        sample.paste(colour, (80 * k, 0, 80 * k + 80, 40))
    palette = sample.quantize(64)
    images = [sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in sheets]
    durations = [duration for episode in episodes
                 for duration in [MILLISECONDS] * (len(episode) - 1) + [1000]]
    path.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(path, save_all=True, append_images=images[1:], loop=0, optimize=True, duration=durations)
    return len(images)


def rows_of(images: list[Image.Image], columns: int, gap: int = 6) -> Image.Image:
    rows = [side_by_side(images[k : k + columns]) for k in range(0, len(images), columns)]
    width, height = rows[0].size
    sheet = Image.new("RGB", (width, len(rows) * (height + gap) - gap), "white")
    for k, row in enumerate(rows):
        sheet.paste(row, (0, k * (height + gap)))
    return sheet


def eight_tasks() -> list[list[Image.Image]]:
    """One episode of each task at once; one that ends sooner stays as it was."""
    films, cameras = [], []
    missing = [name for name in TASKS if not (ROOT / f"results/sbtrpo-Safety{name}-paper").exists()]
    if missing:
        sys.exit(f"--tasks needs runs that are not in results/: {', '.join(missing)}.")
    for name in TASKS:
        view = WIDER
        if "Velocity" in name:
            view = MOVING
        if "Circle" in name:
            view = VIEW
        env = camera(f"Safety{name}", view, 2 * EVERY)
        cameras.append(env)  # all stay open: one display is theirs
        [frames], end = film(env, sbtrpo, f"sbtrpo-Safety{name}-paper", KEYS[:1])
        print(f"{name}: return {frames[-1][1]:.2f} at cost {frames[-1][2]:g}; {end}", flush=True)
        short = name.split("-")[0].removesuffix("Velocity")
        end = end.removeprefix("in training: ")
        films.append([panel(short, "", end, picture.resize(SMALL), *totals) for picture, *totals in frames])
    longest = max(map(len, films))
    films = [images + images[-1:] * (longest - len(images)) for images in films]
    return [[rows_of(images, 4) for images in zip(*films)]]


def three_policies() -> list[list[Image.Image]]:
    """Three episodes, three policies each."""
    env, films, captions = camera("SafetyCarCircle2-v0"), [], []
    for name, (aim, algorithm, folder) in RUNS.items():
        episodes, end = film(env, algorithm, folder)
        ends = ", ".join(f"{frames[-1][1]:.2f} at cost {frames[-1][2]:g}" for frames in episodes)
        print(f"{name}: return {ends}; {end}", flush=True)
        films.append(episodes)
        captions.append((name, aim, end))
    return [[side_by_side([panel(*texts, *frame) for texts, frame in zip(captions, frames)])
             for frames in zip(*episode)] for episode in zip(*films)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("path", nargs="?", type=Path, help="default figures/at_work.gif, or tasks.gif")
    parser.add_argument("--tasks", action="store_true", help="eight tasks instead of three policies")
    options = parser.parse_args(argv)
    path = options.path or ROOT / "figures" / ("tasks.gif" if options.tasks else "at_work.gif")
    count = write(path, eight_tasks() if options.tasks else three_policies())
    print(f"{path}: {count} images, {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
