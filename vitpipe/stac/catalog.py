"""Find the items of a catalog: walk the links of a static one, or search an API page by page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final
from urllib.parse import urlencode

from vitpipe.config import StacSource
from vitpipe.errors import ConfigError, DataError
from vitpipe.stac.filters import fits
from vitpipe.web.address import resolve, shown
from vitpipe.web.client import Client, Document, Refused

_DEEPEST: Final = 32
_MOST_DOCUMENTS: Final = 200_000
_MOST_EMPTY: Final = 100
"""Pages in a row without an item: some servers leave what they have filtered out as gaps."""
_NOT_UNDERSTOOD: Final = 400
_NO_POST: Final = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class Found:
    """An item, and the address or path that its references start from."""

    item: Document
    base: str = field(repr=False)


def find_items(source: StacSource, client: Client) -> list[Found]:
    """Find the items that fit the query, in the order of the catalog, at most `max_items`.

    Raises:
        ConfigError: the address is wrong, or refuses access.
        DataError: it is no STAC document, or links go round without end.
        TransientError: the server does not answer, after all retries.
    """
    root = client.document(source.url)
    place, listing = _search_place(root, source.url), _listing_place(root, source.url)
    if place:
        items = _search(source, client, place)
    elif listing:
        items = _list(source, client, listing)
    else:
        items = _walk(source, client, root)
    kept: dict[tuple[str, str], Found] = {}
    for found in items:
        if fits(found.item, source.query):
            kept.setdefault((str(found.item.get("collection") or ""), str(found.item["id"])), found)
        if len(kept) == source.max_items:
            break
    return list(kept.values())


def links(document: Document, *relations: str) -> Iterator[Mapping[str, Any]]:
    """Give the links of some relations that have an address, in their order."""
    listed = document.get("links")
    for link in listed if isinstance(listed, list) else []:
        if isinstance(link, dict) and link.get("rel") in relations and isinstance(link.get("href"), str):
            yield link


def _search_place(root: Document, address: str) -> str | None:
    """Give the address of an API's search; None where the document is that of a static catalog."""
    if root.get("type") == "Feature" or "features" in root:
        return None
    link = next(links(root, "search"), None)
    return None if link is None else _followed(address, link)


def _listing_place(root: Document, address: str) -> str | None:
    """Give the address of the items of an API's collection (OGC API - Features); None where a static one links them."""
    if root.get("type") != "Collection" or next(links(root, "item", "child"), None) is not None:
        return None
    link = next(links(root, "items"), None)
    return None if link is None else _followed(address, link)


def _followed(address: str, link: Mapping[str, Any]) -> str:
    """Give where a link of a document leads.

    Raises:
        DataError: to what is no address.
    """
    try:
        place = resolve(address, link["href"])
    except ValueError:
        place = ""
    if not place or not place.isprintable():
        raise DataError(f"{shown(address)} has a link `{link['rel']}` that is no address; look at the catalog")
    return place


# --------------------------------------------------------------------------------------------------------------- static


def _walk(source: StacSource, client: Client, root: Document) -> Iterator[Found]:
    """Go through a static catalog level by level; each document once, however links go round.

    Documents of a level are read side by side, some at a time, so that a walk may end early.
    """
    seen = {source.url}
    level = [(source.url, root)]
    with ThreadPoolExecutor(source.connections) as pool:
        for _ in range(_DEEPEST):
            addresses: list[str] = []
            for address, document in level:
                yield from _items_in(document, address)
                for link in links(document, "item", "child"):
                    place = _followed(address, link)
                    if place not in seen:
                        seen.add(place)
                        addresses.append(place)
            if len(seen) > _MOST_DOCUMENTS:
                raise DataError(f"{shown(source.url)} links more than {_MOST_DOCUMENTS} documents; name a part of it")
            if not addresses:
                return
            level = []
            step = 8 * source.connections
            for some in (addresses[start : start + step] for start in range(0, len(addresses), step)):
                for address, document in zip(some, pool.map(client.document, some), strict=True):
                    if document.get("type") == "Feature":
                        yield from _items_in(document, address)
                    else:
                        level.append((address, document))
    raise DataError(f"{shown(source.url)} nests catalogs more than {_DEEPEST} deep; name a part of it in `source.url`")


