"""How the services are deployed: migrations, the embedded stack, containers, Kubernetes."""
