"""Container engines, and images of servers that stand in for the official ones where no image registry is reachable."""
