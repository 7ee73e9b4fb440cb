"""The checker finds each violation that is planted, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.acts import Deed, Outcome
from tests.chaos.answers import Answers
from tests.chaos.audit import EventRow
from tests.chaos.checker import check
from tests.chaos.evidence import BlobRow, Evidence, FileFound, Pass, Read, ReplicaRow, Term
from tests.chaos.ledger import Item, Ledger, Version, Violation

KEPT, OVERWRITTEN, DELETED, DOUBTFUL, TREED = (digit * 64 for digit in "abcde")
TREE_PATHS = tuple(f"generic-local/worker-0/tree/{name}.bin" for name in ("one", "two"))
SHARDS = ("/one", "/two")
SIZE = 100
CLEAN = Pass(frozenset(), 0, 0)


KEPT_PATH, DELETED_PATH, DOUBTFUL_PATH = (
    f"generic-local/worker-0/{name}.bin" for name in ("open/kept", "deleted", "doubtful")
)
TAG, TREE, USER = ("tag", "0-0"), "generic-local/worker-0/tree", "api/security/users/somebody"
MAIL, OLD_MAIL = "new@example.org", "old@example.org"
MARKED = ("stage", "1")
DONE, REFUSED, UNKNOWN = Outcome.ACKNOWLEDGED, Outcome.REFUSED, Outcome.UNKNOWN


def act(
    ledger: Ledger,
    request: str,
    deed: Deed | tuple[Deed, ...],
    after: dict[str, Version],
    *outcomes: Outcome,
    at: float,
) -> None:
    """Let something be done at a time, within a second; further attempts have a sign behind ``request``."""
    operation = ledger.begin(deed, after, at)
    for number, outcome in enumerate(outcomes):
        operation.note(operation.attempt(request + "'" * number, at), outcome, at + 1)
    operation.end(outcomes[-1], at + 1)


def deploy(path: str, sha256: str) -> Deed:
    return Deed(("deploy",), path, "builder", sha256, repeats=True)


def known() -> Ledger:
    """One path kept, with a property, one deleted, one in doubt; a refusal; a tree in doubt; a user."""
    ledger = Ledger()
    act(ledger, "put-1", deploy(KEPT_PATH, OVERWRITTEN), {KEPT_PATH: Item(OVERWRITTEN)}, DONE, at=0)
    act(ledger, "put-2", deploy(DELETED_PATH, DELETED), {DELETED_PATH: Item(DELETED)}, DONE, at=0)
    act(ledger, "put-3", deploy(DOUBTFUL_PATH, DOUBTFUL), {DOUBTFUL_PATH: Item(DOUBTFUL)}, UNKNOWN, at=0)
    act(ledger, "put-4", deploy(KEPT_PATH, KEPT), {KEPT_PATH: Item(KEPT)}, DONE, at=10)
    deed = Deed(("delete",), DELETED_PATH, "admin", DELETED, {"items": 1})
    act(ledger, "delete", deed, {DELETED_PATH: None}, UNKNOWN, DONE, at=10)
    act(ledger, "refused", deploy(KEPT_PATH, OVERWRITTEN), {KEPT_PATH: Item(OVERWRITTEN)}, REFUSED, at=12)
    deed = Deed(("properties",), KEPT_PATH, "builder", detail={"items": 1, "set": {"tag": ["0-0"]}})
    act(ledger, "set", deed, {KEPT_PATH: Item(KEPT, frozenset({TAG}))}, DONE, at=14)
    for name in TREE_PATHS:
        act(ledger, f"put-{name}", deploy(name, TREED), {name: Item(TREED)}, DONE, at=16)
    deed = Deed(("properties",), TREE, detail={"items": 4})
    act(ledger, "mark", deed, {name: Item(TREED, frozenset({MARKED})) for name in TREE_PATHS}, UNKNOWN, at=18)
    for request, kind, mail in (("user-1", "user_create", OLD_MAIL), ("user-2", "user_change", MAIL)):
        deed = Deed((kind, "user_change"), "", detail={"name": "somebody"}, repeats=True)
        act(ledger, request, deed, {USER: Item(mail)}, DONE, at=20 if kind == "user_create" else 22)
    return ledger


def events_of(ledger: Ledger) -> list[EventRow]:
    """Return the events that are to be there: of what is in doubt, one for the deployment and none for the tree."""
    found = []
    for request, one in ledger.acts.items():
        if request in ("refused", "mark", "delete'"):
            continue
        [deed] = one.deeds
        detail, number = {**deed.detail, "more": 1}, 10 * len(found)
        found.append(
            EventRow(number, one.began + 0.5, deed.kinds[0], deed.place, deed.sha256, deed.principal, request, detail)
        )
    return found


def clean() -> Evidence:
    """A cluster with what is in ``known``; with two copies each of what is there."""
    ledger = known()
    ledger.followed = list(range(1000))
    items = {KEPT_PATH: Item(KEPT, frozenset({TAG})), DOUBTFUL_PATH: Item(DOUBTFUL)}
    items |= dict.fromkeys(TREE_PATHS, Item(TREED))
    contents = (KEPT, DOUBTFUL, TREED)
    rows = [ReplicaRow(shard, sha256, f"{shard}-{sha256[0]}", SIZE, "live") for shard in SHARDS for sha256 in contents]
    reads = {DELETED_PATH: Read(404), **{path: Read(200, item.sha256) for path, item in items.items()}}
    answers = Answers(
        items,
        tuple(sorted(items)),
        frozenset({KEPT_PATH}),
        {TAG: frozenset({KEPT_PATH})},
        {TREED: frozenset(TREE_PATHS)},
        {USER: MAIL},
        {DOUBTFUL_PATH: False},
    )
    return Evidence(
        ledger=ledger,
        reads=reads,
        viewed=dict(reads),
        listed={path: Read(200, item.sha256, SIZE) for path, item in items.items()},
        answers={"node-1": answers, "node-2": answers},
        blobs=[BlobRow(sha256, SIZE, 2, 2, 2, True) for sha256 in contents],
        replicas=rows,
        files=[FileFound(row.shard, "blobs", f"{row.sha256}.{row.generation}", SIZE, row.sha256) for row in rows],
        terms=[Term("primary", 1, 0), Term("gc", 1, 30, DELETED), Term("primary", 2, 40)],
        epoch=2,
        epochs_on_disk=dict.fromkeys(SHARDS, 2),
        events=events_of(ledger),
        totals={"count": 3, "bytes": 300},
        sums={"count": 3, "bytes": 300},
        usage={"generic-second": (300, 300)},
        passes=[Pass(frozenset({"1 stray x"}), 1, 0), CLEAN, CLEAN],
        grace_seconds=2,
    )


def test_clean_cluster_has_no_violation() -> None:
    assert check(clean()) == []


def read(path: str, found: Read) -> Callable[[Evidence], None]:
    """Let a client find this at a path, and everybody who lists or searches it too."""

    def plant(evidence: Evidence) -> None:
        evidence.reads = evidence.viewed = {**evidence.reads, path: found}
        evidence.listed = {
            path: Read(200, one.sha256, SIZE) for path, one in evidence.reads.items() if one.status == 200
        }
        items = dict(evidence.answers["node-1"].items)
        items.pop(path, None)
        if found.sha256:
            items[path] = Item(found.sha256)
        evidence.answers = {"node-1": Answers(items, tuple(sorted(items)), frozenset({KEPT_PATH} & items.keys()))}

    return plant


def view(path: str, found: Read) -> Callable[[Evidence], None]:
    def plant(evidence: Evidence) -> None:
        evidence.viewed = {**evidence.viewed, path: found}

    return plant


def answer(**changes: object) -> Callable[[Evidence], None]:
    """Let one node answer otherwise."""

    def plant(evidence: Evidence) -> None:
        evidence.answers = {**evidence.answers, "node-2": replace(evidence.answers["node-2"], **changes)}  # type: ignore[arg-type]

    return plant


def has(path: str, item: Version) -> Callable[[Evidence], None]:
    """Let one node's AQL find this at a path, and its other searches nothing that says otherwise."""

    def plant(evidence: Evidence) -> None:
        items = dict(evidence.answers["node-2"].items)
        items.pop(path, None)
        items |= {} if item is None else {path: item}
        answer(items=items, paged=tuple(sorted(items)), tagged={}, contents={})(evidence)

    return plant


