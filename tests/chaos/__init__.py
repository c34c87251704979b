"""Tests that take machines, servers and connections away while runs are under way."""
