"""Celery on Redis: two processes, 64 messages prefetched for each, results ignored."""

from __future__ import annotations

import os

import body
import databases
from celery import Celery
from program import Program, become

app = Celery("peers.celeries", broker=databases.REDIS)
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    task_default_queue="background_task_bench",
    broker_transport_options={"socket_connect_timeout": 5},
)


@app.task(name="begin")
def begin(number: int = 0) -> None:
    """Begin."""
    body.record(number)


class CeleryProgram(Program):
    """Stores by ``delay()``."""

    def prepare(self) -> None:
        with app.connection() as connection:
            connection.ensure_connection(max_retries=1)

    def empty(self) -> None:
        app.control.purge()

    def enqueue(self) -> None:
        begin.delay(1)

    def work(self) -> None:
        become(
            "-m", "celery", "--app=peers.celeries", "worker", "--pool=prefork", "--concurrency=2",
            "--loglevel=ERROR", f"--hostname=worker{os.getpid()}@%h",
        )  # fmt: skip


program = CeleryProgram