def event(request: str, **changes: object) -> Callable[[Evidence], None]:
    """Let the event of a request be another one."""

    def plant(evidence: Evidence) -> None:
        evidence.events = [
            replace(one, **changes) if one.request_id == request else one  # type: ignore[arg-type]
            for one in evidence.events
        ]

    return plant


def listed_as(path: str, found: Read | None) -> Callable[[Evidence], None]:
    def plant(evidence: Evidence) -> None:
        others = {name: one for name, one in evidence.listed.items() if name != path}
        evidence.listed = others if found is None else {**others, path: found}

    return plant


def follow(*ids: int, without: int | None = None) -> Callable[[Evidence], None]:
    """Let who follows the log be told of these, or of all but one."""

    def plant(evidence: Evidence) -> None:
        evidence.ledger.followed = list(ids) or [one for one in evidence.ledger.followed if one != without]

    return plant


def lose_event(request: str) -> Callable[[Evidence], None]:
    def plant(evidence: Evidence) -> None:
        evidence.events = [one for one in evidence.events if one.request_id != request]

    return plant


def add_event(request: str, **changes: object) -> Callable[[Evidence], None]:
    """Add an event of a request, like the last one of its deed."""

    def plant(evidence: Evidence) -> None:
        one = evidence.ledger.acts.get(request) or evidence.ledger.acts["put-4"]
        [deed] = one.deeds
        number = 1 + max(other.id for other in evidence.events if other.at <= one.began + 0.5)
        row = EventRow(
            number, one.began + 0.5, deed.kinds[0], deed.place, deed.sha256, deed.principal, request, deed.detail
        )
        evidence.events = [*evidence.events, replace(row, **changes)]  # type: ignore[arg-type]

    return plant


