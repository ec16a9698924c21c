"""What README.md and docs/ promise: every printed command runs as it is printed, and what they name exists.
Part of `uv run test_updates.py`.

A command is a line in a block marked bash. It runs in a copy of the repository, by uv: with the packages of
the script's own metadata and nothing more. A block of Python that begins with a file's name is that file.
"""

import contextlib, csv, json, os, re, shlex, shutil, subprocess, sys
from ctypes.util import find_library
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np
import pytest

from conftest import ROOT, slow

sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "studies")]
import sweep

PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
         for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
SHORT, SLOW, DRY, LACKS = "by default", "with -m slow", "--dry-run, in this process", "up to what it lacks"
TINY = "--total-steps 2000 --batch-steps 2000 --workers 1"
# How a command begins: when it is run, and what is appended to cut it short. The longest beginning counts.
HOW = {
    "uv run sbtrpo.py": (SHORT, TINY),
    "uv run sbtrpo.py --resume": (SHORT, "--total-steps 4000 --workers 1"),
    "uv run sbtrpo.py --preset safe": (SLOW, TINY),
    "uv run test_updates.py": (SHORT, "-k test_mu_is"),
    "uv run test_updates.py -k fast": (SLOW, "--collect-only"),
    "uv run test_updates.py -m slow": (SLOW, "--collect-only"),
    "uv run docs/tour.py": (SHORT, ""),
    "uv run tools/docs.py": (SHORT, ""),
    "$(uv python find --script sbtrpo.py) drive.py": (SHORT, ""),
    "uv run tools/evaluate.py runs": (SHORT, "--episodes 2 --workers 1"),
    "uv run tools/evaluate.py results": (SLOW, "--episodes 1"),
    "uv run tools/sweep.py": (DRY, "--dry-run"),
    "uv run tools/report.py report runs": (SHORT, ""),
    "uv run tools/report.py": (SLOW, ""),
    "uv run --with distributed==2026.8.0 sbtrpo.py": (SLOW, TINY),
    "uv run ctrpo.py --task": (SLOW, TINY),
    "uv run strpo.py": (SLOW, f"{TINY} --unsafe-steps 2000"),
    "uv run studies/film.py": (SLOW, ""),
    "uv run studies/figures.py": (SLOW, ""),
    "uv run studies/budgets.py": (SLOW, ""),
    "uv run studies/noise.py": (SLOW, "--episodes 64 --only two_state"),
    "uv run studies/promise.py": (SLOW, "--only sbtrpo-SafetyCarCircle2-v0-0 --episodes 44 --real 2 1"),
    "uv run studies/truer.py": (SLOW, "--task SafetyCarCircle2-v0 --seed 0 --only default shrunk "
                                      "'until kept' --total-steps 20000 --output truer.json"),
    "uv run studies/krylov.py": (SLOW, "--steps 2000"),
    "uv run studies/critics.py": (SLOW, "--batches 1 --size 2000"),
    "uv run studies/scaling.py": (SLOW, TINY),
    "uv run studies/exclusion.py": (SLOW, ""),
    "uv run studies/binding.py": (SLOW, ""),
    "uv run --with torch==2.13.0": (SLOW, "--quick --tasks SafetyHopperVelocity-v1"),  # speed.py
    "uv run studies/published.py": (LACKS, ""),
    "uv run studies/margins.py": (SLOW, ""),
    "uv run studies/unclipped.py": (LACKS, ""),  # a clone of the release
    "uv run studies/table.py": (SLOW, ""),
    "uv run studies/rivals.py": (SLOW, ""),
    "uv run studies/two_budgets.py": (SLOW, ""),
    "uv run studies/ledger.py": (SLOW, ""),
    "uv run studies/differences.py": (SLOW, ""),
    "uv run --no-project --with gymnasium==1.4.0": (SLOW, TINY),
    "pip install": (SLOW, ""),
    "python sbtrpo.py": (SLOW, f"{TINY} --experiment pip"),
    "python test_updates.py": (SLOW, "-k test_mu_is"),
}


