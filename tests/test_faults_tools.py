"""What goes wrong around sweep.py, evaluate.py and report.py: each in one sentence, before the work is done,
and nothing left out without a word. Part of `uv run test_updates.py`.
"""
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium import spaces

import sbtrpo
from conftest import ROOT
from environments import Walk
from test_runs import wait_for
from test_tools import made_up, write_run

sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "studies")]
import evaluate
import report
import sweep

WORLD = "tabular_cmdp:TwoState-v0"
SHORT = ["--task", WORLD, "--hidden", "4", "--batch-steps", "60", "--total-steps", "60"]
RESULTS = ROOT / "results"


class Pair(Walk):
    """The position as a member of a dictionary."""
    observation_space = spaces.Dict({"x": Walk.observation_space})

    def reset(self, seed=None, options=None):
        observation, info = super().reset(seed)
        return {"x": observation}, info

    def step(self, action):
        observation, *rest = super().step(action)
        return {"x": observation}, *rest


class Picture(Walk):
    """Says that it has images; its library is not there."""
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed")


gymnasium.register("Pair-v0", Pair)
gymnasium.register("Picture-v0", Picture)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run, as users make one."""
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, ROOT / "sbtrpo.py", *SHORT, "--workers", "1"]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    [found] = folder.glob("runs/*/*/*/*")
    return found


def refused(main, options: list, capsys) -> str:
    """The last line of what is said; the exit code is not 0."""
    try:
        code = main([str(option) for option in options])
    except SystemExit as error:
        code = error.code
    errors = capsys.readouterr().err + (code if isinstance(code, str) else "")
    assert code not in (0, None) and "Traceback" not in errors
    return errors.strip().splitlines()[-1]


# ---------------------------------------------------------------------------------------------------- sweeps


@pytest.mark.parametrize("options", ["--parallel 0", "--parallel -1", "--workers 0 --parallel 1"])
def test_numbers_of_processes_below_one_are_refused(options, capsys):
    said = refused(sweep.main, [*options.split(), "--dry-run", "--task", WORLD], capsys)
    assert "must be at least 1" in said


@pytest.mark.parametrize("task", [
    "SafetyCarCircle9-v0", "CartPole", "tabular_cmdp:NoState-v0", "nowhere:Walk-v0", ":",
    "faulty:RaisesInReset-v0", "faulty:NeedsArgument-v0"])
@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_a_task_that_cannot_be_made_is_refused_before_the_sweep(task, more, tmp_path, monkeypatch, capsys):
    """One sentence with its name, though the grid's other task is there; no run is begun."""
    monkeypatch.chdir(tmp_path)
    said = refused(sweep.main, ["--task", WORLD, task, *more], capsys)
    assert f"--task {task} cannot be made" in said and not list(tmp_path.iterdir())


def test_a_sweep_says_no_time_of_what_it_skips(run, tmp_path):
    """The same sweep twice: the second time the line of the run ends with its steps."""
    command = [sys.executable, sweep.__file__, *SHORT, "--parallel", "1"]
    first, second = (subprocess.run(command, cwd=tmp_path, text=True, capture_output=True).stdout.splitlines()
                     for _ in range(2))
    [line] = [line for line in second if "skipped, " in line]
    assert line.endswith("/sbtrpo/seed-0: skipped, 60 steps")
    [line] = [line for line in first if "finished, " in line]
    assert "finished, 60 steps in 0:00:" in line


def test_a_sweep_takes_a_checkpoint_for_its_run():
    """`--unsafe RUN/checkpoint.npz` is the same run of the sweep as `--unsafe RUN`, in the same folder."""
    unsafe = RESULTS / "strpo-SafetyHopperVelocity-v1-unsafe" / "seed-0"
    grid = {"algorithm": ["strpo"], "task": ["SafetyHopperVelocity-v1"]}
    [by_folder], [by_file] = (sweep.expand({**grid, "unsafe": [str(path)]})
                              for path in (unsafe, unsafe / "checkpoint.npz"))
    assert by_folder == by_file and "checkpoint" not in by_file.folder
    assert by_file.lengths == {"": by_file.config["total_steps"]}


