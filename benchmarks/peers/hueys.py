"""huey, with one thread: ``BENCH_VARIANT`` is ``sqlite`` or ``redis``."""

from __future__ import annotations

import os
from pathlib import Path

import body
import databases
from huey import RedisHuey, SqliteHuey
from program import Program, become

if os.environ["BENCH_VARIANT"] == "sqlite":
    path = Path(os.environ["BENCH_FOLDER"]) / "huey.sqlite3"
    huey = SqliteHuey("background_task_bench", filename=str(path))
else:
    huey = RedisHuey("background_task_bench", url=databases.REDIS)


@huey.task()
def begin(number: int = 0) -> None:
    """Begin."""
    body.record(number)


class Huey(Program):
    """Stores by calling the decorated function."""

    def prepare(self) -> None:
        huey.pending_count()  # fails where nobody answers

    def empty(self) -> None:
        huey.flush()

    def enqueue(self) -> None:
        begin(1)

    def work(self) -> None:
        become("-m", "huey.bin.huey_consumer", "peers.hueys.huey", "-w", "1", "-q")


program = Huey
