"""What the tests of this suite store."""

import uuid

from django.db import models

from background_task.models import Task


class Note(models.Model):
    """Written by tasks that run in a child process, so that the test sees that they did."""

    text = models.CharField(max_length=200)
    at = models.DateTimeField(auto_now_add=True)


class Account(models.Model):
    """A creator with a UUID for its key."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)


class Label(models.Model):
    """A creator with text for its key."""

    name = models.CharField(max_length=50, primary_key=True)


class Follower(models.Model):
    """Refers to a waiting task, as projects do."""

    task = models.ForeignKey("background_task.Task", null=True, on_delete=models.SET_NULL)


class Special(Task):
    """A task with a column of the project's own."""

    remark = models.CharField(max_length=50)
