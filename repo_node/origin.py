"""Who asked for a change, by which request and from where: what is noted with it in ``events``."""

from __future__ import annotations

from typing import NamedTuple


class Origin(NamedTuple):
    """``address`` is the client's, as the node saw it or a trusted proxy told; None for what no client asked for.

    A tuple, because its parts go into most statements one after another.
    """

    principal: str
    request_id: str
    address: str | None = None
