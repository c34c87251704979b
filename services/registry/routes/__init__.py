"""The registry's routes."""

from libs.common.openapi import Tag
from services.registry.routes import bundles, definitions, downloads, history, publishing, standing, tokens, trail

ROUTES = (
    *publishing.ROUTES,
    *bundles.ROUTES,
    *history.ROUTES,
    *standing.ROUTES,
    *downloads.ROUTES,
    *definitions.ROUTES,
    *tokens.ROUTES,
    *trail.ROUTES,
)

TAGS = (
    Tag("Bundles", "What is published: bundles, their versions and revisions, and what is in them.", ("job-bundles",)),
    Tag("Artifacts", "Tarballs, named by the SHA-256 of their bytes.", ("artifacts",)),
    Tag("Jobs and workflows", "Definitions of what can be run.", ("jobs", "workflows")),
    Tag("Audit", "Who changed what, when and why.", ("audit",)),
    Tag("Tokens", "Who may do what.", ("tokens",)),
)
"""The groups of routes in the reference."""