# ------------------------------------------------------------------------------------------------ evaluations


def test_one_episode_has_no_interval_and_its_checkpoint_names_the_run(run, tmp_path):
    """RUN/checkpoint.npz, one episode: its mean has no interval, the share of safe episodes has Wilson's. The
    folder of --output is made. Control: two episodes have intervals."""
    for episodes in (1, 2):
        output = tmp_path / f"made/here/{episodes}.json"
        command = [sys.executable, evaluate.__file__, run / "checkpoint.npz", "--episodes", str(episodes),
                   "--workers", "1", "--output", output]
        done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        [judged] = json.loads(output.read_text())["by_action_noise"]["0.0"]["runs"].values()
        for policy in ("sampled", "deterministic"):
            assert judged[policy].pop("goals") == [None] * 3  # this world has none
            for metric, (mean, *ends) in judged[policy].items():
                assert math.isfinite(mean)
                assert (ends == [None, None]) == (episodes == 1 and metric != "safety")
        [line] = [line for line in done.stdout.splitlines() if " sampled " in line]
        assert line.count("[") == (1 if episodes == 1 else 4) and line.endswith(" -")


def test_what_is_no_run_is_named_with_the_reason(run, tmp_path, capsys):
    """A file, a list, an option that no script has, half a checkpoint: one sentence each, that of load_run
    where it is the one to know."""
    (tmp_path / "page.md").write_text("text")
    said = refused(evaluate.main, [tmp_path / "page.md"], capsys)
    assert said.endswith("page.md holds no run: there is no config.json in it.")
    for text, reason in (("[1]", "is not that of a run"), ("{", "cannot be read")):
        (tmp_path / "config.json").write_text(text)
        assert f"{tmp_path}/config.json {reason}" in refused(evaluate.main, [tmp_path], capsys)
    about = json.loads((run / "config.json").read_text())
    about["config"]["delat"] = 1
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert "unexpected keyword argument 'delat'" in refused(evaluate.main, [tmp_path], capsys)
    del about["config"]["delat"]
    (tmp_path / "config.json").write_text(json.dumps(about))
    (tmp_path / "checkpoint.npz").write_bytes((run / "checkpoint.npz").read_bytes()[:100])
    assert f"{tmp_path} holds no run that can be resumed" in refused(evaluate.main, [tmp_path], capsys)


def test_ctrl_c_while_runs_are_loaded_is_one_sentence(run, monkeypatch, capsys):
    def pressed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "load", pressed)
    assert refused(evaluate.main, [run], capsys) == "interrupted; nothing was written"


def test_action_noise_is_a_probability_and_its_curve_runs_forward(run, tmp_path, monkeypatch, capsys):
    """nan is refused, as 2 is. Given as 0.4, 0, 0.2, the points of the curve are in order, with their own
    means, and the band has their intervals; over runs it is a standard deviation to either side."""
    for noise in ("nan", "2", "-1"):
        options = [run, f"--action-noise={noise}"]
        assert "--action-noise must be between 0 and 1" in refused(evaluate.main, options, capsys)
    drawn = []
    monkeypatch.setattr(report, "save", lambda figure, path: drawn.append(figure))
    judged = {}
    for p in (0.4, 0.0, 0.2):
        policy = dict.fromkeys(evaluate.METRICS, (10 * p, 10 * p - 1, 10 * p + 2))
        about = {"algorithm": "a", "experiment": "b", "task": "T", "sampled": policy, "deterministic": policy}
        runs = {"x/seed-0": about, "y/seed-0": about, "y/seed-1": about | {"sampled": dict.fromkeys(
            evaluate.METRICS, (10 * p + 4, None, None))}}
        judged[p] = {"runs": runs, "over_runs": evaluate.over_runs(runs)}
    evaluate.robustness(tmp_path / "none.png", judged)
    axis, _ = drawn[0].axes
    one, two = axis.lines
    assert one.get_xdata().tolist() == [0, 0.2, 0.4] and one.get_ydata().tolist() == [0, 2, 4]
    assert two.get_ydata().tolist() == [2, 4, 6]
    edges = [band.get_paths()[0].vertices for band in axis.collections]
    ends = [sorted(set(edge[edge[:, 0] == 0.2, 1].tolist())) for edge in edges]
    assert ends[0] == [1, 4] and ends[1] == pytest.approx([4 - math.sqrt(8), 4 + math.sqrt(8)])


