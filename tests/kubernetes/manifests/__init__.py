"""What the manifests say, rendered."""
