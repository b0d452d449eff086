"""python -m server.marking: a certificate to try marking with, and what the mark of a file says."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer

from registry.commands.command_line import command_line
from registry.errors import InvalidInput
from server.marking.marker import SETTINGS
from server.marking.trial_certificate import CHAIN, KEY, write_trial_certificate

app = command_line(help="Marks in image files: signed manifests that say that they were generated (C2PA).")

Folder = Annotated[Path, typer.Argument(help="Where the files go: certificate.pem, key.pem, root.pem.")]
Days = Annotated[float, typer.Option("--days", min=0.001, max=3650, help="For how long it is valid.")]
ImageFile = Annotated[Path, typer.Argument(help="A PNG, JPEG or WebP file.")]


@app.command("test-certificate")
def trial_certificate(folder: Folder, days: Days = 30.0) -> None:
    """Make a certificate to try marking with. Verifiers say that they do not trust it: it is for nobody else's eyes."""
    write_trial_certificate(folder, days)
    typer.echo(f"FLEXI_MARKING_CERTIFICATE={folder / CHAIN} FLEXI_MARKING_KEY={folder / KEY}")


@app.command()
def show(file: ImageFile) -> None:
    """What the manifest of a file says, and whether it holds, as the C2PA library reports it, in JSON."""
    import c2pa

    try:
        data = file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}", param="file") from error
    kind = f"image/{file.suffix.lower().removeprefix('.').replace('jpg', 'jpeg')}"
    try:
        typer.echo(c2pa.Reader(kind, io.BytesIO(data), context=c2pa.Context.from_dict(SETTINGS)).json())
    except c2pa.C2paError.ManifestNotFound:
        raise InvalidInput(f"{file} has no mark", param="file") from None
    except c2pa.C2paError.NotSupported:
        raise InvalidInput(f"{file} is no PNG, JPEG or WebP file", param="file") from None
    except c2pa.C2paError as error:
        raise InvalidInput(f"{file}: {error}", param="file") from error


if __name__ == "__main__":
    app(prog_name="python -m server.marking")
