"""Rebuilds bundles from source in a clean workspace, on the platform they will run on."""
