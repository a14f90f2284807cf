"""The values that travel between the rooms; none of them changes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from background_task.states import State


class Kind(NamedTuple):
    """What calls of one task have in common that are stored together: columns of their rows."""

    task_name: str
    priority: int
    run_at: datetime
    queue: str | None
    backend: str | None
    enqueued_at: datetime
    state: State


class NewTask(NamedTuple):
    """A call that is to be stored; ``result_id`` is the public id as text."""

    kind: Kind
    task_params: str
    result_id: str


class Claim(NamedTuple):
    """A row that was taken for a run, with as much of it as the run needs.

    ``epoch`` tells this run from others of the row; it is what the row holds. ``is_chain`` says
    that the end of the run has to store the next row of a chain.
    """

    pk: int
    name: str
    verbose_name: str | None
    params: str
    result_id: Any
    epoch: int | None
    attempts: int
    losses: int | None
    backend: str | None
    is_chain: bool

    def __str__(self) -> str:
        return self.verbose_name or self.name


class Ended(NamedTuple):
    """A run that has succeeded and is to be recorded.

    ``claim`` is the claim, or the row as it was claimed: what has its ``pk``, ``epoch`` and
    ``result_id``. ``began`` and ``ended`` are readings of ``time.perf_counter()``; ``value`` is
    what the function returned, as JSON text.
    """

    claim: Any
    began: float
    ended: float
    value: str | None


class Mark(NamedTuple):
    """Who takes a row: what the claim writes into it, and the end of the run finds there."""

    locked_by: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows a worker takes.

    Args:
        names: of the tasks it knows.
        queues: of these only; empty takes all, and rows of none.
        excluded: but none of these.
        backend: only what came through this alias of Django's door; None takes all.
    """

    names: Collection[str]
    queues: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    backend: str | None = None
