"""Who may do what. Deny by default: every route names the permission it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from repo_node.auth.path_patterns import expression_of
from repo_node.auth.read_scope import EVERYTHING, ReadScope
from repo_node.auth.rights import NOWHERE, Permission, Places, Rights
from repo_node.paths import ArtifactPath

__all__ = ["ANONYMOUS", "SCOPES", "Permission", "Principal"]

SCOPES = frozenset(Permission) - {Permission.PUBLIC}
"""The permissions a token can be narrowed to."""

CONTAINED_IN = {Permission.ANNOTATE: Permission.WRITE}
"""Scopes that contain another one: who deploys by a token sets properties by it, where its user may."""

ANONYMOUS = "anonymous"
"""The user whose rights those have who bring no credentials, while ``anonymous_access`` is on."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Someone who proved who they are. ``scopes`` narrow a token; None for a password.

    ``rights`` are what permission targets give; an administrator needs none. ``is_whole`` is false for a token that
    carries the rights of groups alone. ``token`` is the one that proved it, which ends at ``ends_at`` by this process'
    clock: what is made by it ends no later.
    """

    name: str
    is_admin: bool
    scopes: frozenset[str] | None = None
    rights: Rights = field(default_factory=dict, hash=False, repr=False)
    is_whole: bool = True
    token: int | None = None
    ends_at: float = math.inf

    def is_unlimited(self, permission: Permission) -> bool:
        """Say whether this principal has ``permission`` at every path."""
        return (self.is_admin and self.scopes is None) or self._places(permission) is True

    def may(self, permission: Permission, at: ArtifactPath | None = None) -> bool:
        """Say whether this principal has ``permission`` at a path; without one, whether anywhere at all.

        The scope ``admin`` contains the others.
        """
        if self.is_admin and self.scopes is None:
            return True
        places = self._places(permission)
        if isinstance(places, bool):
            return places
        return bool(places) if at is None else places.allow(at.repository, at.path)

    def may_below(self, permission: Permission, at: ArtifactPath) -> bool:
        """Say whether this principal has ``permission`` at a path, or at one that may lie below it."""
        places = self._places(permission)
        return places if isinstance(places, bool) else places.reach(at.repository, at.path)

    def may_throughout(self, permission: Permission, at: ArtifactPath) -> bool:
        """Say whether this principal has ``permission`` at a path, and at whatever may lie below it."""
        places = self._places(permission)
        return places if isinstance(places, bool) else places.cover(at.repository, at.path)

    def limit(self, permission: Permission, repository: str) -> str | None:
        """Return a regular expression, as Postgres reads it, for the paths of a repository with ``permission``.

        None where that is every path.
        """
        places = self._places(permission)
        if isinstance(places, bool):
            return None if places else expression_of(())
        return expression_of(places.of(repository))

    def readable(self) -> ReadScope:
        """Return what searches and lists may tell this principal of."""
        places = self._places(Permission.READ)
        if isinstance(places, bool):
            return EVERYTHING if places else ReadScope()
        return ReadScope(places=places)

    def _places(self, permission: Permission) -> Places | bool:
        """Return where ``permission`` holds: everywhere, nowhere, or at some places."""
        if permission is Permission.PUBLIC:
            return True
        if self.scopes is not None and not self._is_in_scope(permission):
            return False
        if permission is Permission.ACCOUNT:
            return self.is_whole and self.name != ANONYMOUS
        return self.is_admin or self.rights.get(permission, NOWHERE)

    def _is_in_scope(self, permission: Permission) -> bool:
        scopes = self.scopes or frozenset()
        return permission in scopes or Permission.ADMIN in scopes or CONTAINED_IN.get(permission) in scopes
