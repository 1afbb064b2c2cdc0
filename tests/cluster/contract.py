"""The contract's own tests over workers: `python -m tests.cluster.contract`.

The servers that they start take their options from the environment, so not one test is another.
"""

import os
import subprocess
import sys

import ray

from curvserve.cluster import joining

TESTS = ("test_contract.py", "test_nouns.py", "test_parameters.py", "test_refusals.py")


def main() -> int:
    """Begin a cluster, run the tests on it, and return their exit status."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    joining.join(None)
    address = ray.get_runtime_context().gcs_address
    environment = os.environ | {
        "CURVSERVE_EXECUTOR": "ray",
        "CURVSERVE_RAY_ADDRESS": address,
        "CURVSERVE_WORKERS_PER_SESSION": "2",
        "CURVSERVE_CPUS_PER_WORKER": "0.01",  # tests leave many sessions
    }
    command = [sys.executable, "-m", "pytest", *(f"tests/server/{name}" for name in TESTS)]
    return subprocess.run([*command, "-v", *sys.argv[1:]], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
