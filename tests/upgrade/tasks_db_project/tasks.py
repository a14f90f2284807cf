"""Tasks that write down what they were called with."""

import json

from project.models import Note

from background_task._compat import django_tasks


@django_tasks.task
def write(*args, **kwargs):
    Note.objects.create(text=json.dumps([args, kwargs], sort_keys=True))
    return len(args)
