"""Inputs that nobody would make on purpose, for everything that reads what strangers publish."""
