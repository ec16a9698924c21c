"""Ten epochs give the bits that were recorded: what is laid anew must not move a number.

`python tests/test_bits.py` records them again, in tests/bits.json, in a commit of its own that says what
moved. Bits are those of one kind of CPU and build of numpy; on another one, the tests are skipped.
"""
import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import ctrpo
import sbtrpo
import strpo

RECORD = HERE / "bits.json"
GRID = "--task tabular_cmdp:HazardGrid-v0 --discount 1"
LINE = "--task environments:Unpaid-v0"
SMALL = "--hidden 8 --batch-steps 500 --total-steps 5000 --workers 1"
QUICK = {
    "sbtrpo": (sbtrpo, f"{SMALL} {GRID}"),
    "sbtrpo, Gaussian": (sbtrpo, f"{SMALL} {LINE}"),
    "sbtrpo, gae": (sbtrpo, f"{SMALL} {GRID} --advantage gae --batch-growth 2"),
    "sbtrpo, optimal": (sbtrpo, f"{SMALL} {GRID} --update optimal --cost-limit 1.5 --advantage mc"),
    "ctrpo": (ctrpo, f"{SMALL} --task tabular_cmdp:HazardGrid-v0 --cost-limit 1.5"),
    "ctrpo, paper": (ctrpo, f"--preset paper {SMALL} {LINE} --cost-limit 30"),
    "strpo": (strpo, f"{SMALL} {GRID} --cost-limit 1 --unsafe-steps 2000"),
    "strpo, paper": (strpo, f"--preset paper {SMALL} {LINE} --cost-limit 20 --unsafe-steps 2000"),
}
LONG = {
    "sbtrpo, default task": (sbtrpo, "--total-steps 95000"),
    "ctrpo, default task": (ctrpo, "--total-steps 95000"),
    "strpo, default task": (strpo, "--total-steps 140000 --unsafe-steps 140000"),
}


def digest(*arrays) -> str:
    text = hashlib.sha256()
    for array in arrays:
        text.update(np.ascontiguousarray(array).tobytes())
    return text.hexdigest()[:16]


def machine() -> str:
    """Of products and functions that builds of numpy and kinds of CPU round in ways of their own."""
    rng, found = np.random.default_rng(0), []
    for kind in (np.float32, np.float64):
        a = rng.standard_normal((300, 65)).astype(kind)
        found += [a.T @ a, a @ a[0], np.tanh(a), np.exp(a), np.log1p(np.abs(a)), a.sum(axis=0)]
    return digest(*found)


def bits(script, options: str) -> str:
    """Of parameters, moments and metrics at the end of a run in this process."""
    config, run, state, _ = script.open_run(options.split())
    state = script.train(config, run, state)
    metrics = [line.split(",")[:8] for line in state["progress"].decode().splitlines()]
    assert len(metrics) > 8, f"{len(metrics) - 1} epochs"
    arrays = [state["theta"], state["moments"]]
    arrays += [state[name] for name in sorted(state) if name.endswith("_critic")]
    return digest(*arrays, np.array(metrics, "U40"))


def compare(name: str, script, options: str, folder: Path, monkeypatch) -> None:
    recorded = json.loads(RECORD.read_text())
    if recorded["machine"] != machine():
        pytest.skip("recorded on another kind of CPU, or with another numpy")
    monkeypatch.chdir(folder)
    assert bits(script, options) == recorded[name]


@pytest.mark.parametrize("name", QUICK)
def test_ten_epochs_give_the_recorded_bits(name, tmp_path, monkeypatch):
    script, options = QUICK[name]
    monkeypatch.setattr(script, "make_executor", lambda config: ThreadPoolExecutor(1))
    compare(name, script, options, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.skipif("'slow' not in config.option.markexpr", reason="slow: run with -m slow")
@pytest.mark.parametrize("name", LONG)
def test_ten_epochs_of_the_default_task_give_the_recorded_bits(name, tmp_path, monkeypatch):
    compare(name, *LONG[name], tmp_path, monkeypatch)


if __name__ == "__main__":
    import os
    import tempfile

    record = {"machine": machine()}
    os.chdir(tempfile.mkdtemp())
    for name, (script, options) in (QUICK | LONG).items():
        record[name] = bits(script, options + f" --experiment {len(record)}")
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
