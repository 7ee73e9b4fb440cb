"""What a run was and what it found, for people and in a file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.ledger import Ledger, Violation
from tests.chaos.schedule import Draw


@dataclass
class Report:
    """``faults`` are those that were made, in their order."""

    seed: int
    seconds: float
    faults: list[dict[str, Any]] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)

    def note(self, draw: Draw, what: str, recovered_seconds: float) -> None:
        self.faults.append(
            {
                "number": draw.number,
                "name": draw.name,
                "what": what,
                "seconds": round(draw.hold_seconds, 1),
                "recovered_seconds": round(recovered_seconds, 1),
            }
        )

    def count(self, ledger: Ledger) -> None:
        """Take over what the ledger has counted."""
        self.outcomes = dict(ledger.outcomes)
        attempts = Counter(act.outcome.value for act in ledger.acts.values())
        self.ledger = {
            "paths": len(ledger.paths),
            "live": sum(1 for _ in ledger.live()),
            "in doubt": sum(len(history.possible) > 1 for history in ledger.paths.values()),
            **attempts,
        }

    @property
    def verdict(self) -> str:
        return f"{len(self.violations)} violations" if self.violations else "no violation"

    def text(self) -> str:
        """Return the report for people."""
        lines = [f"seed {self.seed}, {self.seconds:g} s, {len(self.faults)} faults"]
        for one in self.faults:
            held = f"{one['seconds']} s, whole again after {one['recovered_seconds']} s"
            lines.append(f"  {one['number']:3} {one['name']:28} {one['what']}  ({held})")
        lines.append("ledger: " + ", ".join(f"{count} {name}" for name, count in self.ledger.items()))
        lines.append("answers: " + ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items())))
        lines += [f"VIOLATION {violation}" for violation in self.violations]
        lines.append(f"seed {self.seed}: {self.verdict}")
        return "\n".join(lines)

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self) | {"verdict": self.verdict}, indent=2) + "\n")
