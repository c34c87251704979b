"""What keeps a job from everything that is not its own, and how much of it this machine can give."""
