"""Measurements, each beside what a person would use instead, in the same run, as a ratio."""
