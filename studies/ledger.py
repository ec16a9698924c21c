# /// script
# requires-python = ">=3.10,<3.12"
# ///
"""Which theorem holds: results/ledger.json, by `uv run test_updates.py`, when a whole run has passed.

`uv run studies/ledger.py` puts it as a table, and its counts as a sentence, between two comments of README.md
or of a page in docs/.
"""

import argparse, json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- the ledger, by studies/ledger.py -->\n", "<!-- end of the ledger -->"
COUNTS = "<!-- the counts, by studies/ledger.py -->\n", "<!-- end of the counts -->"
HEAD = ["row", "paper and number", "statement", "tried on", "verdict", "cases", "worst figure and its bound"]


def number(value: float) -> str:
    """Three digits, and a minus sign as in print."""
    return f"{value:.3g}".replace("e-0", "e-").replace("-", "−")


def table(ledger: list[dict]) -> str:
    """Markdown, a line for each statement."""
    lines = [HEAD, ["---"] * (len(HEAD) - 2) + ["--:", "---"]]
    for row in ledger:
        figures = (f"{number(each['worst'])} {each['sign']} {number(each['bound'])} ({each['figure']})"
                   for each in row["figures"])
        lines.append([row["row"], row["source"], row["statement"], row["tried_on"], f"**{row['verdict']}**",
                      f"{row['cases']:,}", "; ".join(figures)])
    for line in lines:
        line[:] = [cell.replace("|", "\\|").replace("<=", "≤").replace(">=", "≥") for cell in line]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def counts(ledger: list[dict]) -> str:
    """One sentence: how many statements hold, and how many only with a correction."""
    verdicts = [row["verdict"] for row in ledger]
    kinds = "holds", "fails as printed", "holds as corrected"
    holds, wrong, right = (verdicts.count(kind) for kind in kinds)
    others = len(verdicts) - holds - wrong - right
    left = f", {others} are open" if others else ""
    return f"{holds} statements hold, {wrong} fail as printed, {right} of these hold as corrected{left}.\n"


def replaced(page: str, start: str, end: str, table: str) -> str:
    """The page with this table between these comments."""
    pattern = f"(?<={re.escape(start)}).*?(?={re.escape(end)})"
    text, found = re.subn(pattern, lambda _: table, page, flags=re.S)
    assert found == 1, f"a page needs one pair of {start.strip()} and {end}"
    return text


def page_with(start: str) -> Path:
    """The one page that has this comment."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [page for page in pages if start in page.read_text()]
    if len(found) != 1:
        sys.exit(f"{len(found)} pages have the line {start.strip()}, and one should.")
    return found[0]


def put(table: str, start: str, end: str) -> Path:
    """Puts a table between two comments of the page that has them."""
    page = page_with(start)
    page.write_text(replaced(page.read_text(), start, end, table))
    return page


def updated(pages: str, ledger: list[dict]) -> str:
    """The text of all pages, with what the ledger says."""
    return replaced(replaced(pages, START, END, table(ledger)), *COUNTS, counts(ledger))


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0]).parse_args(argv)
    ledger = json.loads((ROOT / "results" / "ledger.json").read_text())
    print(put(table(ledger), START, END), put(counts(ledger), *COUNTS))


if __name__ == "__main__":
    main()
