"""What a handler says of itself to clients, beside its code; a route whose handler says nothing cannot be added.

Parameters, bodies and answers are described by types, as pydantic reads them. A parameter that must be there is
``Required``. The summary is the docstring's first paragraph.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MARK = "__description__"
JSON, PLAIN, ANYTHING = "application/json", "text/plain", "*/*"
REST = re.compile(r"\{(\w+):\.\+\}")
"""In a template: all segments that are left, which are a repository and a path in it."""

NO_TYPES: Mapping[str, Any] = MappingProxyType({})

Flag = Annotated[Literal["0", "1", "false", "true"], Field(description="1 or 0, true or false.")]
Count = Annotated[int, Field(ge=0, lt=10**18)]
Digits = Annotated[str, Field(pattern="^[0-9]{1,18}$")]
PlacePath = Annotated[str, Field(min_length=1, description="A repository and a path in it: /repository/path.")]
Present = Annotated[str, Field(description="It need only be there, whatever its value.")]


@dataclass(frozen=True, slots=True)
class Content:
    """A body of some media type, and what is in it; without ``model`` any bytes."""

    kind: str
    model: Any = None


TEXT = Content(PLAIN, str)
BYTES = Content(ANYTHING)


@dataclass(frozen=True, slots=True)
class Body:
    """What a request may bring: any of ``contents``, whether it must or not."""

    contents: tuple[Content, ...]
    required: bool = True

    @classmethod
    def of(cls, model: Any, *, required: bool = True) -> Body:
        """Return a JSON document."""
        return cls((Content(JSON, model),), required)


@dataclass(frozen=True, slots=True)
class Description:
    """``answers`` by status, what is refused aside; ``errors`` are the statuses that not every route may refuse with.

    ``root``: the path in a repository may be left out.
    """

    summary: str
    details: str
    answers: Mapping[int, tuple[Content, ...]]
    errors: frozenset[int] = frozenset()
    body: Body | None = None
    path: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    root: bool = False


def described(
    answers: Mapping[int, Any],
    *,
    errors: Collection[int] = (),
    body: Any = None,
    path: Mapping[str, Any] = NO_TYPES,
    query: Mapping[str, Any] = NO_TYPES,
    headers: Mapping[str, Any] = NO_TYPES,
    root: bool = False,
) -> Callable[[Handler], Handler]:
    """Describe a handler.

    An answer is None, a ``Content`` or several, or else the type of a JSON document; so is ``body``, which may be a
    ``Body``. Raises ``ValueError`` for a handler without a docstring.
    """

    def mark(handler: Handler) -> Handler:
        summary, _, details = (inspect.getdoc(handler) or "").partition("\n\n")
        if not summary:
            raise ValueError(f"{handler.__qualname__} has no docstring to tell clients what it does")
        found = {status: contents_of(answer) for status, answer in answers.items()}
        wanted = body if body is None or isinstance(body, Body) else Body(contents_of(body))
        said = Description(plain(summary), plain(details), found, frozenset(errors), wanted, path, query, headers, root)
        setattr(handler, MARK, said)
        return handler

    return mark


def plain(text: str) -> str:
    """Return a paragraph of a docstring as one line of Markdown."""
    return " ".join(text.replace("``", "`").split())


def contents_of(answer: Any) -> tuple[Content, ...]:
    if answer is None:
        return ()
    if isinstance(answer, tuple):
        return answer
    return (answer if isinstance(answer, Content) else Content(JSON, answer),)


def description_of(handler: Handler) -> Description:
    """Return what a handler says of itself. Raises ``ValueError`` where that is nothing."""
    said = getattr(handler, MARK, None)
    if not isinstance(said, Description):
        raise ValueError(f"{handler.__qualname__} is not described: clients are told what a route takes and answers")
    return said


def check_description(template: str, handler: Handler) -> None:
    """Raise ``ValueError`` for a handler without a description, or with one of what is not in ``template``."""
    if strange := description_of(handler).path.keys() - set(re.findall(r"\{(\w+)\}", template)):
        raise ValueError(f"{handler.__qualname__} describes {min(strange)}, which is not in {template}")
