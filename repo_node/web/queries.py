"""What a request's query says, checked."""

from __future__ import annotations

from aiohttp import web

from repo_node.errors import RequestError


def number(request: web.Request, name: str, default: int) -> int:
    """Return the whole number that the query gives for ``name``. Raises ``RequestError``."""
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise RequestError(f"{name} must be a number.")
    return int(text)
