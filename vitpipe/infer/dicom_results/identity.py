"""Who wrote a result: the registered model in the words of DICOM, and UIDs that follow from content.

The model stands in SoftwareVersions, in the algorithm identification (PS3.16 TID 4019, PS3.3 10.16) and in the
contributing equipment (PS3.3 C.12.1), whose DeviceUID is another one for each version, as IHE AIR asks.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final

from vitpipe import __version__
from vitpipe.infer.versions import ModelIdentity

MANUFACTURER: Final = "vitpipe"
SCHEME: Final = "99VITPIPE"
"""Coding scheme of class names and of what the standard has no code for."""

MODEL: Final = "model"
VERSION: Final = "version"
MODEL_SHA256: Final = "model_sha256"

_LONGEST: Final = 64
"""Characters of the value representation LO, and of a code meaning."""


def short(text: str) -> str:
    """Give a text that LO holds: a longer one is cut and ends with a digest, so that two stay different."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[:47]}...{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def facts_of(identity: ModelIdentity) -> dict[str, str]:
    """Give what leads back to the registry and to the data, by name."""
    named = {MODEL: identity.name, VERSION: identity.version, MODEL_SHA256: identity.sha256}
    return {**named, **identity.facts}


def result_uid(identity: ModelIdentity, *parts: str) -> str:
    """Derive a UID: the same model, sources and predictions give the same, anything else another.

    HMAC-SHA256 under the digest of the model's weights, its first 128 bits as a ``2.25.`` UID (PS3.5 B.2).

    Args:
        identity: the model.
        parts: what the UID stands for.
    """
    text = "\x1f".join((identity.name, identity.version, *parts))
    value = hmac.new(bytes.fromhex(identity.sha256), text.encode("utf-8"), hashlib.sha256).digest()[:16]
    return f"2.25.{int.from_bytes(value)}"


def equipment(identity: ModelIdentity) -> dict[str, Any]:
    """Give the equipment arguments that highdicom's objects share."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": short(identity.name),
        "software_versions": [short(identity.title), short(f"vitpipe {__version__}")],
        "device_serial_number": identity.sha256[:16],
    }


def contributing_equipment(identity: ModelIdentity) -> Any:  # noqa: ANN401 - highdicom has no types
    """Make the item of the ContributingEquipmentSequence."""
    from highdicom import ContributingEquipment
    from pydicom.sr.codedict import codes

    item = ContributingEquipment(
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        contribution_description="; ".join(f"{name}={value}" for name, value in facts_of(identity).items()),
        **equipment(identity),
    )
    item.DeviceUID = result_uid(identity, "device")
    return item


def concept(value: str, meaning: str | None = None) -> Any:  # noqa: ANN401
    """Make a code of our own scheme; a value of more than 16 characters becomes a LongCodeValue."""
    from highdicom.sr import CodedConcept

    return CodedConcept(value, SCHEME, short(meaning or value))


def coding_scheme() -> Any:  # noqa: ANN401
    """Say whose codes the private scheme holds."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return CodingSchemeIdentificationItem(
        SCHEME, name="vitpipe class names and results", responsible_organization=MANUFACTURER
    )
