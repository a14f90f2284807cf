"""Measures this package, the yardsticks and the peers, in one run. See README.md.

Every pass measures everything: the machine may be busier in one pass than in another, but the
ratios stay.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import databases
import machine
import report
import workloads
from figures import Results
from place import Place
from systems import SYSTEMS, System


def main() -> None:
    """Measure, and print or save what was found."""
    options = arguments()
    chosen = [system for system in SYSTEMS if is_wanted(system, options)]
    results = Results(machine.described({system.database for system in chosen}))
    results.machine |= {"passes": 0, "count": options.count}
    with tempfile.TemporaryDirectory() as folder, prepared(chosen, Path(folder), results) as ready:
        for number in range(options.passes):
            for name in options.workload:
                for _ in range(workloads.ROUNDS.get(name, 1)):
                    measure(name, ready, number, options.count, Path(folder), results)
            results.machine["passes"] = number + 1
            if options.save:
                report.save(results, options.save)
    print(report.table(results))


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    peers = [system.name for system in SYSTEMS if system.kind == "peer"]
    parser.add_argument("--database", choices=databases.VENDORS, action="append")
    parser.add_argument("--workload", choices=[*workloads.WORKLOADS], action="append")
    parser.add_argument("--peer", choices=sorted({*peers}), action="append", help="only these")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--count", type=int, default=20_000, help="tasks to drain")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write the results there")
    options = parser.parse_args()
    options.database = options.database or [*databases.VENDORS]
    options.workload = options.workload or [*workloads.WORKLOADS]
    return options


def is_wanted(system: System, options: argparse.Namespace) -> bool:
    """Tell whether a system was asked for."""
    if system.database not in options.database:
        return False
    if system.kind != "peer":
        return True
    return not options.no_peers and (not options.peer or system.name in options.peer)


@contextmanager
def prepared(systems: list[System], folder: Path, results: Results) -> Iterator[list[Place]]:
    """Make the databases; yield a place for every system that answers, and drop them again."""
    made: set[tuple[str, str]] = set()
    ready = []
    try:
        for system in systems:
            place = Place(system, folder, 0)
            try:
                _create(system, made)
                place.run("prepare")
            except Exception as error:  # whatever a driver raises: it is a reason
                _leave_out(results, system, "everything", error)
            else:
                ready.append(place)
        yield ready
    finally:
        for database, called in made:
            databases.drop(database, called)


def _create(system: System, made: set[tuple[str, str]]) -> None:
    key = system.database, databases.name(system.database, system.suffix)
    if key not in made:
        databases.create(*key)
        made.add(key)


def measure(
    workload: str, ready: list[Place], number: int, count: int, folder: Path, results: Results
) -> None:
    """Measure one workload of every system that has a part in it."""
    for place in ready:
        system = place.system
        if not takes_part(workload, system):
            continue
        began = time.monotonic()
        tasks = min(count, system.count) if system.count else count
        try:
            samples = workloads.WORKLOADS[workload](Place(system, folder, tasks))
            results.add(system.database, workload, system.kind, samples)
        except Exception as error:  # the other figures are worth as much without this one
            _leave_out(results, system, workload, error)
        seconds = time.monotonic() - began
        said = f"pass {number + 1}  {system.database:<11} {workload:<9} {system.name:<36}"
        print(f"{said} {seconds:>6.1f} s", flush=True)


def takes_part(workload: str, system: System) -> bool:
    """Tell whether a workload is measured of a system."""
    if workload in workloads.OURS:
        return system.kind == "ours" and "BENCH_DOOR" not in system.variables
    if workload == "bulk":
        return system.bulk > 0
    return workload in system.workloads


def _leave_out(results: Results, system: System, what: str, error: Exception) -> None:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    results.left_out[f"{system.name} on {system.database}: {what}"] = reason
    print(f"left out: {system.name} on {system.database}: {what}: {reason}", flush=True)


if __name__ == "__main__":
    os.environ.pop("DJANGO_SETTINGS_MODULE", None)
    main()
