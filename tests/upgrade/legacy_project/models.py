"""What the project stores, and the ways in which it refers to tasks."""

from django.contrib.contenttypes.fields import GenericRelation
from django.db import models


class Note(models.Model):
    """What a task was called with."""

    id = models.BigAutoField(primary_key=True)
    text = models.TextField()
    worker = models.CharField(max_length=20)


class Customer(models.Model):
    """Who asks for tasks."""

    id = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=20)
    tasks = GenericRelation(
        "background_task.Task",
        content_type_field="creator_content_type",
        object_id_field="creator_object_id",
    )


class Watch(models.Model):
    id = models.BigAutoField(primary_key=True)
    task = models.ForeignKey("background_task.Task", null=True, on_delete=models.SET_NULL)
    done = models.ForeignKey("background_task.CompletedTask", null=True, on_delete=models.CASCADE)


class Report(models.Model):
    """A row whose key is the key of what was done."""

    done = models.OneToOneField(
        "background_task.CompletedTask", primary_key=True, on_delete=models.CASCADE
    )


class Batch(models.Model):
    id = models.BigAutoField(primary_key=True)
    tasks = models.ManyToManyField("background_task.Task")