def test_the_folder_is_made_and_the_file_tried_before_any_episode(run, tmp_path, monkeypatch, capsys):
    """--output, --figure and --video below a file, or where a folder stands: a sentence, before the work. A
    file that was there keeps what is in it; one that was not is not left behind."""
    monkeypatch.setattr(evaluate, "ProcessPoolExecutor", None)  # no episode is possible
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.gif").mkdir()
    for option, path in (("--output", "file/judged.json"), ("--output", "folder.gif"),
                         ("--video", "file/film.gif"), ("--video", "folder.gif")):
        said = refused(evaluate.main, [run, option, tmp_path / path], capsys)
        assert f"{tmp_path / path} cannot be written" in said
    options = [run, "--action-noise", "0", "1", "--figure", tmp_path / "file/noise.png"]
    assert "noise.png cannot be written" in refused(evaluate.main, options, capsys)
    evaluate.writable(tmp_path / "file")
    evaluate.writable(tmp_path / "new/judged.json")
    assert (tmp_path / "file").read_text() == "kept" and not list((tmp_path / "new").iterdir())


def test_what_is_judged_is_written_where_a_link_leads_and_a_device_stays_one(tmp_path):
    """A link stays a link, a file beside it with .tmp for .json is not touched, a pipe gets its text."""
    (tmp_path / "link.json").symlink_to(tmp_path / "target.json")
    (tmp_path / "target.tmp").write_text("mine")
    evaluate.keep(sbtrpo.write, tmp_path / "link.json", "judged")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "target.json").read_text() == "judged"
    assert (tmp_path / "target.tmp").read_text() == "mine" and len(list(tmp_path.iterdir())) == 3
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        evaluate.keep(sbtrpo.write, tmp_path / "pipe", "judged")
        assert reader.communicate(timeout=10)[0] == "judged" and (tmp_path / "pipe").is_fifo()


def test_runs_behind_a_link_are_found_once(run, tmp_path):
    """Of a folder with links to two experiments, and both by a second way; a hidden folder is left out."""
    for name in ("moved/one", "moved/two", ".hidden/three"):
        shutil.copytree(run, tmp_path / "elsewhere" / name / "seed-0")
    (tmp_path / "runs").mkdir()
    for name in ("moved", ".hidden"):
        (tmp_path / "runs" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "elsewhere" / "moved")
    found = report.find([str(tmp_path / "runs")])
    assert len(found) == 2


@pytest.mark.parametrize("edit", [
    lambda text: text.replace(",", ";"), lambda text: text[: text.index("\n1,") + 3],
    lambda text: text.replace("\n1,", "\n1,many "), lambda text: "\x00\xff\n\n1\n"])
def test_an_edited_progress_csv_stops_no_sweep(edit, run, tmp_path):
    """Other separators, a torn row, words, no table: the run writes it anew, from its checkpoint. Control: as
    it is, or with a step count that a spreadsheet has given decimals."""
    text, file = (run / "progress.csv").read_text(), tmp_path / "progress.csv"
    file.write_text(edit(text))
    assert sweep.rows(file) == []
    steps = sbtrpo.load_run(run)[1]["steps"]
    for good in (text, text.replace(f"\n1,{steps},", f"\n1,{steps}.0,")):
        file.write_text(good)
        assert [row["Train/TotalSteps"] for row in sweep.rows(file)] == [steps]


