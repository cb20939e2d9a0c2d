"""Requests to S3, signed with the key of the environment (AWS Signature Version 4); anonymous without one."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_NO_CONTENT: Final = hashlib.sha256(b"").hexdigest()
_YES: Final = frozenset({"YES", "TRUE", "ON", "1"})


def sign(
    address: str, headers: Mapping[str, str], environ: Mapping[str, str] | None = None, now: datetime | None = None
) -> dict[str, str]:
    """Give the headers that a GET of an object needs besides `headers`; none where the environment holds no key.

    Args:
        address: of the object, or of a question about its bucket.
        headers: of the request; a range is signed with it.
        environ: ``AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_NO_SIGN_REQUEST,
            AWS_REQUEST_PAYER``; ``os.environ`` if None.
        now: of the signature; the clock's if None.

    Source: AWS, "Create a signed AWS API request"; the vector of "Authenticating Requests: Using the Authorization
    Header" is tested.
    """
    given = os.environ if environ is None else environ
    key, secret = given.get("AWS_ACCESS_KEY_ID", ""), given.get("AWS_SECRET_ACCESS_KEY", "")
    if not key or not secret or given.get("AWS_NO_SIGN_REQUEST", "").upper() in _YES:
        return {}
    parts = urlsplit(address)
    region = given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION") or "us-east-1"
    moment = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    ours = {"x-amz-content-sha256": _NO_CONTENT, "x-amz-date": moment}
    for variable, name in (("AWS_SESSION_TOKEN", "x-amz-security-token"), ("AWS_REQUEST_PAYER", "x-amz-request-payer")):
        if value := given.get(variable):
            ours[name] = value
    ranges = {name.lower(): value for name, value in headers.items() if name.lower() == "range"}
    signed = dict(sorted({"host": parts.netloc, **ranges, **ours}.items()))
    names = ";".join(signed)
    # The path as it is sent: each segment encoded once.
    path = quote(unquote(parts.path), safe="/-_.~")
    given_pairs = parse_qsl(parts.query, keep_blank_values=True)
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in given_pairs)
    asked = "&".join(f"{name}={value}" for name, value in pairs)
    lines = ["GET", path, asked, *(f"{name}:{value.strip()}" for name, value in signed.items()), "", names, _NO_CONTENT]
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    text = "\n".join(("AWS4-HMAC-SHA256", moment, scope, hashlib.sha256("\n".join(lines).encode()).hexdigest()))
    derived = f"AWS4{secret}".encode()
    for part in (moment[:8], region, "s3", "aws4_request"):
        derived = hmac.digest(derived, part.encode(), "sha256")
    signature = hmac.digest(derived, text.encode(), "sha256").hex()
    credential = f"Credential={key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**ours, "Authorization": f"AWS4-HMAC-SHA256 {credential}"}