def commands(text: str) -> list[str]:
    """The commands of a page; continued lines are one."""
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S))
    return [re.sub(r" +", " ", line) for line in blocks.replace("\\\n", "").splitlines()]


def beginning(command: str) -> str:
    return max((each for each in HOW if command.startswith(each)), key=len, default="")


PRINTED = list(dict.fromkeys(command for text in PAGES.values() for command in commands(text)))


def to_run(when: str) -> list[str]:
    return [command for command in PRINTED if HOW.get(beginning(command), ("",))[0] == when]


# ---------------------------------------------------------------------------------------- commands


def test_every_printed_command_has_an_entry_and_every_entry_a_command():
    """And none is printed in a block that this file does not look at."""
    assert [command for command in PRINTED if not beginning(command)] == []
    assert set(HOW) - {beginning(command) for command in PRINTED} == set()
    for name, text in PAGES.items():
        others = re.findall(r"^```(?!bash)(?:\w+)?\n(.*?)^```", text, re.M | re.S)
        assert not re.search(r"^(uv|pip|python\d?) ", "".join(others), re.M), f"{name}: mark the block bash"


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The repository without what it ignores, the files that pages print, and the run of README's first
    command."""
    folder = tmp_path_factory.mktemp("pages") / "copy"
    ignored = shutil.ignore_patterns(".git", "runs", "release", "rendered", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=ignored)
    for text in PAGES.values():
        for name, code in re.findall(r"^```python\n# ([\w.]+\.py)(.*?)^```", text, re.M | re.S):
            (folder / name).write_text(f"#{code}")
    assert PRINTED[0] == "uv run sbtrpo.py"
    run(folder, PRINTED[0])
    return folder


def run(folder: Path, command: str, code: int = 0) -> str:
    """As a user runs it, in a shell; what it has printed."""
    cut = HOW[beginning(command)][1]
    kept = {name: value for name, value in os.environ.items()
            if name not in ("VIRTUAL_ENV", "PYTHONPATH", "UV_RUN_RECURSION_DEPTH")}
    kept["PATH"] = f"{folder}/venv/bin{os.pathsep}{kept['PATH']}"  # for pip and python
    if "UV" in kept:  # uv run says which one it is
        kept["PATH"] += f"{os.pathsep}{Path(kept['UV']).parent}"
    ended = subprocess.run(["bash", "-c", f"{command} {cut}"], cwd=folder, env=kept, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert ended.returncode == code and "Traceback" not in ended.stdout, f"{command} {cut}\n{ended.stdout}"
    return ended.stdout


needs_uv = pytest.mark.skipif(not (shutil.which("uv") or os.environ.get("UV")), reason="there is no uv")


@needs_uv
def test_short_commands_run_as_printed(copy):
    """In the order of the pages: later ones use what earlier ones have left."""
    for command in to_run(SHORT)[1:]:
        run(copy, command)
    progress = copy / "runs/default/SafetyCarCircle2-v0/sbtrpo/seed-0/progress.csv"
    assert len(progress.read_text().splitlines()) == 3  # two epochs: the run's, and the resumed one's


@contextlib.contextmanager
def what_it_needs(copy: Path, command: str):
    """A virtual environment for pip and python, a Dask cluster where a scheduler is named."""
    if command.startswith(("pip", "python")) and not (copy / "venv").exists():
        subprocess.run([sys.executable, "-m", "venv", "venv"], cwd=copy, check=True)
    if "tcp://localhost:8786" not in command:
        yield
        return
    from distributed import LocalCluster
    with LocalCluster(n_workers=1, threads_per_worker=1, scheduler_port=8786, dashboard_address=None):
        yield


@slow
@needs_uv
@pytest.mark.parametrize("command", to_run(SLOW), ids=lambda command: command[:50])
def test_long_commands_run_as_printed(command, copy):
    """Cut short by their own options, where they have such. Later ones use what earlier ones have left."""
    if "film" in command and not (find_library("EGL") or find_library("OSMesa")):
        pytest.skip("there is no renderer")
    with what_it_needs(copy, command):
        run(copy, command)


@needs_uv
@pytest.mark.parametrize("command", to_run(LACKS))
def test_commands_say_what_they_lack(command, copy):
    assert "git clone https://github.com/milosen/ctrpo release" in run(copy, command, 1)


@pytest.mark.parametrize("command", to_run(DRY), ids=lambda command: command[:80])
def test_printed_sweeps_are_taken(command, monkeypatch, capsys):
    """As far as --dry-run. Control: an option that no script has."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)[3:]
    assert sweep.main([*words, "--dry-run"]) == 0 and "seed-0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sweep.main([*words, "--delat", "1", "--dry-run"])