def test_runs_of_a_folder_are_one_row_whatever_lies_between(capsys):
    """Sorted, the first stage of seed 0 comes before seed 1. Mean and deviation are of all three seeds."""
    runs = {f"runs/strpo/seed-{name}": {policy: dict.fromkeys(evaluate.METRICS, (value, None, None))
                                        for policy in evaluate.POLICIES}
            for name, value in (("0", 0.0), ("0/unsafe", 9.0), ("1", 1.0), ("2", 5.0))}
    [(folder, found)] = evaluate.over_runs(runs).items()
    assert folder == "runs/strpo" and found["runs"] == 3
    assert found["sampled"]["cost"] == pytest.approx((2.0, np.std([0, 1, 5], ddof=1)))


def test_a_figure_that_cannot_be_drawn_loses_no_evaluation(run, tmp_path, monkeypatch, capsys):
    """An ending that matplotlib does not know is refused before the work; and the results come first."""
    monkeypatch.chdir(tmp_path)
    options = [str(run), "--action-noise", "0", "1", "--episodes", "1", "--workers", "1"]
    assert "--figure writes a" in refused(evaluate.main, [*options, "--figure", "c.xyz"], capsys)
    monkeypatch.setattr(evaluate, "robustness", lambda *_: sys.exit("no picture"))
    with pytest.raises(SystemExit, match="no picture"):
        evaluate.main([*options, "--figure", "c.png", "--output", "d.json"])
    assert len(json.loads((tmp_path / "d.json").read_text())["by_action_noise"]) == 2


def test_a_run_given_twice_is_refused(run, tmp_path, capsys):
    """By the same path, by its checkpoint, or by a link: it would be counted as two seeds."""
    (tmp_path / "link").symlink_to(run)
    assert f"{run} is given twice" in refused(evaluate.main, [run, run], capsys)
    assert "is given twice" in refused(evaluate.main, [run, run / "checkpoint.npz"], capsys)
    assert "are the same run" in refused(evaluate.main, [run, tmp_path / "link"], capsys)
    seeds = [RESULTS / f"sbtrpo-SafetyCarCircle2-v0-safe/seed-{seed}" for seed in (1, 0)]
    assert evaluate.folders(seeds) == seeds[::-1]


def test_advice_on_films_is_for_the_environment_that_there_is(run, tmp_path, capsys):
    """Without rendering: what the environment would need, and not a renderer. With a rendering of its own
    that fails: its words. MuJoCo's environments: its libraries. No file is left."""
    said = refused(evaluate.main, [run, "--video", tmp_path / "film.gif", "--workers", "1"], capsys)
    assert f"{WORLD} has no images" in said and "render_modes" in said and "osmesa" not in said
    with pytest.raises(SystemExit, match="pygame is not installed") as end:
        evaluate.camera(sbtrpo, "Picture-v0")
    assert "osmesa" not in str(end.value)

    def without_a_screen(task, **rendering):
        if rendering:
            raise sbtrpo.Failure("there is no screen")
        return sbtrpo.make_env(task)

    for task in ("SafetyPointGoal1-v0", "SafetyHopperVelocity-v1"):
        with pytest.raises(SystemExit, match="there is no screen.*MUJOCO_GL=osmesa"):
            evaluate.camera(SimpleNamespace(make_env=without_a_screen, close=sbtrpo.close), task)
    assert not list(tmp_path.iterdir())


def totals(task: str, times: int = 1) -> list:
    """Return and cost of the same episode, as a worker plays it, by a fresh policy."""
    actor = sbtrpo.make_actor(sbtrpo.initial_state(sbtrpo.Config(task=task, hidden=(4,))))
    return [evaluate.run_key("sbtrpo", task, actor, (0, 0, 3), False, 0.0)[:2].tolist() for _ in range(times)]


