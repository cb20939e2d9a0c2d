"""Which objects lie below a prefix of S3: the scenes of a folder there, and the metadata of their products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote_plus
from xml.parsers import expat

from vitpipe.domains.geotiff.products.metadata import BadMetadata, is_metadata, xml_values
from vitpipe.errors import ConfigError, DataError
from vitpipe.web.address import listing
from vitpipe.web.ranges import client_of
from vitpipe.web.retries import Backoff

_SCENES: Final = (".tif", ".tiff", ".gtif", ".gtiff")
_MOST_KEYS: Final = 1_000_000


def is_prefix(address: str) -> bool:
    """Say whether an address is that of a folder of S3: it ends with a slash."""
    return address.startswith("s3://") and address.endswith("/")


def scenes_below(address: str, backoff: Backoff | None = None) -> Iterator[str]:
    """Give the addresses of all GeoTIFFs below a prefix, by their names, and of the metadata of products beside them.

    Objects of other names are passed over, as are those with a name or folder that begins with a dot.

    Args:
        address: such as ``s3://bucket/folder/``.
        backoff: of the retries; a minute or so by default.

    Raises:
        ConfigError: the bucket does not give its list.
        DataError: no scene lies there, or the answer is no list.
        TransientError: the store does not answer.
    """
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    keys = seen = 0
    for key in _keys(bucket, prefix, backoff):
        seen += 1
        if seen > _MOST_KEYS:
            raise DataError(f"{address} holds more than {_MOST_KEYS} objects; name a folder further down, or a list")
        names = key.removeprefix(prefix).split("/")
        if any(name.startswith(".") for name in names):
            continue
        if names[-1].lower().endswith(_SCENES) or is_metadata(names[-1]):
            keys += 1
            yield f"s3://{bucket}/{key}"
    if not keys:
        raise DataError(f"{address} holds no GeoTIFF among {seen} objects; correct `source.path`")


def _keys(bucket: str, prefix: str, backoff: Backoff | None) -> Iterator[str]:
    place, token = f"s3://{bucket}/{prefix}", ""
    tokens = {token}
    with client_of(place, plain_http=False, backoff=backoff) as client:
        while True:
            values = _read(client.content(listing(bucket, prefix, token), "application/xml"), place)
            yield from (unquote_plus(value) for name, value in values if name == "Key")
            plain = dict(values)
            if plain.get("IsTruncated") != "true":
                return
            token = plain.get("NextContinuationToken", "")
            if token in tokens:
                raise ConfigError(f"the list of {place} goes round without end, or breaks off; look at the store")
            tokens.add(token)


def _read(content: bytes, place: str) -> list[tuple[str, str]]:
    """Give names and texts of a page's elements.

    Raises:
        DataError: it is no list of a bucket.
    """
    try:
        values = [(name, value) for name, _, value in xml_values(content)]
    except (BadMetadata, expat.ExpatError):
        values = []
    if not any(name == "IsTruncated" for name, _ in values):
        raise DataError(f"the list of {place} cannot be read: expected ListBucketResult (S3, ListObjectsV2), as XML")
    return values
