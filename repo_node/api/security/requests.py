"""What all calls about users, groups, permissions and tokens share: names, and who is proved anew."""

from __future__ import annotations

import re
from typing import Annotated
from unicodedata import normalize

from aiohttp import web
from pydantic import AfterValidator
from typing_extensions import TypedDict

from repo_node.auth.permissions import Permission
from repo_node.errors import RequestError
from repo_node.web.context import SERVICES, TARGET, base_url, principal_of

NAME = re.compile(r"[a-z0-9_][a-z0-9._@+-]{0,63}")
GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._@+-]{0,63}")
TARGET_NAME = re.compile(r"[^/\\:|?*\"<>\x00-\x1f\x7f\ud800-\udfff]{1,255}")


def check_user_name(name: str) -> str:
    """Return ``name`` if a user may be called so. Raises ``RequestError``."""
    if not NAME.fullmatch(name):
        raise RequestError("A user's name has 1 to 64 small letters, digits and '.', '_', '-', '@', '+'.")
    return name


def check_group_name(name: str) -> str:
    """Return ``name`` if a group may be called so: no comma, by which lists of groups are separated."""
    if not GROUP.fullmatch(name):
        raise RequestError("A group's name has 1 to 64 letters, digits, spaces and '.', '_', '-', '@', '+'.")
    return name


def check_target_name(name: str) -> str:
    if not TARGET_NAME.fullmatch(name):
        raise RequestError("A permission target's name has 1 to 255 characters, and none of /\\:|?*\"<>.")
    return name


def check_pattern(text: str) -> str:
    """Return a pattern as paths are written, in NFC: what it excludes would be let in by other words for it."""
    text = normalize("NFC", text)
    if len(text) > 1024 or any(character < " " or "\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("a pattern has at most 1024 characters, all of them printable")
    return text


Pattern = Annotated[str, AfterValidator(check_pattern)]


def name_in(request: web.Request, place: int = 4) -> str:
    """Return the name that the target ends with."""
    return request[TARGET].segments[place]


def is_admin(request: web.Request) -> bool:
    return principal_of(request).may(Permission.ADMIN)


class Named(TypedDict):
    name: str
    uri: str


def listed(request: web.Request, kind: str, names: list[str]) -> list[Named]:
    """Return what lists of users, groups and permissions are made of."""
    base = f"{base_url(request)}/api/security/{kind}"
    return [{"name": name, "uri": f"{base}/{name}"} for name in names]


def forget(request: web.Request) -> None:
    """Prove everybody anew: changed or not known to be, who they are may be another one."""
    request.app[SERVICES].authenticator.forget()


def forget_tokens(request: web.Request) -> None:
    """Prove whoever comes with a token anew: it has changed, or is not known to have."""
    request.app[SERVICES].authenticator.forget_tokens()
