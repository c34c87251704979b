"""An S3 server made ready for the services: the bucket, and a user for each service that may do what it needs."""
