"""How soon a task runs again whose process was killed. Its time is two seconds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from figures import Sample
from place import Place
from processes import Child, Records, kill, wait_for

REPETITIONS = 3
# Seconds that workers are given to start and become idle, and that a task has run when it is hit.
START = 2.5
HIT = 0.5


class Start(NamedTuple):
    """One start of a task."""

    number: int
    pid: int
    moment: int


def recovery(place: Place) -> Iterator[Sample]:
    """Seconds from SIGKILL, or the start of the next worker, to the second start of a task."""
    cases: dict[str, Callable[[Place], float]] = {
        "a child killed": _child,
        "a worker killed beside another": _beside,
        "a worker killed, then another started": _then,
    }
    for _ in range(REPETITIONS):
        for name, case in cases.items():
            yield Sample(f"recovery, {name}", place.system.name, case(place), "s")
    place.run("fill", 0)


def _child(place: Place) -> float:
    """Kill one of the two processes that a supervisor watches."""
    place.run("linger", 0)
    records = Records(place.folder)
    command = [place.system.interpreter(), "-m", "django", "process_tasks", "--processes", "2"]
    with place.started(records, command) as children:
        time.sleep(START)
        place.run("linger", 2)
        victim = _first(place, records, children)
        os.kill(victim.pid, signal.SIGKILL)
        return _again(place, records, children, victim, time.time_ns())


def _beside(place: Place) -> float:
    """Kill one of two workers that do not know each other."""
    place.run("linger", 0)
    records = Records(place.folder)
    with place.workers(records, 2) as children:
        time.sleep(START)
        place.run("linger", 1)
        victim = _first(place, records, children)
        for child in children:
            if child.pid == victim.pid:
                kill(child)
        return _again(place, records, children, victim, time.time_ns())


def _then(place: Place) -> float:
    """Kill the only worker, and start another."""
    place.run("linger", 1)
    records = Records(place.folder)
    with ExitStack() as stack:
        children = stack.enter_context(place.workers(records))
        victim = _first(place, records, children)
        kill(children[0])
        moment = time.time_ns()
        children = stack.enter_context(place.workers(records))
        return _again(place, records, children, victim, moment)


def _starts(records: Records) -> list[Start]:
    if not records.path.exists():
        return []
    lines = records.path.read_text().splitlines()
    return [Start(*map(int, line.split())) for line in lines]


def _first(place: Place, records: Records, children: Sequence[Child]) -> Start:
    """Wait until a task has run for a moment; return where it does."""
    wait_for(lambda: _starts(records), children, place.log)
    time.sleep(HIT)
    return _starts(records)[0]


def _again(
    place: Place, records: Records, children: Sequence[Child], victim: Start, since: int
) -> float:
    def found() -> list[Start]:
        return [s for s in _starts(records) if s.number == victim.number and s.moment > since]

    wait_for(found, children, place.log, seconds=120)
    return (found()[0].moment - since) / 1e9
