# /// script
# requires-python = ">=3.10,<3.12"
# ///
"""Which theorem holds: results/ledger.json, by `uv run test_updates.py`, when a whole run has passed.

`uv run studies/ledger.py` puts it as a table, and its counts as a sentence, between two comments of README.md
or of a page in docs/.
"""

import argparse, json
from pathlib import Path

from pages import fill

ROOT = Path(__file__).resolve().parent.parent
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
    mended = "all" if right == wrong else right
    return f"{holds} statements hold, {wrong} fail as printed, {mended} of these hold as corrected{left}.\n"


def tables(ledger: list[dict]) -> dict[str, str]:
    """What stands in the pages, by name."""
    return {"the ledger": table(ledger), "the counts": counts(ledger)}


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0]).parse_args(argv)
    ledger = json.loads((ROOT / "results" / "ledger.json").read_text())
    fill("ledger.py", tables(ledger))


if __name__ == "__main__":
    main()
