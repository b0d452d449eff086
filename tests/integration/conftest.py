"""Servers that integration tests share."""

from collections.abc import Iterator

import pytest
from prometheus_server import tool
from seaweed import S3Server, run_seaweed


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server for the whole session; use a prefix of your own in its bucket."""
    with run_seaweed() as server:
        yield server


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus' own checker."""
    return tool("promtool")
