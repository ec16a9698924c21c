# /// script
# requires-python = ">=3.10,<3.12"
# ///
"""`uv run studies/ledger.py` puts results/ledger.json into README.md, as the table between two comments.

`uv run test_updates.py` writes the file, when a whole run has passed.
"""

import json, re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- the ledger, by studies/ledger.py -->\n", "<!-- end of the ledger -->"
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


def replaced(readme: str, start: str, end: str, table: str) -> str:
    """The README with this table between these comments."""
    pattern = f"(?<={re.escape(start)}).*?(?={re.escape(end)})"
    text, found = re.subn(pattern, lambda _: table, readme, flags=re.S)
    assert found == 1, f"README.md needs one pair of {start.strip()} and {end}"
    return text


def updated(readme: str, ledger: list[dict]) -> str:
    return replaced(readme, START, END, table(ledger))


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(updated(readme.read_text(), json.loads((ROOT / "results" / "ledger.json").read_text())))
    print(readme)
