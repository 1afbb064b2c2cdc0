"""Threads that stay on a CPU of their own."""

import json
import os
import subprocess
import sys

import pytest

from tests.engine.compiled_kernels import needs_compiler

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc tells where threads may run"),
]

PROGRAM = """
import json, os, threading
import torch
from curvserve.engine import native

def where():
    return {int(t): sorted(os.sched_getaffinity(int(t))) for t in os.listdir("/proc/self/task")}

def compute(threads):
    torch.set_num_threads(threads)
    bound = native.bind_team()
    torch.ones(1 << 20).mul_(2)
    told.append({"bound": bound, "threads": where()})

told = [{"threads": where()}]
cpus = len(os.sched_getaffinity(0))
for threads in (max(1, cpus - 1), cpus):
    thread = threading.Thread(target=compute, args=(threads,))
    thread.start()
    thread.join()
print(json.dumps(told))
"""


def test_a_team_as_large_as_the_machine_stays_where_it_is() -> None:
    """And a smaller one, which is made before, goes where it likes."""
    cpus = sorted(os.sched_getaffinity(0))
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(cpus))}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before, smaller, whole = json.loads(done.stdout)
    assert smaller["bound"] == 0 and set(map(tuple, smaller["threads"].values())) == {tuple(cpus)}
    expected = [[cpu] for cpu in cpus] if len(cpus) > 1 else []
    bound = [where for where in whole["threads"].values() if where != cpus]
    assert whole["bound"] == len(expected) and sorted(bound) == expected
    main = min(before["threads"], key=int)
    assert whole["threads"][main] == cpus
