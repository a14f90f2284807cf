"""What an enqueue is compared with: the cheapest row that Django stores."""

from django.db import models


class Plain(models.Model):
    """A row with one index beside its key."""

    name = models.CharField(max_length=100)
    params = models.TextField()
    run_at = models.DateTimeField(db_index=True)
