"""Ray is neither imported nor installed by who has not asked for it."""

import subprocess
import sys
import tomllib

from tests.server.process import ROOT
from tests.server.tiny import REFERENCE

LOADED = """
import pkgutil, sys, importlib, curvserve
for found in pkgutil.walk_packages(curvserve.__path__, "curvserve."):
    if not found.name.startswith("curvserve.cluster") and "__main__" not in found.name:
        importlib.import_module(found.name)
import curvserve.cluster.beginning, curvserve.cluster.worker
assert "curvserve.cli.serve" in sys.modules and "curvserve.server.app" in sys.modules
assert "ray" not in sys.modules, "ray"
"""

WITHOUT = """
import sys
sys.modules["ray"] = None
from curvserve.cli import main
sys.argv[1:] = ["serve", "--executor", "ray", "--model", %r]
main()
"""


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)


def test_nothing_imports_ray() -> None:
    ended = python(LOADED)
    assert ended.returncode == 0, ended.stderr


def test_ray_is_in_an_extra_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [each for each in project["dependencies"] if each.startswith("ray")]
    extra = project["optional-dependencies"]["ray"]
    assert [each for each in extra if each.startswith("ray[client]>=")]  # its client for ray://


def test_who_asks_for_it_without_the_extra_is_told_what_to_install() -> None:
    ended = python(WITHOUT % REFERENCE)
    assert ended.returncode == 1
    assert "--executor ray needs the extra: pip install 'curvserve[ray]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_device_that_workers_have_not_is_told() -> None:
    command = [sys.executable, "-m", "curvserve", "serve", "--executor", "ray", "--port", "0"]
    command += ["--model", REFERENCE, "--device", "cuda:3"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1
    assert "device 'cuda:3': with --executor ray one of auto, cpu, cuda" in ended.stderr
    assert "Traceback" not in ended.stderr
