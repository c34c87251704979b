"""The registry's routes."""

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
