"""The role that nodes log in as: it reads and writes rows and calls functions, and can change no table.

Who owns the schema, as ``init-db`` and ``up`` do, gives it these rights, over what comes later too.
"""

from __future__ import annotations

from repo_node.db.servers import Servers

CONNECT_SECONDS = 10.0
STATEMENT_SECONDS = 60.0

HAS_ROLE = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)"
RIGHTS = (
    ("SELECT, INSERT, UPDATE, DELETE", "TABLES"),
    ("USAGE, SELECT", "SEQUENCES"),
    ("EXECUTE", "FUNCTIONS"),
)


class NoSuchRole(ValueError):
    """There is no role of this name; the message says how to make one."""


async def give_rights(dsn: str, role: str) -> None:
    """Give an existing role what a node needs of a database with the schema in it. May be repeated.

    Raises ``NoSuchRole``, ``OSError``, ``asyncpg.PostgresError``.
    """
    connection = await Servers(dsn, timeout_seconds=CONNECT_SECONDS).connect()
    try:
        if not await connection.fetchval(HAS_ROLE, role):
            raise NoSuchRole(f'there is no role {role}; make it with: CREATE ROLE "{role}" LOGIN, and a password')
        async with connection.transaction():
            for statement in grants(quoted(role)):
                await connection.execute(statement, timeout=STATEMENT_SECONDS)
    finally:
        await connection.close()


def grants(role: str) -> list[str]:
    statements = [f"GRANT USAGE ON SCHEMA public TO {role}"]
    for rights, kind in RIGHTS:
        statements.append(f"GRANT {rights} ON ALL {kind} IN SCHEMA public TO {role}")
        statements.append(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT {rights} ON {kind} TO {role}")
    # What the schema is, only who changes it may say.
    return [*statements, f"REVOKE INSERT, UPDATE, DELETE ON schema_migrations FROM {role}"]


async def ensure_role(admin_dsn: str, role: str, password: str) -> None:
    """Make a role that may log in with ``password`` and nothing else, or give it that password.

    Raises ``OSError``, ``asyncpg.PostgresError``.
    """
    connection = await Servers(admin_dsn, timeout_seconds=CONNECT_SECONDS).connect()
    try:
        verb = "ALTER" if await connection.fetchval(HAS_ROLE, role) else "CREATE"
        literal = await connection.fetchval("SELECT quote_literal($1::text)", password)
        rights = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
        await connection.execute(f"{verb} ROLE {quoted(role)} {rights} PASSWORD {literal}", timeout=STATEMENT_SECONDS)
    finally:
        await connection.close()


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
