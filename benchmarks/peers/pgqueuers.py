"""pgqueuer, by asyncpg and uvloop, in batches of 100."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import asyncpg
import body
import databases
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from program import Program

BATCH = 100


async def _work() -> None:
    queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(databases.url())))

    @queue.entrypoint("begin")
    async def begin(job: Job) -> None:
        body.record()

    await queue.run(batch_size=BATCH)


class Pgqueuer(Program):
    """Stores on a loop of its own."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.queries = self.run(self._connect())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something to its end."""
        return self.runner.run(work)

    async def _connect(self) -> Queries:
        return Queries(AsyncpgDriver(await asyncpg.connect(databases.url())))

    def prepare(self) -> None:
        self.run(self.queries.install())

    def empty(self) -> None:
        self.run(self.queries.clear_queue())
        self.run(self.queries.clear_queue_log())

    def enqueue(self) -> None:
        self.enqueue_one_by_one(1)

    def enqueue_one_by_one(self, count: int) -> None:
        async def each() -> None:
            for _ in range(count):
                await self.queries.enqueue("begin", b"1")

        self.run(each())

    def enqueue_many(self, count: int) -> None:
        self.run(self.queries.enqueue(["begin"] * count, [b"1"] * count, [0] * count))

    def work(self) -> None:
        self.run(_work())


program = Pgqueuer
