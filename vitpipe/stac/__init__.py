"""A client of STAC: static catalogs and APIs, the choice of assets, downloads that go on; its errors hold no secret."""

from __future__ import annotations

from vitpipe.stac.access import Access, read_access
from vitpipe.stac.client import Client

__all__ = ["Access", "Client", "read_access"]
