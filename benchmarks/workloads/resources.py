"""What a worker costs that has nothing to do; read from Linux's /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import databases
from figures import Sample
from place import Place
from processes import Child, Records, check

IDLE = 3
# PostgreSQL learns from an idle connection what it has done within ten seconds.
SETTLED = 12
WATCHED = 20

BARE = """
import time, django
django.setup()
from django.db import connection
connection.cursor().execute("SELECT 1")
time.sleep(3600)
"""


def memory(place: Place) -> Iterator[Sample]:
    """MiB of an idle worker, of Django that has asked one query, and of a worker after work."""
    place.run("fill", 0)
    records = Records(place.folder)
    bare = [place.system.interpreter(), "-c", BARE]
    with place.started(records, bare, BENCH_BARE="yes") as children:
        time.sleep(IDLE)
        yield from _memory(place, "bare Django", children[0])
    with place.workers(records) as children:
        time.sleep(IDLE)
        yield from _memory(place, "idle", children[0])
    place.run("fill", place.count)
    with place.workers(records) as children:
        records.wait(place.count, children, place.log)
        time.sleep(1)
        yield from _memory(place, "after the drain", children[0])


def _memory(place: Place, when: str, child: Child) -> Iterator[Sample]:
    check(child, place.log)
    kib = {"Rss": 0, "Pss": 0}
    for line in Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key in kib:
            kib[key] = int(rest.split()[0])
    for key, value in kib.items():
        yield Sample(f"memory, {when}, {key.upper()}", place.system.name, value / 1024, "MiB")


def idle(place: Place) -> Iterator[Sample]:
    """What share of a core an idle worker takes, and how often it asks PostgreSQL."""
    name = place.system.name
    place.run("fill", 0)
    records = Records(place.folder)
    with place.workers(records) as children:
        time.sleep(SETTLED)
        ticks, commits = _ticks(children[0]), _commits(place)
        time.sleep(WATCHED)
        check(children[0], place.log)
        ticks, commits = _ticks(children[0]) - ticks, _commits(place) - commits
    share = 100 * ticks / os.sysconf("SC_CLK_TCK") / WATCHED
    yield Sample("idle, CPU", name, share, "% of a core")
    if place.system.database == "postgresql":
        yield Sample("idle, transactions", name, commits / WATCHED, "1/s")


def _ticks(child: Child) -> int:
    """Return the processor time of a process, from the 14th and 15th field of its stat."""
    after_the_name = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_the_name[11]) + int(after_the_name[12])


def _commits(place: Place) -> int:
    if place.system.database != "postgresql":
        return 0
    name = databases.name("postgresql", place.system.suffix)
    sql = f"SELECT xact_commit FROM pg_stat_database WHERE datname = '{name}'"
    return int(databases.ask("postgresql", sql, fetch=True)[0][0])
