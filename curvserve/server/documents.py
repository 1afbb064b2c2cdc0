"""JSON documents that steer the server, checked by pydantic."""

from collections.abc import Mapping
from typing import Any, TypeVar

from curvserve_client.errors import InvalidRequest
from pydantic import BaseModel, ValidationError

from .body import JSON, Body
from .problems import first_error
from .tensors import parse_json

ModelT = TypeVar("ModelT", bound=BaseModel)


def parse(kind: type[ModelT], body: Body) -> ModelT:
    """Return a body as a document of a kind; an empty one has no members.

    Raises:
        MalformedBody: it is no JSON object.
        InvalidRequest: a member is missing, unknown or wrong.
    """
    try:
        return kind.model_validate(parse_json(body.data or b"{}"))
    except ValidationError as error:
        raise InvalidRequest(first_error(error.errors())) from error


def request_body(kind: type[BaseModel]) -> dict[str, Any]:
    """Return what OpenAPI says of a body of a kind."""
    schema = kind.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"required": True, "content": {JSON: {"schema": schema}}}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a schema without references: those of pydantic do not reach from within OpenAPI."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(member, definitions) for name, member in schema.items()}