def test_evaluation_meets_environments_as_training_does(monkeypatch):
    """Observations of any space are flattened; environments with random numbers of their own repeat; what
    they raise is named with the episode; and a worker makes its environment once."""
    assert np.isfinite(totals("Pair-v0")).all()
    first, again = totals("faulty:Global-v0", 2)
    assert first == again
    with pytest.raises(sbtrpo.Failure, match="evaluation episode 3: .*less than 0"):
        totals("faulty:Negative-v0")
    with pytest.raises(sbtrpo.Failure, match="evaluation episode 3: SystemExit: the simulator has left"):
        totals("faulty:Exits-v0")
    made = []
    make_env = sbtrpo.make_env
    monkeypatch.setattr(sbtrpo, "make_env", lambda task: made.append(task) or make_env(task))
    totals("environments:Clock-v0", 3)
    assert made.count("environments:Clock-v0") <= 2  # by the fresh policy's sizes, and by the worker


def test_random_actions_are_uniform_or_refused():
    """In real bounds of any shape; whole numbers would be rounded to ends half as likely as the rest."""
    rng = np.random.default_rng(0)
    space = spaces.Box(-2, 3, (2, 2))
    drawn = np.array([sbtrpo.to_action(space, evaluate.uniform_action(space, rng)) for _ in range(2000)])
    assert drawn.shape == (2000, 2, 2) and abs(drawn.mean() - 0.5) < 6 * 5 / math.sqrt(12 * 8000)
    assert {evaluate.uniform_action(spaces.Discrete(3), rng) for _ in range(100)} == {0, 1, 2}
    for space in (spaces.Box(0, 9, (1,), np.int64), spaces.Box(0, np.inf, (1,))):
        with pytest.raises(ValueError, match="bounded real actions"):
            evaluate.uniform_action(space, rng)


# ---------------------------------------------------------------------------------------------------- reports


def test_a_seed_that_has_not_come_far_enough_is_named(tmp_path, capsys):
    """One of three seeds has epochs of 20,000 steps, the others of 1,000: with --steps 15000 it has none, and
    that is said. Control: with --steps 20000 nothing is left out."""
    for seed in range(3):
        columns, config = made_up(seed)
        if seed == 2:
            columns["Train/TotalSteps"] = 20 * columns["Train/TotalSteps"]
        write_run(tmp_path / f"runs/here/A-v0/sbtrpo/seed-{seed}", columns, config)
    report.main([str(tmp_path / "out"), str(tmp_path / "runs"), "--steps", "15000"])
    output, errors = capsys.readouterr()
    assert "| sbtrpo \\* | 2 | 15,000 |" in output
    assert "seed-2: left out, its first epoch ends after the 15,000 steps to be compared." in errors
    report.main([str(tmp_path / "out"), str(tmp_path / "runs"), "--steps", "20000"])
    output, errors = capsys.readouterr()
    assert "| sbtrpo \\* | 3 | 20,000 |" in output and "left out" not in errors


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_run_that_ends_without_a_number_is_named_and_its_label_has_none(value, tmp_path, capsys):
    """Return of the last epochs of one of five seeds: named; its label shows no return, though a quarter of
    the seeds is cut off at either end; the others, and its cost, are as without it. Before the last tenth it
    changes no table, and the pictures only near it."""
    for label in ("sbtrpo", "ctrpo"):
        for seed in range(5):
            columns, config = made_up(seed if label == "sbtrpo" else 10 + seed)
            write_run(tmp_path / f"whole/here/A-v0/{label}/seed-{seed}", columns, config)
            columns = {name: np.array(values, float) for name, values in columns.items()}
            columns["Train/TotalSteps"] = columns["Train/TotalSteps"].astype(int)
            early = {**columns, "Metrics/EpRet": columns["Metrics/EpRet"].copy()}
            if label == "sbtrpo" and seed == 1:
                columns["Metrics/EpRet"][-2:] = value
                early["Metrics/EpRet"][10] = value
            write_run(tmp_path / f"late/here/A-v0/{label}/seed-{seed}", columns, config)
            write_run(tmp_path / f"early/here/A-v0/{label}/seed-{seed}", early, config)
    found = {}
    for kind in ("whole", "late", "early"):
        report.main([str(tmp_path / f"out-{kind}"), str(tmp_path / kind)])
        output, errors = capsys.readouterr()
        found[kind] = {line.split("|")[1].strip(" *\\"): [cell.strip() for cell in line.split("|")[2:-1]]
                       for line in output.splitlines() if line.startswith(("| sbtrpo", "| ctrpo"))}
        assert ("sbtrpo/seed-1: its return is not finite" in errors) == (kind == "late")
        assert (tmp_path / f"out-{kind}/profiles.png").exists()
    assert found["early"] == found["whole"]
    assert found["late"]["ctrpo"] == found["whole"]["ctrpo"]
    late, whole = found["late"]["sbtrpo"], found["whole"]["sbtrpo"]
    assert late[2] == "–" != whole[2] and late[3:] == whole[3:]


