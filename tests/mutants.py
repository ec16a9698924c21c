"""Makes the mistakes of tests/mutations.py, one at a time, and prints which of them no test sees.

`python tests/mutants.py` makes all, `python tests/mutants.py PID CVaR` those with such a name.
Each mistake is made in a copy of the project of its own; then pytest runs the tests that should see
it, until one fails. Before, the same tests must pass without a mistake. Exit code 0: all were seen.

mutmut and cosmic-ray generate mutants by operators. Neither applies a committed list of
replacements, each with the tests that should see it: this file does.
"""

import argparse, json, os, re, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutations import MISTAKES, SCRIPTS, Mistake

HERE = Path(__file__).resolve().parent
LONGEST = 600  # seconds; a mistake that makes the tests hang is seen, too


class Failure(Exception):
    """One sentence: what is wrong with the list of mistakes, or with the tests without any."""


def copy_project(folder: Path) -> None:
    """What the tests need: the modules at the top, the tests, and the studies that tests import."""
    root = HERE.parent
    for path in root.glob("*.py"):
        shutil.copy(path, folder)
    for name in ("tests", "tools", "studies"):
        if (root / name).is_dir():
            shutil.copytree(
                root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )


def make(mistake: Mistake, folder: Path) -> None:
    """Replaces the old text in each of its files, where it must stand exactly once."""
    for name in SCRIPTS if mistake.file == "shared" else (mistake.file,):
        text = (folder / name).read_text()
        if (count := text.count(mistake.old)) != 1:
            raise Failure(f"{mistake.name}: {name} has {count} times, not once: {mistake.old!r}")
        text = text.replace(mistake.old, mistake.new)
        try:
            compile(text, name, "exec")
        except SyntaxError as error:
            raise Failure(f"{mistake.name}: {name} is no Python any more: {error}") from None
        (folder / name).write_text(text)


def chosen(tests: str) -> list[str]:
    """Arguments for pytest: node ids as they are; all else is a -k for tests/test_loop.py."""
    return tests.split() if "::" in tests else ["tests/test_loop.py", "-k", tests]


def run_tests(folder: Path, tests: list[str]) -> tuple[int, str]:
    """pytest's exit code, and which test failed first: empty if none did."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", *tests]
    options = {"cwd": folder, "env": {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, **options)
    except subprocess.TimeoutExpired:
        return 1, f"time: more than {LONGEST} s"
    failed = re.findall(r"^(?:FAILED|ERROR) \S*?::(.*?)(?: - .*)?$", done.stdout, re.M)
    if done.returncode not in (0, 1) or bool(failed) != bool(done.returncode):
        raise Failure(
            f"pytest {' '.join(tests)} ended with {done.returncode}:\n{done.stdout[-2000:]}"
        )
    return done.returncode, failed[0] if failed else ""


def seen_by(mistake: Mistake | None, tests: list[str]) -> str:
    """Which test fails with this mistake, or without any."""
    with tempfile.TemporaryDirectory() as folder:
        copy_project(Path(folder))
        if mistake:
            make(mistake, Path(folder))
        return run_tests(Path(folder), tests)[1]


def judge(mistake: Mistake) -> dict:
    """Makes a mistake, prints a line and returns what --output keeps of it."""
    started = time.perf_counter()
    killer = seen_by(mistake, chosen(mistake.tests))
    verdict = f"killed by {killer}" if killer else "SURVIVED"
    print(f"{time.perf_counter() - started:4.0f} s  {mistake.name}: {verdict}", flush=True)
    return {
        "name": mistake.name,
        "file": mistake.file,
        "old": mistake.old,
        "new": mistake.new,
        "killed_by": killer,
    }


def check_list(mistakes: list[Mistake]) -> None:
    """Every mistake can be made, under a name of its own; and no test named fails without them."""
    if len({mistake.name for mistake in MISTAKES}) < len(MISTAKES):
        raise Failure("two mistakes have the same name.")
    for mistake in mistakes:
        with tempfile.TemporaryDirectory() as folder:
            copy_project(Path(folder))
            make(mistake, Path(folder))
    others = {
        name for mistake in mistakes for name in mistake.tests.split() if "::" in mistake.tests
    }
    if failed := seen_by(None, ["tests/test_loop.py", *sorted(others)]):
        raise Failure(f"without any mistake, {failed} fails.")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "words", nargs="*", help="make only mistakes whose names contain one of these"
    )
    parser.add_argument("--jobs", type=int, default=2, help="mistakes made at a time (default 2)")
    parser.add_argument(
        "--output", type=Path, help="JSON file for what was made and which test saw it"
    )
    options = parser.parse_args()
    mistakes = [
        each
        for each in MISTAKES
        if not options.words or any(word in each.name for word in options.words)
    ]
    try:
        check_list(mistakes)
        with ThreadPoolExecutor(max(1, options.jobs)) as executor:
            results = list(executor.map(judge, mistakes))
    except Failure as error:
        print(error, file=sys.stderr)
        return 1
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    survived = [each["name"] for each in results if not each["killed_by"]]
    print(f"{len(results) - len(survived)} killed, {len(survived)} survived", *survived)
    return 1 if survived or not results else 0


if __name__ == "__main__":
    sys.exit(main())
