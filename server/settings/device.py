"""Where and how waves run, and in how many processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from engine.buckets import MAX_ROWS
from engine.compile_choice import CompileChoice, compiles
from server.settings.group import SettingsGroup
from server.settings.values import as_socket_folder, as_switch

DEVICE = r"^(cpu|cuda(:\d+)?)$"


class DeviceSettings(SettingsGroup):
    """Where and how waves run, and in how many processes."""

    device: Annotated[str, Field(pattern=DEVICE, description="Where the model runs.")] = "cpu"
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], Field(description="Of the weights; latents are float32 always.")
    ] = "float32"
    text_device: Annotated[
        str | None,
        Field(pattern=DEVICE, description="Where text encoders run, if not where the model does."),
    ] = None
    compile: Annotated[
        CompileChoice, BeforeValidator(as_switch), Field(description="Compile UNet and decoder; auto: on CUDA.")
    ] = "auto"
    compile_cache: Annotated[Path, Field(description="Folder of what was compiled, for the next start.")] = Path(
        ".flexi/compile"
    )
    cuda_graphs: Annotated[bool, Field(description="On CUDA, launch each wave as one graph; off is for finding faults.")] = True
    threads: Annotated[int, Field(ge=0, le=256, description="CPU threads of one UNet call; 0 lets torch choose.")] = 0
    max_wave_rows: Annotated[
        int, Field(ge=2, le=MAX_ROWS, description="UNet rows in one call; an image with guidance takes two.")
    ] = 16
    cache_mib: Annotated[
        int | None, Field(ge=1, description="Memory for UNet rows in flight, in MiB; without it, what four full waves need.")
    ] = None
    workers: Annotated[int, Field(ge=1, le=64, description="Processes that share the port; each loads the model.")] = 1
    worker_sockets: Annotated[
        Path | None,
        AfterValidator(as_socket_folder),
        Field(description="Folder for a Unix socket of each worker, for a proxy that chooses among them."),
    ] = None

    @property
    def compiled(self) -> bool:
        """Whether the model is, on its device."""
        return compiles(self.compile, self.device)
