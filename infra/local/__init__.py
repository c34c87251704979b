"""The embedded stack: everything on one machine, nothing but Python needed."""
