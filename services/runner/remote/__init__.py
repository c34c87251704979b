"""Attempts that are made elsewhere: by an agent, a process that has a socket to the holder of the run's lease."""
