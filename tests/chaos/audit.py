"""The audit log against the acts of the clients: each has its event, and nothing else has one. Pure.

Acts and events belong together by the id of the request, which the client chose and the event has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.chaos.acts import Act, Outcome
from tests.chaos.ledger import Ledger

CLOCK_SECONDS = 0.5
"""How far the clients' clock and the database's may seem apart."""


@dataclass(frozen=True, slots=True)
class EventRow:
    """``place`` is repository and path, empty for what is done to accounts."""

    id: int
    at: float
    kind: str
    place: str
    sha256: str | None
    principal: str
    request_id: str
    detail: Mapping[str, Any] = field(default_factory=dict)


def repeated(ledger: Ledger, events: Sequence[EventRow]) -> Iterator[str]:
    """Yield what has left more than one event."""
    for (request, place), count in Counter((event.request_id, event.place) for event in events).items():
        if request in ledger.acts and count > 1:
            yield f"{text_of(request, ledger.acts[request])} has left {count} events of {place}"


def missing(ledger: Ledger, events: Sequence[EventRow]) -> Iterator[str]:
    """Yield what was acknowledged and left no event. Of an act done again that left nothing to do, one is enough."""
    there = {(event.request_id, event.place) for event in events}
    done = {(ledger.acts[request].operation, place) for request, place in there if request in ledger.acts}
    for request, act in ledger.acts.items():
        for deed in act.deeds if act.outcome is Outcome.ACKNOWLEDGED else ():
            is_done_before = (act.operation, deed.place) in done and not (act.is_first or deed.repeats)
            if (request, deed.place) not in there and not is_done_before:
                yield f"{text_of(request, act)} was acknowledged and has left no event of {deed.place}"
    for request, act in ledger.acts.items():
        is_last = act.operation in ledger.acknowledged and act.outcome is not Outcome.ACKNOWLEDGED
        if is_last and not any((act.operation, deed.place) in done for deed in act.deeds):
            yield f"{text_of(request, act)} was acknowledged in the end, and no attempt has left an event"


def unfounded(ledger: Ledger, events: Sequence[EventRow]) -> Iterator[str]:
    """Yield events of what nobody asked for, or of what was refused."""
    for event in events:
        act = ledger.acts.get(event.request_id)
        if act is None:
            yield f"event {event.id}, {event.kind} {event.place} by {event.principal}: nobody has asked for that"
        elif act.outcome is Outcome.REFUSED:
            yield f"event {event.id}: {text_of(event.request_id, act)} was refused"


def untrue(ledger: Ledger, events: Sequence[EventRow]) -> Iterator[str]:
    """Yield events that tell something else than was done."""
    for event in events:
        act = ledger.acts.get(event.request_id)
        if act is not None and (wrong := [*differences(event, act)]):
            yield f"event {event.id} of {text_of(event.request_id, act)}: {'; '.join(wrong)}"


def differences(event: EventRow, act: Act) -> Iterator[str]:
    deed = act.deed_at(event.place)
    if deed is None:
        yield f"its place is {event.place}"
        return
    if event.kind not in (deed.kinds[:1] if act.is_first else deed.kinds):
        yield f"its kind is {event.kind}"
    for what in ("principal", "sha256"):
        if (told := getattr(event, what)) != (right := getattr(deed, what)):
            yield f"{what} is {told}, not {right}"
    for key, value in deed.detail.items():
        # What a second attempt found to do is less, perhaps.
        if event.detail.get(key) != value and (act.is_first or key != "items"):
            yield f"{key} is {event.detail.get(key)}, not {value}"
    if not act.began - CLOCK_SECONDS <= event.at <= act.ended + CLOCK_SECONDS:
        yield f"it was written {event.at - act.began:+.1f} s after the request was sent"


def disordered(ledger: Ledger, events: Sequence[EventRow]) -> Iterator[str]:
    """Yield events with a lower id than that of an act that had ended before theirs began."""
    acts = [(ledger.acts[event.request_id], event) for event in events if event.request_id in ledger.acts]
    ended = sorted(((act.ended, event.id) for act, event in acts if act.outcome is Outcome.ACKNOWLEDGED), reverse=True)
    highest = 0
    for act, event in sorted(acts, key=lambda pair: pair[0].began):
        while ended and ended[-1][0] < act.began:
            highest = max(highest, ended.pop()[1])
        if event.id < highest:
            yield f"event {event.id} of {text_of(event.request_id, act)} stands before event {highest}, done earlier"


def unfollowed(ledger: Ledger, events: Sequence[EventRow]) -> Iterator[str]:
    """Yield the events of acts that who followed the log was not told of, or was told of too late or twice."""
    for missed in sorted({event.id for event in events if event.request_id in ledger.acts} - {*ledger.followed}):
        yield f"event {missed} was told to nobody who followed"
    for before, after in pairwise(ledger.followed):
        if before >= after:
            yield f"who followed was told of event {after} after {before}"


def text_of(request: str, act: Act) -> str:
    first = act.deeds[0]
    return f"{first.kinds[0]} {first.place or first.detail.get('name')} ({request})"
