"""A client of DICOMweb (PS3.18): search with paging, retrieval as a stream, retries; its errors name no person."""

from __future__ import annotations

from vitpipe.dicomweb.access import Access, read_access, read_persons
from vitpipe.dicomweb.client import Server
from vitpipe.web.retries import Backoff

__all__ = ["Access", "Backoff", "Server", "read_access", "read_persons"]
