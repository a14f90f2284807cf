"""What the tasks of the demo write."""

from django.db import models


class Message(models.Model):
    """Saved by ``demo_task``, in the worker."""

    text = models.CharField(max_length=200)
    saved_at = models.DateTimeField(auto_now_add=True)

    def __str__(self):
        return self.text


class Counter(models.Model):
    """Counted up by ``contador_task``; there is one row."""

    value = models.PositiveIntegerField(default=0)
    counted_at = models.DateTimeField(auto_now=True)

    def __str__(self):
        return str(self.value)
