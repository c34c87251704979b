"""The registry's routes."""

from services.registry.routes import bundles, definitions, downloads, publishing, tokens, trail

ROUTES = (
    *publishing.ROUTES,
    *bundles.ROUTES,
    *downloads.ROUTES,
    *definitions.ROUTES,
    *tokens.ROUTES,
    *trail.ROUTES,
)
