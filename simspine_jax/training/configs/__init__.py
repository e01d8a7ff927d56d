"""Runs that come with the package: each module has a ``RUN`` and tells its expected cost and score."""