def _items_in(document: Document, address: str) -> Iterator[Found]:
    """Give the items that a document is or holds."""
    kind = document.get("type")
    if kind == "FeatureCollection":
        features = document.get("features")
        for feature in features if isinstance(features, list) else []:
            yield from _items_in(feature if isinstance(feature, dict) else {}, address)
    elif kind == "Feature":
        stated = document.get("id"), document.get("assets"), document.get("properties") or {}
        if not all(isinstance(value, kind) for value, kind in zip(stated, (str, dict, dict), strict=True)):
            raise DataError(
                f"{shown(address)} holds a feature without `id`, `assets` and `properties`: it is no STAC item"
            )
        yield Found(document, address)
    elif kind not in ("Catalog", "Collection") and "stac_version" not in document:
        raise DataError(
            f"{shown(address)} is no STAC document: its type is {kind!r}, expected Catalog, Collection, Feature or"
            " FeatureCollection; correct `source.url`"
        )


# ------------------------------------------------------------------------------------------------------------------ API


def _search(source: StacSource, client: Client, place: str) -> Iterator[Found]:
    """Search an API (STAC API 1.0, Item Search): POST, or GET where it does not take that; then its `next` links."""
    question = _question(source)
    try:
        page, address, body = _first_page(client, place, question)
    except Refused as error:
        if error.status != _NOT_UNDERSTOOD or "query" not in question:
            raise
        # It does not know the query extension: what comes is looked at here.
        del question["query"]
        page, address, body = _first_page(client, place, question)
    yield from _pages(client, place, (page, address, body))


def _list(source: StacSource, client: Client, place: str) -> Iterator[Found]:
    """Go through the items of an API's collection; what else the query asks is looked at here."""
    question = {name: value for name, value in _question(source).items() if name in ("bbox", "datetime", "limit")}
    address = _asked_by_address(place, question)
    yield from _pages(client, place, (client.document(address), address, None))


def _pages(client: Client, place: str, first: tuple[Document, str, Document | None]) -> Iterator[Found]:
    """Give the items of the first page, with its address and what was posted there, and of those that follow it.

    Raises:
        ConfigError: it gives the same page again, so that some items may be missing.
    """
    page, address, body = first
    seen: set[tuple[str, str]] = set()
    asked: set[str] = set()
    empty = 0
    while True:
        found = list(_items_in(page, address)) if page.get("type") == "FeatureCollection" else None
        if found is None:
            raise DataError(f"{shown(address)} does not answer a search with items; `source.url` must be a STAC API")
        names = {(str(entry.item.get("collection") or ""), str(entry.item["id"])) for entry in found}
        asked.add(json.dumps([address, body], sort_keys=True))
        if found and names <= seen:
            raise ConfigError(
                f"{shown(place)} gives the same {len(found)} items again: it does not page, so some may be missing;"
                " raise `source.page_size`, or narrow `source.query`"
            )
        seen |= names
        yield from found
        empty = 0 if found else empty + 1
        if empty == _MOST_EMPTY:
            raise ConfigError(f"{shown(place)} gives {empty} pages without an item, and no end; look at the server")
        link = next(islice(links(page, "next"), 1), None)
        if link is None:
            return
        address, body = _followed(address, link), _next_body(link, body)
        if json.dumps([address, body], sort_keys=True) in asked:
            raise ConfigError(f"{shown(place)} leads from page to page without end; look at the server")
        page = client.document(address, body)


def _first_page(client: Client, place: str, question: Mapping[str, Any]) -> tuple[Document, str, Document | None]:
    """Give the first page, and what was asked: address, and body where it was posted."""
    try:
        return client.document(place, question), place, question
    except Refused as error:
        if error.status not in _NO_POST:
            raise
    address = _asked_by_address(place, question)
    return client.document(address), address, None


def _asked_by_address(place: str, question: Mapping[str, Any]) -> str:
    return f"{place}{'&' if '?' in place else '?'}{_as_parameters(question)}"


def _next_body(link: Mapping[str, Any], before: Document | None) -> Document | None:
    """Give what is posted for the next page (STAC API 1.0, Pagination); None where it is asked for by its address."""
    if str(link.get("method", "GET")).upper() != "POST":
        return None
    given = link.get("body")
    body: dict[str, Any] = given if isinstance(given, dict) else {}
    return {**(before or {}), **body} if link.get("merge") else body or before or {}


def _question(source: StacSource) -> dict[str, Any]:
    query = source.query
    asked: dict[str, Any] = {
        "collections": list(query.collections),
        "ids": list(query.ids),
        "bbox": list(query.bbox) if query.bbox else None,
        "datetime": query.interval(),
        "query": query.properties,
    }
    return {name: value for name, value in asked.items() if value} | {"limit": min(source.page_size, source.max_items)}


def _as_parameters(question: Mapping[str, Any]) -> str:
    """Write a question as parameters of an address: lists with commas, the query extension as JSON."""
    return urlencode(
        {
            name: json.dumps(value) if isinstance(value, dict) else
            ",".join(map(str, value)) if isinstance(value, list) else value
            for name, value in question.items()
        }
    )  # fmt: skip
