"""API keys: who may call, and how much each may do. Only digests of keys are kept.

A key is 256 random bits, so its plain SHA-256 tells nothing of it: slow hashes are for passwords.
"""

import hmac
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

PREFIX = "cs_"
"""What every key begins with, so that one that leaked is recognised."""


class Scope(IntEnum):
    """What a key allows; each includes those before it."""

    READ = 1
    TRAIN = 2
    ADMIN = 3

    def __str__(self) -> str:
        """Return its name as it is written in files and headers."""
        return self.name.lower()


SCOPES: tuple[str, ...] = tuple(map(str, Scope))


class KeyFileError(Exception):
    """The key file cannot be used; the text says why, in one line."""


def _known(scopes: list[str]) -> list[str]:
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        raise ValueError(f"no scope is called {unknown[0]!r}; expected {', '.join(SCOPES)}")
    return scopes


class ApiKey(BaseModel):
    """One entry of a key file.

    Attributes:
        name: whom it is for.
        scopes: what it allows.
        sha256: the key's digest.
        sessions: the most live sessions that it may have begun; 0 for no limit, None for the
            server's own for all keys.
        requests: the most of its requests that may wait or be computed at a time; likewise.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")
    scopes: Annotated[list[str], Field(min_length=1), AfterValidator(_known)]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    sessions: int | None = Field(None, ge=0)
    requests: int | None = Field(None, ge=0)

    @property
    def scope(self) -> Scope:
        """The largest of its scopes."""
        return max(Scope[scope.upper()] for scope in self.scopes)

    def to_toml(self) -> str:
        """Return the entry as it stands in a key file."""
        scopes = ", ".join(f'"{scope}"' for scope in self.scopes)
        head = f'[[keys]]\nname = "{self.name}"\nscopes = [{scopes}]\nsha256 = "{self.sha256}"\n'
        quotas = {"sessions": self.sessions, "requests": self.requests}
        own = (f"{name} = {most}\n" for name, most in quotas.items() if most is not None)
        return head + "".join(own)


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    keys: list[ApiKey] = Field(min_length=1)


def new_key(
    name: str,
    scopes: Sequence[str],
    sessions: int | None = None,
    requests: int | None = None,
) -> tuple[str, ApiKey]:
    """Make a key.

    Args:
        name: whom it is for.
        scopes: `read`, `train` or `admin`.
        sessions: see `ApiKey`.
        requests: see `ApiKey`.

    Returns:
        The key, which is kept nowhere, and the entry to add to a key file.

    Raises:
        KeyFileError: the name, a scope or a quota cannot be used.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    try:
        return key, ApiKey(
            name=name,
            scopes=list(scopes),
            sha256=_digest(key),
            sessions=sessions,
            requests=requests,
        )
    except ValidationError as error:
        raise KeyFileError(_first(error)) from error


@dataclass
class KeyRing:
    """The keys of a file.

    Attributes:
        path: the file.
        entries: its entries.
    """

    path: Path
    entries: tuple[ApiKey, ...]

    @classmethod
    def read(cls, path: Path) -> "KeyRing":
        """Read a key file.

        Raises:
            KeyFileError: it cannot be read, others can write to it, or it is not well-formed.
        """
        return cls(path, _entries(path))

    def reload(self) -> None:
        """Read the file again; a file that cannot be used leaves the keys as they are.

        Raises:
            KeyFileError: see `read`.
        """
        self.entries = _entries(self.path)

    def find(self, key: str) -> ApiKey | None:
        """Return a key's entry, None where there is none.

        Every entry is compared, each in constant time: how long it takes tells nothing.
        """
        digest, found = _digest(key), None
        for entry in self.entries:
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        return found

    @property
    def readable_by_others(self) -> bool:
        """Whether any user of this machine can read the file."""
        return bool(self.path.stat().st_mode & stat.S_IROTH)


def _entries(path: Path) -> tuple[ApiKey, ...]:
    try:
        with path.open("rb") as file:
            # whoever writes to it lets himself in
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise KeyFileError(f"{path} can be written by everyone; chmod o-w {path}")
            entries = _KeyFile.model_validate(tomllib.load(file)).keys
    except OSError as error:
        raise KeyFileError(f"cannot read the API keys in {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise KeyFileError(f"{path}: {_first(error)}") from error
    for member in ("name", "sha256"):
        values = [getattr(entry, member) for entry in entries]
        if repeated := {value for value in values if values.count(value) > 1}:
            raise KeyFileError(f"{path}: two keys have the {member} {repeated.pop()!r}")
    return tuple(entries)


def _digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def _first(error: ValidationError) -> str:
    """Return pydantic's first complaint in one line, without the value that it is about."""
    first: Any = error.errors(include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return re.sub(r"\s+", " ", f"{place}: {first['msg']}")
