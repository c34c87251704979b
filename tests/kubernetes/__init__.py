"""The manifests, and what they make of a real cluster."""
