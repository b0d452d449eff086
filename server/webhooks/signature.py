"""Signatures of Standard Webhooks 1.0, and the secret that makes them."""

from __future__ import annotations

import base64
import hashlib
import hmac

PREFIX = "whsec_"  # of a secret: the rest is base64
FORM = f"give {PREFIX} and 24 to 64 random bytes in base64"


def webhook_secret(text: str) -> bytes:
    """The secret that a setting writes as `whsec_` and base64. Raises `ValueError`."""
    try:
        secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except ValueError:
        raise ValueError(FORM) from None
    if not text.startswith(PREFIX) or not 24 <= len(secret) <= 64:
        raise ValueError(FORM)
    return secret


def signed(secret: bytes, event_id: str, now: int, body: bytes) -> dict[str, str]:
    """The three headers of a call: an HMAC-SHA-256 of id, time and body. now: Unix time in seconds."""
    content = f"{event_id}.{now}.".encode() + body
    signature = base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()
    return {"webhook-id": event_id, "webhook-timestamp": str(now), "webhook-signature": f"v1,{signature}"}
