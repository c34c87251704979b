"""`infra/compose.yaml`, brought up for real: `make test-compose`."""
