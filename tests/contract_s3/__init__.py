"""What the services need of an S3 server: run it on yours with S3_ENDPOINT, S3_ACCESS_KEY and S3_SECRET_KEY.

    S3_ENDPOINT=https://s3.example S3_ACCESS_KEY=… S3_SECRET_KEY=… pytest tests/contract_s3 -n 0

The keys must be allowed to make buckets, and users where the server has policies; what is made is removed. Without
S3_ENDPOINT the server is that of all other tests. docs/object-storage.md says what each part is needed for.
"""
