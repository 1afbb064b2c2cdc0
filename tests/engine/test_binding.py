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

torch.set_num_threads({threads})

def where():
    return {{int(t): sorted(os.sched_getaffinity(int(t))) for t in os.listdir("/proc/self/task")}}

def compute():
    bound = native.bind_team()
    torch.ones(1 << 20).mul_(2)
    told.update(bound=bound, own=threading.get_native_id(), where=where())

told = {{}}
thread = threading.Thread(target=compute)
thread.start()
thread.join()
print(json.dumps(told))
"""


def run(threads: int) -> tuple[int, list[list[int]], list[int]]:
    """How many threads are bound, to what each that is, and where the main thread may run."""
    program = PROGRAM.format(threads=threads)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    main = min(told["where"], key=int)
    bound = [cpus for cpus in told["where"].values() if len(cpus) == 1]
    assert str(told["own"]) in told["where"]
    return told["bound"], bound, told["where"][main]


def test_a_team_as_large_as_the_machine_stays_where_it_is() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) == 1:
        assert run(1) == (0, [cpus] * 2, cpus)
        return
    count, bound, main = run(len(cpus))
    assert count == len(cpus)
    assert sorted(bound) == [[cpu] for cpu in cpus]
    assert main == cpus


def test_a_smaller_team_goes_where_it_likes() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    threads = max(1, len(cpus) - 1)
    count, bound, _ = run(threads)
    assert count == 0 and (bound == [] or len(cpus) == 1)
