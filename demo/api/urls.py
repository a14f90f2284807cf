"""The API. The slash at the end may be left out, since a POST does not survive a redirect."""

from django.urls import re_path

from api import views

UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"

urlpatterns = [
    re_path(r"^v1/tasks/?$", views.enqueue),
    re_path(rf"^v1/tasks/(?P<result_id>{UUID})/?$", views.state, name="state"),
    re_path(r"^v1/overview/?$", views.overview, name="overview"),
    re_path(r"", views.not_found),
]
