"""Other people's exceptions, each in one line: what happened, and what to do about it.

Nothing is imported for it: an exception is known by the names of its class, of the classes above it, and of their package.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Any

LONGEST = 300  # characters of somebody else's text
_HIDDEN = r"(signature|token|credential|secret|password|authorization|api[-_]?key)(=|:\s*|%3d)[^\s&,;<>\"']+"
_SECRETS = ((re.compile(r"(?<=://)[^/\s@]+@"), "…@"), (re.compile(_HIDDEN, re.IGNORECASE), r"\1\2…"))

_ROOM, _RIGHTS = "make room there", "this user lacks the permission"
_FILE_ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "name a place that can be written",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "free memory, or ask for less at once",
    errno.EADDRINUSE: "another program listens there: choose another port",
    errno.EIO: "the disk or the network file system failed: look at the system's log",
    errno.ESTALE: "the network file system lost it: mount it again",
}
_NETWORK = "check the address, the network and that the service is up"
_DAMAGED = "a file is damaged or was cut short: copy or make it again"
_MEMORY = "use a smaller batch, fewer images, another dtype or another device"
_DEVICE = "the device cannot be used or failed: check --device, its driver and its memory"


def one_line(text: object) -> str:
    """Somebody's text in one printable line of at most `LONGEST` characters, without what looks like a secret."""
    line = printable(text)
    for pattern, instead in _SECRETS:
        line = pattern.sub(instead, line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 2]} …"


def printable(text: object) -> str:
    """A text in one line, with nothing in it that would move a terminal's cursor."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in " ".join(str(text).split()))


def explained(error: BaseException) -> str | None:
    """One line for an exception of the file system, the network, a library or the machine; None for any other: a bug."""
    for cls in type(error).__mro__:
        words = _CLASSES.get(f"{cls.__module__}.{cls.__qualname__}") or _PACKAGES.get(cls.__module__.partition(".")[0])
        if words and (said := words(error)):
            return said
    return None


def _file(error: Any) -> str:
    """Of an `OSError`; libraries raise some without a number, with all in their text."""
    if error.errno is None:
        return one_line(error) or type(error).__name__
    names = " → ".join(one_line(name) for name in (error.filename, error.filename2) if name is not None)
    said = error.strerror or errno.errorcode.get(error.errno, str(error.errno))
    advice = _FILE_ADVICE.get(error.errno)
    return ": ".join(part for part in (names, one_line(said), advice) if part)


def _named(advice: str) -> Callable[[BaseException], str]:
    """The class, its text, and what to do."""

    def words(error: BaseException) -> str:
        return f"{one_line(error) or type(error).__name__}: {advice}"

    return words


def _of(what: str, advice: str) -> Callable[[BaseException], str]:
    """What failed, the class, its text, and what to do."""

    def words(error: BaseException) -> str:
        said = one_line(error)
        return f"{what} failed ({type(error).__name__}{f': {said}' if said else ''}): {advice}"

    return words


def _text(error: Any) -> str:
    return f"a text is not UTF-8 (byte {error.start}: {error.reason}): save the file that was read as UTF-8"


def _terminal(error: Any) -> str:
    return f"the terminal or file cannot take the sign {error.object[error.start]!a}: set PYTHONUTF8=1"


def _json(error: Any) -> str:
    return f"a file is not the JSON that it should be ({one_line(error)})"


def _document(error: Any) -> str:
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"a document is not as it should be ({one_line(f'{where}: ' if where else '')}{one_line(fault['msg'])})"


def _missing(error: Any) -> str:
    return f"{one_line(error)}: install the project's packages (pip install -r requirements.lock), run from its root"


def _program(error: Any) -> str:
    program = error.cmd if isinstance(error.cmd, str) else " ".join(map(str, error.cmd))
    ended = f"ended with {error.returncode}" if hasattr(error, "returncode") else f"did not end in {error.timeout:g} s"
    return f"the program {one_line(program)} {ended}"


def _runtime(error: BaseException) -> str | None:
    """Torch says much in plain `RuntimeError`s; the others are bugs."""
    said = str(error)
    if re.search(r"out of memory|can't allocate memory|not enough memory", said):
        return f"{one_line(said.partition(chr(10))[0])}: {_MEMORY}"
    if re.search(r"CUDA|cuDNN|cuBLAS|HIP |MPS|device string|device type|NVIDIA", said):
        return f"{one_line(said.partition(chr(10))[0])}: {_DEVICE}"
    if re.search(r"PytorchStreamReader|failed finding central directory|unexpected pos", said):
        return f"{one_line(said.partition(chr(10))[0])}: {_DAMAGED}"
    if "can't start new thread" in said:
        return f"{one_line(said)}: raise the limit of processes (ulimit -u)"
    return None


_CLASSES: dict[str, Callable[[Any], str | None]] = {
    "builtins.BlockingIOError": _file,
    "builtins.ConnectionError": _named(_NETWORK),
    "builtins.EOFError": _named(_DAMAGED),
    "builtins.ImportError": _missing,
    "builtins.MemoryError": lambda error: f"out of memory: {_MEMORY}",
    "builtins.OSError": _file,
    "builtins.RecursionError": lambda error: "a document is nested too deeply to be read",
    "builtins.RuntimeError": _runtime,
    "builtins.TimeoutError": _named(_NETWORK),
    "builtins.UnicodeDecodeError": _text,
    "builtins.UnicodeEncodeError": _terminal,
    "concurrent.futures.process.BrokenProcessPool": _named("a process of this program was ended from outside"),
    "http.client.HTTPException": _named(_NETWORK),
    "json.decoder.JSONDecodeError": _json,
    "lzma.LZMAError": _named(_DAMAGED),
    "pickle.UnpicklingError": _named(_DAMAGED),
    "pydantic_core._pydantic_core.ValidationError": _document,
    "socket.gaierror": _named("the host's name is not known: check the address"),
    "socket.herror": _named("the host's name is not known: check the address"),
    "ssl.SSLError": _named("the connection's certificate or encryption is refused: check the address and who signed it"),
    "subprocess.CalledProcessError": _program,
    "subprocess.TimeoutExpired": _program,
    "tarfile.TarError": _named(_DAMAGED),
    "torch.AcceleratorError": _named(_DEVICE),
    "torch.OutOfMemoryError": lambda error: f"{one_line(str(error).partition('. ')[0])}: {_MEMORY}",
    "zipfile.BadZipFile": _named(_DAMAGED),
    "zlib.error": _named(_DAMAGED),
}
_PACKAGES: dict[str, Callable[[Any], str | None]] = {
    "boto3": _of("S3", "check its address, region and credentials"),
    "botocore": _of("S3", "check its address, region and credentials"),
    "cryptography": _of("reading or using a key", "check the key file"),
    "dask": _of("Dask", "check the scheduler and its workers"),
    "distributed": _of("Dask", "check the scheduler and its workers"),
    "httpcore": _of("a request", _NETWORK),
    "httpx": _of("a request", _NETWORK),
    "huggingface_hub": _of("reading a model", "check the model's folder"),
    "openai": _of("a request", _NETWORK),
    "requests": _of("a request", _NETWORK),
    "s3transfer": _of("S3", "check its address, region and credentials"),
    "safetensors": _of("reading weights", _DAMAGED),
    "safetensors_rust": _of("reading weights", _DAMAGED),
    "tornado": _of("Dask", "check the scheduler and its workers"),
    "urllib": _of("a request", _NETWORK),
    "urllib3": _of("a request", _NETWORK),
}
