"""The OpenAPI 3.1 description of every route of an application, made of what the routes declare."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal, Required, get_args, get_origin

from aiohttp import web
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from repo_node.auth.permissions import Permission
from repo_node.errors import ErrorDocument
from repo_node.web.descriptions import JSON, REST, Content, Description, description_of
from repo_node.web.routes import DECLARED, HARMLESS, Declared, WhileReadOnly

COMPONENT = "#/components/schemas/{model}"
REPOSITORY: Mapping[str, Any] = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}
PATH: Mapping[str, Any] = {
    "type": "string",
    "minLength": 1,
    "description": "The path in the repository, with its slashes as they are; at PUT, one at its end makes a folder.",
}
SEGMENT: Mapping[str, Any] = {"type": "string", "minLength": 1}
PARTS = {"repo": REPOSITORY, "path": PATH}
SECURITY_SCHEMES = {
    "password": {"type": "http", "scheme": "basic", "description": "A user's name with their password or a token."},
    "token": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-JFrog-Art-Api", "description": "A token or an API key."},
}
INFO = (
    "Artifactory's REST API as Holdfast speaks it, and Holdfast's own below api/holdfast. What a caller needs is "
    "x-holdfast-permission, x-holdfast-permission-at where: at the path, at it or below it, or anywhere at all. "
    "For what it does, an operation may need more: its description says so."
)


class UntitledSchema(GenerateJsonSchema):
    """Titles of fields would only repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class Schemas:
    """Makes the schemas of all types at once, so that they share what they have in common."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, JsonSchemaMode], dict[str, Any]] = {}
        self._kinds: dict[int, Any] = {}

    def of(self, kind: Any, mode: JsonSchemaMode = "validation") -> dict[str, Any]:
        """Return the schema of a type, which is empty before ``fill``; the same for whoever asks for it."""
        self._kinds[id(kind)] = kind
        return self._made.setdefault((id(kind), mode), {})

    def fill(self) -> Mapping[str, Any]:
        """Fill what ``of`` has returned; return the definitions that it refers to."""
        adapters = {key: TypeAdapter(kind) for key, kind in self._kinds.items()}
        inputs = [(key, mode, adapters[key]) for key, mode in self._made]
        made, shared = TypeAdapter.json_schemas(inputs, ref_template=COMPONENT, schema_generator=UntitledSchema)
        for key, schema in self._made.items():
            schema.update(made[key])
        definitions: Mapping[str, Any] = shared.get("$defs", {})
        return definitions


def openapi_of(app: web.Application, version: str) -> dict[str, Any]:
    """Return the document. It names nothing of this node: every node of a release has the same."""
    schemas = Schemas()
    refusal = schemas.of(ErrorDocument, "serialization")
    paths: dict[str, dict[str, Any]] = {}
    tags: dict[str, str] = {}
    for route, declared in app[DECLARED].items():
        method, handler = route.method, route.handler
        said = description_of(handler)
        tag = handler.__module__.rpartition(".")[2]
        tags[tag] = (sys.modules[handler.__module__].__doc__ or "").partition("\n")[0]
        for path in paths_of(declared.template, said):
            operation = {
                "operationId": re.sub(r"[^A-Za-z0-9]+", "_", f"{method.lower()}{path}").strip("_"),
                "tags": [tag],
                **operation_of(schemas, method, path, said, is_public=declared.permission is Permission.PUBLIC),
                **needs_of(declared),
            }
            if method not in HARMLESS:
                is_served = declared.while_read_only is WhileReadOnly.SERVED
                operation["x-holdfast-while-read-only"] = "served" if is_served else "refused"
            paths.setdefault(path, {})[method.lower()] = operation
    definitions = schemas.fill()
    describe_parameters(paths)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Holdfast", "version": version, "description": INFO, "license": {"name": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in sorted(tags.items())],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(definitions.items())),
            "responses": {"Refusal": {"description": "Refused.", "content": {JSON: {"schema": refusal}}}},
            "securitySchemes": SECURITY_SCHEMES,
        },
    }


def paths_of(template: str, said: Description) -> tuple[str, ...]:
    """Return a route's template as OpenAPI has them; two where a repository may be meant as a whole."""
    if not REST.search(template):
        return (template,)
    whole = (REST.sub("{repo}", template),) if said.root else ()
    return (*whole, REST.sub("{repo}/{path}", template))


def needs_of(declared: Declared) -> dict[str, Any]:
    """Return what a route says of who may use it."""
    needs: dict[str, Any] = {
        "security": [] if declared.permission is Permission.PUBLIC else [{name: []} for name in SECURITY_SCHEMES],
        "x-holdfast-permission": declared.permission.value,
    }
    if (place := declared.place) is not None:
        needs["x-holdfast-permission-at"] = "anywhere" if not place.skip else "below" if place.below else "path"
    return needs


def operation_of(schemas: Schemas, method: str, path: str, said: Description, *, is_public: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": said.summary,
        "parameters": [
            *(parameter_of(schemas, "path", name, said.path.get(name)) for name in re.findall(r"\{(\w+)\}", path)),
            *(parameter_of(schemas, "query", name, kind) for name, kind in said.query.items()),
            *(parameter_of(schemas, "header", name, kind) for name, kind in said.headers.items()),
        ],
    }
    if said.details:
        operation["description"] = said.details
    if said.body is not None:
        contents = contents_of(schemas, said.body.contents, "validation")
        operation["requestBody"] = {"content": contents, "required": said.body.required}
    operation["responses"] = {
        str(status): response_of(schemas, status, contents if method != "HEAD" else ())
        for status, contents in said.answers.items()
    }
    for status in sorted(refusals_of(path, said, is_public=is_public) - said.answers.keys()):
        refusal = {"$ref": "#/components/responses/Refusal", "description": phrase_of(status)}
        operation["responses"][str(status)] = {"description": phrase_of(status)} if method == "HEAD" else refusal
    return operation


def refusals_of(path: str, said: Description, *, is_public: bool) -> frozenset[int]:
    """Return the statuses that an operation may be refused with."""
    usual = {400, 503}
    if not is_public:
        usual |= {401, 403, 429}
    if "{" in path:
        usual.add(404)
    if said.body is not None:
        usual |= {408, 413, 415}
    return said.errors | usual


def parameter_of(schemas: Schemas, where: Literal["path", "query", "header"], name: str, kind: Any) -> dict[str, Any]:
    required = where == "path"
    if get_origin(kind) is Required:
        required, (kind,) = True, get_args(kind)
    schema = PARTS.get(name, SEGMENT) if kind is None else schemas.of(kind)
    return {"name": name, "in": where, "required": required, "schema": schema}


def response_of(schemas: Schemas, status: int, contents: tuple[Content, ...]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": phrase_of(status)}
    if contents:
        response["content"] = contents_of(schemas, contents, "serialization")
    return response


def contents_of(schemas: Schemas, contents: tuple[Content, ...], mode: JsonSchemaMode) -> dict[str, Any]:
    return {
        content.kind: {} if content.model is None else {"schema": schemas.of(content.model, mode)}
        for content in contents
    }


def phrase_of(status: int) -> str:
    return HTTPStatus(status).phrase


def describe_parameters(paths: Mapping[str, Mapping[str, Any]]) -> None:
    """Put what types say of parameters where readers look for it."""
    for operations in paths.values():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                if text := parameter["schema"].get("description"):
                    rest = {key: value for key, value in parameter["schema"].items() if key != "description"}
                    parameter.update(description=text, schema=rest)
