"""The states of a row, and who moves it from one to the next.

::

                 run_at in future               due               claimed
    enqueue ────► SCHEDULED ─────────────────► READY ───────────► RUNNING ──► SUCCESSFUL  (history)
       │              ▲                          ▲                 │ │ │ │
       └─ now ────────┼──────────────────────────┤                 │ │ │ └──► FAILED, CANCELLED
                      │                          ├── handed back ──┘ │ │                (history)
                      │                       RESCUED ◄─ worker lost ┘ │
                      └──────────── will retry ────────────────────────┘

A claim takes READY rows, many at a time; RESCUED ones have lost a worker, and are taken with care.
NULL means that code which knows no states wrote or edited the row (the predecessor, bulk_create,
``update()``). A worker says what it is at its next look. Whatever the state, a row runs only when
``run_at``, ``locked_by`` and ``failed_at`` allow it, which old code keeps true as well; a state
that is unknown here is of a newer version, and its rows are left alone.
"""

from __future__ import annotations

from django.db.models import IntegerChoices


class State(IntegerChoices):
    """Stored as a small integer; live rows carry the first four, history rows the others."""

    SCHEDULED = 1, "scheduled"
    READY = 2, "ready"
    RUNNING = 3, "running"
    RESCUED = 4, "rescued"
    SUCCESSFUL = 10, "successful"
    FAILED = 11, "failed"
    CANCELLED = 12, "cancelled"

    @classmethod
    def live(cls) -> list[tuple[int, str]]:
        """The choices of a row in ``background_task``."""
        live = (cls.SCHEDULED, cls.READY, cls.RUNNING, cls.RESCUED)
        return [(s.value, str(s.label)) for s in live]

    @classmethod
    def finished(cls) -> list[tuple[int, str]]:
        """The choices of a row in ``background_task_completedtask``."""
        return [(s.value, str(s.label)) for s in (cls.SUCCESSFUL, cls.FAILED, cls.CANCELLED)]
