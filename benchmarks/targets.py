"""The numbers that are asked for, and what has come of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from figures import Results
from systems import CREATE, NARROW, OURS

Measure = Callable[[Results], float | None]
ONE, TWO = "drain, 1 worker", "drain, 2 workers"
SINGLE, BULK = "enqueue, one by one", "enqueue, in bulk"


@dataclass(frozen=True)
class Target:
    """One number: what it must be, what it should be, and how it is read from the results."""

    what: str
    must: float
    aim: float
    measure: Measure
    unit: str = "x"
    is_lower_better: bool = False

    def is_met(self, value: float) -> bool:
        """Tell whether a value is good enough."""
        return value <= self.must if self.is_lower_better else value >= self.must


def value(database: str, figure: str, system: str = OURS) -> Measure:
    """Return what reads one figure."""

    def read(results: Results) -> float | None:
        found = results.of(database, figure, system)
        return found.median if found else None

    return read


def ratio(dividend: Measure, divisor: Measure) -> Measure:
    """Return what divides one figure by another."""

    def read(results: Results) -> float | None:
        above, below = dividend(results), divisor(results)
        return above / below if above is not None and below else None

    return read


def _against(database: str, figure: str, system: str) -> Measure:
    return ratio(value(database, figure), value(database, figure, system))


def _drain() -> list[Target]:
    of_postgresql = ratio(value("mysql", ONE), value("postgresql", ONE))
    two_of_one = ratio(value("postgresql", TWO), value("postgresql", ONE))
    return [
        Target("PostgreSQL, drain, of the limit", 0.4, 0.7, _against("postgresql", ONE, NARROW)),
        Target("PostgreSQL, drain, pgqueuer", 1.3, 2.3, _against("postgresql", ONE, "pgqueuer")),
        Target(
            "PostgreSQL, drain, django-tasks-db", 60, 120,
            _against("postgresql", ONE, "django-tasks-db"),
        ),
        Target("PostgreSQL, drain, two workers of one", 1.5, 1.8, two_of_one),
        Target("SQLite, drain, of the limit", 0.2, 0.5, _against("sqlite", ONE, NARROW)),
        Target("SQLite, drain, huey", 4, 10, _against("sqlite", ONE, "huey, SQLite")),
        Target("MariaDB, drain, of our PostgreSQL", 0.4, 1.0, of_postgresql),
    ]  # fmt: skip


def _enqueue() -> list[Target]:
    return [
        Target("PostgreSQL, enqueue, create()", 0.9, 1.0, _against("postgresql", SINGLE, CREATE)),
        Target("SQLite, enqueue, create()", 0.9, 1.0, _against("sqlite", SINGLE, CREATE)),
        Target(
            "PostgreSQL, enqueue in bulk, pgqueuer", 1.0, 1.0,
            _against("postgresql", BULK, "pgqueuer"),
        ),
        Target(
            "PostgreSQL, enqueue in bulk", 0, 150_000, value("postgresql", BULK), "tasks/s"
        ),
    ]  # fmt: skip


def _lower(what: str, must: float, aim: float, measure: Measure, unit: str) -> Target:
    return Target(what, must, aim, measure, unit, is_lower_better=True)


def _pickup() -> list[Target]:
    limits = {"postgresql": (2, 6), "sqlite": (5, 20), "mysql": (20, 60)}
    return [
        _lower(f"{NAMES[database]}, pickup, p{percent}", limit, limit,
               value(database, f"pickup, p{percent}"), "ms")
        for database, both in limits.items()
        for percent, limit in zip((50, 99), both, strict=True)
    ]  # fmt: skip


def _backlog() -> list[Target]:
    return [
        Target(f"{name}, backlog, full of empty", 0.9, 1.0, value(database, "backlog, ratio"))
        for database, name in NAMES.items()
    ]


def _worker() -> list[Target]:
    idle, bare = "memory, idle, RSS", "memory, bare Django, RSS"
    child, beside = "recovery, a child killed", "recovery, a worker killed beside another"
    return [
        target
        for database, name in NAMES.items()
        for target in (
            _lower(f"{name}, idle memory", 60, 60, value(database, idle), "MiB"),
            _lower(
                f"{name}, idle memory, of bare Django", 1.3, 1.1,
                ratio(value(database, idle), value(database, bare)), "x",
            ),
            _lower(f"{name}, child killed", 1, 0.5, value(database, child), "s"),
            _lower(f"{name}, whole worker killed", 5, 2, value(database, beside), "s"),
        )
    ]  # fmt: skip


def _idle() -> list[Target]:
    commits = value("postgresql", "idle, transactions")
    return [
        *(
            _lower(f"{name}, idle", 1, 1, value(database, "idle, CPU"), "% of a core")
            for database, name in NAMES.items()
        ),
        _lower("PostgreSQL, idle, transactions", 1, 1, commits, "1/s"),
    ]


NAMES = {"postgresql": "PostgreSQL", "sqlite": "SQLite", "mysql": "MariaDB"}
TARGETS = [*_drain(), *_enqueue(), *_pickup(), *_backlog(), *_worker(), *_idle()]
