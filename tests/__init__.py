"""The tests: on a real PostgreSQL and a real S3 server, always."""
