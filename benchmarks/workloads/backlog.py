"""Whether a deep queue and a long history slow a worker down.

The first tasks of a full database are drained in turn with the same number in an empty one. It is
filled once in a run, and topped up before each drain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import databases
from figures import Sample
from place import Place

from workloads.queueing import drained

READY = 200_000
FUTURE = 1_000_000
HISTORY = 1_000_000
REPETITIONS = 3
SUFFIX = "_backlog"


def backlog(place: Place) -> Iterator[Sample]:
    """Tasks begun a second, of the first ones, in a full database and in an empty one."""
    name = place.system.name
    full = replace(place, system=replace(place.system, suffix=SUFFIX))
    databases.create(full.system.database, databases.name(full.system.database, SUFFIX))
    try:
        full.run("prepare")
        _copies(full, ready=READY, future=FUTURE, history=HISTORY)
        for _ in range(REPETITIONS):
            place.run("fill", 0)
            _copies(place, ready=place.count)
            empty = drained(place)
            _copies(full, ready=READY)
            deep = drained(full)
            yield Sample("backlog, as many as are drained", name, empty)
            yield Sample("backlog, full", name, deep)
            yield Sample("backlog, ratio", name, deep / empty, "x")
    finally:
        databases.drop(full.system.database, databases.name(full.system.database, SUFFIX))


def _copies(place: Place, *, ready: int, future: int = 0, history: int = 0) -> None:
    """Make the tables hold so many rows."""
    place.run_module("project.copies", ready, future, history)
