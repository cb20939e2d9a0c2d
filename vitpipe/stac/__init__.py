"""STAC: static catalogs and APIs, the choice of assets, downloads that go on; its errors hold no secret."""
