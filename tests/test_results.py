"""The index of results/ says what is there, no less and no more. Part of `uv run test_updates.py`."""

import csv, json, re, shlex
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
INDEX = (RESULTS / "README.md").read_text()
ROWS = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        for line in INDEX.splitlines() if line.startswith("| `")]
RUNS = {row[0]: row for row in ROWS if len(row) == 6}
FOLDERS = sorted({path.parent.parent for path in RESULTS.rglob("progress.csv")})


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
    script, *words = shlex.split(command)
    name = f"{script.removesuffix('.py')}-{configs[0]['task']}-"
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
    options = dict(zip(words[::2], words[1::2]))
    for option in ("--resume", "--unsafe", "--total-steps"):  # RUN, RUN, and what may have been raised
        options.pop(option, None)
    for config in configs:
        for option, value in options.items():
            kept = config.get(option.removeprefix("--").replace("-", "_"))
            assert type(kept)(value) == kept, f"{option} {value}"


def test_no_data_are_there_twice():
    """No run is the beginning of another, but where the row of one names the folder of the other."""
    runs = [(run, epochs(run)) for folder in FOLDERS for run in sorted(folder.glob("seed-*"))]
    for i, (one, short) in enumerate(runs):
        for other, long in runs[:i] + runs[i + 1:]:
            if short == long[:len(short)] and short:
                names = one.parent.name, other.parent.name
                assert any(f"`{name}`" in "".join(RUNS[row][5] for row in names) for name in names), names


def test_paths_in_the_results_exist():
    """Where a file in results/ names a folder in results/, it is there."""
    texts = [path.read_text() for kind in ("*.md", "*.json", "*.txt") for path in RESULTS.rglob(kind)]
    paths = {path for text in texts for path in re.findall(r"results/[\w.-]+(?:/[\w.-]+)*", text)}
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


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
