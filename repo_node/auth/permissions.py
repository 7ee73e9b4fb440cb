"""Who may do what. Deny by default: every route names the permission it needs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Permission(StrEnum):
    """What a route needs. PUBLIC needs nothing, not even credentials."""

    PUBLIC = "public"
    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    METRICS = "metrics"
    ADMIN = "admin"


SCOPES = frozenset(Permission) - {Permission.PUBLIC}
"""The permissions a token can be given."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Someone who proved who they are. ``scopes`` narrow a token; None for a password."""

    name: str
    is_admin: bool
    scopes: frozenset[str] | None = None

    def may(self, permission: Permission) -> bool:
        """Say whether this principal has ``permission``; the scope ``admin`` contains the others."""
        if permission is Permission.PUBLIC:
            return True
        if not self.is_admin:
            return False
        return self.scopes is None or permission.value in self.scopes or Permission.ADMIN.value in self.scopes
