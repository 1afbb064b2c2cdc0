"""All sessions of a server."""

import re
from collections.abc import Mapping

from curvserve_client.errors import InvalidRequest, SessionExists, UnknownModel, UnknownSession
from curvserve_client.rules import Rule

from ..models import Model
from .executor import Executor
from .session import Session
from .state import SessionState

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Sessions:
    """Sessions by name.

    Attributes:
        models: name -> recipe of every model that is served.
    """

    def __init__(self, models: Mapping[str, Model], executor: Executor) -> None:
        """Begin without sessions.

        Args:
            models: name -> recipe.
            executor: who computes for all of them.
        """
        self.models = models
        self._executor = executor
        self._sessions: dict[str, Session] = {}
        self._reserved: set[str] = set()

    async def create(self, model: str, rule: Rule, seed: int = 0, name: str = "") -> Session:
        """Begin a session at version 0.

        Args:
            model: name of its model.
            rule: its update rule.
            seed: what its initial parameters and draws come from.
            name: what to call it; empty for the first free `<model>-<number>`.

        Raises:
            UnknownModel: this server does not serve the model.
            InvalidRequest: the name is not 1 to 64 letters, digits, dots, dashes, underscores.
            SessionExists: the name is taken.
            InvalidRule: the rule cannot update a parameter of the model.
        """
        recipe = self.find_model(model)
        name = name or self._free_name(model)
        self._check_name(name)
        self._reserved.add(name)
        try:
            parameters, buffers = await self._executor.initial_tensors(model, seed)
            rule_state = rule.start(parameters)
        finally:
            self._reserved.discard(name)
        state = SessionState(model, seed, rule, parameters, buffers, rule_state)
        self._sessions[name] = Session(name, recipe, state, self._executor)
        return self._sessions[name]

    def find_model(self, name: str) -> Model:
        """Return a served model.

        Raises:
            UnknownModel: this server does not serve it.
        """
        if name not in self.models:
            known = ", ".join(self.models)
            raise UnknownModel(f"no model is called {name!r}; served here: {known}", expected=known)
        return self.models[name]

    def find(self, name: str) -> Session:
        """Return a session.

        Raises:
            UnknownSession: there is none of this name.
        """
        if name not in self._sessions:
            raise UnknownSession(f"no session is called {name!r}")
        return self._sessions[name]

    def list(self) -> list[Session]:
        """Return all sessions, the oldest first."""
        return list(self._sessions.values())

    async def delete(self, name: str) -> None:
        """End a session, after the change that it has under way.

        Raises:
            UnknownSession: there is none of this name.
        """
        session = self.find(name)
        await session.close()
        if self._sessions.get(name) is session:  # another request may have been faster
            del self._sessions[name]

    def _check_name(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            expected = (
                "1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first"
            )
            raise InvalidRequest(f"{name!r} is no name for a session", expected=expected)
        if self._taken(name):
            raise SessionExists(f"a session called {name!r} exists")

    def _free_name(self, model: str) -> str:
        number = 1
        while self._taken(f"{model}-{number}"):
            number += 1
        return f"{model}-{number}"

    def _taken(self, name: str) -> bool:
        return name in self._sessions or name in self._reserved
