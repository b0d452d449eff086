"""What all groups of settings have in common."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "FLEXI_"


class SettingsGroup(BaseSettings):
    """Settings that are about one thing."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", protected_namespaces=())
