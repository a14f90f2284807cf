"""What a project that comes from django-background-tasks 1.2.8 may rely on, topic by topic."""
