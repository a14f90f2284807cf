"""Tasks that write down what they were called with, and by which package."""

import json
import os
import time

import background_task
from background_task import background
from legacy_project.models import Note


@background
def note(*args, **kwargs):
    """Write the arguments as they are stored in the row."""
    text = json.dumps([args, kwargs], sort_keys=True)
    Note.objects.create(text=text, worker=background_task.__version__)


@background
def unhurried(number):
    time.sleep(0.01)
    Note.objects.create(text=str(number), worker=background_task.__version__)


@background
def failing():
    raise ValueError("as ever")


if "TEST_EVERY" in os.environ:
    # What a project may write once it has moved; the predecessor knows no such argument.
    options = {} if background_task.__version__ == "1.2.8" else {"every": 3600}

    @background(**options)
    def hourly():
        note.now("hourly")
