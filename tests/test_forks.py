"""What tests/forks.py leaves behind when the tests do not come to their end: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forks import ROOT
from tests.services import wait_for

#: What it forks stays at its first step, for nobody reads its output.
TESTS = """
import os, sys, time
from pathlib import Path
from tests import forks
forks._LOADED[:] = []
here = Path(sys.argv[1])
os.mkfifo(here / "out")
fork = forks.Fork(["--help"], out=here / "out", err=here / "out", env={}, cwd=here)
print(fork.pid, flush=True)
time.sleep(600)
"""


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("number", "group"),
    [
        pytest.param(signal.SIGTERM, False, id="ended"),
        pytest.param(signal.SIGTERM, True, id="ended with all of their group"),
    ],
)
def test_nothing_stays_of_tests_that_were_killed(number: int, group: bool, tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    tests = subprocess.Popen(
        [sys.executable, "-c", TESTS, str(tmp_path)], env=env, stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert tests.stdout is not None
    forked = int(tests.stdout.readline())
    assert _is_there(forked) and len(list(tmp_path.glob("pymp-*"))) == 1
    (os.killpg if group else os.kill)(tests.pid, number)
    assert tests.wait(30) == -number
    wait_for(lambda: not _is_there(forked), "the end of what was forked")
    wait_for(lambda: not list(tmp_path.glob("pymp-*")), "the end of the server's folder")
    tests.stdout.close()
