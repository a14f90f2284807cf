"""The other systems, each as its own documents start it; see ``systems.py`` for their names.

A module runs in an environment that holds the peers and not this package.
"""
