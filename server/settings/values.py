"""What a setting's text means: switches, lists, origins, URLs, secrets, sizes. Pydantic makes refusals of the `ValueError`s."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from engine.image_size import ImageSize
from registry.errors import InvalidInput
from server.webhooks.signature import webhook_secret

SOCKET_FOLDER = 99  # bytes of the name of a folder with sockets, which have 107 for theirs (unix(7))
PORTS = {"http": 80, "https": 443}
SWITCH = {"true": "on", "1": "on", "yes": "on", "false": "off", "0": "off", "no": "off"}


def as_switch(value: object) -> object:
    """True and false as older settings wrote them are on and off."""
    return SWITCH.get(str(value).lower(), str(value).lower())


def as_parts(text: object) -> object:
    """What stands between commas; what is no text stays."""
    return [part.strip() for part in text.split(",") if part.strip()] if isinstance(text, str) else text


def as_origin(text: str) -> str:
    """An origin as browsers write it in the header of that name. Raises `ValueError`."""
    if text == "*":
        return text
    url = urlsplit(text.lower())
    port = url.port  # raises for what is none
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    origin = f"{url.scheme}://{host}" + (f":{port}" if port else "")
    if not (url.scheme and url.hostname) or origin != text.lower() or "*" in text:
        raise ValueError("an origin is a scheme, a host and maybe a port, as in https://app.example.com:8443, or *")
    return origin.removesuffix(f":{PORTS.get(url.scheme)}")


def as_public_url(text: str | None) -> str | None:
    """A URL without its last slash; None where it is empty. Raises `ValueError`."""
    if not text:
        return None
    url = urlsplit(text)
    if url.scheme not in PORTS or not url.hostname or url.query or url.fragment or url.username:
        raise ValueError("a URL without user and query, as in https://images.example.com")
    return text.rstrip("/")


def as_authority(text: str | None) -> str | None:
    """A URL to ask for timestamps; None where it is empty. Raises `ValueError`."""
    if text and (urlsplit(text).scheme not in PORTS or not urlsplit(text).hostname):
        raise ValueError("a URL, as in http://timestamp.example.com")
    return text or None


def as_secret(secret: SecretStr | None) -> SecretStr | None:
    """None where it is empty. Raises `ValueError` for what is no secret of Standard Webhooks."""
    if secret is None or not secret.get_secret_value():
        return None
    webhook_secret(secret.get_secret_value())
    return secret


def as_filled(text: SecretStr | None) -> SecretStr | None:
    """None where it is empty."""
    return text if text and text.get_secret_value() else None


def as_size(text: object) -> object:
    """Of WIDTHxHEIGHT; what is no text stays. Raises `ValueError`."""
    try:
        return ImageSize.parse(text) if isinstance(text, str) else text
    except InvalidInput as error:
        raise ValueError(error.text) from error


def as_socket_folder(path: Path | None) -> Path | None:
    """A folder that sockets can be made in. Raises `ValueError`."""
    if path and not (path.is_dir() and os.access(path, os.W_OK | os.X_OK)):
        raise ValueError(f"{path} is no folder that this user can write to; make one that the proxy may enter, too")
    if path and len(os.fsencode(path.absolute())) > SOCKET_FOLDER:
        raise ValueError(f"at most {SOCKET_FOLDER} bytes, for the sake of the sockets' names")
    return path


Listed = [NoDecode, BeforeValidator(as_parts)]  # in the environment, with commas between
