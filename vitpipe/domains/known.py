"""The domains there are, by the `kind` of the configuration. A new domain is one folder and one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from vitpipe.domains.base import Domain
from vitpipe.errors import ConfigError
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Plane, Source


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
