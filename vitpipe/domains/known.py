"""The domains there are, by the `kind` of the configuration. A new domain is one folder and one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from vitpipe.domains.base import Domain
from vitpipe.errors import ConfigError
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Findings, Plane, Source


def _dicom() -> Domain:
    from vitpipe.domains.dicom import Dicom

    return Dicom()


def _geotiff() -> Domain:
    from vitpipe.domains.geotiff import Geotiff

    return Geotiff()


def _images() -> Domain:
    from vitpipe.domains.images import Images

    return Images()


# Each domain loads its libraries when it is first asked for, not when another one is used.
DOMAINS: Final[dict[str, Callable[[], Domain]]] = {"dicom": _dicom, "geotiff": _geotiff, "images": _images}


def _dicom_decoders() -> Findings:
    from vitpipe.domains.dicom.support import decoder_findings

    return decoder_findings()


# What a kind of data has to say of this machine, such as which codecs work here.
_FINDINGS: Final[dict[str, Callable[[], Findings]]] = {"dicom": _dicom_decoders}


def machine_findings(kind: str) -> Findings:
    """Say what this machine can read of a kind of data, for `vitpipe check`; nothing where all of it can be read."""
    return _FINDINGS[kind]() if kind in _FINDINGS else Findings(())


def reading_findings(kind: str, sources: Sequence[Source], size: int) -> Findings:
    """Say what the layout of files costs a reader, measured on some of them, and what rewriting them would gain.

    Args:
        kind: of the configuration.
        sources: the catalog.
        size: edge of a tile, in pixels.
    """
    if kind != "geotiff":
        return Findings(())
    from vitpipe.domains.geotiff.advice import layout_findings

    return layout_findings(sources, size)


def domain_of(kind: str) -> Domain:
    """Give the domain of that name.

    Raises:
        ConfigError: there is none.
    """
    if kind not in DOMAINS:
        raise ConfigError(f"no source kind `{kind}`; known: {', '.join(DOMAINS)}")
    return DOMAINS[kind]()


def planes_of(source: Source, pseudonym: Pseudonymiser) -> Sequence[Plane]:
    """Say where the frames of a source lie in the patient; nothing where its domain knows no patient.

    Raises:
        UnreadableSource: a file is gone or broken.
    """
    if not source.domain.startswith("dicom"):
        return ()
    from vitpipe.domains.dicom.frames import planes_of as dicom_planes_of

    return dicom_planes_of(source, pseudonym)


def address_of(source: Source) -> str:
    """Give the address that a source is known by: of its STAC item, else of its file; ``file://`` on this machine."""
    if source.domain == "geotiff":
        from vitpipe.domains.geotiff.item import address_of_item

        if found := address_of_item(Path(source.files[0])):
            return found
    return source.uri if "://" in source.uri else Path(source.uri).absolute().as_uri()
