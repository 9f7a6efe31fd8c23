"""The OpenAPI 3.1 description, made from the route table and the types that decode requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec

from tickwheel.core.job import State
from tickwheel.core.plan import PREVIEW_MAX

from .answers import Problem
from .api_jobs import WAIT_SECONDS_MAX
from .http import LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX
from .problems import CONTENT_TYPE
from .wire_schedules import NEXT_FIRE_TIMES

if TYPE_CHECKING:
    from .routes import Route

_REF = "#/components/schemas/{name}"
_TEXT = {"type": "string", "minLength": 1}
_NULL = {"type": "null"}
_PARAMETERS: dict[str, dict[str, Any]] = {
    "limit": {
        "type": "integer",
        "minimum": 1,
        "maximum": LIST_LIMIT_MAX,
        "default": LIST_LIMIT_DEFAULT,
    },
    "cursor": _TEXT,
    "state": {"enum": [state.value for state in State]},
    "count": {"type": "integer", "minimum": 1, "maximum": PREVIEW_MAX, "default": NEXT_FIRE_TIMES},
    "wait_seconds": {"type": "number", "minimum": 0, "maximum": WAIT_SECONDS_MAX, "default": 0},
}
_ERRORS = {
    "400": "Not HTTP, not JSON, or a query parameter that isn't understood",
    "401": "No valid key",
    "403": "The key lacks the scope",
    "404": "There is no such thing, or none that the key may see",
    "408": "The body took too long",
    "409": "What is stored contradicts the request",
    "413": "Over a limit of size",
    "415": "Not application/json",
    "422": "A field can't be accepted; see its pointer",
    "429": "The queue is full; see Retry-After",
    "503": "Overloaded, draining, or without its store; see Retry-After",
}


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document as plain values."""
    types: list[type] = [Problem]
    for route in routes:
        named = (*route.body, *route.answer, *route.known)
        types += [kind for kind in named if kind not in types]
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.method == "PATCH":
            for kind in route.body:
                _add_patch(schemas, kind.__name__)
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tickwheel",
            "version": version("tickwheel"),
            "description": "Durable jobs on time: at least once, never before their time.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _add_patch(schemas: dict[str, Any], name: str) -> str:
    """Add a type's merge patch (RFC 7396), and return its name."""
    whole = schemas[name]
    fields: dict[str, Any] = {}
    for field, schema in whole["properties"].items():
        kind = {key: value for key, value in schema.items() if key != "default"}
        if "$ref" in kind:
            inner = _add_patch(schemas, kind["$ref"].rpartition("/")[2])
            kind = {"$ref": _REF.format(name=inner)}
        if field not in whole.get("required", ()) and _NULL not in kind.get("anyOf", ()):
            kind = {"anyOf": [*kind.get("anyOf", [kind]), _NULL]}
        fields[field] = kind
    patch = f"{name}Patch"
    schemas[patch] = {
        "title": patch,
        "description": f"Changes of a {name}: what isn't given stays, null takes a field away.",
        "type": "object",
        "properties": fields,
        "additionalProperties": False,
    }
    return patch


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-z]+', '_', route.path)}".rstrip("_"),
        "summary": route.summary,
        "parameters": [
            *(_parameter(name, "path") for name in re.findall(r"{(\w+)}", route.path)),
            *(_parameter(name, "query") for name in route.query),
        ],
        "responses": {
            str(route.status): _answer(route, route.summary, route.answer),
            **({"200": _answer(route, "There was one before", route.known)} if route.known else {}),
            **{status: _problem(_ERRORS[status]) for status in _refusals(route)},
        },
    }
    if route.scope != "open":
        operation["security"] = [{"key": []}]
        operation["x-scope"] = route.scope
    if route.body:
        suffix = "Patch" if route.method == "PATCH" else ""
        operation["requestBody"] = {
            "required": not route.body_optional,
            "content": {"application/json": {"schema": _schema(route.body, suffix)}},
        }
    return operation


def _parameter(name: str, place: str) -> dict[str, Any]:
    schema = _PARAMETERS.get(name, {**_TEXT, "maxLength": 128})
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _refusals(route: Route) -> list[str]:
    """Return the statuses of the problems that a route may answer with."""
    refusals = {400, 408, 413, 415, 422, 503, *route.refuses}
    if route.scope != "open":
        refusals |= {401, 403}
    if "{" in route.path:
        refusals.add(404)
    return [str(status) for status in sorted(refusals)]


def _answer(route: Route, text: str, kinds: Sequence[type]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": text}
    if route.status != 204:
        answer["content"] = {route.media: {"schema": _schema(kinds)} if kinds else {}}
    return answer


def _problem(text: str) -> dict[str, Any]:
    return {"description": text, "content": {CONTENT_TYPE: {"schema": _schema((Problem,))}}}


def _schema(kinds: Sequence[type], suffix: str = "") -> dict[str, Any]:
    refs = [{"$ref": _REF.format(name=kind.__name__ + suffix)} for kind in kinds]
    return refs[0] if len(refs) == 1 else {"oneOf": refs}
