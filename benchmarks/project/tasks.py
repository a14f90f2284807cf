"""Tasks that do next to nothing: each writes down when it began."""

import os
import time

from django.tasks import task

from background_task import background

if "BENCH_RECORDS" in os.environ:
    _file = os.open(os.environ["BENCH_RECORDS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def record(number: int = 0) -> None:
    """Append one record of 20 bytes."""
    os.write(_file, b"%019d\n" % time.time_ns())


begin = task(record)
begin_background = background("project.tasks.begin_background")(record)
