"""The client of an S3 store: endpoint, patience, and checksums that the store understands."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from registry.errors import InvalidInput, StoreUnavailable
from registry.stores.s3_advice import ENDPOINT, advice
from registry.stores.urls import refuse_secrets

# boto3 makes its clients at run time and ships no types: they are `Any` here.

# A request that nothing answers ends after 3 × (3 + 5) s and two pauses of at most 3 s together. Our objects are small.
CONFIG = Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3})
CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")  # also AWS_… in the environment
_OF_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu", ".api.aws")


def make_client(url: str, config: Config = CONFIG) -> Any:
    """A client for the registry at `url`: endpoint from FLEXI_S3_ENDPOINT, the rest by boto3's own chain.

    Raises `InvalidInput` for what is no endpoint, `StoreUnavailable` for other settings that boto3 refuses.
    """
    endpoint = os.environ.get(ENDPOINT) or None
    refuse_secrets(endpoint or "", ENDPOINT)
    try:
        client = boto3.client("s3", endpoint_url=endpoint, config=config)
        address = client.meta.endpoint_url
        refuse_secrets(address, "AWS_ENDPOINT_URL")  # where boto3's own settings name one
        if (urlsplit(address).hostname or "").endswith(_OF_AWS):
            return client
        client = boto3.client("s3", endpoint_url=endpoint, config=config.merge(_plain_checksums()))
        client.meta.events.register_first("needs-retry.s3", _refuse_redirect)
        return client
    except BotoCoreError as error:  # first: some of them are ValueErrors too
        raise StoreUnavailable(f"cannot open {url}: {advice(error)}", param="registry") from error
    except ValueError as error:
        raise InvalidInput("give a URL as http://host:port", param=ENDPOINT if endpoint else "AWS_ENDPOINT_URL") from error


def _refuse_redirect(response: Any, operation: Any, **_: Any) -> None:
    """Where there are no regions, boto3's search for the right one asks the same store until the stack is full."""
    if response is not None and 300 <= response[0].status_code < 400 and response[0].status_code != 304:
        raise ClientError(response[1], operation.name)


def _plain_checksums() -> Config:
    """No checksum that the operation does not demand, unless the user's own settings say otherwise.

    boto3 puts them behind the body, in a framing (aws-chunked) that many a store refuses, or keeps as part of the object.
    """
    session = boto3.DEFAULT_SESSION or boto3.Session()
    chosen = session._session.get_scoped_config()  # boto3 itself only shows what the settings come to
    names = [name for name in CHECKSUMS if name not in chosen and not os.environ.get(f"AWS_{name.upper()}")]
    return Config(**dict.fromkeys(names, "when_required"))
