"""The tasks of this package that are measured."""

import body
from django.tasks import task

from background_task import background


@task
def begin(number: int = 0) -> None:
    """Begin, by the door of Django."""
    body.record(number)


@background("project.tasks.begin_background")
def begin_background(number: int = 0) -> None:
    """Begin, by the door of the predecessor."""
    body.record(number)


@task
def linger(number: int) -> None:
    """Take a while."""
    body.linger(number)
