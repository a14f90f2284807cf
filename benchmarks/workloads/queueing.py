"""What every queue does: store tasks, begin them, and notice a new one."""

from __future__ import annotations

import time
from collections.abc import Iterator

from figures import Sample
from place import Place
from processes import Records

# An idle worker is given so many seconds to start, and so many pickups to get warm.
START = 2
WARMING = 5


def enqueue(place: Place) -> Iterator[Sample]:
    """Rows stored a second, one by one."""
    system = place.system
    yield Sample("enqueue, one by one", system.name, float(place.run("enqueue", system.singles)))


def bulk(place: Place) -> Iterator[Sample]:
    """Rows stored a second, as many as possible by one call."""
    system = place.system
    yield Sample("enqueue, in bulk", system.name, float(place.run("bulk", system.bulk)))


def drain(place: Place) -> Iterator[Sample]:
    """Tasks begun a second, from the first to the last, by one worker and by two."""
    for number in (1, 2):
        place.run("fill", place.count)
        what = f"drain, {number} worker{'s' if number > 1 else ''}"
        yield Sample(what, place.system.name, drained(place, number))


def drained(place: Place, number: int = 1) -> float:
    """Let workers begin what is there; return how many tasks a second did, of the first ones."""
    records = Records(place.folder)
    with place.workers(records, number) as children:
        records.wait(place.count, children, place.log)
    return rate(records.moments()[: place.count])


def rate(moments: list[int]) -> float:
    """Return how many tasks a second began."""
    return (len(moments) - 1) / ((moments[-1] - moments[0]) / 1e9)


def pickup(place: Place) -> Iterator[Sample]:
    """Milliseconds from the return of the call that stores to the start, by an idle worker."""
    system = place.system
    place.run("fill", 0)
    records = Records(place.folder)
    with place.workers(records) as children:
        time.sleep(START)
        sent = [int(line) for line in place.run("pickup", system.pickups, system.gap).split()]
        records.wait(len(sent), children, place.log)
    pairs = zip(records.moments(), sorted(sent), strict=True)
    late = sorted((began - moment) / 1e6 for began, moment in list(pairs)[WARMING:])
    for percent in (50, 95, 99):
        value = late[min(len(late) - 1, len(late) * percent // 100)]
        yield Sample(f"pickup, p{percent}", system.name, value, "ms")
