"""The tasks of the demo. The worker finds this module by its name."""

from django.db import transaction

from api.models import Counter, Message
from background_task import background


@background
def demo_task(message):
    """Save the message."""
    Message.objects.create(text=message)


@background
def contador_task():
    """Count one up."""
    with transaction.atomic():
        counter, _ = Counter.objects.select_for_update().get_or_create(pk=1)
        counter.value += 1
        counter.save()


# Runs by itself every ten seconds as soon as the worker is up. However many processes import this
# module, one row waits.
contador_task(repeat=10, remove_existing_tasks=True)
