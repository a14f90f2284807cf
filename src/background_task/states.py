"""The states of a row, and who moves it from one to the next.

::

                 run_at in future                  due              claimed
    enqueue ────► SCHEDULED ───────────────────► READY ──────────► RUNNING ──► SUCCESSFUL  (history)
       │              ▲                            ▲                │  │ │
       └─ now ────────┼────────────────────────────┤                │  │ └───► FAILED      (history)
                      │                            └─ handed back ──┘  │
                      └──────────── will retry ────────────────────────┘

NULL means that code which knows no states wrote the row (the predecessor, ``bulk_create``). Such a
row is a full member of the queue: what may run is decided by ``run_at``, ``locked_by``,
``locked_at`` and ``failed_at``, which both sides keep true.
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
