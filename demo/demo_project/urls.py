"""The addresses of the demo: the page, the API and the admin."""

from api import views
from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", views.page),
    path("api/", include("api.urls")),
    path("admin/", admin.site.urls),
]
