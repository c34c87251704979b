"""Streams a bundle from the bucket into a fresh directory and runs it there."""
