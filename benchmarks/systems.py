"""Every system that is measured: this package by both of its doors, the yardsticks, the peers."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import databases

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent / ".venvs"


@dataclass(frozen=True)
class System:
    """One system on one database.

    Args:
        name: what it is called in the results.
        database: with which database it is measured.
        module: the program, see ``act.py``.
        kind: ``ours``, ``yardstick`` or ``peer``.
        workloads: what is measured of it.
        python: the environment it runs in; that of this process when it is empty.
        settings: the settings of its Django project.
        suffix: what the name of its database ends in.
        count: how many tasks it drains; 0 is what the command line says.
        singles: how many tasks it stores one by one.
        bulk: how many it stores at once; 0 where there is no such call.
        pickups: how many tasks an idle worker picks up.
        gap: seconds at most between two of these.
        variables: what else its program is to know.
    """

    name: str
    database: str
    module: str
    kind: str = "peer"
    workloads: tuple[str, ...] = ("enqueue", "drain", "pickup")
    python: str = "bench-peers"
    settings: str = ""
    suffix: str = ""
    count: int = 0
    singles: int = 500
    bulk: int = 0
    pickups: int = 105
    gap: float = 0.2
    variables: dict[str, str] = field(default_factory=dict)

    def command(self, *act: object) -> list[str]:
        """Return the command that lets its program act."""
        return [self.interpreter(), "-m", "act", self.module, *map(str, act)]

    def interpreter(self) -> str:
        """Return the path of its Python."""
        return str(ENVIRONMENTS / self.python / "bin" / "python") if self.python else sys.executable

    def environment(self, folder: Path) -> dict[str, str]:
        """Return the environment of its processes."""
        return {
            **os.environ,
            "BENCH_DATABASE": self.database,
            "BENCH_NAME": databases.name(self.database, self.suffix),
            "BENCH_FOLDER": str(folder),
            "DJANGO_SETTINGS_MODULE": self.settings,
            "PYTHONPATH": str(HERE),
            **self.variables,
        }


OURS = "background_task"
BACKGROUND = "background_task, @background"
CREATE = "create() of a plain row"
NARROW = "limit, narrow tables"
MARK = "limit, our tables, mark"
HOLD = "limit, our tables, hold"


def ours(database: str) -> System:
    """Return this package by the door of Django."""
    return _own(
        OURS, database, "project.producer", "ours",
        workloads=("enqueue", "drain", "pickup"), bulk=100_000, pickups=205,
    )  # fmt: skip


def _own(name: str, database: str, module: str, kind: str, **options: object) -> System:
    return System(name, database, module, kind, python="", settings="project.settings", **options)  # type: ignore[arg-type]


def _of_this_project(database: str) -> list[System]:
    background = _own(
        BACKGROUND, database, "project.producer", "ours",
        workloads=("enqueue", "drain"), variables={"BENCH_DOOR": "begin_background"},
    )  # fmt: skip
    create = _own(CREATE, database, "yardsticks.create", "yardstick", workloads=("enqueue",))
    return [create, ours(database), background]


def _limits(database: str) -> list[System]:
    narrow = _own(NARROW, database, "yardsticks.narrow", "yardstick", workloads=("drain",))
    claims = {MARK: "mark", HOLD: "hold"} if database == "postgresql" else {MARK: "mark"}
    return [
        narrow,
        *(_by_hand(name, database, claim) for name, claim in claims.items()),
    ]


def _by_hand(name: str, database: str, claim: str) -> System:
    return _own(
        name, database, "yardsticks.own_tables", "yardstick",
        workloads=("drain",), variables={"BENCH_CLAIM": claim},
    )  # fmt: skip


def _in_django(name: str, database: str, module: str, **options: object) -> System:
    return System(
        name, database, f"peers.{module}", settings="peers.settings", suffix=f"_{module}",
        variables={"BENCH_PEER": module}, **options,
    )  # type: ignore[arg-type]  # fmt: skip


def _django_peers(database: str) -> list[System]:
    return [
        _in_django(
            "django-background-tasks", database, "predecessor",
            python="bench-predecessor", count=60, pickups=25, gap=1.5,
        ),
        _in_django("django-tasks-db", database, "tasks_db", count=1000),
        _in_django("django-ox", database, "ox", count=1000, bulk=10_000),
        _in_django("dj-queue", database, "djqueue", count=1000, bulk=10_000),
    ]  # fmt: skip


_SQLITE_PEERS = [
    System(
        "huey, SQLite", "sqlite", "peers.hueys",
        count=10_000, singles=2000, variables={"BENCH_VARIANT": "sqlite"},
    ),
]  # fmt: skip
_POSTGRESQL_PEERS = [
    System(
        "procrastinate", "postgresql", "peers.procrastinates", suffix="_procrastinate",
        count=2000, bulk=10_000, variables={"BENCH_VARIANT": "sync"},
    ),
    System(
        "procrastinate, async, 50 at a time", "postgresql", "peers.procrastinates",
        workloads=("drain",), suffix="_procrastinate_async",
        count=2000, variables={"BENCH_VARIANT": "async"},
    ),
    System(
        "pgqueuer", "postgresql", "peers.pgqueuers", suffix="_pgqueuer",
        count=20_000, bulk=100_000,
    ),
    System(
        "huey, Redis", "postgresql", "peers.hueys",
        count=10_000, singles=2000, variables={"BENCH_VARIANT": "redis"},
    ),
    System("Celery, Redis", "postgresql", "peers.celeries", count=3000),
]  # fmt: skip

SYSTEMS = [
    *_of_this_project("sqlite"),
    *_limits("sqlite"),
    *_django_peers("sqlite"),
    *_SQLITE_PEERS,
    *_of_this_project("postgresql"),
    *_limits("postgresql"),
    *_django_peers("postgresql"),
    *_POSTGRESQL_PEERS,
    *_of_this_project("mysql"),
]
