"""Denoising, and what it costs. Imports no bentoml, prometheus or boto3."""
