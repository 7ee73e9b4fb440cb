"""What clients send as JSON, read by the types that describe it to them."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from repo_node.errors import RequestError
from repo_node.web.body import read_json


def check_plain(text: str) -> str:
    """Return ``text`` if Postgres can keep it. Raises ``ValueError``."""
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("a NUL and half of a surrogate pair cannot be kept")
    return text


PlainText = Annotated[str, AfterValidator(check_plain)]


class OwnDocument(BaseModel):
    """A document of Holdfast's own calls: what it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ArtifactoryDocument(BaseModel):
    """A document of Artifactory's calls, whose clients send more than Holdfast knows: the rest means nothing here."""

    model_config = ConfigDict(extra="ignore", strict=True)


Document = TypeVar("Document", bound=BaseModel)


async def read_as(request: web.Request, kind: type[Document]) -> Document:
    """Return the body as a document. Raises ``BodyTooLarge``, ``RequestError``."""
    return validated(await read_json(request), kind)


def validated(document: Any, kind: type[Document]) -> Document:
    """Return what was read as a document. Raises ``RequestError``."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise RequestError(f"The body cannot be read: {first_fault(error)}") from None


def first_fault(error: ValidationError) -> str:
    """Return what is wrong with a document, and where in it."""
    fault = error.errors(include_url=False, include_context=False)[0]
    return ": ".join([*filter(None, [".".join(map(str, fault["loc"]))]), fault["msg"].removeprefix("Value error, ")])
