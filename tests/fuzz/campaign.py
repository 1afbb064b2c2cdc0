"""Mutated bodies, documents and heads against a live server, each answer held against the oracle.

Item number i of a kind is made from (seed, kind, i) alone: what went wrong can be made again.
"""

import json
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from curvserve_client.wire import MEDIA_TYPE, encode

from tests.fuzz import mutations, texts
from tests.fuzz.oracle import Verdict, is_parameters, judge
from tests.server import raw, tiny
from tests.server.process import Server

JSON = "application/json"
SESSION = "/v1/sessions/tiny"
WARM_UP = 0.2
"""Share of a campaign after which memory is looked at for the first time."""
LOOK_EVERY = 1000
"""Items between two looks at the whole state."""
GROWTH = 32 * 1024
"""KiB by which the server's resident memory may differ behind the warm-up."""
A_PROGRAM = 12
"""Equal batches behind which there is a program; what torch loads for a first one stays."""
SILENCE = 0.5
"""Seconds after which the sender of a head takes it that the server waits for more."""


@dataclass(frozen=True)
class Reply:
    """What a server said: its status, its body, and the version in its ETag."""

    status: int
    body: bytes
    etag: str | None

    @property
    def code(self) -> str:
        """The problem's code; empty where it is none."""
        start = self.body.find(b'"code": "')
        return "" if start < 0 else self.body[start + 9 :].partition(b'"')[0].decode()


