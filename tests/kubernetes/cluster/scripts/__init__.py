"""Programs that run in a pod beside the services, as their clients. Each takes JSON and prints JSON."""
