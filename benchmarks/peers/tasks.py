"""The task of those peers that run in a Django project."""

import body
from django.conf import settings

if settings.PEER == "predecessor":
    from background_task import background as decorator
else:
    from django.tasks import task as decorator


@decorator()
def begin(number: int = 0) -> None:
    """Begin."""
    body.record(number)
