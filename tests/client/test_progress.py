"""The line that a person sees while a call takes long: on a terminal, and nowhere else."""

import asyncio
import io
import os
import re
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from select import select
from typing import TextIO

import pytest
import torch
from curvserve_client import AsyncClient, Client, CurvserveError, RemoteSession, progress
from curvserve_client.transport import Transport

from tests.client.servers import Peer, serving
from tests.client.test_retries import INFO, MODELS, one_after_another, problem

LARGE = torch.zeros(64, 1 << 17), torch.zeros(1 << 15, dtype=torch.int64)


class Terminal:
    """A pseudo-terminal: one end is written to as the error output, the other is read."""

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        tty.setraw(slave)
        self.stream: TextIO = os.fdopen(slave, "w")
        self.shown = ""

    def read_until(self, text: str) -> None:
        """Wait until a text was shown, a regular expression."""
        while not re.search(text, self.shown):
            assert select([self.master], [], [], 60)[0], self.shown
            self.shown += os.read(self.master, 4096).decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self.master)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CURVSERVE_PROGRESS", raising=False)


@contextmanager
def watching() -> Iterator[Terminal]:
    """Have a terminal for the error output."""
    terminal = Terminal()
    with redirect_stderr(terminal.stream):
        yield terminal
    terminal.close()


def slowly(seen: threading.Event, *answers: bytes) -> Callable[[Peer], None]:
    """Send the parts of an answer, each but the first once the one before was seen."""

    def talk(peer: Peer) -> None:
        peer.receive()
        for answer in answers:
            assert seen.wait(60)
            seen.clear()
            peer.send(answer)

    return talk


def halves(answer: bytes) -> tuple[bytes, bytes]:
    return answer[:-4], answer[-4:]


def test_a_long_call_is_told_and_wiped_away() -> None:
    seen, (first, second) = threading.Event(), halves(MODELS)
    with (
        watching() as terminal,
        serving(slowly(seen, first, second)) as server,
        Client(server.url) as client,
    ):
        found: list[object] = []
        caller = threading.Thread(target=lambda: found.append(client.models()))
        caller.start()
        terminal.read_until(f"waiting for the answer, 1 s: .*models from {server.url}")
        seen.set()
        terminal.read_until("receiving 0.0 of 0.0 MB, ")
        seen.set()
        caller.join()
        assert found
        terminal.read_until(r"\r +\r$")


def test_a_pause_between_attempts_is_told() -> None:
    answers = one_after_another([problem("overloaded", retry_after=2), MODELS])
    with watching() as terminal, serving(answers) as server, Client(server.url) as client:
        caller = threading.Thread(target=client.models)
        caller.start()
        terminal.read_until(r"trying again \(Overloaded\), 1 s")
        caller.join()


def test_a_long_upload_is_told() -> None:
    seen = threading.Event()

    def talk(peer: Peer) -> None:
        peer.connection.recv(1)
        assert seen.wait(60)
        if peer.receive() is not None:
            peer.send(problem("invalid_tensors"))

    with (
        watching() as terminal,
        serving(talk) as server,
        RemoteSession(Transport(server.url, 60), INFO, owner=True) as session,
    ):
        caller = threading.Thread(target=refused, args=(session.step, *LARGE))
        caller.start()
        terminal.read_until("sending [0-9.]+ of 33.8 MB, 1 s: a step of session '")
        seen.set()
        caller.join()


def test_awaited_calls_are_told_too() -> None:
    seen = threading.Event()

    async def ask(address: str, terminal: Terminal) -> None:
        async with AsyncClient(address) as client:
            asking = asyncio.create_task(client.models())
            await asyncio.to_thread(terminal.read_until, "waiting for the answer, 1 s")
            seen.set()
            await asking

    with watching() as terminal, serving(slowly(seen, MODELS)) as server:
        asyncio.run(ask(server.url, terminal))


@pytest.mark.parametrize(("switch", "told"), [("", True), ("0", False), ("1", True)])
def test_a_switch_says_whether_it_is_told(
    switch: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURVSERVE_PROGRESS", switch)
    with watching():
        assert watched() is told


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_nothing_is_told_where_nobody_watches(stream: TextIO | None) -> None:
    with redirect_stderr(stream):
        assert not watched()


def watched() -> bool:
    """Tell whether a call is looked at while it waits."""
    found = []

    def talk(peer: Peer) -> None:
        peer.receive()
        found.append(bool(progress._PAINTER._calls))
        peer.send(MODELS)

    with serving(talk) as server, Client(server.url) as client:
        client.models()
    return found == [True]


def refused(call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(CurvserveError):
        call(*arguments)
