"""The table of the processes that run tasks: ``background_task_worker``."""

from __future__ import annotations

from django.db import models
from django.db.models import Value
from django.db.models.functions import Concat


class Worker(models.Model):
    """One process that takes tasks, for as long as it lives.

    ``seen_at`` is its heartbeat. ``lock_key`` is that of the lock which it has for as long as it
    lives, and nobody can have meanwhile; NULL where no such lock can be had, so that the heartbeat
    alone tells. ``held`` names rows that its open transaction has locked, which leaves no trace
    when it dies; ``requests`` is what others ask of it.
    """

    worker_id = models.CharField(max_length=64, primary_key=True)
    name = models.CharField(max_length=190)
    supervisor = models.CharField(max_length=64, null=True)
    queues = models.TextField(blank=True)
    started_at = models.DateTimeField()
    seen_at = models.DateTimeField()
    lock_key = models.BigIntegerField(null=True)
    held = models.TextField(blank=True)
    requests = models.TextField(blank=True)

    class Meta:
        indexes = [models.Index(fields=["seen_at"], name="background_task_seen")]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def can_be_asked(cls, using: str, worker_id: str | None) -> bool:
        """Tell whether there is such a worker in the database ``using``."""
        return cls._base_manager.using(using).filter(worker_id=worker_id).exists()

    @classmethod
    def ask(cls, using: str, worker_id: str | None, request: str) -> None:
        """Ask something of a worker, if it is still there."""
        worker = cls._base_manager.using(using).filter(worker_id=worker_id)
        worker.update(requests=Concat("requests", Value(f" {request}")))
