"""Options from a TOML file: the names of the command's own options, checked before they count."""

import difflib
import inspect
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from typer.models import OptionInfo

if TYPE_CHECKING:
    from pydantic import BaseModel


class ConfigError(Exception):
    """A configuration file cannot be used; the text says which entry, where and what to do."""


def read_options(file: Path, command: Callable[..., None], without: str) -> dict[str, Any]:
    """Return the options that a file sets.

    Args:
        file: TOML, one entry for each option, `-` as `_`.
        command: the function whose options they are.
        without: the option that names the file.

    Raises:
        ConfigError: it cannot be read, or has an entry that is no option or of another type.
    """
    from pydantic import ValidationError

    try:
        document = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigError(f"{file} is not TOML: {error}") from error
    options = _options(command, without)
    try:
        # as JSON, where strict means no guessing and a path is a string
        options.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key, *rest = map(str, first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{file}: {_unknown(key, list(options.model_fields))}") from None
        found = "".join(f"[{part}]" for part in rest if part.isdigit())
        reason = first["msg"].replace("Input should be", "expected").removeprefix("Value error, ")
        raise ConfigError(f"{file}: {key}{found} is {first['input']!r}: {reason}") from None
    return document


def _options(command: Callable[..., None], without: str) -> "type[BaseModel]":
    """Return what a file may hold, from the options' own annotations."""
    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {}
    for name, hint in get_type_hints(command, include_extras=True).items():
        if name in ("return", without):
            continue
        (info,) = (each for each in hint.__metadata__ if isinstance(each, OptionInfo))
        default = inspect.signature(command).parameters[name].default
        fields[name] = (hint.__origin__, Field(default, ge=info.min, le=info.max))
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    return create_model("Options", __config__=config, **fields)


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"no option is called {key!r}{meant} (there are: {', '.join(known)})"
