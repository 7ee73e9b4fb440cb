"""What nodes of this process ask Postgres, and for which request: tests of what a request costs, or gives away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from repo_node.db.pool import Database, Statement
from repo_node.logs import request_id


@dataclass(frozen=True)
class Sent:
    """A statement; ``request`` is the id of who asked, "-" where several were asked for together."""

    name: str
    sql: str
    request: str


@contextmanager
def statements_sent() -> Iterator[list[Sent]]:
    """Yield a list that gets each statement on its way."""
    sent: list[Sent] = []
    run_once = Database._run_once

    async def watched(database: Database, statement: Statement, *rest: Any) -> Any:
        sent.append(Sent(statement.name, statement.sql, request_id.get()))
        return await run_once(database, statement, *rest)

    with patch.object(Database, "_run_once", watched):
        yield sent
