"""Denoising, and what it costs. Imports no bentoml, prometheus or boto3."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # whoever runs the engine decides where its log goes
