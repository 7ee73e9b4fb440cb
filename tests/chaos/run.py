"""One run: load and faults for a while, then rest, then judgement."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from tests.chaos.checker import check, misread
from tests.chaos.faults import FAULTS, available
from tests.chaos.gathering import gather, gather_reads
from tests.chaos.ledger import Violation
from tests.chaos.report import Report
from tests.chaos.scene import Scene
from tests.chaos.schedule import Draw, draws

WARM_UP_SECONDS = 4.0
BEGIN_SECONDS_MAX = 300.0
END_SECONDS_MAX = 300.0
WATCH_SECONDS = 1.0


async def run(scene: Scene, report: Report, *, seconds: float, only: str) -> None:
    """Fill ``report``. ``only`` keeps the faults whose names begin so. Never raises for what went wrong in the run."""
    names = [name for name in available(scene.abilities) if name.startswith(tuple(only.split(",")))]
    left_out = sorted(set(FAULTS) - set(available(scene.abilities)))
    if left_out:
        scene.say(f"not possible on this machine: {', '.join(left_out)}")
    stop = asyncio.Event()
    load = asyncio.create_task(scene.load.run(stop))
    watch = asyncio.create_task(watch_nodes(scene))
    try:
        await asyncio.sleep(WARM_UP_SECONDS)
        await play(scene, report, names, seconds)
    except Exception as error:
        scene.say(f"the run ends early: {error!r}")
        report.violations.append(Violation("recovery", f"{type(error).__name__}: {error}"))
    finally:
        stop.set()
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        await load
    scene.say("the load has ended; looking at everything")
    try:
        if report.violations:
            report.violations += misread(await gather_reads(scene))
        else:
            report.violations += check(await gather(scene))
    except Exception as error:
        report.violations.append(Violation("evidence", f"not all could be looked at: {error!r}"))
    report.violations += scene.ledger.violations
    report.count(scene.ledger)


async def play(scene: Scene, report: Report, names: list[str], seconds: float) -> None:
    """Let faults befall the cluster, one at a time, until ``seconds`` are over."""
    ends_at = time.monotonic() + seconds
    for draw in draws(report.seed, names):
        await asyncio.sleep(draw.pause_seconds)
        if time.monotonic() > ends_at:
            return
        what, recovered_seconds = await befall(scene, draw)
        report.note(draw, what, recovered_seconds)
        counts = scene.ledger.outcomes
        scene.say(
            f"{draw.number:3} {draw.name}: {what}; {draw.hold_seconds:.1f} s, whole after {recovered_seconds:.1f} s;"
            f" {counts['put 201']} puts, {counts['get 200']} gets, {counts['delete 204']} deletes,"
            f" {scene.ledger.retried} retried, {len(scene.ledger.violations)} violations"
        )


async def befall(scene: Scene, draw: Draw) -> tuple[str, float]:
    """Make one fault, end it, and wait until the cluster has recovered; return what was done and how long that took."""
    fault = FAULTS[draw.name]()
    try:
        async with asyncio.timeout(BEGIN_SECONDS_MAX):
            what = await fault.begin(scene, draw.random)
        await asyncio.sleep(draw.hold_seconds)
        async with asyncio.timeout(END_SECONDS_MAX):
            await fault.end(scene)
        ended = time.monotonic()
        await scene.recover()
    except (Exception, asyncio.CancelledError) as error:
        error.add_note(f"in fault {draw.number}, {draw.name}")
        scene.say(f"{draw.number:3} {draw.name} did not end well")
        raise
    return what, time.monotonic() - ended


async def watch_nodes(scene: Scene) -> None:
    """Notice a node that ends though nothing was done to it; start it again, so that the run can go on."""
    while True:
        for node in scene.nodes:
            if not node.running and node.id not in scene.resting:
                status = node.process.returncode if node.process else None
                scene.ledger.violate("death", f"{node.id} ended by itself with status {status}")
                await scene.apart(node.start)
        await asyncio.sleep(WATCH_SECONDS)