def change(**changes: object) -> Callable[[Evidence], None]:
    def plant(evidence: Evidence) -> None:
        for name, value in changes.items():
            setattr(evidence, name, value)

    return plant


def lose_file(evidence: Evidence) -> None:
    evidence.files = evidence.files[1:]


def add_file(directory: str, name: str) -> Callable[[Evidence], None]:
    def plant(evidence: Evidence) -> None:
        evidence.files = [*evidence.files, FileFound("/one", directory, name, SIZE, DELETED)]

    return plant


def spoil_file(evidence: Evidence) -> None:
    evidence.files = [replace(evidence.files[0], sha256=DELETED), *evidence.files[1:]]


def grow_file(evidence: Evidence) -> None:
    evidence.files = [replace(evidence.files[0], size=SIZE + 1), *evidence.files[1:]]


def change_blob(**changes: int) -> Callable[[Evidence], None]:
    def plant(evidence: Evidence) -> None:
        evidence.blobs = [replace(evidence.blobs[0], **changes), *evidence.blobs[1:]]

    return plant


def collect(sha256: str, at: float) -> Callable[[Evidence], None]:
    return change(terms=[Term("primary", 1, 0), Term("gc", 1, at, sha256), Term("primary", 2, 40)])


@pytest.mark.parametrize(
    ("invariant", "plant"),
    [
        ("I1", read(KEPT_PATH, Read(404))),
        ("I1", read(KEPT_PATH, Read(503))),
        ("I1", read(KEPT_PATH, Read(0))),
        ("I3", read(KEPT_PATH, Read(200, OVERWRITTEN))),
        ("I3", read(DOUBTFUL_PATH, Read(200, KEPT))),
        ("I4", read(DELETED_PATH, Read(200, DELETED))),
        ("I1", view(KEPT_PATH, Read(404))),
        ("I1", view(KEPT_PATH, Read(503))),
        ("I3", view(KEPT_PATH, Read(200, OVERWRITTEN))),
        ("I4", view(DELETED_PATH, Read(200, DELETED))),
        ("I3", has(TREE_PATHS[0], Item(TREED, frozenset({MARKED})))),
        ("I5", change_blob(shards=1)),
        ("I5", change_blob(zones=1)),
        ("I5", spoil_file),
        ("I5", change(unrest=[Violation("I5", "it does not come to rest")])),
        ("I6", collect(KEPT, 15)),
        ("I6", collect(KEPT, 500)),
        ("I6", collect(DELETED, 5)),
        ("I6", collect(DELETED, 11)),
        ("I6", collect(OVERWRITTEN, 11)),
        ("I7", lose_file),
        ("I7", add_file("blobs", f"{DELETED}.somebody")),
        ("I7", add_file("tmp", "somebody")),
        ("I8", change(terms=[Term("primary", 1, 0), Term("primary", 2, 1), Term("gc", 1, 2, "f" * 64)])),
        ("I8", change(terms=[Term("primary", 1, 0), Term("primary", 1, 1)])),
        ("I8", change(epochs_on_disk={"/one": 3})),
        ("I8", change(holds=["lost_history: a shard knows more"])),
        ("I9", grow_file),
        ("I9", change(totals={"count": 4, "bytes": 300})),
        ("I9", change(usage={"generic-second": (299, 300)})),
        ("I9", change(usage={"generic-second": (None, 300)})),
        ("I9", listed_as(KEPT_PATH, Read(200, KEPT, 1))),
        ("I10", listed_as(KEPT_PATH, None)),
        ("I10", listed_as(KEPT_PATH, Read(200, DOUBTFUL, SIZE))),
        ("I10", has(KEPT_PATH, None)),
        ("I10", has(KEPT_PATH, Item(OVERWRITTEN))),
        ("I10", has(KEPT_PATH, Item(KEPT))),
        ("I10", has(KEPT_PATH, Item(KEPT, frozenset({("tag", "0-1")})))),
        ("I10", has("generic-local/worker-0/never.bin", Item(KEPT))),
        ("I10", answer(paged=())),
        ("I10", answer(paged=tuple(sorted([KEPT_PATH, DOUBTFUL_PATH, *TREE_PATHS], reverse=True)))),
        ("I10", answer(paged=(KEPT_PATH, *sorted([KEPT_PATH, DOUBTFUL_PATH, *TREE_PATHS])))),
        ("I10", answer(readable=frozenset())),
        ("I10", answer(readable=frozenset({KEPT_PATH, DOUBTFUL_PATH}))),
        ("I10", answer(tagged={TAG: frozenset()})),
        ("I10", answer(tagged={TAG: frozenset({KEPT_PATH, DOUBTFUL_PATH})})),
        ("I10", answer(contents={TREED: frozenset(TREE_PATHS[:1])})),
        ("I10", answer(contents={TREED: frozenset({KEPT_PATH, *TREE_PATHS})})),
        ("I10", answer(accounts={USER: OLD_MAIL})),
        ("I10", answer(accounts={USER: None})),
        ("I10", answer(admitted={DOUBTFUL_PATH: True})),
        ("I11", add_event("put-4")),
        ("I11", add_event("put-3")),
        ("I11", add_event("set")),
        ("I11", add_event("delete")),
        ("I12", follow(without=30)),
        ("I12", follow(*range(1000), 30)),
        ("I12", lose_event("put-4")),
        ("I12", lose_event("set")),
        ("I12", lose_event("delete")),
        ("I12", lose_event("user-1")),
        ("I12", lose_event("user-2")),
        ("I12", add_event("refused")),
        ("I12", add_event("nobody")),
        ("I12", event("put-4", kind="copy")),
        ("I12", event("put-4", place=DOUBTFUL_PATH)),
        ("I12", event("put-4", sha256=OVERWRITTEN)),
        ("I12", event("put-4", sha256=None)),
        ("I12", event("put-4", principal="admin")),
        ("I12", event("put-4", at=8.0)),
        ("I12", event("put-4", at=13.0)),
        ("I12", event("put-4", id=1000)),
        ("I12", event("set", detail={"items": 2, "set": {"tag": ["0-0"]}})),
        ("I12", event("set", detail={"items": 1, "set": {"tag": ["0-1"]}})),
        ("I12", event("user-2", kind="user_create")),
        ("I12", event("user-2", detail={"name": "another"})),
        ("I12", change(secrets=["node-1 has the cluster key in its log"])),
        ("I13", change(passes=[Pass(frozenset({"a"}), 1, 0), Pass(frozenset({"a"}), 1, 0), CLEAN, CLEAN])),
        ("I13", change(passes=[CLEAN, Pass(frozenset(), 0, 1)])),
        ("I13", change(passes=[])),
    ],
)
def test_planted_violation_is_found(invariant: str, plant: Callable[[Evidence], None]) -> None:
    evidence = clean()
    plant(evidence)
    assert {violation.invariant for violation in check(evidence)} == {invariant}


