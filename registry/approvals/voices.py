"""Who speaks for a document: one object for each, beside it. Where keys are trusted, only their signatures count."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from registry.approvals.records import Voice
from registry.errors import Conflict, FlexiError, StoreUnavailable
from registry.stores.base import ObjectStore
from registry.writer import Writer

if TYPE_CHECKING:
    from registry.signing import SigningKey, TrustedKeys


class Voices:
    """Reads and adds voices. Without trusted keys a signature is taken for what it says: who looks cannot check it."""

    def __init__(self, store: ObjectStore, writer: Writer, trusted: TrustedKeys | None = None) -> None:
        self._store, self._writer, self._trusted = store, writer, trusted

    @property
    def trusting(self) -> bool:
        """Whether keys are trusted here, so that their signatures alone count."""
        return self._trusted is not None

    def add(self, key: str, document: bytes, reason: str, signer: SigningKey | None) -> Voice:
        """Speak for the document under `key`. Raises `Conflict` for who has spoken before."""
        by = self._writer
        signed = signer.sign(document) if signer else None
        key_id, signature = (signed.key, signed.signature) if signed else (None, None)
        voice = Voice(author=by.author, host=by.host, time=by.clock(), reason=reason, key=key_id, signature=signature)
        try:
            self._store.create(f"{_folder(key)}{voice.who}.json", voice.document())
        except Conflict:
            who = f"the key {voice.who}" if signer else by.author
            raise Conflict(f"{who} speaks for it already: another one must", param="approve") from None
        return voice

    def of(self, key: str, document: bytes, *, signed: bool) -> list[Voice]:
        """Those that count for a document, one for each person or key; what is damaged or does not fit counts for nothing."""
        found: dict[str, Voice] = {}
        for place in self._store.list(_folder(key)):
            try:
                voice = Voice.read(place, self._store.get(place).data)
            except StoreUnavailable:
                raise
            except FlexiError:
                continue
            if self._counts(voice, document, signed):
                found[voice.who] = voice
        return sorted(found.values(), key=lambda voice: voice.time)

    def _counts(self, voice: Voice, document: bytes, signed: bool) -> bool:
        if self._trusted is None:
            return bool(voice.signature and voice.key) if signed else voice.key is None
        from registry.signing import fits  # cryptography takes a moment to import: only who trusts keys pays

        key = self._trusted.keys.get(voice.key or "")
        return bool(key and voice.signature and fits(key, base64.b64decode(voice.signature), document))


def _folder(key: str) -> str:
    return f"{key.removesuffix('.json')}/"