def test_a_window_without_the_missing_value_is_as_without_it():
    """smooth: NaN exactly where the window holds one; elsewhere the plain means."""
    steps, at = np.arange(1, 21.0), np.arange(1, 21.0)
    values = np.random.default_rng(0).normal(size=20)
    whole = report.smooth(steps, values, at, 3)
    expected = [values[max(0, i - 2): i + 1].mean() for i in range(20)]
    assert whole == pytest.approx(expected, abs=1e-12)
    values[10] = np.nan
    found = report.smooth(steps, values, at, 3)
    assert np.isnan(found[10:13]).all()
    assert np.delete(found, [10, 11, 12]) == pytest.approx(np.delete(whole, [10, 11, 12]), abs=1e-12)


def test_a_package_that_is_missing_is_named():
    """By scripts and tools, started by a Python that has none (-S); but an import raises as any does."""
    programs = [ROOT / f"{name}.py" for name in ("sbtrpo", "ctrpo", "strpo")]
    for program in [*programs, *sorted((ROOT / "tools").glob("*.py"))]:
        done = subprocess.run([sys.executable, "-S", program, "x"], text=True, capture_output=True)
        assert done.returncode == 1 and not done.stdout
        [said] = done.stderr.splitlines()
        assert said.startswith("No module named")
        assert said.endswith(": start this with `uv run`, or install what its first lines name.")
    command = [sys.executable, "-S", "-c", "import sbtrpo"]
    done = subprocess.run(command, text=True, capture_output=True, cwd=ROOT)
    assert "ModuleNotFoundError" in done.stderr.splitlines()[-1]


def test_a_report_that_cannot_be_written_is_a_sentence(tmp_path, capsys, monkeypatch):
    """OUT below a file, before anything is read; a disk that is full at the first picture."""
    folder = write_run(tmp_path / "runs/here/A-v0/sbtrpo/seed-0", *made_up(0))
    (tmp_path / "file").write_text("")
    said = refused(report.main, [tmp_path / "file/out", folder], capsys)
    assert said == f"{tmp_path}/file/out cannot be the folder of the pictures: {tmp_path}/file is a file."

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.Figure, "savefig", full)
    said = refused(report.main, [tmp_path / "out", folder], capsys)
    assert said == f"{tmp_path}/out/A-v0_curves.png cannot be written: No space left on device."


@pytest.mark.parametrize("change", [
    {"delta": "x"}, {"cost_limit": "x"}, {"algorithm": 5}, 5, {"delta": None}], ids=str)
