"""Sentry's own integration for Django sees our tasks, without any configuration of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import django
import pytest
import sentry_sdk
from project import jobs
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.django import DjangoIntegration
from sentry_sdk.transport import Transport

from background_task.tasks import tasks

pytestmark = pytest.mark.django_db(transaction=True)


class Kept(Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.items += [item.payload.json for item in envelope.items if item.payload.json]


@pytest.fixture
def sent() -> Iterator[list[dict[str, Any]]]:
    """Everything that Sentry would be sent."""
    transport = Kept()
    sentry_sdk.init(
        dsn="https://public@sentry.invalid/1",
        transport=transport,
        integrations=[DjangoIntegration()],
        traces_sample_rate=1.0,
    )
    yield transport.items
    sentry_sdk.init()


def test_a_task_that_fails_is_one_event_with_its_exception(sent: list[dict[str, Any]]) -> None:
    jobs.raises.enqueue("the reason")
    assert tasks.run_next_task()
    errors = [each for each in sent if "exception" in each]
    assert len(errors) == 1
    (exception,) = errors[0]["exception"]["values"]
    assert (exception["type"], exception["value"]) == ("LookupError", "the reason")


def test_enqueueing_is_a_span_of_the_callers_transaction(sent: list[dict[str, Any]]) -> None:
    if django.VERSION < (6, 0):
        pytest.skip("Sentry knows django.tasks of Django 6.0 and newer only")
    with sentry_sdk.start_transaction(name="a request"):
        jobs.add.enqueue(1)
    (transaction,) = [each for each in sent if each.get("type") == "transaction"]
    spans = {span["op"]: span["description"] for span in transaction["spans"]}
    assert spans["queue.submit.django"] == "project.jobs.add"
