"""Base of all configuration models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from vitpipe.digest import digest


class Recipe(BaseModel):
    """Base of all configuration models: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def digest(self) -> str:
        """Fingerprint of every value, defaults included; 16 hexadecimal characters."""
        return digest(self.model_dump(mode="json"))
