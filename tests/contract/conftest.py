"""Fixtures of the contract's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.dispatch import Signal

from background_task import signals

SIGNALS = (
    "task_created",
    "task_started",
    "task_finished",
    "task_successful",
    "task_error",
    "task_rescheduled",
    "task_failed",
)


@pytest.fixture
def listen() -> Iterator[Callable[..., None]]:
    """Connect receivers for the length of one test."""
    connected: list[tuple[Signal, Any, dict[str, Any]]] = []

    def connect(signal: Signal, receiver: Any, **options: Any) -> None:
        signal.connect(receiver, weak=False, **options)
        connected.append((signal, receiver, options))

    yield connect
    for signal, receiver, options in connected:
        signal.disconnect(receiver, **options)


@pytest.fixture
def sent(listen: Callable[..., None]) -> list[tuple[str, Any, dict[str, Any]]]:
    """What the seven signals have sent so far: name, sender, arguments."""
    log: list[tuple[str, Any, dict[str, Any]]] = []

    def recorder(name: str) -> Any:
        def receive(sender: Any, signal: Signal, **arguments: Any) -> None:
            log.append((name, sender, arguments))

        return receive

    for name in SIGNALS:
        listen(getattr(signals, name), recorder(name))
    return log


@pytest.fixture
def owner(db: None) -> User:
    return User.objects.create(username="owner")
