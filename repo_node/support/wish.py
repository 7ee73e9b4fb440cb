"""What a support bundle is to hold, as nodes and processes tell one another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

LOG_BYTES_MAX = 32 << 20
"""Of a node's log in a bundle, before it is packed."""

DUMPS_MAX = 10
INTERVAL_MILLISECONDS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Wish:
    """``since`` and ``until`` are seconds since 1970, and bound the lines of the log."""

    configuration: bool = True
    system: bool = True
    logs: bool = True
    since: float = 0.0
    until: float = math.inf
    log_bytes_max: int = LOG_BYTES_MAX
    dumps: int = 1
    interval_milliseconds: int = 0

    def to_query(self) -> dict[str, str]:
        return {field.name: str(getattr(self, field.name)) for field in fields(self)}


def read_wish(query: Mapping[str, str]) -> Wish:
    """Return the wish in a query; what is missing is as by default. Raises ``ValueError``."""
    return Wish(
        configuration=query.get("configuration", "True") == "True",
        system=query.get("system", "True") == "True",
        logs=query.get("logs", "True") == "True",
        since=float(query.get("since", 0)),
        until=float(query.get("until", math.inf)),
        log_bytes_max=min(int(query.get("log_bytes_max", LOG_BYTES_MAX)), LOG_BYTES_MAX),
        dumps=min(int(query.get("dumps", 1)), DUMPS_MAX),
        interval_milliseconds=min(int(query.get("interval_milliseconds", 0)), INTERVAL_MILLISECONDS_MAX),
    )
