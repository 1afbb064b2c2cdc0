"""A server: its models and its sessions."""

from types import TracebackType
from typing import Any, Self

import httpx

from . import protocol
from .errors import UnknownSession
from .rules import Rule, rule_options
from .session import RemoteSession
from .transport import Transport
from .types import ModelSpec, SessionInfo

TIMEOUT = 60.0
"""Seconds that one call may take in all, where nothing else is said."""


def connect(
    url: str,
    *,
    model: str | None = None,
    session: str | None = None,
    timeout: float = TIMEOUT,
    http: httpx.Client | None = None,
    api_key: str | None = None,
    run: str | None = None,
    shared: bool = False,
) -> RemoteSession:
    """Return a session that a server has already.

    A server starts with one session per model, called like the model, so a URL and a model's name
    are enough.

    Args:
        url: `http://host:port`, or `unix:/path` of a server on the same machine.
        model: the model; its session of the same name is taken unless `session` names another.
        session: the session.
        timeout: seconds that each call may take in all, attempts and pauses together.
        http: a client of your own (TLS, authentication, proxies, unix sockets); it stays open.
        api_key: what the server knows you by; None for that in `CURVSERVE_API_KEY`.
        run: a name of this training run, in every idempotency key. A program that is started again
            under the same name, from the version that it had saved, gets the answer of the step
            that it had sent and not seen answered. None for a name that is nobody else's.
        shared: others change this session too: steps start from whatever version there is, and the
            server makes them one after another. Otherwise theirs would raise `StaleVersion` here.

    Returns:
        The session, to be used in a `with` block or closed.

    Raises:
        ValueError: neither a model nor a session is named, or URL, timeout or key are invalid.
        Unauthorized: the server wants an API key, and this is none that it knows.
        UnknownSession: no such session, or it is of another model.
        Unreachable: nothing listens at the URL.
        ProtocolError: what listens there is not a curvserve.
    """
    name = named(model, session)
    transport = Transport(url, timeout, http, api_key)
    try:
        info = of_model(transport.send(protocol.get_session(name)), model)
    except BaseException:
        transport.close()
        raise
    return RemoteSession(transport, info, owner=True, run=run, shared=shared)


class Client:
    """A server, for listing its models and making sessions.

    Use it in a `with` block, or `close` it; its sessions share its connection.

    Example:
        >>> with Client("http://gpu-host:8000") as client:
        ...     session = client.create_session("mnist_cnn", seed=1)
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = TIMEOUT,
        http: httpx.Client | None = None,
        api_key: str | None = None,
    ) -> None:
        """Reach a server; nothing is sent yet.

        Args:
            url: `http://host:port`.
            timeout: seconds that each call may take in all.
            http: a client of your own (TLS, authentication, proxies); it stays open.
            api_key: what the server knows you by; None for that in `CURVSERVE_API_KEY`.

        Raises:
            ValueError: the URL, the timeout or the key is invalid.
        """
        self._transport = Transport(url, timeout, http, api_key)

    def models(self) -> list[ModelSpec]:
        """Return the specification of every model that is served."""
        return self._transport.send(protocol.list_models())

    def model(self, name: str) -> ModelSpec:
        """Return one model's specification.

        Args:
            name: the model's name.

        Raises:
            UnknownModel: no such model.
        """
        return self._transport.send(protocol.get_model(name))

    def sessions(self) -> list[SessionInfo]:
        """Return every session as it is now."""
        return self._transport.send(protocol.list_sessions())

    def create_session(
        self,
        model: str,
        name: str | None = None,
        *,
        seed: int | None = None,
        rule: Rule | None = None,
        from_checkpoint: str | None = None,
        run: str | None = None,
        shared: bool = False,
    ) -> RemoteSession:
        """Make a new session.

        Args:
            model: the model's name.
            name: the session's name; None to be given one.
            seed: the seed of its initial parameters and of every draw; None for the server's own.
            rule: the update rule of its steps; None for the server's own.
            from_checkpoint: `session/checkpoint` to go on from, with its seed and rule.
            run: see `connect`.
            shared: see `connect`.

        Raises:
            UnknownModel: no such model.
            SessionExists: the name is taken.
            UnknownCheckpoint: no such checkpoint.
        """
        request = protocol.create_session(model, name, seed, described(rule), from_checkpoint)
        info = self._transport.send(request)
        return RemoteSession(self._transport, info, run=run, shared=shared)

    def session(self, name: str, *, run: str | None = None, shared: bool = False) -> RemoteSession:
        """Return a session that is there already.

        Args:
            name: the session's name.
            run: see `connect`.
            shared: see `connect`.

        Raises:
            UnknownSession: no such session.
        """
        info = self._transport.send(protocol.get_session(name))
        return RemoteSession(self._transport, info, run=run, shared=shared)

    def delete_session(self, name: str) -> None:
        """End a session; its parameters are gone.

        Args:
            name: the session's name.

        Raises:
            UnknownSession: no such session.
        """
        self._transport.send(protocol.delete_session(name))

    def close(self) -> None:
        """Close the connection, unless it is the caller's own."""
        self._transport.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def __repr__(self) -> str:
        """Say which server it is."""
        return f"Client({self._transport.link.address!r})"


def named(model: str | None, session: str | None) -> str:
    """Return the name of the session that `connect` asks for."""
    name = session or model
    if name is None:
        raise ValueError("name a model or a session: connect(url, model='mnist_cnn')")
    return name


def of_model(info: SessionInfo, model: str | None) -> SessionInfo:
    """Return a session, which is of the model that was named, if one was."""
    if model not in (None, info.model):
        raise UnknownSession(f"the session {info.name!r} is of {info.model!r}, not of {model!r}")
    return info


def described(rule: Rule | None) -> dict[str, Any] | None:
    """Return a rule as the contract has it."""
    return None if rule is None else {"name": rule.name} | rule_options(rule)
