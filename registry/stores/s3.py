"""The registry in a bucket: conditional writes of S3, and the vendor's errors in the family's words."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import ClientError
from typing_extensions import override

from registry.errors import Conflict, FlexiError, InvalidInput, NotFound, StoreUnavailable, Unsupported
from registry.foreign_errors import one_line
from registry.stores.base import KEY, ObjectStore, Stored, check_key, check_prefix, missing, moved, taken
from registry.stores.s3_advice import CHECKSUMS, advice, code, status
from registry.stores.s3_client import make_client

ATTEMPTS_WHEN_BUSY = 5
LARGEST = 2**28  # bytes of an object
USE = "Use a store that has conditional writes (AWS S3, MinIO, SeaweedFS 4 and others) or a folder"
BARREN_PAGES = 200  # of a listing, in a row, that bring no name: a bucket's delete markers make some
PROBE = ".conditional-writes"  # a leading dot: no key of the catalog, never listed
NEW_PROBE = b'{"checksums": "untried"}'  # until it was replaced by its own etag
PROBES = {True: b'{"checksums": "when_required"}', False: b'{"checksums": "when_supported"}'}  # what it holds, by `plain`


def open_s3(url: str) -> S3Store:
    """The store at `s3://bucket/prefix`, once it was seen to keep what is written, and not to lose it to another writer."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise InvalidInput(f"{url!r} names no bucket", param="registry")
    store = S3Store(make_client(url), bucket, prefix)
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

    @property
    def plain(self) -> bool:
        """Whether bodies are sent as they are, without boto3's checksums behind them."""
        return bool(self._client.meta.config.request_checksum_calculation == "when_required")

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
            try:  # where the bucket has versions, they stay behind a marker
                answer = self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)
            except ClientError as error:
                if code(error) != "NoSuchKey":
                    raise
            else:
                _refuse_other_than(answer, 200, 204)

    @override
    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        start = {"StartAfter": self._prefix + after} if after else {}
        with self._translated("list", prefix):
            found = [entry["Key"] for page in self._pages(prefix, **start) for entry in page.get("Contents", ())]
        keys = {key.removeprefix(self._prefix) for key in found if key.startswith(self._prefix + prefix)}
        # sorted here, for not every vendor sorts by whole keys (SeaweedFS: by folders); what is no key is somebody else's
        return iter(sorted(key for key in keys if KEY.fullmatch(key) and key > after))

    @override
    def folders(self, prefix: str) -> Iterator[str]:
        with self._translated("list", prefix):
            pages = self._pages(prefix, Delimiter="/")
            found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        names = {folder.removeprefix(self._prefix + prefix).removesuffix("/") for folder in found}
        return iter(sorted(name for name in names if KEY.fullmatch(name) and "/" not in name))

    def _pages(self, prefix: str, **options: str) -> Iterator[Any]:
        """All pages of a listing. boto3's paginator takes one that breaks off for a whole one, and follows any without end."""
        seen, barren, token = set[str](), 0, dict[str, str]()
        while True:
            wanted = {"Bucket": self._bucket, "Prefix": self._prefix + check_prefix(prefix)} | options | token
            page = self._client.list_objects_v2(**wanted)
            _refuse_other_than(page, 200)
            yield page
            if not page["IsTruncated"]:  # no listing lacks it: other XML is no empty folder
                return
            names = {entry["Key"] for entry in page.get("Contents", ())}
            names |= {entry["Prefix"] for entry in page.get("CommonPrefixes", ())}
            barren = 0 if names - seen else barren + 1
            seen |= names
            before, token = token, {"ContinuationToken": page["NextContinuationToken"]}
            if token == before or barren > BARREN_PAGES:
                raise ValueError("a listing without end")

    def _get(self, key: str, **condition: str) -> Stored:
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **condition)
        except ClientError as error:
            if code(error) == "NoSuchKey":
                raise missing(key) from None
            raise
        _refuse_other_than(answer, 200)
        data = answer["Body"].read(LARGEST)
        if answer["Body"].read(1):  # or it raises, where the body broke off
            raise ValueError(f"an object of more than {LARGEST >> 20} MiB")
        return Stored(data, _strong(answer["ETag"]))

    def _put(self, key: str, data: bytes, **condition: str) -> str | None:
        """The new etag, or None where the condition does not hold and the writer was not us."""
        token = uuid.uuid4().hex
        with self._translated("write", key):
            etag = self._put_once(key, data, token, **condition)
            return etag or self._etag_if_ours(key, token)

    def _put_once(self, key: str, data: bytes, token: str, **condition: str) -> str | None:
        for attempt in range(ATTEMPTS_WHEN_BUSY):
            try:
                answer = self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=data, Metadata={"writer": token}, **condition
                )
                return self._etag_of_written(key, token, answer)
            except ClientError as error:
                if status(error) == 412 or code(error) == "NoSuchKey":  # AWS says 404 to If-Match on a missing key
                    return None
                if code(error) != "ConditionalRequestConflict":
                    raise
            time.sleep(random.uniform(0, 0.02 * 2**attempt))  # two writers in the same moment: ask again
        raise Conflict("is being written by many at once: try again", param=key)

    def _etag_of_written(self, key: str, token: str, answer: Any) -> str:
        """The etag of a successful write. What does not look like S3's own answer, such as a page, proves nothing: ask."""
        _refuse_other_than(answer, 200)
        told = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("content-length", "0") == "0"
        etag = _strong(answer["ETag"]) if told and "ETag" in answer else self._etag_if_ours(key, token)
        if not etag:
            raise ValueError("a success, and nothing is written")
        return etag

    def _etag_if_ours(self, key: str, token: str) -> str | None:
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except ClientError as error:
            if status(error) == 404:
                return None
            raise
        return _strong(head["ETag"]) if head["Metadata"].get("writer") == token else None

    @contextmanager
    def _translated(self, verb: str, key: str) -> Iterator[None]:
        """Turn what boto3 raises into `StoreUnavailable`, in words that tell the operator what to do."""
        try:
            yield
        except FlexiError:
            raise
        except Exception as error:  # boto3 does not keep to its own family where an answer is not what it expects
            where = f"s3://{self._bucket}/{self._prefix}{key} at {self._client.meta.endpoint_url}"
            raise StoreUnavailable(f"cannot {verb} {where}: {advice(error, self.plain)}", param="registry") from error