def test_a_damaged_config_leaves_out_one_run(change, tmp_path, capsys):
    """Not the report on all others; a label that is no text is one all the same."""
    columns, about = made_up(0)
    columns |= {f"Misc/{name}": np.ones(40) for name in
                ("reward_change", "best_reward", "cost_change", "best_cost", "kl")}
    about["config"] |= {"delta": 0.01}
    write_run(tmp_path / "runs/here/A-v0/sbtrpo/seed-0", columns, about)
    about = {**about, "config": about["config"] | change} if isinstance(change, dict) else {"config": 5}
    if change == {"algorithm": 5}:
        about |= change
    folder = write_run(tmp_path / "runs/here/A-v0/sbtrpo/seed-1", columns, about)
    report.main([str(tmp_path / "out"), str(tmp_path / "runs")])
    output, errors = capsys.readouterr()
    assert "| 40,000 |" in output and (tmp_path / "out/A-v0_curves.png").exists()
    if change != {"algorithm": 5}:
        assert f"{folder}: left out, " in errors and "config.json" in errors


@pytest.mark.parametrize("limit", ["-5", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(limit, tmp_path, capsys):
    said = refused(report.main, [tmp_path / "out", tmp_path, f"--cost-limit={limit}"], capsys)
    assert said.endswith("--cost-limit must be in [0, inf)")


def test_labels_are_no_code_of_matplotlib(tmp_path, capsys):
    """One that begins with an underscore would be in no legend, and without any a traceback; $ is TeX."""
    folder = write_run(tmp_path / "runs/here/A-v0/sbtrpo/seed-0", *made_up(0))
    for label in ("_a", r"a$\foo$"):
        report.main([str(tmp_path / "out"), f"{label}={folder}"])
        assert f"| {label} " in capsys.readouterr().out


def test_ctrl_c_ends_an_evaluation_whatever_the_environment_does(tmp_path):
    """Its episodes never end: one sentence within seconds, and no worker is left."""
    config = sbtrpo.Config(task="faulty:Endless-v0", hidden=(8,))
    sbtrpo.save(tmp_path / "run", config, sbtrpo.initial_state(config))
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    process = subprocess.Popen([sys.executable, evaluate.__file__, "run", "--workers", "1"], cwd=tmp_path,
                               text=True, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths})
    wait_for((tmp_path / "stepping").exists, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 1 and errors.splitlines()[-1] == "interrupted; nothing was written"
    assert "Traceback" not in errors and not psutil.wait_procs(children, timeout=5)[1]


def test_an_evaluation_is_not_written_over_a_run(run, tmp_path, capsys):
    """Its checkpoint, say, or its lock, which two processes would then hold; nor over another of its own
    files. A folder without a run may have such a name."""
    two = ["--output", tmp_path / "a.gif", "--video", tmp_path / "b/../a.gif"]
    said = refused(evaluate.main, [run, *two], capsys)
    assert said == "--video, --figure and --output must be different files."
    for name in ("checkpoint.npz", "config.json", "lock", "owner", "curves.png"):
        before = (run / name).read_bytes()
        said = refused(evaluate.main, [run, "--output", run / name], capsys)
        assert said == f"{run / name} belongs to a run: give the results another name."
        assert (run / name).read_bytes() == before
    evaluate.writable(tmp_path / "config.json")


def test_only_seeds_of_one_thing_have_a_mean(monkeypatch, tmp_path):
    """Runs of other tasks side by side have none; a run that is named `.` has its name in the table."""
    policy = {which: dict.fromkeys(evaluate.METRICS, (1.0, 0.0, 2.0)) for which in evaluate.POLICIES}
    about = {"algorithm": "sbtrpo", **policy}
    mixed = {f"mix/{task}": about | {"task": task} for task in "ab"}
    assert not evaluate.over_runs(mixed)
    assert [*evaluate.over_runs({name: about | {"task": "a"} for name in mixed})] == ["mix"]
    monkeypatch.chdir(tmp_path)
    assert evaluate.table({".": about}, {}).splitlines()[1].split()[0].endswith(tmp_path.name)
