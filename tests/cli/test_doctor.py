"""What the doctor finds, on this machine and on a running server."""

import json
import os
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import curvserve_client
import httpx
import pytest
import torch

from curvserve import __version__
from curvserve.doctor import compute, folder, software
from curvserve.doctor.check import Check
from curvserve.doctor.network import network
from curvserve.doctor.server import ask
from tests.cli.run import curvserve, document, printed, refused
from tests.client.servers import answering, closed_port, http
from tests.server.process import serving
from tests.server.test_access import KEYS, write_keys


def by_name(checks: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in checks}


def test_it_tells_versions_devices_disk_and_network(tmp_path: Path) -> None:
    there = ("--data-dir", str(tmp_path), "--port", str(closed_port()))
    found = by_name(document("doctor", *there))
    assert found["curvserve"]["found"] == __version__
    assert torch.__version__.startswith(found["torch"]["found"])
    assert {"python", "fastapi", "uvicorn", "cpu", "memory", "file system", "disk"} <= set(found)
    assert "ms, median of" in found["sync"]["found"]
    assert "is free" in found["port"]["found"] and "us, median of" in found["loopback"]["found"]
    assert all(list(each) == ["name", "found", "status", "advice"] for each in found.values())
    assert list(tmp_path.iterdir()) == []
    text = printed("doctor", *there).splitlines()
    assert text[0].split() == ["status", "what", "found", "what", "to", "do"]
    assert len(text) == len(found) + 1


def test_a_kernel_that_was_not_compiled_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute.native, "instructions", lambda: None)
    found = {check.name: check for check in compute.compute()}["kernel"]
    assert found.status == "warning" and "C compiler" in found.advice


def test_an_error_ends_it_with_1(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = curvserve("doctor", "--data-dir", str(tmp_path / "file"), "--json")
    assert done.exit_code == 1
    told = by_name(json.loads(done.stdout))["data folder"]
    assert told["status"] == "error" and "cannot be written" in told["found"]


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_above(tmp_path: Path) -> None:
    first, *_ = folder.folder(tmp_path / "a" / "b")
    assert first == Check("data folder", f"to be made in {tmp_path}")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("nfs4", "prefer a local disk"),
        ("fuse.sshfs", "prefer a local disk"),
        ("tmpfs", "it ends with the machine"),
        ("overlay", "mount a volume"),
    ],
)
def test_a_file_system_that_does_not_last_is_warned_of(
    kind: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"2 1 0:9 / {tmp_path} rw shared:1 - {kind} somewhere rw\n"
        f"3 1 0:9 / {tmp_path}-beside rw - xfs other rw\n"
    )
    monkeypatch.setattr(folder, "_MOUNTS", mounts)
    found = {check.name: check for check in folder.folder(tmp_path)}["file system"]
    assert (found.found, found.status) == (kind, "warning") and advice in found.advice


def test_a_full_disk_and_a_slow_one_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_ROOM", 2**80)
    monkeypatch.setattr(folder, "_SLOW", -1.0)
    found = {check.name: check for check in folder.folder(tmp_path)}
    assert found["disk"].status == found["sync"].status == "warning"


def test_more_threads_than_a_container_has_cores_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("50000 100000\n")
    monkeypatch.setattr(compute, "_QUOTA", quota)
    found = next(check for check in compute.compute() if check.name == "cpu")
    assert found.status == "warning" and "on 0.5 cores" in found.found
    assert "OMP_NUM_THREADS=1" in found.advice


def test_a_driver_that_torch_does_not_see_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX Kernel Module  600.1\nGCC\n")
    monkeypatch.setattr(compute, "_DRIVER", driver)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = next(check for check in compute.compute() if check.name == "gpu")
    assert found.status == "error" and "600.1" in found.found


def test_a_package_that_is_missing_or_of_another_version_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(software, "version", absent)
    monkeypatch.setattr(curvserve_client, "__version__", "0.0.1")
    found = {check.name: check for check in software.software()}
    assert found["torch"] == Check("torch", "not installed", "error", "pip install torch")
    assert found["curvserve-client"].status == "warning"


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        checks = {check.name: check for check in network("127.0.0.1", taken.getsockname()[1])}
    assert checks["port"].status == "warning" and "already in use" in checks["port"].found


def test_a_running_server_is_asked(server_url: str) -> None:
    found = by_name(document("doctor", "--url", server_url))
    assert list(found) == ["server", "ready", "version"]
    assert found["version"]["found"] == __version__


def test_a_server_that_is_not_there_is_an_error() -> None:
    done = curvserve("doctor", "--url", f"http://127.0.0.1:{closed_port()}", "--json")
    assert done.exit_code == 1
    assert "no answer" in by_name(json.loads(done.stdout))["server"]["found"]


def test_another_service_at_the_address_is_an_error() -> None:
    with (
        answering(http(404, "text/plain", b"")) as running,
        httpx.Client(base_url=running.url) as client,
    ):
        (check,) = ask(client)
    assert check.status == "error" and "/livez answers 404" in check.found


def test_a_socket_is_asked_too_and_a_key_is_asked_for(tmp_path: Path) -> None:
    keys, path = write_keys(tmp_path / "keys.toml", "read"), tmp_path / "socket"
    with serving("--uds", str(path), "--api-keys", str(keys), "--log-level", "error"):
        found = by_name(document("doctor", "--url", f"unix:{path}"))
        assert found["version"]["found"] == "told to callers with a key"
        key = {"CURVSERVE_API_KEY": KEYS["read"][0]}
        found = by_name(document("doctor", "--url", f"unix:{path}", **key))
        assert found["version"]["found"] == __version__


def test_a_url_that_is_none_is_a_wrong_argument() -> None:
    assert "is not a server's URL" in refused(2, "doctor", "--url", "http://a:b")


def test_a_running_server_is_asked_without_torch(server_url: str) -> None:
    program = (
        "import sys\nfrom curvserve.cli import app\n"
        f"app(['doctor', '--url', {server_url!r}], standalone_mode=False)\n"
        "assert not {'torch', 'fastapi'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], env=os.environ).returncode == 0
