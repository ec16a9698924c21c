"""Where the tests of this folder find the scripts, and the mark of long ones."""
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: long sweeps, skipped without -m slow")
