"""Users with rights, as rows: for tests of what the rights mean, not of how they are given."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from repo_node.auth import tokens
from tests.repo_node.http import Client
from tests.repo_node.nodes import RunningCluster

GRANT_SQL = """
    WITH target AS (
        INSERT INTO permission_targets (name, repositories, includes, excludes) VALUES ($1, $2, $3, $4) RETURNING id
    )
    INSERT INTO permission_grants (target_id, user_id, actions)
    SELECT t.id, u.id, $6 FROM target t, users u WHERE u.name = $5 RETURNING target_id
"""
TOKEN_SQL = """
    INSERT INTO tokens (user_id, secret_sha256, ending, description, scopes)
    SELECT id, $2, 'xxxx', 'a test''s', $3 FROM users WHERE name = $1 RETURNING id
"""


def new_user(cluster: RunningCluster) -> str:
    """Make a user without any right, nor a password; return their name."""
    name = f"user-{uuid4().hex[:12]}"
    cluster.sql("INSERT INTO users (name, password_hash) VALUES ($1, '!')", name)
    return name


def grant(
    cluster: RunningCluster,
    user: str,
    actions: Sequence[str],
    repositories: Sequence[str] = ("generic-local",),
    *,
    includes: Sequence[str] = ("**",),
    excludes: Sequence[str] = (),
) -> None:
    """Give a user actions by a permission target of their own."""
    place = (list(repositories), list(includes), list(excludes))
    assert cluster.sql(GRANT_SQL, f"target-{uuid4().hex[:12]}", *place, user, list(actions))


def client_of(cluster: RunningCluster, user: str, *scopes: str, node: int = 0) -> Client:
    """Return a client with a token of the user's, with all of their rights unless narrowed."""
    secret = tokens.new_secret()
    assert cluster.sql(TOKEN_SQL, user, tokens.digest(secret), list(scopes) or ["applied-permissions/user"])
    return cluster.nodes[node].client(f"Bearer {secret}")


def somebody(
    cluster: RunningCluster, *actions: str, includes: Sequence[str] = ("**",), excludes: Sequence[str] = ()
) -> Client:
    """Return a client of a new user who has these actions in ``generic-local``."""
    user = new_user(cluster)
    if actions:
        grant(cluster, user, actions, includes=includes, excludes=excludes)
    return client_of(cluster, user)
