"""The contract of the HTTP API as a pure model: what a request must be answered, and what it does.

No tensors, no clock, no I/O, and nothing of the server's own state machine: the two are written
apart, so that they can be held against each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Call = Literal["step", "forward_backward", "optim_step", "parameters"]


@dataclass(frozen=True)
class Content:
    """What a change carries.

    Attributes:
        body: the bytes.
        media_type: how they are to be read.
        query: the query, with its question mark.
        early: the code for which it is refused before its key is looked at.
        flaw: the code for which it is refused when its turn has come.
        pending: how many batches an `optim_step` takes to be pending.
    """

    body: bytes
    media_type: str = "application/vnd.safetensors"
    query: str = ""
    early: str = ""
    flaw: str = ""
    pending: int | None = None


@dataclass(frozen=True)
class Change:
    """A request that changes a session.

    Attributes:
        session: the session's name.
        call: what it does.
        content: what it carries.
        key: its Idempotency-Key, if any.
        version: its If-Match: a version, `*`, or none.
    """

    session: str
    call: Call
    content: Content
    key: str | None
    version: int | Literal["*"] | None

    @property
    def fingerprint(self) -> tuple[str, str, bytes]:
        """What makes it the same request as another of its key."""
        return self.call, self.content.query, self.content.body


@dataclass
class Answered:
    """A change that was made, and what was told of it."""

    fingerprint: tuple[str, str, bytes]
    version: int
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """A checkpoint."""

    version: int
    steps: int
    rule_state: bool


@dataclass
class Session:
    """One session as its callers may know it."""

    version: int = 0
    steps: int = 0
    pending: int = 0
    answered: dict[str, Answered] = field(default_factory=dict)
    checkpoints: dict[str, Kept] = field(default_factory=dict)
    history: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Expected:
    """What a request must be answered.

    Attributes:
        code: the problem; empty for success.
        version: the version in the ETag; None where no session is known.
        before: the earlier answer that must come again.
    """

    code: str = ""
    version: int | None = None
    before: Answered | None = None


class Contract:
    """All sessions, and the rules."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}

    def change(self, request: Change) -> Expected:
        """Say what a change must be answered, and make it."""
        session = self.sessions.get(request.session)
        if session is None:
            return Expected("unknown_session")
        refusal = _refused_at_once(request)
        before = session.answered.get(request.key or "")
        if not refusal and before is not None:
            if before.fingerprint == request.fingerprint:
                return Expected("", before.version, before)
            refusal = "key_reused"
        refusal = refusal or _refused_in_its_turn(session, request)
        if refusal:
            return Expected(refusal, session.version)
        assert request.key is not None
        _make(session, request)
        session.answered[request.key] = Answered(request.fingerprint, session.version)
        return Expected("", session.version)

    def read(self, name: str, version: int | None = None) -> Expected:
        """Say what a read of a version, or of whatever is current, must be answered."""
        session = self.sessions.get(name)
        if session is None:
            return Expected("unknown_session")
        stale = version is not None and version != session.version
        return Expected("stale_version" if stale else "", session.version)

    def create(self, name: str, model: str, served: str) -> Expected:
        """Begin a session at version 0."""
        if model != served:
            return Expected("unknown_model")
        if name in self.sessions:
            return Expected("session_exists")
        self.sessions[name] = Session()
        return Expected("", 0)

    def create_from(self, name: str, source: str, checkpoint: str) -> Expected:
        """Begin a session where a checkpoint was."""
        if name in self.sessions:
            return Expected("session_exists")
        kept = self.sessions.get(source, Session()).checkpoints.get(checkpoint)
        if kept is None:
            return Expected("unknown_checkpoint")
        self.sessions[name] = Session(kept.version, kept.steps)
        return Expected("", kept.version)

    def checkpoint(self, name: str, checkpoint: str, rule_state: bool) -> Expected:
        """Keep the current version; the same again is answered alike."""
        session = self.sessions.get(name)
        if session is None:
            return Expected("unknown_session")
        new = Kept(session.version, session.steps, rule_state)
        if session.checkpoints.setdefault(checkpoint, new) != new:
            return Expected("checkpoint_exists", session.version)
        return Expected("", session.version)

    def delete(self, name: str) -> Expected:
        """End a session, its checkpoints and its keys."""
        found = self.sessions.pop(name, None)
        return Expected("unknown_session" if found is None else "")


def _refused_at_once(request: Change) -> str:
    if request.key is None:
        return "missing_idempotency_key"
    if request.version is None:
        return "missing_version"
    return request.content.early


def _refused_in_its_turn(session: Session, request: Change) -> str:
    if request.version not in ("*", session.version):
        return "stale_version"
    right = (None, session.pending) if session.pending else ()
    if request.call == "optim_step" and request.content.pending not in right:
        return "nothing_pending"
    return request.content.flaw


def _make(session: Session, request: Change) -> None:
    if request.call == "forward_backward":
        adds = "accumulate=true" in request.content.query
        session.pending = session.pending + 1 if adds else 1
        return
    session.version += 1
    session.pending = 0
    if request.call != "parameters":
        session.steps += 1
        session.history.append(session.version)