def test_pip_is_told_every_package_of_the_metadata():
    """Of the scripts and of the tests, with its version."""
    page = PAGES["docs/running.md"]
    for script in ("sbtrpo.py", "ctrpo.py", "strpo.py", "test_updates.py"):
        head = re.search(r"^# dependencies = \[(.*?)\]$", (ROOT / script).read_text(), re.M | re.S)[1]
        packages = re.findall(r'"([\w.-]+==[\w.]+)', head)
        assert len(packages) > 5 and [each for each in packages if each not in page] == [], script


# ------------------------------------------------------------------------------------------ tables


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_the_default_run_of_the_readme_is_in_results():
    """First epoch, and mean over the last tenth of the epochs; numbers as the script prints them."""
    file = ROOT / "results/sbtrpo-SafetyCarCircle2-v0-defaults/seed-0/progress.csv"
    epochs = list(csv.DictReader(file.read_text().splitlines()))
    assert len(epochs) // 10 == 4
    for label, those in (("first epoch", epochs[:1]), ("mean of the last four epochs", epochs[-4:])):
        [row] = [row for row in rows(PAGES["README.md"]) if row.startswith(f"| {label} |")]
        names = "EpRet", "EpCost", "SafetyProbability", "SafeReward"
        values = [np.mean([float(epoch[f"Metrics/{name}"]) for epoch in those]) for name in names]
        for shown, value in zip(row.split("|")[2:-1], values, strict=True):
            digits = len(shown.strip().partition(".")[2])
            assert float(shown.replace("−", "-")) == pytest.approx(value, abs=0.51 * 10**-digits)


def test_results_of_the_readme_are_in_the_pages_behind_it():
    """Every mean with its deviation, as text. Control: with another deviation none is there."""
    readme, rest = PAGES["README.md"], "".join(text for name, text in PAGES.items() if name != "README.md")
    part = readme[readme.index("## Results"):readme.index("## What to pick")]
    numbers = re.findall(r"[\d,.]+ ± \d+(?:\.\d+)?", part)
    assert len(numbers) > 15 and [each for each in numbers if each not in rest] == []
    assert [each for each in numbers if each.replace("± ", "± 97") in rest] == []


# -------------------------------------------------------------------------------------- figures in the prose
NUMBER = r"[−-]?\d[\d,]*(?:\.\d+)?"
SPREAD = re.compile(rf"({NUMBER}) ± ({NUMBER})")
AT = re.compile(rf"({NUMBER})(?: ± {NUMBER})?(?: \[[^]]*\])? at (?:a )?(?:safety |costs? )?(?:of )?({NUMBER})"
                r"\b(?![°M]| steps)")
ELSEWHERE = {("0.26", "0.08"): "seconds of an update, by SB-TRPO's paper",
             ("10.6", "0.95"): "of sbtrpo-SafetyCarCircle2-v0-safe-continued, from 3M steps on"}


