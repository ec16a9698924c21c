"""The ledger says what was measured; results/ and the pages say what the ledger says."""
import ast
import json
import math
import shutil
import subprocess
import sys

import pytest
from conftest import LEDGER, ROOT, Record, add, pages, save_ledger, verdict

sys.path.insert(0, str(ROOT / "studies"))
import ledger
from pages import filled


# ------------------------------------------------------------------------------------- the ledger, as written


def test_a_verdict_follows_from_the_figures():
    """Any figure out of bounds, NaN too, leaves a row open; any counterexample refutes it."""
    good, bad = Record(0.5, "<=", 1.0, "B2"), Record(0.5, ">=", 1.0, "B2")
    against = good._replace(supports="", refutes="C1 printed")
    assert verdict("B2", [good]) == "holds" and verdict("C1 corrected", [good]) == "holds as corrected"
    assert verdict("C1 printed", [good, against]) == "fails as printed"
    for wrong in (bad, good._replace(worst=math.nan), bad._replace(worst=math.nan)):
        assert verdict("B2", [good, wrong]) == "open: a check failed"
        assert verdict("C1 printed", [wrong, against]) == "open: a check failed"


PAGES = {"test_a.py": """
import pytest
from conftest import check

@pytest.mark.parametrize("n", [1, 2])
def test_first(n):
    check("of both files", 0.1 * n, at_most=1, supports="B2", cases=n)
    check("of the first", n, at_least=1)
""", "test_b.py": """
import math
from conftest import check

def test_second():
    for worst in (0.3, 0.4, 0.1):
        check("of both files", worst, at_most=1, supports="B2", cases=10)

def test_that_fails():
    check("no number", math.nan, at_most=1)
"""}


def test_two_processes_print_the_tables_of_one(tmp_path):
    """Two files of tests, here and in a process each: the same lines, but for the times; the worst of both
    files, and their cases in sum; what failed is there, too."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    for name, text in PAGES.items():
        (tmp_path / name).write_text(text)
    printed = []
    for options in ([], ["-n", "2", "--dist", "loadfile"]):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
        assert done.returncode == 1 and "1 failed, 3 passed" in done.stdout, done.stdout
        tables = done.stdout[done.stdout.index("figure, worst met, bound"):].splitlines()
        printed.append(tables[1:-1])
    lines = [" ".join(line.split()) for line in printed[0]]
    assert printed[0] == printed[1] and lines[:3] == [
        "of both files 4.00e-01 <= 1.00e+00", "of the first 1.00e+00 >= 1.00e+00",
        "no number nan <= 1.00e+00 FAILED"]
    assert "the ledger: 1 of" in lines[3] and lines[5].startswith("holds; 33 cases: ") and len(lines) == 7


def test_a_figure_is_of_one_place():
    """Two calls of check with the same words would be one line of the table, with the bound of the second."""
    said = []
    for path in [ROOT / "test_updates.py", *(ROOT / "tests").glob("*.py")]:
        said += [ast.unparse(call.args[0]) for call in ast.walk(ast.parse(path.read_text()))
                 if isinstance(call, ast.Call) and ast.unparse(call.func) == "check"]
    assert len(said) > 500 and len(said) == len({*said})
    records = {}
    add(records, "a", Record(1.0, "<=", 2.0))
    with pytest.raises(AssertionError, match="two bounds of one figure: a"):
        add(records, "a", Record(1.0, "<=", 3.0))


def test_a_ledger_is_replaced_only_where_it_says_something_else(tmp_path):
    """Another machine's rounding is no reason; another verdict, bound, order of magnitude or row is."""
    path = tmp_path / "ledger.json"
    row = {"row": "a", "verdict": "holds", "cases": 100,
           "figures": [{"figure": "b", "worst": 3e-16, "sign": "<=", "bound": 1e-10}]}
    save_ledger([row], path)
    first = path.read_text()
    assert json.loads(first) == [row]
    figure = row["figures"][0]
    save_ledger([{**row, "cases": 101, "figures": [{**figure, "worst": 5e-15}]}], path)
    assert path.read_text() == first
    for other in ([{**row, "verdict": "open"}], [{**row, "cases": 200}], [row, {**row, "row": "c"}],
                  [{**row, "figures": [{**figure, "worst": 1e-3}]}],
                  [{**row, "figures": [{**figure, "bound": 1e-9}]}]):
        save_ledger([row], path)
        save_ledger(other, path)
        assert json.loads(path.read_text()) == other


def test_ledger_in_results_has_the_rows_and_verdicts_of_this_file():
    """results/ledger.json, which a whole run writes: `uv run test_updates.py`."""
    saved = json.loads((ROOT / "results" / "ledger.json").read_text())
    names = "row", "source", "verdict", "statement", "tried_on"
    found = [tuple(row[name] for name in names) for row in saved]
    assert found == [(row, *columns) for row, columns in LEDGER.items()]


def test_ledger_in_the_pages_is_the_one_in_results():
    """What studies/ledger.py would write is what is there. Control: another verdict would change it."""
    saved = (ROOT / "results" / "ledger.json").read_text()
    other = saved.replace("holds as corrected", "holds", 1)
    texts = [filled(pages(), "ledger.py", ledger.tables(json.loads(text))) for text in (saved, other)]
    assert texts[0] == pages() != texts[1], "run: uv run studies/ledger.py"
