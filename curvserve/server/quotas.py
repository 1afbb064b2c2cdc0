"""How much each API key may have under way at once."""

from collections.abc import Sequence

from fastapi import Request

from ..api_keys import ApiKey, KeyRing
from ..sessions import Account, Session
from .exchange import exchange_of
from .limits import Limits


class NoKeys(ValueError):
    """A quota of keys was asked for where there are none."""


class Quotas:
    """The accounts of the API keys."""

    def __init__(self, keys: KeyRing | None, limits: Limits) -> None:
        """Begin with nothing under way.

        Args:
            keys: the keys; none where None.
            limits: what holds for a key whose entry says nothing of its own.

        Raises:
            NoKeys: there is a limit and no key that it could hold for.
        """
        if keys is None and (limits.sessions_per_key or limits.requests_per_key):
            raise NoKeys(
                "--sessions-per-key and --requests-per-key tell callers apart by their keys: "
                "give --api-keys FILE"
            )
        self._keys = keys
        self._limits = limits
        self._accounts: dict[str, Account] = {}

    def of(self, key: ApiKey) -> Account:
        """Return a key's account, its limits as the key file has them now.

        A new key under the same name goes on with the account of the old one.
        """
        account = self._accounts.setdefault(key.name, Account(key.name))
        limits = self._limits
        account.max_sessions = limits.sessions_per_key if key.sessions is None else key.sessions
        account.max_requests = limits.requests_per_key if key.requests is None else key.requests
        return account

    def accounts(self) -> Sequence[Account]:
        """Return the account of every key that there is now."""
        return [] if self._keys is None else [self.of(key) for key in self._keys.entries]


def check_quota(request: Request, session: Session) -> None:
    """Refuse early, before its body is received, what would be refused once that is here.

    The retry of a change that the session knows is let through: its answer is there already.

    Raises:
        QuotaExceeded: the caller's key has as many requests under way as it may have.
    """
    if not session.knows(request.headers.get("idempotency-key", "")):
        exchange_of(request.scope).account.check_requests()