def _refuse_other_than(answer: Any, *expected: int) -> None:
    """Raise `ValueError` for a success that S3 does not know, such as a part of an object (206)."""
    if (number := answer["ResponseMetadata"]["HTTPStatusCode"]) not in expected:
        raise ValueError(f"status {number}")


def _strong(etag: str) -> str:
    """The store's own etag, where a proxy on the way has weakened it: nothing matches a weak one."""
    return str(etag).removeprefix("W/")


def refuse_without_conditional_writes(store: S3Store) -> None:
    """Raise `Unsupported` for a store on which writers would lose updates, or that changes what is written.

    The first ignores `If-None-Match` or `If-Match`, the second keeps checksums as part of an object. It takes three requests
    on a hidden probe object, and some more where that is new or was written with other checksums. A reader who may not
    write can lose nothing, and passes.
    """

    def put(data: bytes, **condition: str) -> str | None:
        with store._translated("write", PROBE):
            return store._put_once(PROBE, data, uuid.uuid4().hex, **condition)

    def made() -> bool:
        return put(NEW_PROBE, IfNoneMatch="*") is not None

    new = False
    try:
        new = made()
        ignored = (new and made()) or put(NEW_PROBE, IfMatch='"00000000000000000000000000000000"') is not None
    except StoreUnavailable as error:
        if code(error.__cause__) == "AccessDenied":
            return
        if code(error.__cause__) != "NotImplemented":
            raise
        ignored = True
    if ignored:
        hint = "" if store.plain else f" ({CHECKSUMS})"
        raise Unsupported(
            f"this S3 store has no conditional writes (If-None-Match, If-Match){hint}: two writers could overwrite each other. "
            f"{USE}",
            param="registry",
        )
    _refuse_changes(store, new, put)


def _refuse_changes(store: S3Store, ours: bool, put: Callable[..., str | None]) -> None:
    """Read the probe back, and replace it by its own etag until it says that this was done, with these checksums."""
    written = PROBES[store.plain]
    for _ in range(ATTEMPTS_WHEN_BUSY):  # others who open the store in the same moment replace it too
        with store._translated("read", PROBE):
            stored = _found(store)
        if ours and stored.data not in {NEW_PROBE, *PROBES.values()}:
            hint = "" if store.plain else f"; {CHECKSUMS}"
            got = one_line(stored.data[: 2 * len(written)])
            message = f"this S3 store, or a proxy before it, does not keep what is written: {PROBE} came back as {got}{hint}"
            raise Unsupported(message, param="registry")
        if stored.data == written:
            return
        ours = put(written, IfMatch=stored.etag) is not None
    message = f"this S3 store, or a proxy before it, does not let an object be replaced by its own etag (If-Match). {USE}"
    raise Unsupported(message, param="registry")


def _found(store: S3Store) -> Stored:
    try:
        return store._get(PROBE)
    except NotFound:
        return Stored(b"", "*")
