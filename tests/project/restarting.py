"""A server that starts its worker again while a function of the last one goes on."""

import time

import django

django.setup()

from background_task import embedded  # noqa: E402
from project.models import Note  # noqa: E402

embedded.start(every_process=True)
while not Note.objects.exists():
    time.sleep(0.02)
embedded.stop(0)
embedded.start(every_process=True)
print("started again")
time.sleep(60)
