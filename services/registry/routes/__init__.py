"""The registry's routes."""

from services.registry.routes import bundles, definitions, downloads, history, publishing, tokens, trail

ROUTES = (
    *publishing.ROUTES,
    *bundles.ROUTES,
    *history.ROUTES,
    *downloads.ROUTES,
    *definitions.ROUTES,
    *tokens.ROUTES,
    *trail.ROUTES,
)
