"""Where a registry's objects are kept: a folder, or a bucket of S3."""
