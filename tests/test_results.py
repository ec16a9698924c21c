"""The index of results/ says what is there, no less and no more. Part of `uv run test_updates.py`."""

import ast, csv, json, math, re, shlex, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "studies")]
import binding
import conftest
import differences
import figures
import keep
import margins
import mutants
import mutations
import noise
import pages
import promise
import published
import report
import rivals
import sbtrpo
import speed
import table
import truer
import two_budgets
import unclipped

RESULTS = ROOT / "results"
INDEX = (RESULTS / "README.md").read_text()
ROWS = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        for line in INDEX.splitlines() if line.startswith("| `")]
RUNS = {row[0]: row for row in ROWS if len(row) == 6}
FOLDERS = sorted({path.parent.parent for path in RESULTS.rglob("progress.csv")})
TEXT = conftest.pages()


def in_pages(study: str, found: dict[str, str]) -> None:
    """What the study would write is what is there, each name once."""
    there = [match[2] for match in pages.between(study).finditer(TEXT)]
    assert sorted(there) == sorted(found) and there, f"run: uv run studies/{study}"
    assert pages.filled(TEXT, study, found) == TEXT, f"run: uv run studies/{study}"


def epochs(run: Path) -> list[dict]:
    """Rows of progress.csv, without what a clock said."""
    with open(run / "progress.csv", newline="") as lines:
        return [{name: value for name, value in row.items() if not name.startswith("Time/")}
                for row in csv.DictReader(lines)]


