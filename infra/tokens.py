"""The tokens that every installation begins with."""

FIRST_TOKENS = {
    "admin": ["admin"],
    "builder": ["bundles:read", "bundles:publish", "bundles:force"],
    "runner": ["bundles:read"],
}
"""Whom each is for, and its scopes."""
