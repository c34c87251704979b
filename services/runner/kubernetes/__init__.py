"""Attempts that are made as Jobs of a Kubernetes cluster."""
