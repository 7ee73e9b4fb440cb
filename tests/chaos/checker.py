"""The invariants, each as a function from the evidence to its violations. Pure.

Some are looked at while the load runs, and are in the ledger already: I2, and what one read or answer shows of
I1, I3, I4 and I14.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from tests.chaos import audit
from tests.chaos.answers import Answers, may_admit
from tests.chaos.audit import CLOCK_SECONDS
from tests.chaos.evidence import Evidence, ReplicaRow
from tests.chaos.ledger import Change, Item, Ledger, Violation, digests, invariant_of, name, names
from tests.chaos.places import is_open
from tests.chaos.reading import order


def check(evidence: Evidence) -> list[Violation]:
    """Return every violation."""
    return [Violation(invariant, text) for invariant, find in INVARIANTS for text in find(evidence)] + misread(evidence)


def misread(evidence: Evidence) -> list[Violation]:
    """What a path has in the end is what it may have: I1 for what is gone, I4 for what came back, I3 for the rest."""
    found = []
    for way, reads in (("", evidence.reads), (", through the virtual repository,", evidence.viewed)):
        for path, read in reads.items():
            possible = digests(evidence.ledger.paths[path].possible)
            if read.status not in (200, 404):
                found.append(Violation("I1", f"{path}{way} cannot be read: {read.status}"))
            elif read.sha256 not in possible:
                invariant = invariant_of(read.sha256, possible)
                found.append(Violation(invariant, f"{path}{way} has {name(read.sha256)}; {names(possible)}"))
    return found


def badly_copied(evidence: Evidence) -> Iterator[str]:
    """I5: every referenced blob has its copies, in as many zones as can be, and their bytes are right."""
    for violation in evidence.unrest:
        yield violation.text
    for blob in evidence.blobs:
        if not blob.referenced or blob.size == 0:
            continue
        if blob.shards < blob.redundancy or blob.zones < min(blob.redundancy, evidence.zones):
            yield f"{blob.sha256[:12]} has {blob.shards} of {blob.redundancy} copies, in {blob.zones} zones"
    files = {(file.shard, file.name): file for file in evidence.files if file.directory == "blobs"}
    for row in evidence.replicas:
        file = files.get((row.shard, f"{row.sha256}.{row.generation}"))
        if file is not None and row.state == "live" and file.sha256 != row.sha256:
            yield f"{where(row)} counts, and its bytes are wrong"


def collected_too_soon(evidence: Evidence) -> Iterator[str]:
    """I6: gc removes nothing that a path surely referred to, or has referred to less than the grace ago."""
    holdings = [(path, holding) for path, history in evidence.ledger.paths.items() for holding in history.holdings]
    for term in evidence.terms:
        if term.kind != "gc":
            continue
        for path, holding in holdings:
            ends = holding.until + evidence.grace_seconds - CLOCK_SECONDS
            if holding.sha256 == term.sha256 and holding.since + CLOCK_SECONDS < term.at < ends:
                yield f"gc removed {holding.sha256[:12]}, which {path} had or had released less than the grace ago"


def unaccounted(evidence: Evidence) -> Iterator[str]:
    """I7: no file without a row, no row without a file, nothing left in tmp/."""
    rows = {(row.shard, f"{row.sha256}.{row.generation}"): row for row in evidence.replicas}
    for file in evidence.files:
        if file.directory == "tmp":
            yield f"{file.shard}/tmp/{file.name} is left over"
        elif (file.shard, file.name) not in rows and file.name.partition(".")[2] not in evidence.on_lists:
            yield f"{file.shard}: no row knows {file.name}"
    there = {(file.shard, file.name) for file in evidence.files if file.directory == "blobs"}
    for key, row in rows.items():
        if key not in there:
            yield f"{where(row)} has no file"


def out_of_office(evidence: Evidence) -> Iterator[str]:
    """I8: epochs only grow, one holder each; no primary acts after a later one has; no shard knows what is not."""
    highest, taken = 0, set[int]()
    for term in evidence.terms:
        if term.epoch < highest:
            yield f"{term.kind} under epoch {term.epoch} after one under epoch {highest}"
        if term.kind == "primary" and term.epoch in taken:
            yield f"epoch {term.epoch} was given twice"
        if term.kind == "primary":
            taken.add(term.epoch)
        highest = max(highest, term.epoch)
    for shard, epoch in evidence.epochs_on_disk.items():
        if epoch > evidence.epoch:
            yield f"{shard} knows epoch {epoch}, the database is at {evidence.epoch}"
    for hold in evidence.holds:
        yield f"deletions are held: {hold}"


def miscounted(evidence: Evidence) -> Iterator[str]:
    """I9: counts and sizes are what the rows and files sum up to."""
    if evidence.totals != evidence.sums:
        yield f"the status shows {dict(evidence.totals)}, the rows sum up to {dict(evidence.sums)}"
    for repository, (counted, summed) in evidence.usage.items():
        if counted != summed:
            yield f"{repository} is said to hold {counted} bytes, its artifacts have {summed}"
    sizes = {blob.sha256: blob.size for blob in evidence.blobs}
    for file in evidence.files:
        sha256 = file.name.partition(".")[0]
        if file.directory == "blobs" and sha256 in sizes and file.size != sizes[sha256]:
            yield f"{file.name} has {file.size} bytes, its row says {sizes[sha256]}"
    for path, read in evidence.listed.items():
        if read.sha256 in sizes and read.size != sizes[read.sha256]:
            yield f"{path} is listed with {read.size} bytes, its blob has {sizes[read.sha256]}"


def mislisted(evidence: Evidence) -> Iterator[str]:
    """I10: a listing names exactly what GET finds, with the same digest."""
    there = {path: read.sha256 for path, read in evidence.reads.items() if read.status == 200}
    listed = {path: read.sha256 for path, read in evidence.listed.items()}
    for path in sorted(there.keys() | listed.keys()):
        if there.get(path) != listed.get(path):
            yield f"{path}: GET finds {name(there.get(path))}, the listing {name(listed.get(path))}"


def misfound(evidence: Evidence) -> Iterator[str]:
    """I10: each node's searches find what the ledger says, with its properties, and agree with GET."""
    there = {path: read.sha256 for path, read in evidence.reads.items() if read.status == 200}
    for node, answers in evidence.answers.items():
        found = {path: item.sha256 for path, item in answers.items.items()}
        for path in sorted(there.keys() | found.keys()):
            if there.get(path) != found.get(path):
                yield f"{path}: GET finds {name(there.get(path))}, AQL of {node} {name(found.get(path))}"
        for text in (*misremembered(evidence.ledger, answers), *disagreeing(answers)):
            yield f"{node}: {text}"


