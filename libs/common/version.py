"""Which Stowage this is."""

VERSION = "0.1.0"
"""As in pyproject.toml, by semantic versioning."""
