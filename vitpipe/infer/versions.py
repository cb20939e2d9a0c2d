"""Names of registered versions, and the journal from which the champion's aliases follow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vitpipe.errors import ConfigError, ContractError

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous_champion"

PROMOTED: Final = "promoted"
REFUSED: Final = "refused"
WAITING: Final = "waiting"

_MODEL_URI = re.compile(r"^models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))$")
_LENGTH = 50


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """One version of a registered model."""

    name: str
    version: str
    aliases: tuple[str, ...]
    verdict: str
    """promoted, refused, or waiting (the gate allows it, approval is manual)."""
    reason: str
    """Sentences: why."""
    already: bool = False
    """It had been registered and judged before it was asked for now."""

    @property
    def uri(self) -> str:
        """``models:/name/version``."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Who a registered model is, as it stands in the results that it writes."""

    name: str
    version: str
    sha256: str
    """Of its weights; 64 hexadecimal characters."""
    facts: Mapping[str, str]
    """Where it is from: ``mlflow_run_id run_id package_digest manifest_digest config_digest vitpipe_version``, those
    that the registry knows."""

    @property
    def title(self) -> str:
        """``name/version``."""
        return f"{self.name}/{self.version}"

    @classmethod
    def read(cls, name: str, version: str, mlflow_run_id: str | None, tags: Mapping[str, str]) -> ModelIdentity:
        """Make it of the tags of a version and of its run.

        Raises:
            ContractError: the version was not registered by vitpipe.
        """
        sha256 = tags.get("vitpipe.sha256")
        if sha256 is None:
            raise ContractError(f"models:/{name}/{version} was not registered by vitpipe (no tag vitpipe.sha256)")
        keys = ("run_id", "package_digest", "manifest_digest", "config_digest")
        facts = {key: tags[f"vitpipe.{key}"] for key in keys if f"vitpipe.{key}" in tags}
        if mlflow_run_id:
            facts["mlflow_run_id"] = mlflow_run_id
        if "vitpipe.version" in tags:
            facts["vitpipe_version"] = tags["vitpipe.version"]
        return cls(name, version, sha256, facts)


@dataclass(frozen=True, slots=True)
class Journal:
    """The champions of a model, the present one last; kept as one tag, which is written before any alias moves."""

    champions: tuple[str, ...] = ()
    done: bool = True
    """False: the aliases may not have followed yet."""

    @classmethod
    def read(cls, text: str | None, aliases: Mapping[str, str]) -> Journal:
        """Read the tag, and take in what was moved by hand in the UI since."""
        if text is None:
            journal = cls()
        else:
            value = json.loads(text)
            journal = cls(tuple(value["champions"]), bool(value["done"]))
        now = str(aliases.get(CHAMPION, ""))
        if journal.done and now and journal.champions[-1:] != (now,):
            return cls((*journal.champions, now))
        return journal

    def write(self, *, done: bool) -> str:
        """Give the text of the tag; the last 50 champions are kept."""
        return json.dumps({"champions": list(self.champions[-_LENGTH:]), "done": done})

    def crowned(self, version: str) -> Journal:
        """Give the journal with another champion."""
        return self if self.champions[-1:] == (version,) else Journal((*self.champions, version))

    def rolled_back(self, name: str) -> Journal:
        """Give the journal without the present champion.

        Raises:
            ConfigError: there was no other before.
        """
        if len(self.champions) < 2:
            now = f"version {self.champions[0]} is its first champion" if self.champions else "it has no champion"
            raise ConfigError(f"{name} cannot be rolled back: {now}; `vitpipe promote {name} VERSION` sets one")
        return Journal(self.champions[:-1])


def parse_model_uri(uri: str) -> tuple[str, str | None, str | None]:
    """Take a model URI apart: name, alias, version; one of the last two is given.

    Raises:
        ConfigError: it is none.
    """
    match = _MODEL_URI.match(uri)
    if match is None:
        raise ConfigError(f"{uri!r} names no registered model; write models:/NAME@champion or models:/NAME/3")
    return match["name"], match["alias"], match["version"]
