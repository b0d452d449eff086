"""The registry in a bucket: conditional writes of S3, and the vendor's errors in the family's words."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from typing_extensions import override

from registry.errors import Conflict, InvalidInput, StoreUnavailable, Unsupported
from registry.stores.base import ObjectStore, Stored, check_key, check_prefix, missing, moved, taken
from registry.stores.s3_advice import ENDPOINT, FAULTS, advice, code, status
from registry.stores.urls import refuse_secrets

# boto3 makes its clients at run time and ships no types: they are `Any` here.

# A request that nothing answers ends after 3 × (3 + 5) s and two pauses of at most 3 s together. Our objects are small.
CONFIG = Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3})
ATTEMPTS_WHEN_BUSY = 5
PROBE = ".conditional-writes"  # a leading dot: no key of the catalog, never listed


def open_s3(url: str) -> S3Store:
    """The store at `s3://bucket/prefix`: endpoint from FLEXI_S3_ENDPOINT, the rest by boto3's own chain."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise InvalidInput(f"{url!r} names no bucket", param="registry")
    endpoint = os.environ.get(ENDPOINT) or None
    refuse_secrets(endpoint or "", ENDPOINT)
    try:
        client = boto3.client("s3", endpoint_url=endpoint, config=CONFIG)
    except ValueError as error:
        raise InvalidInput("give a URL as http://host:port", param=ENDPOINT) from error
    except BotoCoreError as error:
        raise StoreUnavailable(f"cannot open {url}: {advice(error)}", param="registry") from error
    refuse_secrets(client.meta.endpoint_url, "AWS_ENDPOINT_URL")  # where boto3's own settings name one
    store = S3Store(client, bucket, prefix)
    refuse_without_conditional_writes(store)
    return store


class S3Store(ObjectStore):
    """Objects under `prefix` of a bucket. `If-None-Match: *` makes them, `If-Match` moves them.

    Each write carries a token of its own. If the answer to a successful write is lost, the client's retry is told that
    somebody else was first; the token then shows that this somebody was us.
    """

    def __init__(self, client: Any, bucket: str, prefix: str = "") -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{check_key(prefix.strip('/'))}/" if prefix.strip("/") else ""

    @override
    def get(self, key: str) -> Stored:
        with self._translated("read", check_key(key)):
            return self._get(key)

    @override
    def get_if_changed(self, key: str, etag: str) -> Stored | None:
        with self._translated("read", check_key(key)):
            try:
                return self._get(key, IfNoneMatch=etag)
            except ClientError as error:
                if status(error) == 304:
                    return None
                raise

    @override
    def create(self, key: str, data: bytes) -> str:
        etag = self._put(check_key(key), data, IfNoneMatch="*")
        if etag is None:
            raise taken(key)
        return etag

    @override
    def swap(self, key: str, data: bytes, etag: str) -> str:
        new = self._put(check_key(key), data, IfMatch=etag)
        if new is None:
            raise moved(key)
        return new

    @override
    def delete(self, key: str) -> None:
        with self._translated("delete", check_key(key)):
            self._client.delete_object(
                Bucket=self._bucket, Key=self._prefix + key
            )  # where the bucket has versions, they stay behind a marker

    @override
    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        start = {"StartAfter": self._prefix + after} if after else {}
        with self._translated("list", prefix):
            objects = [entry for page in self._pages(prefix, **start) for entry in page.get("Contents", ())]
        keys = (entry["Key"].removeprefix(self._prefix) for entry in objects)
        # sorted here, for not every vendor sorts by whole keys (SeaweedFS: by folders)
        return iter(sorted(key for key in keys if key != PROBE and key > after))

    @override
    def folders(self, prefix: str) -> Iterator[str]:
        with self._translated("list", prefix):
            folders = [entry for page in self._pages(prefix, Delimiter="/") for entry in page.get("CommonPrefixes", ())]
        return iter(sorted(entry["Prefix"].removeprefix(self._prefix + prefix).rstrip("/") for entry in folders))

    def _pages(self, prefix: str, **options: str) -> Iterator[Any]:
        paginator = self._client.get_paginator("list_objects_v2")
        return iter(paginator.paginate(Bucket=self._bucket, Prefix=self._prefix + check_prefix(prefix), **options))

    def _get(self, key: str, **condition: str) -> Stored:
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **condition)
        except ClientError as error:
            if code(error) == "NoSuchKey":
                raise missing(key) from None
            raise
        return Stored(answer["Body"].read(), answer["ETag"])

    def _put(self, key: str, data: bytes, **condition: str) -> str | None:
        """The new etag, or None where the condition does not hold and the writer was not us."""
        token = uuid.uuid4().hex
        with self._translated("write", key):
            return self._put_once(key, data, token, **condition) or self._etag_if_ours(key, token)

    def _put_once(self, key: str, data: bytes, token: str, **condition: str) -> str | None:
        for attempt in range(ATTEMPTS_WHEN_BUSY):
            try:
                answer = self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=data, Metadata={"writer": token}, **condition
                )
                return str(answer["ETag"])
            except ClientError as error:
                if status(error) == 412 or code(error) == "NoSuchKey":  # AWS says 404 to If-Match on a missing key
                    return None
                if code(error) != "ConditionalRequestConflict":
                    raise
            time.sleep(random.uniform(0, 0.02 * 2**attempt))  # two writers in the same moment: ask again
        raise Conflict("is being written by many at once: try again", param=key)

    def _etag_if_ours(self, key: str, token: str) -> str | None:
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except ClientError as error:
            if status(error) == 404:
                return None
            raise
        return str(head["ETag"]) if head["Metadata"].get("writer") == token else None

    @contextmanager
    def _translated(self, verb: str, key: str) -> Iterator[None]:
        """Turn what boto3 raises into `StoreUnavailable`, in words that tell the operator what to do."""
        try:
            yield
        except FAULTS as error:
            where = f"s3://{self._bucket}/{self._prefix}{key}"
            raise StoreUnavailable(
                f"cannot {verb} {where} at {self._client.meta.endpoint_url}: {advice(error)}", param="registry"
            ) from error


def refuse_without_conditional_writes(store: S3Store) -> None:
    """Raise `Unsupported` for a store that ignores `If-None-Match` or `If-Match`: on it, writers would lose updates.

    Two requests on a hidden probe object. A reader who may not write can lose nothing, and passes.
    """

    def passes(**condition: str) -> bool:
        with store._translated("write", PROBE):
            return store._put_once(PROBE, b"{}", "probe", **condition) is not None

    try:
        made = passes(IfNoneMatch="*")
        ignored = (made and passes(IfNoneMatch="*")) or passes(IfMatch='"00000000000000000000000000000000"')
    except StoreUnavailable as error:
        if code(error.__cause__) == "AccessDenied":
            return
        if code(error.__cause__) != "NotImplemented":
            raise
        ignored = True
    if ignored:
        raise Unsupported(
            "this S3 store has no conditional writes (If-None-Match, If-Match): two writers could overwrite each "
            "other. Use a store that has them (AWS S3, MinIO, SeaweedFS 4 and others) or a folder",
            param="registry",
        )