class Target:
    """The server under test, on one connection that is kept open."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._connection = HTTPConnection(urlsplit(server.address).netloc, timeout=raw.PATIENCE)
        self._keys = 0

    def send(self, call: str, body: bytes, media_type: str = MEDIA_TYPE) -> Reply:
        self._keys += 1
        headers = {
            "content-type": media_type,
            "if-match": "*",
            "idempotency-key": f"fuzz-{self._keys}",
        }
        return self._exchange("PUT" if call == "parameters" else "POST", call, body, headers)

    def state(self) -> tuple[dict[str, Any], bytes]:
        """The session as it is described, and its parameters.

        How its batches are computed is left out: a program is made for a shape that comes often.
        """
        described = json.loads(self._exchange("GET", "", None, {}).body)
        del described["execution"]
        return described, self._exchange("GET", "parameters", None, {}).body

    def memory(self) -> int:
        """Resident memory of the server, in KiB."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def close(self) -> None:
        self._connection.close()

    def _exchange(
        self, method: str, noun: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Reply:
        self._connection.request(method, f"{SESSION}/{noun}".rstrip("/"), body, headers)
        answer = self._connection.getresponse()
        return Reply(answer.status, answer.read(), answer.getheader("etag"))


@dataclass
class Findings:
    """What a campaign has come to.

    Attributes:
        counts: kind and outcome -> how often.
        violations: sentences, each with what makes the item again.
        memory: KiB behind the warm-up, and at the end.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def body_item(target: Target, rng: Random) -> tuple[str, str]:
    """Send one mutated tensor body; return its outcome and what is wrong with it, if anything."""
    body, done = mutations.mutated(rng)
    verdict = judge(body)
    call, expected = _call(rng, verdict)
    reply = target.send(call, body)
    outcome = f"{reply.status} {reply.code}".strip()
    wrong = verdict.difference()
    if reply.code not in expected or (reply.status >= 400) != bool(reply.code):
        wrong = f"{call} was answered {outcome}, expected {' or '.join(expected) or 'success'}"
    return outcome, (wrong or _moved(reply)) and f"{wrong or _moved(reply)} (after {done})"


def _call(rng: Random, verdict: Verdict) -> tuple[str, tuple[str, ...]]:
    """Choose a call that must not change the session, and the codes it may be answered with."""
    if verdict.ours is None:
        call = rng.choice(("step", "forward_backward", "parameters", "evaluate"))
        # the layout is looked at before the bytes of a BOOL are
        return call, ("malformed_body", *["invalid_batch"] * ("is BOOL" in verdict.reason))
    if verdict.code and rng.random() < 0.5 and not is_parameters(verdict.ours):
        return "parameters", ("invalid_batch",)
    if verdict.code:
        return rng.choice(("step", "forward_backward", "curvature")), (verdict.code,)
    return rng.choice(("evaluate", "curvature")), ("", "non_finite")


def document_item(target: Target, rng: Random) -> tuple[str, str]:
    """Send one scrambled JSON document to a call that cannot change the session with it."""
    call, make = rng.choice((("evaluate", texts.batch), ("optim_step", texts.optim_step)))
    reply = target.send(call, make(rng), JSON)
    wrong = f"{call} was answered {reply.status}" if reply.status >= 500 else _moved(reply)
    return f"{reply.status} {reply.code}".strip(), wrong


def head_item(target: Target, rng: Random) -> tuple[str, str]:
    """Send one scrambled head on a connection of its own; hang up where the server waits."""
    sent = texts.head(rng)
    with raw.connect(target.server.address) as connection:
        connection.sendall(sent)
        if not select.select([connection], [], [], SILENCE)[0]:
            connection.shutdown(socket.SHUT_WR)
        reply = raw.read_answer(connection, to_head=sent.lstrip().startswith(b"HEAD "))
    status = reply.status_code if reply else 0
    return str(status) if reply else "closed", f"{sent!r}: {status}" if status >= 500 else ""


def _moved(reply: Reply) -> str:
    return "" if reply.etag in ('"0"', None) else f"the version is {reply.etag}"


Item = Callable[[Target, Random], tuple[str, str]]

KINDS: Mapping[str, Item] = {"body": body_item, "document": document_item, "head": head_item}


def run(
    server: Server,
    seed: int,
    sizes: Mapping[str, int],
    shown: Callable[[Iterator[int]], Iterator[int]],
) -> Findings:
    """Run a campaign.

    Args:
        server: serves the model `tiny`; nothing has been done to its session yet.
        seed: what every item is made from.
        sizes: kind -> how many of it.
        shown: wraps the walk through the items, for a progress bar.
    """
    target, findings = Target(server), Findings()
    before = target.state()
    for _ in range(A_PROGRAM):
        target.send("curvature", b"".join(encode(tiny.batch())))
    walk = _order(sizes)
    warm = int(WARM_UP * len(walk))
    for place in shown(iter(range(len(walk)))):
        kind, number = walk[place]
        if place == warm:
            findings.memory.append(target.memory())
        try_one(target, findings, seed, kind, number)
        if place % LOOK_EVERY == LOOK_EVERY - 1 and target.state() != before:
            findings.violations.append(f"the state is another one after item {place}")
            break
    _close_the_books(target, findings, before)
    target.close()
    return findings


def try_one(target: Target, findings: Findings, seed: int, kind: str, number: int) -> None:
    """Make one item, send it, and note what came of it."""
    try:
        outcome, wrong = KINDS[kind](target, Random(f"{seed} {kind} {number}"))
    except (OSError, HTTPException) as error:
        outcome, wrong = "no answer", f"no answer: {error!r}"
    findings.counts[kind, outcome] += 1
    if wrong:
        findings.violations.append(f"--seed {seed} --only {kind}:{number}: {wrong}")


def _order(sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    """All items, the kinds evenly mixed."""
    items = [(n / size, kind, n) for kind, size in sizes.items() for n in range(size)]
    return [(kind, n) for _, kind, n in sorted(items)]


def _close_the_books(
    target: Target, findings: Findings, before: tuple[dict[str, Any], bytes]
) -> None:
    """Memory, state, and a good step at the end of it all."""
    findings.memory.append(target.memory())
    if abs(findings.memory[-1] - findings.memory[0]) > GROWTH:
        findings.violations.append(f"memory went from {findings.memory} KiB")
    if target.state() != before:
        findings.violations.append("the state is another one at the end")
    reply = target.send("step", b"".join(encode(tiny.batch())))
    if (reply.status, reply.etag) != (200, '"1"'):
        findings.violations.append(f"a good step is answered {reply}")
