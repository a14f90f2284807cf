"""``manage.py make_admin``: the user that the demo prints."""

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    """Makes the user admin with the password admin, unless it is there."""

    def handle(self, *args, **options):
        """Make the user."""
        users = get_user_model().objects
        if not users.filter(username="admin").exists():
            users.create_superuser("admin", password="admin")
