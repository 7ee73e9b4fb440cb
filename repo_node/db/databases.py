"""Databases as a whole, on a server where the caller may create them."""

from __future__ import annotations

import asyncpg

HAS_DATABASE = "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)"
CONNECT_TIMEOUT_SECONDS = 10.0
CREATE_TIMEOUT_SECONDS = 60.0


async def ensure_database(admin_dsn: str, name: str) -> bool:
    """Create the database ``name`` unless it is there; return whether it was created."""
    connection = await asyncpg.connect(admin_dsn, timeout=CONNECT_TIMEOUT_SECONDS)
    try:
        if await connection.fetchval(HAS_DATABASE, name):
            return False
        quoted = name.replace('"', '""')
        await connection.execute(f'CREATE DATABASE "{quoted}"', timeout=CREATE_TIMEOUT_SECONDS)
        return True
    finally:
        await connection.close()
