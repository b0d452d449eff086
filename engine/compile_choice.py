"""Whether a model is compiled: as it is said, or as it pays on its device."""

from __future__ import annotations

from typing import Literal, TypeAlias

CompileChoice: TypeAlias = Literal["auto", "on", "off"]


def compiles(choice: CompileChoice, device: str) -> bool:
    """`auto` compiles on CUDA."""
    return choice == "on" or (choice == "auto" and device.startswith("cuda"))