@pytest.mark.parametrize(
    "plant",
    [
        lose_event("put-3"),
        add_event("mark"),
        has(DOUBTFUL_PATH, Item(DOUBTFUL)),
        answer(admitted={}),
        add_event("delete'", detail={"items": 1}, sha256=DELETED),
    ],
)
def test_what_is_in_doubt_may_have_been_done_or_not(plant: Callable[[Evidence], None]) -> None:
    evidence = clean()
    plant(evidence)
    assert check(evidence) == []


def test_tree_in_doubt_may_have_changed_as_a_whole() -> None:
    evidence = clean()
    marked = dict.fromkeys(TREE_PATHS, Item(TREED, frozenset({MARKED})))
    items = {**evidence.answers["node-1"].items, **marked}
    evidence.answers = {"node-1": replace(evidence.answers["node-1"], items=items)}
    assert check(evidence) == []


def test_guest_reads_what_the_permission_target_gives() -> None:
    evidence = clean()
    url, pattern = "api/security/permissions/guest-0", "worker-0/**"
    deed = Deed(("permission_create",), "", detail={"name": "guest-0"}, repeats=True)
    act(evidence.ledger, "grant", deed, {url: Item(pattern)}, DONE, at=30)
    add_event("grant")(evidence)
    told = {"accounts": {USER: MAIL, url: pattern}}
    evidence.answers = {
        "node-1": replace(evidence.answers["node-1"], **told, admitted={DOUBTFUL_PATH: True})  # type: ignore[arg-type]
    }
    assert check(evidence) == []
    answer_of = replace(evidence.answers["node-1"], admitted={DOUBTFUL_PATH: False})
    evidence.answers = {"node-1": answer_of}
    assert [one.invariant for one in check(evidence)] == ["I10"]


@pytest.mark.parametrize(
    ("places", "invariants"),
    [
        ((DELETED_PATH, DOUBTFUL_PATH), []),
        ((DELETED_PATH,), ["I12"]),
        ((DELETED_PATH, DOUBTFUL_PATH, DOUBTFUL_PATH), ["I11"]),
        ((DELETED_PATH, DOUBTFUL_PATH, KEPT_PATH), ["I12"]),
    ],
)
def test_act_on_several_places_leaves_an_event_of_each(places: tuple[str, ...], invariants: list[str]) -> None:
    ledger, paths = Ledger(), (DELETED_PATH, DOUBTFUL_PATH)
    deeds = tuple(deploy(path, TREED) for path in paths)
    act(ledger, "explode", deeds, dict.fromkeys(paths, Item(TREED)), DONE, at=0)
    ledger.followed = list(range(len(places)))
    events = [
        EventRow(number, 0.5, "deploy", place, TREED, "builder", "explode") for number, place in enumerate(places)
    ]
    assert [one.invariant for one in check(Evidence(ledger=ledger, events=events, passes=[CLEAN]))] == invariants
