"""Publishes, replaces and serves bundle versions, and can prove who changed what."""