def test_index_has_every_folder_and_file_and_no_other():
    """Folders of runs have a row each, and so has every other file but the index itself."""
    assert {folder.name for folder in FOLDERS} == set(RUNS)
    assert all(folder.parent == RESULTS for folder in FOLDERS)
    assert all(re.fullmatch(r"seed-\d+", run.name) for folder in FOLDERS for run in folder.iterdir()
               if run.is_dir())
    inside = "config.json", "progress.csv", "checkpoint.npz", "curves.png"
    files = {str(path.relative_to(RESULTS)) for path in RESULTS.rglob("*") if path.is_file()}
    listed = {row[0] for row in ROWS if len(row) == 3}
    assert {file for file in files if Path(file).name not in inside} == listed | {"README.md"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_index_says_what_a_folder_holds(folder):
    """Its name begins with algorithm and task; seeds and steps are those of the runs; every option of the
    command is what config.json says. Another seed, or another option, would be seen."""
    _, command, commit, seeds, steps, shows = RUNS[folder.name]
    runs = sorted(folder.glob("seed-*"))
    configs = [json.loads((run / "config.json").read_text())["config"] for run in runs]
    script = shlex.split(command)[0]
    task = configs[0]["task"]
    known = {table.not_clipped(each): each for each in (table.CHEETAH, table.ANT, table.HOPPER)}
    name = f"{script.removesuffix('.py')}-{known.get(task, task)}-"
    assert re.match(rf"(development-)?{re.escape(name)}[\w.]", folder.name)
    assert {config["task"] for config in configs} == {configs[0]["task"]} and shows
    assert re.fullmatch(r"[0-9a-f]{7}(, [0-9a-f]{7})*", commit)
    found = [config["seed"] for config in configs]
    assert [f"seed-{seed}" for seed in found] == [run.name for run in runs]
    numbers = list(map(int, re.findall(r"\d+", seeds)))
    assert found == (list(range(numbers[0], numbers[-1] + 1)) if " to " in seeds else numbers)
    ends = [int(epochs(run)[-1]["Train/TotalSteps"]) / 1e6 for run in runs]
    least, most = f"{min(ends):.2f}M", f"{max(ends):.2f}M"
    assert steps == (least if least == most else f"{least} to {most}")
    options = {name: values.split() for name, values in re.findall(r"(--\S+) ((?:(?!--)\S+ ?)+)", command)}
    for option in ("--resume", "--unsafe", "--total-steps"):  # RUN, RUN, and what may have been raised
        options.pop(option, None)
    for config in configs:
        for option, values in options.items():
            kept = config.get(option.removeprefix("--").replace("-", "_"))
            kept = kept if isinstance(kept, list) else [kept]
            assert [type(one)(value) for one, value in zip(kept, values, strict=True)] == kept, option


def test_no_data_are_there_twice():
    """No run is the beginning of another, but where the row of one names the folder of the other."""
    runs = [(run, epochs(run)) for folder in FOLDERS for run in sorted(folder.glob("seed-*"))]
    for i, (one, short) in enumerate(runs):
        for other, long in runs[:i] + runs[i + 1:]:
            if short == long[:len(short)] and short:
                names = one.parent.name, other.parent.name
                assert any(f"`{name}`" in "".join(RUNS[row][5] for row in names) for name in names), names


ADD = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pages import add
path, name, size = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
for i in range(100):
    add(path, i, name, str(i))
"""


def test_studies_add_to_a_file_at_the_same_time(tmp_path):
    """Two processes, 100 values each: all are there. With no space left what was there stays, whole; and
    nothing else is left in the folder."""
    path = tmp_path / "results.json"

    def adding(name, size):
        command = [sys.executable, "-c", ADD, str(ROOT / "studies"), str(path), name, str(size)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    assert all(process.wait() == 0 for process in [adding("a", 10**6), adding("b", 10**6)])
    whole = {name: {str(i): i for i in range(100)} for name in "ab"}
    assert json.loads(path.read_text()) == whole
    _, errors = (process := adding("c", path.stat().st_size)).communicate()
    assert process.returncode == 1 and "File too large" in errors
    assert json.loads(path.read_text()) == whole and list(tmp_path.iterdir()) == [path]


def test_evaluations_are_of_the_policies_that_are_there():
    """A run that has gone on since has another policy."""
    files, judged = list(RESULTS.glob("*/evaluation.json")), {}
    for file in files:
        judged |= json.loads(file.read_text())["by_action_noise"]["0.0"]["runs"]
    ends = {run: int(epochs(ROOT / run)[-1]["Train/TotalSteps"]) for run in judged}
    assert len(files) > 10 and {run: each["steps"] for run, each in judged.items()} == ends


def test_paths_in_the_results_exist():
    """Where a file in results/ names a folder in results/, it is there."""
    texts = [path.read_text() for kind in ("*.md", "*.json", "*.txt") for path in RESULTS.rglob(kind)]
    paths = {path for text in texts for path in re.findall(r"results/[\w.-]+(?:/[\w.-]+)*", text)}
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_mistake_on_the_list_was_made_and_seen():
    """results/mutants.json has each as it now stands in tests/mutations.py, with the test that saw it; what
    it replaces stands once in its file."""
    made = {each.pop("name"): each for each in json.loads((RESULTS / "mutants.json").read_text())}
    assert all(each.pop("killed_by") for each in made.values())
    listed = {mistake.name: {"file": mistake.file, "old": mistake.old, "new": mistake.new}
              for mistake in mutations.MISTAKES}
    assert made == listed and len(listed) > 200
    scripts = {name: (ROOT / name).read_text() for name in mutants.SCRIPTS}
    for mistake in mutations.MISTAKES:
        for name in mutants.SCRIPTS if mistake.file == "shared" else [mistake.file]:
            text = scripts.get(name) or (ROOT / name).read_text()
            assert text.count(mistake.old) == 1, f"{mistake.name}: not once in {name}"


def test_means_of_the_development_runs_are_those_of_their_epochs():
    """Those that ended after 150,000 steps and by 250,000: ten epochs of seed 0."""
    rows = [row for row in ROWS if len(row) == 4]
    assert len(rows) == 7
    for folder, *cells in rows:
        chosen = [row for row in epochs(RESULTS / folder / "seed-0")
                  if 150_000 < int(row["Train/TotalSteps"]) <= 250_000]
        means = [np.mean([float(row[f"Metrics/{name}"]) for row in chosen])
                 for name in ("EpCost", "SafetyProbability", "SafeReward")]
        assert len(chosen) == 10
        assert cells == [f"{means[0]:.1f}", f"{means[1]:.2f}", f"{means[2]:.2f}"]


def test_spread_is_the_sample_standard_deviation_and_a_single_seed_has_none(tmp_path):
    """sqrt(sum (x - mean)^2 / (n - 1)) in every table; control: with n it is 13% less, for n = 4."""
    values = np.random.default_rng(0).normal(size=(4, 5))
    by_hand = np.sqrt(np.sum((values - values.mean(0)) ** 2, axis=0) / 3)
    assert report.spread(values) == pytest.approx(by_hand, rel=1e-12)
    assert np.all(report.spread(values) > 1.1 * values.std(0))
    assert np.isnan(report.spread(values[:1])).all() and np.isnan(report.spread(np.ones(1)))
    three = np.array([100.0, 200.0, 300.0])
    assert published.cell(three) == "200 ± 100" and published.cell(three[:1]) == "100"
    assert str(differences.sample(three)) == "200 ± 100 (3)" and str(differences.sample([1.5])) == "1.50 (1)"
    for seeds, said in ((1, "100"), (3, "200 ± 100")):
        for seed in range(seeds):
            write_run(tmp_path / f"{seeds}" / f"seed-{seed}", 100.0 * (seed + 1), seed)
        assert table.cells(tmp_path / f"{seeds}", "sbtrpo", "A-v0")[0] == said


def write_run(folder: Path, value: float, seed: int) -> None:
    """Of two epochs with this return."""
    folder.mkdir(parents=True)
    config = {"task": "A-v0", "seed": seed, "experiment": ""}
    (folder / "config.json").write_text(json.dumps({"algorithm": "sbtrpo", "config": config}))
    metrics = ",".join(f"Metrics/{name}" for name in ("EpRet", "EpCost", "SafetyProbability", "SafeReward"))
    (folder / "progress.csv").write_text(f"Train/TotalSteps,{metrics},Time/Total\n"
                                         f"1000,{value},0,1,{value},1\n2000,{value},0,1,{value},1\n")


def test_a_long_run_is_kept_in_few_rows_with_all_its_time(tmp_path, monkeypatch):
    """studies/keep.py: at most 500 rows, evenly apart, the last among them, with the whole time; a run of 500
    stays as it is. Tables have all rows, which the checkpoint keeps. Goes over the same run with more steps;
    controls: over a longer one, over another one, and without a run."""
    def run(rows: int, seed: int) -> Path:
        folder = tmp_path / f"{rows}-{seed}" / "seed-0"
        folder.mkdir(parents=True)
        config = {"total_steps": rows, "workers": rows, "scheduler": "", "seed": seed}
        (folder / "config.json").write_text(json.dumps({"algorithm": "sbtrpo", "config": config}))
        lines = "".join(f"{k},{k / 7},{0.1 * k}\n" for k in range(rows))
        text = f"Train/Epoch,Metrics/EpRet,Time/Total\n{lines}"
        (folder / "progress.csv").write_text(text)
        np.savez(folder / "checkpoint.npz", progress=text.encode())
        return folder

    monkeypatch.setattr(keep, "RESULTS", tmp_path)
    to = tmp_path / "kept" / "seed-0"
    for rows, left, apart in ((500, 500, 1), (501, 251, 2), (1000, 500, 2), (1001, 334, 3)):
        keep.main([str(source := run(rows, 1)), "kept"])
        assert report.progress_of(to) == report.progress_of(source) == (source / "progress.csv").read_text()
        found = list(csv.DictReader((to / "progress.csv").open()))
        steps = [int(row["Train/Epoch"]) for row in found]
        assert len(steps) == left and steps[-1] == rows - 1 and set(np.diff(steps)) == {apart}
        assert [float(row["Metrics/EpRet"]) for row in found] == [step / 7 for step in steps]
        total = sum(0.1 * k for k in range(rows))
        assert sum(float(row["Time/Total"]) for row in found) == pytest.approx(total, rel=1e-12)
        assert (to / "checkpoint.npz").read_bytes() == (source / "checkpoint.npz").read_bytes()
    with pytest.raises(SystemExit, match="is longer than"):
        keep.main([str(tmp_path / "500-1" / "seed-0"), "kept"])
    with pytest.raises(SystemExit, match="is another run"):
        keep.main([str(run(500, 2)), "kept"])
    (run(502, 1) / "progress.csv").write_text("")  # as before the first epoch
    for none in (tmp_path, tmp_path / "502-1" / "seed-0"):
        with pytest.raises(SystemExit, match="holds no run"):
            keep.main([str(none), "kept"])
    assert (to / "checkpoint.npz").read_bytes() == (source / "checkpoint.npz").read_bytes()


def test_a_run_that_is_kept_without_a_checkpoint_has_no_old_one(tmp_path, monkeypatch):
    """The same run, first with a checkpoint and 900 epochs, then without and with 1,200: its table has the
    last of these, though the whole text of the first is the longer one. A run whose checkpoint is not there
    is kept so, too; control: not without --no-checkpoint."""
    def text(epochs: int) -> str:
        return "Train/Epoch,Metrics/EpRet\n" + "".join(f"{k},{k / 7}\n" for k in range(epochs))

    source, to = tmp_path / "run" / "seed-0", tmp_path / "kept" / "seed-0"
    source.mkdir(parents=True)
    about = {"algorithm": "sbtrpo", "config": {"seed": 0}}
    (source / "config.json").write_text(json.dumps(about))
    (source / "progress.csv").write_text(text(900))
    np.savez(source / "checkpoint.npz", progress=text(900).encode())
    monkeypatch.setattr(keep, "RESULTS", tmp_path)
    keep.main([str(source), "kept"])
    (to / "progress.csv").write_text(keep.thinned(text(1200)))
    assert report.progress_of(to) == keep.thinned(text(1200))  # beside the checkpoint, which is older
    (source / "progress.csv").write_text(text(1200))
    (source / "checkpoint.npz").unlink()
    with pytest.raises(SystemExit, match="checkpoint.npz is not there"):
        keep.main([str(source), "kept"])
    keep.main([str(source), "kept", "--no-checkpoint"])
    assert sorted(path.name for path in to.iterdir()) == ["config.json", "progress.csv"]
    assert report.progress_of(to) == keep.thinned(text(1200))
    torn = "", "a,b\n", "a,b\n3,1\n4", "a,b\n3,1\n4,"
    assert [report.last_epoch(each) for each in torn] == [-1, -1, 3, 4]


def test_welch_and_holm_are_the_textbooks():
    """Interval and p are scipy's for samples of any size; a single value is a draw like the others under the
    null hypothesis: p is uniform. Holm's method by an example worked by hand."""
    rng = np.random.default_rng(1)
    for n, m in ((2, 2), (3, 5), (7, 4)):
        one, other = rng.normal(size=n), rng.normal(1, 3, size=m)
        half, p = differences.welch(*map(differences.sample, (one, other)))
        theirs = stats.ttest_ind(one, other, equal_var=False)
        interval = theirs.confidence_interval()
        assert p == pytest.approx(theirs.pvalue, rel=1e-9)
        assert half == pytest.approx((interval.high - interval.low) / 2, rel=1e-9)
    draws = rng.normal(size=(4000, 6))
    p = [differences.welch(differences.sample(row[:1]), differences.sample(row[1:]))[1] for row in draws]
    assert stats.kstest(p, "uniform").pvalue > 1e-6
    assert differences.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # what is not known is not tested; what does not vary differs, or not
    one, other = differences.Sample(1.0, math.nan, 1), differences.Sample(2.0, math.nan, 5)
    text = differences.section("a", [differences.compared("x", one, other), ("y", one, other, "", 0.01)])
    assert "| – | – | not tested |" in text and "| 0.01 | 0.02 | **differs** |" in text
    still = [differences.Sample(mean, 0.0, 3) for mean in (1.0, 1.0, 2.0)]
    assert [differences.welch(still[0], each)[1] for each in still] == [1, 1, 0]
    # of a single policy 90 of 100 episodes are safe: an error of .03 besides that of seeds, .02
    one, other = differences.Sample(0.9, math.nan, 1), differences.Sample(0.98, 0.02, 5)
    half, _ = differences.welch(one, other, 0.03**2)
    assert half == pytest.approx(stats.t.ppf(0.975, 4) * math.sqrt(0.02**2 * 1.2 + 0.03**2))
    assert f"± {half:.2g}" in differences.compared("safety", one, other)[3]
    # of 8 worlds one policy alone is safe: 2 / 2^8; of 14 and 20 unsafe ones 14, 13, ... 0 are the same
    assert differences.mcnemar(92, 100) == pytest.approx(2 / 2**8) and differences.mcnemar(100, 100) == 1
    possible = [stats.binomtest(14 - both, 34 - 2 * both).pvalue for both in range(15)]
    assert differences.mcnemar(86, 80) == pytest.approx(max(possible)) and min(possible) < 0.05


def test_differences_are_those_of_the_runs():
    """results/differences.md is what studies/differences.py would write; a row of its first table, by scipy
    from the files."""
    text = (RESULTS / "differences.md").read_text()
    assert text == differences.page(), "run: uv run studies/differences.py"
    first, second, _ = next(iter(differences.PAIRS.values()))
    values = [[np.mean([float(row["Metrics/EpRet"]) for row in epochs(run)[72:]])
               for run in sorted((RESULTS / folder).glob("seed-*"))] for folder in (first, second)]
    p = stats.ttest_ind(*values, equal_var=False).pvalue
    assert f"| {p:.2g} | {4 * p:.2g} | **differs** |" in text


def test_rows_of_ours_beside_the_release_are_those_of_the_runs(monkeypatch):
    """results/published.md has what studies/published.py makes of our runs, and docs/ctrpo.md its last rows.
    The release's own runs are not here. Control: a run on another task."""
    found = table.beside_the_release()
    in_pages("published.py", {"beside the release": published.at_the_end(found)})
    assert list(found) == table.TASKS["C-TRPO"]
    for task, rows in found.items():
        groups = published.ours(task)
        of_ours = [row for row in rows if row[1].startswith("ours")]
        if groups:
            assert all(row in published.rows(groups) for row in of_ours), "run: uv run studies/published.py"
            assert {row[1] for row in of_ours} == set(groups)
            assert f"; {published.single(groups)}.\n" in table.BESIDE.read_text()
        assert [row[:3] for row in rows if row[1:3] == ["published", "5"]][-1][0] == "10M" and len(rows) >= 5
    assert sum(row[1].startswith("ours") for rows in found.values() for row in rows) >= 28
    of_another_task = report.find([str(RESULTS / f"ctrpo-{table.ANT}-paper")])
    monkeypatch.setattr(published, "find", lambda _: of_another_task)
    with pytest.raises(SystemExit, match="is a run on SafetyAntVelocity-v1: .* SafetyHopperVelocity-v1 only"):
        published.ours(table.HOPPER)


def test_runs_that_are_too_short_for_an_average_are_left_out(monkeypatch, capsys):
    """One of 199,000 steps beside one of 400,000: named, and the other is there alone. Alone it is not there,
    and the task has no row of it."""
    def run(steps: int) -> report.Run:
        at = np.arange(1000, steps + 1, 1000)
        return report.Run(Path(f"run-{steps}"), table.HOPPER, "ctrpo", "", "", "0", 25.0, at,
                          {"return": at / 1e3, "cost": 0 * at}, {})

    runs = [run(199_000), run(400_000)]
    monkeypatch.setattr(published, "find", lambda _: runs)
    for at, columns in published.ours(table.HOPPER).values():
        assert at.tolist() == [200_000, 400_000] and columns["return"].shape == (1, 2)
    assert "run-199000: left out, it has not come to 200,000 steps." in capsys.readouterr().err
    del runs[1]
    assert published.ours(table.HOPPER) == {}


def test_the_release_pays_for_actions_beyond_their_bounds(monkeypatch):
    """studies/unclipped.py: for actions within bounds both environments give the same bits. Beyond, too,
    but for HalfCheetah's reward: 0.1 |a|^2, of what is clipped or not. docs/ctrpo.md has the table."""
    monkeypatch.chdir(ROOT)
    names = "SafetyHalfCheetahVelocity-v1", "studies.unclipped:UnclippedHalfCheetah-v1"
    both, rng = [sbtrpo.make_env(name) for name in names], np.random.default_rng(0)
    assert np.array_equal(*(env.reset(seed=1)[0] for env in both))
    for size in (0.5, 0.5, 3.0, 3.0):
        action = np.clip(size * rng.normal(size=6), -size, size)
        ours, theirs = (env.step(sbtrpo.to_action(env.action_space, action)) for env in both)
        assert np.array_equal(ours[0], theirs[0]) and ours[4]["cost"] == theirs[4]["cost"]
        excess = 0.1 * np.sum(action**2 - np.clip(action, -1, 1) ** 2)
        assert ours[1] - theirs[1] == pytest.approx(excess, abs=1e-6)
        assert (excess > 0.5) == (size > 1) and (ours[1] == theirs[1]) == (size < 1)
    in_pages("unclipped.py", {"clipped and not": unclipped.table(json.loads(unclipped.PLACE.read_text()))})


def test_tables_beside_rivals_are_those_of_the_runs():
    in_pages("rivals.py", rivals.tables())


def test_table_of_the_exclusion_is_that_of_the_runs():
    in_pages("binding.py", {"binding": binding.table()})


def test_results_in_the_pages_are_those_in_results():
    """What studies/table.py would write is what is there. Control: seeds of another task are refused."""
    in_pages("table.py", table.tables())
    with pytest.raises(AssertionError, match="SafetyAntVelocity-v1 only"):
        table.cells(RESULTS / "ctrpo-SafetyHopperVelocity-v1-paper", "ctrpo", "SafetyAntVelocity-v1")


def test_margins_are_those_of_the_runs():
    runs = margins.kept()
    assert len(runs) > 20
    in_pages("margins.py", {"margins": margins.table(runs)})


def test_tables_of_speed_are_those_of_its_results():
    """As the study writes them below their comments. Control: a table of other results is another one."""
    results = json.loads((RESULTS / "speed.json").read_text())
    in_pages("speed.py", speed.tables(results))
    results["memory"]["peak_pss_mib"] += 100
    assert pages.filled(TEXT, "speed.py", speed.tables(results)) != TEXT


def test_tables_of_the_promise_are_those_of_its_results():
    """docs/promise.md shows what studies/promise.py makes of results/promise.json. Control: other results."""
    results = json.loads((RESULTS / "promise.json").read_text())
    assert len(results) == len(promise.CASES)
    in_pages("promise.py", promise.tables(results))
    first = next(iter(results))
    changed = results | {first: results[first] | {"cost": results[first]["cost"] + 10}}
    assert pages.filled(TEXT, "promise.py", promise.tables(changed)) != TEXT


def test_table_of_two_budgets_is_that_of_its_runs(tmp_path, capsys):
    """docs/ctrpo.md shows what its command prints. Control: the folders exchanged."""
    folders = [str(RESULTS / f"ctrpo-SafetyPointGoal2-v0-{name}") for name in ("two-budgets", "one-budget")]
    two_budgets.main([*folders, "--figure", str(tmp_path / "figure.png")])
    printed = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs/ctrpo.md").read_text().splitlines()
    assert len(printed) == 4 and set(printed) <= set(page)
    with pytest.raises(SystemExit, match="for each of --costs"):
        two_budgets.main([*folders[::-1], "--figure", str(tmp_path / "figure.png")])


def test_candidates_are_the_default_where_they_should_be():
    """studies/truer.py: an update from one batch is the shipped one; with a second batch of another policy,
    it is another. Where all is kept, mu is the shipped one; where half is, that of twice rho. Verdicts: a
    clear gain wins, with less safety it does not, and one seed decides nothing. What has lost on the first
    task is not run on the second."""
    rng, policy = np.random.default_rng(0), sbtrpo.Policy((3, 4, 2), False)
    theta, config = sbtrpo.initial_parameters(policy.sizes, np.zeros(2), rng), sbtrpo.Config()
    actor = sbtrpo.Actor(policy, theta, np.zeros(3), np.ones(3))
    episodes = [sbtrpo.Episode(rng.normal(size=(21, 3)), rng.normal(size=(20, 2)), rng.normal(size=20),
                               rng.random(20), False) for _ in range(6)]
    functions, found = truer.averaged(), []
    for shift in (0.0, 0.1):
        batch, moved = functions["make_batch"](episodes, actor), theta + shift
        given = config, policy, moved, batch.observations, batch.actions, batch.reward, batch.cost, None
        found.append([update(*given, batch.lengths)[0] for update in
                      (functions["update_policy"], sbtrpo.update_policy)])
    assert np.array_equal(*found[0]) and not np.allclose(*found[1])
    for kept in (1.0, 0.5):
        functions = truer.shrunk()
        assert functions["convex_weights"](0.2, 0.75) == sbtrpo.convex_weights(0.2, 0.75)
        functions["share_kept"].__kwdefaults__ = {"shipped": lambda *given, kept=kept: kept}
        functions["share_kept"]()
        assert functions["convex_weights"](0.2, 0.75) == sbtrpo.convex_weights(0.2 / kept, 0.75)
    runs = [{seed: {"safe reward": reward + seed / 10, "safety": safety + seed / 100} for seed in range(3)}
            for reward, safety in ((1.0, 0.9), (2.0, 0.9), (2.0, 0.5))]
    assert truer.verdict(runs[0], runs[1]).startswith("wins")
    assert "less safe" in truer.verdict(runs[0], runs[2]) and truer.verdict(runs[1], runs[0]).startswith("no")
    assert truer.verdict(runs[0], {0: runs[1][0]}) == "too few seeds"
    found = {name: {truer.TASKS[0]: of} for name, of in zip(("default", "gae", "large"), runs)}
    found["averaged"] = {truer.TASKS[0]: {0: runs[2][0]}}
    assert [name for name in truer.CANDIDATES if truer.lost(found, name)] == ["large"]
    found = {name: found["default" if name == "default" else "large"] for name in truer.CANDIDATES}
    assert [name for name in truer.CANDIDATES if truer.lost(found, name)] == list(truer.CANDIDATES)


def test_candidates_of_different_lengths_are_not_mixed(tmp_path, monkeypatch):
    """A file with runs of another length is refused; of a longer run that is there its beginning counts."""
    monkeypatch.chdir(tmp_path)
    run = Path("runs/truer-default/SafetyCarCircle2-v0/sbtrpo/seed-0")
    write_run(run, 5.0, 0)
    text = (run / "progress.csv").read_text().replace("Train/TotalSteps,", "Train/TotalSteps,Misc/kept,")
    (run / "progress.csv").write_text(text.replace("1000,", "1000,0.1,").replace("2000,", "2000,0.3,"))
    found = truer.train("default", "SafetyCarCircle2-v0", 0, 1000, 1)
    assert (found["epochs"], found["steps"], found["kept"]) == (1, 1000, 0.1)
    Path("truer.json").write_text(json.dumps({"default": {"SafetyCarCircle2-v0": {"0": found}}}))
    with pytest.raises(SystemExit, match="has runs of 1,000 steps"):
        truer.main(["--output", "truer.json", "--total-steps", "2000"])


def test_table_of_candidates_is_that_of_its_results():
    """docs/promise.md shows what studies/truer.py makes of results/truer.json: all candidates with all seeds
    on the first task, and none on the second, for none has won. Control: other results."""
    results = json.loads((RESULTS / "truer.json").read_text())
    first, second = truer.TASKS
    assert all(len(results[name][first]) == len(truer.SEEDS) for name in truer.CANDIDATES)
    assert all(truer.lost(results, name) and second not in results[name] for name in truer.CANDIDATES)
    in_pages("truer.py", truer.tables(results))
    results["default"][first]["0"]["cost"] += 10
    assert pages.filled(TEXT, "truer.py", truer.tables(results)) != TEXT


def test_interval_of_the_promise_covers_the_truth():
    """Twenty steps in two halves, judged by 100 episodes that all steps share, true share .3: 95% intervals
    cover it in 88% of 200 draws or more. Control: judges without spread, as if their mean were exact."""
    rng, covered = np.random.default_rng(0), np.zeros(2)
    for _ in range(200):
        folds, exact = [], []
        for _ in range(2):
            promised, shared = rng.uniform(0.5, 1.5, 10), rng.normal(0, 1.5, 100)
            changes = 0.3 * promised[:, None] + shared + rng.normal(0, 0.1, (10, 1))
            folds.append((changes, promised))
            exact.append((changes.mean(axis=1, keepdims=True).repeat(100, axis=1), promised))
        for k, given in enumerate((folds, exact)):
            low, high = promise.bootstrap(given, draws=200)[1]
            covered[k] += low <= 0.3 <= high
    assert covered[0] / 200 > 0.88 and covered[1] / 200 < 0.6, covered / 200


@pytest.mark.parametrize("study, options, said", [
    (promise, "--episodes 5", "--episodes must be at least 30"),
    (noise, "--episodes 0", "--episodes must be at least 16"),
    (figures, "curves out.png a=b --paper 7", "'7' needs to be two numbers"),
    (figures, "curves out.png a=b --paper 7,x", "'7,x' needs to be two numbers")])
def test_a_mistake_with_a_study_is_one_sentence(study, options, said, capsys):
    with pytest.raises(SystemExit) as end:
        study.main(options.split())
    assert end.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def test_studies_read_all_epochs_of_a_run_that_is_kept_in_few_rows(tmp_path, capsys):
    """figures.py and two_budgets.py: of 900 epochs, of which progress.csv has 450. The help of promise.py has
    the pools that there are."""
    names = [f"Metrics/{name}" for name in (*figures.PANELS, "EpCost_a", "EpCost_b")]
    lines = [",".join(["Train/Epoch", "Train/TotalSteps", *names])]
    lines += [",".join(map(str, [k, 1000 * k, *range(k, k + len(names))])) for k in range(900)]
    whole = "\n".join(lines) + "\n"
    (tmp_path / "config.json").write_text(json.dumps({"config": {"costs": ["a", "b"], "cost_limit": [1, 2]}}))
    (tmp_path / "progress.csv").write_text(keep.thinned(whole))
    np.savez(tmp_path / "checkpoint.npz", progress=whole.encode())
    assert len(figures.read(str(tmp_path / "progress.csv"))["Metrics/EpRet"]) == 900
    assert len(two_budgets.read(tmp_path)[1]["Metrics/EpCost_a"]) == 900
    with pytest.raises(SystemExit, match="is not the progress.csv of a run"):
        figures.read(str(tmp_path / "config.json"))
    with pytest.raises(SystemExit):
        promise.main(["--help"])
    assert "(default 300 to 1,200)" in capsys.readouterr().out


STUDIES = [path for path in sorted((ROOT / "studies").glob("*.py")) if path.name != "pages.py"]  # no study


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_a_study_begins_with_its_claim_and_answers_help(study, tmp_path):
    """The docstring's first paragraph names a file in results/, or the folder of pictures, that is there, and
    the command that made it. --help prints its usage and writes nothing, in results/ or where it is asked."""
    claim = ast.get_docstring(ast.parse(study.read_text())).split("\n\n")[0]
    [named] = set(re.findall(r"(?:results|figures)/(?:[\w-]+\.\w+)?", claim))
    assert (ROOT / named).exists() and "`uv run " in claim
    before = {path: path.stat().st_mtime_ns for path in ROOT.glob("[!.]*/**/*") if path.suffix != ".pyc"}
    done = subprocess.run([sys.executable, study, "--help"], cwd=tmp_path, text=True, capture_output=True)
    after = {path: path.stat().st_mtime_ns for path in ROOT.glob("[!.]*/**/*") if path.suffix != ".pyc"}
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {study.name}"), done.stderr
    assert {path for path in after if after[path] != before.get(path) and path.is_file()} == set()
    assert not list(tmp_path.iterdir())
