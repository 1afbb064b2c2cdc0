"""The systemd unit: read by systemd itself where it is, and fit for the server."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deployment.files import DOCKER, OPTIONS, time_to_stop

UNIT = DOCKER / "systemd" / "curvserve.service"
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze here")


def settings() -> dict[str, str]:
    """The unit's settings; of those that stand twice the last."""
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


def verified(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Have systemd look at a unit, whose program is here."""
    unit = folder / UNIT.name
    unit.write_text(text.replace("/opt/curvserve/bin/curvserve", "/bin/true"))
    return subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )


@needs_systemd
def test_systemd_takes_every_setting(tmp_path: Path) -> None:
    done = verified(tmp_path, UNIT.read_text())
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_a_setting_that_is_misspelt_would_be_found(tmp_path: Path) -> None:
    done = verified(tmp_path, UNIT.read_text().replace("ProtectHome=", "ProtectHomes="))
    assert "'ProtectHomes'" in done.stderr


def test_the_program_is_started_with_options_that_there_are() -> None:
    program, command, *arguments = shlex.split(settings()["ExecStart"])
    assert (program, command) == ("/opt/curvserve/bin/curvserve", "serve")
    flags = [each for each in arguments if each.startswith("--")]
    assert {f"CURVSERVE_{flag[2:].replace('-', '_').upper()}" for flag in flags} <= OPTIONS
    credential, _, _ = settings()["LoadCredential"].partition(":")
    assert f"%d/{credential}" in arguments
    assert f"%S/{settings()['StateDirectory']}" in arguments


def test_the_server_is_given_the_time_that_it_needs_to_stop() -> None:
    assert float(settings()["TimeoutStopSec"]) > time_to_stop({})


def test_the_unit_can_write_nothing_but_its_state() -> None:
    wanted = {
        "DynamicUser": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "StateDirectoryMode": "0700",
    }
    assert wanted.items() <= settings().items()
