"""The three services: registry, builder and runner. None imports another."""
