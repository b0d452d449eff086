"""python -m benchmarks.image_marks: what a signed manifest takes beside the image file that it is put into, in the same run.

Times are of the processor, in this thread, so that others on the machine count for little. A timestamp authority, which is
asked over the network where one is set, is not in them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from rich.console import Console
from rich.table import Table

from benchmarks.image_files import FORMATS, PARAMETERS, images, seconds
from server.marking.credential import Credential
from server.marking.marker import Marker
from server.marking.trial_certificate import CHAIN, KEY, Signing, write_trial_certificate

TURNS = 31
KEYS: dict[str, Signing] = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "PS256": rsa.generate_private_key(65537, 2048),
}
FACTS = {name: text for name, text in PARAMETERS.items() if name != "prompt"}


def marker(key: Signing, folder: Path) -> Marker:
    """With a trial certificate."""
    write_trial_certificate(folder, key=key)
    return Marker(Credential.read(folder / CHAIN, folder / KEY))


def main() -> None:
    """Print a table: the time of marking over that of making the file (medians of neighbouring turns), and what it adds."""
    table = Table("key", "image of 512×512", "file", "time to mark / to make", "bytes added", "of the file")
    with tempfile.TemporaryDirectory() as folder:
        for name, key in KEYS.items():
            own = marker(key, Path(folder) / name)
            for what, levels in images().items():
                for form in FORMATS:
                    file = form.file(levels, PARAMETERS)
                    marked = own.mark(file, form.name, FACTS, edited=False)
                    turns = [
                        seconds(lambda file=file, form=form, own=own: own.mark(file, form.name, FACTS, edited=False))  # type: ignore[misc]
                        / seconds(lambda levels=levels, form=form: form.file(levels, PARAMETERS))  # type: ignore[misc]
                        for _ in range(TURNS)
                    ]
                    added = len(marked) - len(file)
                    share = f"{added / len(file):.1%}"
                    table.add_row(name, what, f"{form.name}, {form.quality} %", f"{median(turns):.2f}", f"{added:,}", share)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