def misremembered(ledger: Ledger, answers: Answers) -> Iterator[str]:
    """Yield what has other properties than it may have, and accounts that are not what they were made."""
    for path, item in answers.items.items():
        possible = ledger.paths[path].possible if path in ledger.paths else frozenset()
        if item not in possible and item.sha256 in digests(possible):
            told = sorted(sorted(one.properties) for one in possible if one is not None)
            yield f"{path} has the properties {sorted(item.properties)}, possible: {told}"
    for account, told_of in answers.accounts.items():
        if told_of not in digests(ledger.accounts[account].possible):
            yield f"{account} is {told_of}, {names(digests(ledger.accounts[account].possible))}"
    for path, is_admitted in answers.admitted.items():
        if is_admitted not in may_admit(ledger, path):
            yield f"{path} {'may' if is_admitted else 'may not'} be read by who was{' not' if is_admitted else ''} given that"


def disagreeing(answers: Answers) -> Iterator[str]:
    """Yield how the searches of one node differ from one another."""
    items = answers.items
    if list(answers.paged) != sorted(items, key=order):
        yield f"sorted pages have {len(answers.paged)} of {len(items)} artifacts, or another order"
    readable = frozenset(filter(is_open, items))
    if answers.readable != readable:
        yield f"an ordinary user finds {sorted(answers.readable ^ readable)[:3]} wrongly or not at all"
    for pair, paths in answers.tagged.items():
        if odd := paths ^ {path for path, item in items.items() if pair in item.properties}:
            yield f"the search for {pair} is wrong about {sorted(odd)[:3]}"
    for sha256, paths in answers.contents.items():
        if odd := paths ^ {path for path, item in items.items() if item.sha256 == sha256}:
            yield f"the search for {name(sha256)} is wrong about {sorted(odd)[:3]}"


def half_done(evidence: Evidence) -> Iterator[str]:
    """I3: what was done to several paths at once, and may have been done or not, was done to all or to none."""
    for node, answers in evidence.answers.items():
        for change in evidence.ledger.unknown:
            if len(set(sides(change, answers.items))) > 1:
                yield f"{node}: a part of it was done: {sorted(change.after)}"


def sides(change: Change, items: Mapping[str, Item]) -> Iterator[bool]:
    """Yield, of each path that tells, whether it was changed."""
    for path, before in change.before.items():
        now, after = items.get(path), change.after[path]
        if before != after and now in (before, after):
            yield now == after


def done_twice(evidence: Evidence) -> Iterator[str]:
    """I11: no request has left two events."""
    yield from audit.repeated(evidence.ledger, evidence.events)


def misaudited(evidence: Evidence) -> Iterator[str]:
    """I12: one event for each acknowledged write, none for what was refused or never asked for, all of them true."""
    for find in (audit.missing, audit.unfounded, audit.untrue, audit.disordered, audit.unfollowed):
        yield from find(evidence.ledger, evidence.events)


def logged(evidence: Evidence) -> Iterator[str]:
    """I12: no secret in a log."""
    yield from evidence.secrets


def found_again(evidence: Evidence) -> Iterator[str]:
    """I13: what a check has dealt with is not found by the next one, and in the end nothing is found."""
    for before, after in zip(evidence.passes, evidence.passes[1:], strict=False):
        if again := before.acted & after.acted:
            yield f"found twice in a row: {', '.join(sorted(again)[:3])}"
    if not evidence.passes or any(one.found or one.waiting for one in evidence.passes[-2:]):
        counts = Counter({f"pass {number}": one.found + one.waiting for number, one in enumerate(evidence.passes, 1)})
        last = sorted(evidence.passes[-1].acted)[:3] if evidence.passes else []
        yield f"checks find something for ever: {dict(counts)}, at last {last}"


def where(row: ReplicaRow) -> str:
    return f"{row.shard}: {row.sha256[:12]}.{row.generation}"


INVARIANTS = (
    ("I5", badly_copied),
    ("I6", collected_too_soon),
    ("I7", unaccounted),
    ("I8", out_of_office),
    ("I9", miscounted),
    ("I10", mislisted),
    ("I10", misfound),
    ("I3", half_done),
    ("I11", done_twice),
    ("I12", misaudited),
    ("I12", logged),
    ("I13", found_again),
)
