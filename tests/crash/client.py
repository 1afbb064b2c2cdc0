"""A client that trains a session through every crash, and takes note of all that it is told."""

import random
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import httpx
from curvserve_client.errors import PROBLEMS
from curvserve_client.wire import decode
from torch import Tensor

from tests.crash.workload import Call, Workload
from tests.server.api import SessionApi
from tests.server.process import PATIENCE

Answer = dict[str, Any]

State = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors and metadata of a checkpoint: parameters, buffers, what the rule remembers."""

OF_THE_WRITING = {"written", "created", "epoch", "checksum"}
"""Metadata of a checkpoint that do not belong to the state."""

RECENT = 32
"""Changes that are asked for a second time now and then."""

AGAIN = 100_000
"""Attempts at one request after which there is no use in going on."""

MOMENT = 0.02
"""Seconds after a broken connection within which the end of the server becomes known."""


class Violation(AssertionError):
    """A promise of the service was broken.

    Attributes:
        kind: `lost`, `doubled`, `different` or `other`.
    """

    def __init__(self, kind: str, text: str) -> None:
        """Say which promise, and how."""
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Abandoned(Exception):
    """Another client found a promise broken, and the run is over."""


class Service:
    """What clients know of the server: where it is, and whether there is one at the moment."""

    def __init__(self, address: str) -> None:
        """Begin without a server.

        Args:
            address: the URL of every one that there will be.
        """
        self.address = address
        self._changed = threading.Condition()
        self._serving = False
        self._failed = False
        self._acknowledged = 0

    def told(self, *, serving: bool) -> None:
        """Note that there is a server now, or none."""
        with self._changed:
            self._serving = serving
            self._changed.notify_all()

    def acknowledged(self) -> None:
        """Note that a change was acknowledged."""
        with self._changed:
            self._acknowledged += 1
            self._changed.notify_all()

    def wait_for_changes(self, number: int) -> None:
        """Return when so many more changes were acknowledged, or a promise was broken."""
        with self._changed:
            last = self._acknowledged + number
            enough = self._changed.wait_for(
                lambda: self._failed or self._acknowledged >= last, PATIENCE
            )
        assert enough, "no change was acknowledged"

    def fail(self) -> None:
        """Note that a promise was broken."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def failed_within(self, seconds: float) -> bool:
        """Wait for a broken promise, and tell whether there is one."""
        with self._changed:
            return self._changed.wait_for(lambda: self._failed, seconds)

    def await_news(self) -> None:
        """Give the one who ends servers a moment to say that this one has ended."""
        with self._changed:
            self._changed.wait(MOMENT)

    def wait(self) -> None:
        """Return when there is a server.

        Raises:
            Abandoned: the run is over.
            Violation: none came back.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._serving or self._failed, PATIENCE):
                raise Violation("other", "no server came back")
            if self._failed:
                raise Abandoned


class Client:
    """One client of one session.

    It sends a change with the version that it knows and a key made from that version, again and
    again with the same key until it is answered, and then the next. Now and then it asks for an
    older change once more, and must be told what it was told at first.

    Attributes:
        workload: what it does.
        answers: what was acknowledged, as it was told first; the first is of version 1.
        durable: the newest version that it was told to be durable.
        lost: acknowledged versions that were gone after a restart, where the level allows that.
        retries: requests that were sent again.
    """

    def __init__(self, workload: Workload, service: Service, *, may_lose: bool = False) -> None:
        """Prepare; nothing is sent.

        Args:
            workload: what it is to do.
            service: where the server is.
            may_lose: whether versions that were not told to be durable may be lost.
        """
        self.workload = workload
        self.answers: list[Answer] = []
        self.durable = 0
        self.lost = 0
        self.retries = 0
        self._version = 0
        self._service = service
        self._may_lose = may_lose
        self._attempts = count()
        self._random = random.Random(workload.seed)
        self._http = httpx.Client(base_url=service.address, timeout=PATIENCE)
        self._api = SessionApi(self._http, workload.name)

    def create(self) -> None:
        """Begin the session; it may have begun at an attempt whose answer was lost."""
        session = {
            "model": self.workload.model,
            "name": self.workload.name,
            "seed": self.workload.seed,
            "rule": self.workload.rule,
        }
        answer = self._answered(lambda: self._http.post("/v1/sessions", json=session))
        if answer.status_code != 201 and _code(answer) != "session_exists":
            raise Violation("other", f"the session was not created: {answer.text}")

    def train(self, stop: threading.Event) -> None:
        """Take changes until it is told to stop; the one under way is finished."""
        while not stop.is_set():
            self._advance()

    def finish(self) -> None:
        """Look where the session is, and take once more what was lost since the last answer."""
        version = self.get().json()["version"]
        if version != self._version:
            self._go_back(version, "that is its version now")
        self.advance_to(len(self.answers))

    def advance_to(self, version: int) -> None:
        """Take changes up to a version."""
        while self._version < version:
            self._advance()

    def get(self, noun: str = "") -> httpx.Response:
        """Read something of the session."""
        return self._answered(lambda: self._api.get(noun))

    def state(self, name: str) -> State:
        """Return the current state, kept as a checkpoint of a name."""
        path = f"{self._api.path}/checkpoints"
        made = self._answered(lambda: self._http.post(path, json={"name": name}))
        assert made.status_code == 201, made.text
        tensors, metadata = decode(bytearray(self.get(f"checkpoints/{name}").content))
        return tensors, {key: metadata[key] for key in metadata.keys() - OF_THE_WRITING}

    def close(self) -> None:
        """Give the connection back."""
        self._http.close()

    def _advance(self) -> None:
        version = self._version
        *preparing, making = self.workload.change(version)
        attempt = next(self._attempts)
        for part, call in enumerate(preparing):
            # a key of its own at each attempt: what was pending is lost with the server
            if not self._ask(call, f"{version}-{attempt}-{part}", version):
                return
        answer = self._ask(making, f"{version}", version)
        if answer:
            self._acknowledge(answer)
            self._repeat()

    def _acknowledge(self, answer: Answer) -> None:
        self._version += 1
        if answer["version"] != self._version:
            kind = "doubled" if answer["version"] > self._version else "lost"
            raise Violation(kind, f"{self.workload.name}: version {self._version} is {answer}")
        self._note_durable(answer.pop("durable_version"))
        if self._version > len(self.answers):
            self.answers.append(answer)
        self._compare(self._version, answer)
        self._service.acknowledged()

    def _note_durable(self, durable: int | None) -> None:
        if durable is None:
            return
        if not self._may_lose and durable < self._version:
            raise Violation("lost", f"{self._version} is acknowledged, only {durable} is durable")
        self.durable = max(self.durable, durable)

    def _repeat(self) -> None:
        """Now and then ask for a change again that was acknowledged some time ago."""
        if self._random.random() < 0.75:
            return
        version = self._random.randrange(max(0, self._version - RECENT), self._version)
        making = self.workload.change(version)[-1]
        answer = self._ask(making, f"{version}", version)
        if answer:
            del answer["durable_version"]
            self._compare(version + 1, answer)

    def _compare(self, version: int, answer: Answer) -> None:
        first = self.answers[version - 1]
        if answer != first:
            told = f"{self.workload.name}: version {version} was {first}, is {answer}"
            raise Violation("different", told)

    def _ask(self, call: Call, key: str, version: int) -> Answer | None:
        """Return the answer, or None where there is nothing left to go on from."""
        answer = self._answered(lambda: self._send(call, key, version))
        if answer.status_code == 200:
            return dict(answer.json())
        if _code(answer) == "nothing_pending":
            return None
        if _code(answer) == "stale_version":
            self._go_back(int(answer.headers["etag"].strip('"')), answer.text)
            return None
        raise Violation("other", f"{self.workload.name}: {call.noun} {key} got {answer.text}")

    def _send(self, call: Call, key: str, version: int) -> httpx.Response:
        return self._api.send(
            call.noun,
            call.content,
            media_type=call.media_type,
            version=version,
            key=key,
            query=call.query,
        )

    def _go_back(self, version: int, told: str) -> None:
        """Go on from an older version, if losing the later ones was what the level allows."""
        if version > self._version:
            raise Violation("doubled", f"{self.workload.name} knows {self._version}: {told}")
        if version == self._version:
            raise Violation("lost", f"{self.workload.name}: the key of a change is forgotten")
        if not self._may_lose or version < self.durable:
            durable = f"{self.durable} was durable"
            raise Violation(
                "lost", f"{self.workload.name} knows {self._version}, {durable}: {told}"
            )
        self.lost += self._version - version
        self._version = version

    def _answered(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """Send until there is an answer other than that it comes later."""
        for _ in range(AGAIN):
            self._service.wait()
            try:
                answer = send()
            except httpx.TransportError:
                self.retries += 1
                self._service.await_news()
                continue
            if _code(answer) not in ("in_flight", "draining"):
                return answer
            self.retries += 1
        raise Violation("other", f"{self.workload.name} had no answer in {AGAIN} attempts")


def _code(answer: httpx.Response) -> str:
    """Return the code of a problem; empty where there is none."""
    if answer.headers.get("content-type") != "application/problem+json":
        return ""
    code = str(answer.json()["code"])
    assert code in PROBLEMS
    return code
