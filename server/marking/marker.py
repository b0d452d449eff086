"""Signs image files: a file goes in, the same file with a manifest comes out, or nothing does."""

from __future__ import annotations

import io
import logging
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any

from registry.errors import FlexiError, InvalidInput
from server.config import Settings
from server.errors import MarkingFailed
from server.marking.credential import CERTIFICATE, Credential
from server.marking.manifest import manifest
from server.request_fields import LOSSLESS, TINY_PNG, FileFormat
from server.telemetry import metrics
from server.telemetry.faults import Faults

log = logging.getLogger(__name__)

DAY = 86_400  # seconds
SOON = 14 * DAY  # before a certificate expires, from when on the log says so, as an alert does
SETTINGS: dict[str, Any] = {  # of the C2PA library
    "builder": {"thumbnail": {"enabled": False}},  # 0.25 to 1.4 MB, and ten times the time
    "verify": {
        "remote_manifest_fetch": False,
        "ocsp_fetch": False,
    },  # it contacts nobody but the timestamp authority that is set
}


class Marker:
    """One for each process; any thread may call. It loads the library: servers without a certificate do without."""

    def __init__(self, credential: Credential, timestamps: str | None = None, clock: Callable[[], float] = time.time) -> None:
        """timestamps: URL of an authority (RFC 3161) that is asked for each file; None asks none. clock: Unix time in seconds.

        Raises `InvalidInput` naming the setting where the library does not sign with such a certificate: it is tried.
        """
        self._name, self._ends, self._clock = credential.name, credential.ends, clock
        self._faults = Faults(log)
        try:
            self._context = _context(credential, None)
            self._signed(b64decode(TINY_PNG), LOSSLESS, manifest({}, edited=False))
            if timestamps:
                self._context = _context(credential, timestamps)
        except FlexiError as error:
            raise InvalidInput(f"{credential.name} cannot sign image files: {error.text}", param=CERTIFICATE) from error

    def export(self) -> None:
        """Say in the metrics when the certificate expires, and in the log if that is soon."""
        metrics.marking_certificate_expiry_timestamp_seconds.set(self._ends.timestamp())
        self._warn()

    def check(self) -> None:
        """Raise `MarkingFailed` where nothing can be marked, before anybody spends MACs on an image that nobody may get."""
        self._warn()
        if self._clock() >= self._ends.timestamp():
            metrics.marked_files_total.labels("failed").inc()
            raise MarkingFailed(f"the certificate of {self._name} expired at {self._ends:%Y-%m-%d %H:%M} UTC")

    def mark(self, file: bytes, file_format: FileFormat, facts: Mapping[str, str], *, edited: bool) -> bytes:
        """The file with its manifest. Raises `MarkingFailed`, and hands out nothing then."""
        try:
            signed = self._signed(file, file_format, manifest(facts, edited=edited))
        except MarkingFailed as error:
            metrics.marked_files_total.labels("failed").inc()
            log.error("a file could not be marked, and is not handed out: %s", error)
            raise
        metrics.marked_files_total.labels("ok").inc()
        return signed

    def _signed(self, file: bytes, file_format: FileFormat, definition: dict[str, Any]) -> bytes:
        """The library verifies what it signed."""
        import c2pa

        signed = io.BytesIO()
        try:
            c2pa.Builder(definition, context=self._context).sign(f"image/{file_format}", io.BytesIO(file), signed)
        except c2pa.C2paError as error:
            raise MarkingFailed(str(error)) from error
        return signed.getvalue()

    def _warn(self) -> None:
        """Once a day."""
        left = self._ends.timestamp() - self._clock()
        if left < SOON:
            days = max(0, int(left // DAY))
            self._faults.failed(
                CERTIFICATE, f"the certificate of {self._name} expires in {days} days: no image is made after that"
            )


def marker_of(settings: Settings) -> Marker | None:
    """What the operator wants images marked with, if anything. Raises `InvalidInput` naming the setting."""
    if settings.marking_certificate is None or settings.marking_key is None:
        return None
    return Marker(Credential.read(settings.marking_certificate, settings.marking_key), settings.marking_timestamp_url)


def _context(credential: Credential, timestamps: str | None) -> Any:
    import c2pa

    try:
        info = c2pa.C2paSignerInfo(credential.algorithm, credential.chain, credential.key, timestamps)
        return c2pa.Context.from_dict(SETTINGS, signer=c2pa.Signer.from_info(info))
    except c2pa.C2paError as error:
        raise MarkingFailed(str(error)) from error
