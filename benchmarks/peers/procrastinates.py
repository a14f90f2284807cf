"""procrastinate: ``BENCH_VARIANT`` is ``sync``, one at a time, or ``async``, fifty at a time."""

from __future__ import annotations

import atexit
import os
from contextlib import ExitStack

import body
import databases
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from program import Program, become

CONCURRENCY = {"sync": 1, "async": 50}
VARIANT = os.environ["BENCH_VARIANT"]

app = App(connector=PsycopgConnector(conninfo=databases.url()))


@app.task(name="sync")
def begin(number: int) -> None:
    """Begin, in a thread of the worker."""
    body.record(number)


@app.task(name="async")
async def begin_async(number: int) -> None:
    """Begin, on the loop of the worker."""
    body.record(number)


class Procrastinate(Program):
    """Stores over a connection without a loop."""

    def __init__(self) -> None:
        without_a_loop = SyncPsycopgConnector(conninfo=databases.url())
        replaced = ExitStack()
        self.app = replaced.enter_context(app.replace_connector(without_a_loop))
        replaced.enter_context(self.app.open())
        atexit.register(replaced.close)
        self.task = self.app.tasks[VARIANT]

    def prepare(self) -> None:
        self.app.schema_manager.apply_schema()

    def empty(self) -> None:
        self.app.connector.execute_query("TRUNCATE procrastinate_jobs CASCADE")

    def enqueue(self) -> None:
        self.task.defer(number=1)

    def enqueue_many(self, count: int) -> None:
        self.task.batch_defer(*[{"number": 1}] * count)

    def work(self) -> None:
        concurrency = str(CONCURRENCY[VARIANT])
        become(
            "-m", "procrastinate", "--app=peers.procrastinates.app",
            "worker", "--concurrency", concurrency,
        )  # fmt: skip


program = Procrastinate
