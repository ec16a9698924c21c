"""What studies have found (a module of theirs, not a script): in files of results/, which several processes
may add to, and between comments of README.md and of the pages in docs/:

    <!-- NAME, by studies/FILE.py -->
    what found[NAME] says
    <!-- end of NAME -->
"""

import fcntl, json, os, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def write(path: Path, text: str) -> None:
    """Old or new text is there at every moment, whole."""
    new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        new.write_text(text)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def add(path: Path, value, *keys: str) -> dict:
    """Puts a value into a file of results, {key: {key: ... value}}, which other processes may do at the same
    time; returns all that is there now."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        results = json.loads(path.read_text()) if path.exists() else {}
        inner = results
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
        write(path, json.dumps(results, indent=1) + "\n")
    finally:
        os.close(folder)  # unlocks it
    return results


def between(study: str) -> re.Pattern:
    """Matches all that a study has written: first comment, its name, the text, last comment."""
    return re.compile(rf"(<!-- ([^<>]+), by studies/{re.escape(study)} -->\n)(.*?)(<!-- end of \2 -->)", re.S)


def filled(text: str, study: str, found: dict[str, str]) -> str:
    """The text of a page with what a study has found."""
    return between(study).sub(lambda match: f"{match[1]}{found[match[2]].strip()}\n{match[4]}", text)


def fill(study: str, found: dict[str, str]) -> None:
    """Writes the pages anew, and prints which. Each name has to stand in one page, once."""
    texts = {path: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
    there = [match[2] for text in texts.values() for match in between(study).finditer(text)]
    if sorted(there) != sorted(found):
        sys.exit(f"The pages have comments for {sorted(there)}, and {study} has found {sorted(found)}.")
    for path, text in texts.items():
        if between(study).search(text):
            write(path, filled(text, study, found))
            print(path)