def records() -> list[str]:
    """What belongs together, as text: a row of a table in the pages or in results/; either side of a section
    of results/differences.md; means and deviations of a folder's policies on fresh episodes; noise scales
    with their standard errors."""
    results = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "results").glob("*.md")}
    found = [line for page in [*PAGES.values(), *results.values()] for line in page.splitlines()
             if line.startswith("|")]
    for section in results["differences.md"].split("###")[1:]:
        rows = [line.split("|") for line in section.splitlines() if line.startswith("|")]
        found += ["; ".join(row[side] for row in rows) for side in (2, 3)]
    for path in (ROOT / "results").glob("*/evaluation.json"):
        for policies in json.loads(path.read_text())["by_action_noise"]["0.0"]["over_runs"].values():
            found += ["; ".join(f"{mean:.9f} ± {deviation:.9f}" for mean, deviation in metrics.values()
                                if mean is not None)
                      for kind, metrics in policies.items() if kind != "runs"]
    noise = (ROOT / "results" / "noise.json").read_text()
    pattern = r'"noise_scale": ([\d.]+),[^{}]*?"standard_error": ([\d.]+)'
    return found + [" ± ".join(pair) for pair in re.findall(pattern, noise)]


def rounded_to(shown: str, found: str) -> bool:
    """Whether a number as found may be printed like this."""
    decimals = len(shown.partition(".")[2])
    shown, found = (float(number.replace("−", "-").replace(",", "")) for number in (shown, found))
    return abs(shown - found) <= 0.50001 * 10**-decimals


def test_figures_of_the_prose_stand_in_tables():
    """Each "mean ± deviation", and each "return at cost" or "safe reward at safety", whose two numbers stand
    in one row. Control: with another last digit in the first, most stand nowhere."""
    known = records()
    spreads = [pair for record in known for pair in SPREAD.findall(record)]
    rows = [re.findall(NUMBER, record) for record in known]
    prose = [re.sub(r"\s+", " ", "".join(re.findall(r"^(?!\|).*\n", page, re.M))) for page in PAGES.values()]

    def as_printed(mean, deviation):
        return any(rounded_to(mean, m) and rounded_to(deviation, d) for m, d in spreads)

    def in_one_row(*pair):
        return any(all(any(rounded_to(one, each) for each in row) for one in pair) for row in rows)

    for pattern, stands in ((SPREAD, as_printed), (AT, in_one_row)):
        sought = [pair for text in prose for pair in pattern.findall(text) if pair not in ELSEWHERE]
        assert [pair for pair in sought if not stands(*pair)] == []
        wrong = [(first[:-1] + str((int(first[-1]) + 3) % 10), second) for first, second in sought]
        assert len(sought) >= 20 and np.mean([stands(*pair) for pair in wrong]) < 0.3


# ------------------------------------------------------------------------------- pages and their links


def test_readme_is_one_sitting():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 200 and max(map(len, lines)) <= 120


def heading(line: str) -> str:
    """The anchor that GitHub makes of a heading."""
    text = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower().replace("`", ""))
    return text.replace(" ", "-")


def test_local_links_lead_somewhere():
    lost = []
    for name, text in PAGES.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", prose):
            path, _, anchor = link.partition("#")
            target = (ROOT / name).parent / path if path else ROOT / name
            if re.match(r"[a-z]+:", link):
                continue
            if not target.exists():
                lost.append(f"{name}: {link}")
            elif anchor:
                headings = re.findall(r"^#+ .*", target.read_text(encoding="utf-8"), re.M)
                lost += [f"{name}: {link}"] * (anchor not in map(heading, headings))
    assert lost == []


def test_paths_in_backticks_exist():
    """Those that begin with a folder of the repository; * stands for anything. What a command builds is not
    looked for."""
    lost = [f"{name}: {path}" for name, text in PAGES.items()
            for path in re.findall(r"`((?:results|figures|tools|studies|docs|tests)/[^`\s]*)", text)
            if not path.startswith("docs/rendered") and not list(ROOT.glob(path.rstrip("/")))]
    assert lost == []


def test_tests_named_in_pages_exist():
    """A name may end in an ellipsis."""
    files = [ROOT / "test_updates.py", *(ROOT / "tests").glob("*.py")]
    defined = "".join(path.read_text(encoding="utf-8") for path in files)
    lost = [f"{name}: {test}" for name, text in PAGES.items()
            for test in re.findall(r"`(test_\w+)[`…]", text) if f"def {test}" not in defined]
    assert lost == []
