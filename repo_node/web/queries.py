"""What a request's query and headers say, checked."""

from __future__ import annotations

from aiohttp import web

from repo_node.errors import RequestError


def number(request: web.Request, name: str, default: int) -> int:
    """Return the whole number that the query gives for ``name``. Raises ``RequestError``."""
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise RequestError(f"{name} must be a number.")
    return int(text)


def flag(request: web.Request, name: str, default: bool) -> bool:
    """Return whether the query says 1 or 0 (true or false) for ``name``. Raises ``RequestError``."""
    return truth(name, request.query.get(name, str(int(default))))


def header_flag(request: web.Request, name: str) -> bool:
    """Return whether a header says true or false, which it does where it is missing. Raises ``RequestError``."""
    return truth(name, request.headers.get(name, "false"))


def truth(name: str, text: str) -> bool:
    match text.strip().lower():
        case "1" | "true":
            return True
        case "0" | "false":
            return False
        case _:
            raise RequestError(f"{name} must be 0 or 1.")
