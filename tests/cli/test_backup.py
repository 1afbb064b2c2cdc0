"""Backup and restore while serving: the same parameters, and the same steps from there on."""

import math
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from curvserve_client import Client, DiagGGN
from torch import Tensor

from tests.cli.run import document, refused
from tests.client.servers import answering, http
from tests.documentation.pages import blocks
from tests.server.process import serving
from tests.server.tiny import CLASSES, FEATURES, REFERENCE

State = dict[str, Tensor]


def batch(version: int) -> tuple[Tensor, Tensor]:
    """The batch of the step to a version."""
    generator = torch.Generator().manual_seed(version)
    return (
        torch.randn(8, FEATURES, generator=generator),
        torch.randint(CLASSES, (8,), generator=generator),
    )


class Training(threading.Thread):
    """A client that trains until it has as many versions as it is told, and keeps them all."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__()
        self.url, self.name = url, name
        self.states: list[State] = []
        self.until = math.inf
        self.began = threading.Event()

    def run(self) -> None:
        with Client(self.url) as client:
            rule = DiagGGN(momentum=0.9, beta2=0.99)
            session = client.create_session("tiny", self.name, rule=rule)
            self.states.append(clone(session.pull()))
            while len(self.states) < self.until:
                session.step(*batch(len(self.states)))
                self.states.append(clone(session.pull()))
                if len(self.states) > 20:
                    self.began.set()


def clone(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


@contextmanager
def kept(folder: Path) -> Iterator[str]:
    """A server that keeps its sessions in a folder, and snapshots and prunes often."""
    level = ("--snapshot-every", "7", "--log-level", "error")
    with serving("--model", REFERENCE, "--data-dir", str(folder), *level) as running:
        yield running.address


def said() -> list[str]:
    """The commands of the operations page: how to back up, and how to restore."""
    found = [block.text for block in blocks("bash") if block.page.name == "operating.md"]
    return [line for text in found for line in text.splitlines()]


def test_what_is_restored_is_what_was_served_and_trains_on_alike(tmp_path: Path) -> None:
    back_up, *restore, serve = said()
    assert serve == "curvserve serve --data-dir restored"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with kept(tmp_path / "data") as url:
        shell = {"shell": True, "check": True, "cwd": tmp_path}
        environment = {**os.environ, "PATH": path, "CURVSERVE_URL": url}
        trainings = [Training(url, name) for name in ("first", "second")]
        for training in trainings:
            training.start()
        for training in trainings:
            training.began.wait()
        subprocess.run(back_up, **shell, env=environment, stdout=subprocess.DEVNULL)
        for training in trainings:
            training.until = len(training.states) + 5
            training.join()
    for command in restore:
        subprocess.run(command, **shell)
    with kept(tmp_path / "restored") as url, Client(url) as client:
        for training in trainings:
            session = client.session(training.name)
            info = session.info()
            assert info.problems == ()
            assert 20 <= info.version < len(training.states) - 1  # it trained on meanwhile
            for version in range(info.version, len(training.states)):
                if version > info.version:
                    session.step(*batch(version))
                found, right = session.pull(), training.states[version]
                assert all(torch.equal(found[name], right[name]) for name in right)


def test_a_backup_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    whole = http(200, "application/x-tar", bytes(1000))
    with answering(whole[:-500]) as running:
        line = refused(3, "backup", str(tmp_path / "a.tar"), "--url", running.url)
    assert "no backup from" in line
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_is_there_is_replaced_only_by_force(
    tmp_path: Path, server_url: str
) -> None:
    archive = tmp_path / "a.tar"
    archive.write_text("mine")
    assert "say --force" in refused(1, "backup", str(archive), "--url", server_url)
    assert "no data folder" in refused(1, "backup", str(archive), "--force", "--url", server_url)
    assert archive.read_text() == "mine"


def test_a_backup_tells_its_size_and_one_that_cannot_be_written_why(tmp_path: Path) -> None:
    with kept(tmp_path / "data") as url:
        archive = tmp_path / "a.tar"
        told = document("backup", str(archive), "--url", url)
        assert told == {"file": str(archive), "size": archive.stat().st_size}
        assert archive.stat().st_mode & 0o777 == 0o600
        with tarfile.open(archive) as opened:
            assert opened.getnames()[0] == "journal.sqlite"
            assert all(entry.isreg() and entry.mode == 0o600 for entry in opened)
        for target in (str(tmp_path / "data"), "/there/is/no/such/a.tar"):
            line = refused(1, "backup", target, "--url", url, "--force")
            assert f"cannot write {target}" in line
