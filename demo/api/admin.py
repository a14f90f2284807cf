"""The messages and the counter in the admin; the tasks are there by themselves."""

from django.contrib import admin

from api.models import Counter, Message


@admin.register(Message)
class MessageAdmin(admin.ModelAdmin):
    """What ``demo_task`` has saved."""

    list_display = ["text", "saved_at"]


@admin.register(Counter)
class CounterAdmin(admin.ModelAdmin):
    """What ``contador_task`` has counted."""

    list_display = ["value", "counted_at"]
