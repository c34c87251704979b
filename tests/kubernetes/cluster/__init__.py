"""What the local overlay is on a real cluster: installed, used, disturbed."""
