"""The registry, over HTTP on real servers."""
