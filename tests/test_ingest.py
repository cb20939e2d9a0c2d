"""Ingest: every file is accounted for, none is opened twice, and what one model cannot take is refused in words."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
import pytest

from tests.ingest_cases import make_config, write
from vitpipe import fileindex
from vitpipe.config import PipelineConfig
from vitpipe.digest import digest_file, digest_of_digests
from vitpipe.domains.base import Raster, ScanContext
from vitpipe.domains.known import DOMAINS
from vitpipe.errors import DataError, TooManyRejected, TransientError
from vitpipe.ingest import (
    build_catalog,
    index_files,
    ingest,
    list_files,
    plan_batches,
    read_catalog,
    read_quarantine,
    write_catalog,
)
from vitpipe.records import FileRecord, Grid, Json, Rejected, Source
from vitpipe.workspace import Workspace


class TextDomain:
    """Reads `.src` files of JSON: a source of all files of one `series`."""

    name = "images"

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.fails_at = ""

    def listed_in(self, path: Path) -> None:  # noqa: ARG002
        return None

    def index(self, path: Path, context: ScanContext) -> Mapping[str, Json] | Rejected:  # noqa: ARG002
        self.opened.append(path.name)
        if path.name == self.fails_at:
            raise TransientError("the store does not answer")
        if path.suffix != ".src":
            return Rejected(str(path), "NOT_SOURCE", "another kind of file", junk=True)
        text = path.read_text()
        if not text:
            return Rejected(str(path), "EMPTY", "the file holds no bytes")
        header: dict[str, Json] = json.loads(text)
        return header

    def assemble(
        self,
        records: Sequence[FileRecord],
        context: ScanContext,  # noqa: ARG002
    ) -> Iterator[Source | Rejected]:
        series: dict[str, list[FileRecord]] = {}
        for record in sorted(records, key=lambda item: item.path):
            series.setdefault(str(record.header.get("series", record.path)), []).append(record)
        for members in series.values():
            header = members[0].header
            if header.get("bad"):
                yield Rejected(str(Path(members[0].path).parent), "BAD_SERIES", "the series has no geometry")
                continue
            yield Source(
                source_id=digest_of_digests(member.digest for member in members),
                group_id=str(header.get("group", "g")),
                domain="images",
                uri=members[0].path,
                files=tuple(member.path for member in members),
                grid=Grid(len(members), 4, 4, spacing_mm=(1.5, 0.1, 0.3), transform=(0.1, 0, 3, 0, -0.1, 7)),
                channels=tuple(str(header.get("channels", "r")).split(",")),
                units=str(header.get("units", "dn")),
                dtype="uint8",
                attributes={"age": 61.5, "sex": "F", "site": None},
                keys={"path": tuple(str(Path(member.path).name) for member in members)},
                bytes=sum(member.size for member in members),
                notes=("ODD",) if header.get("odd") else (),
            )

    def open(self, source: Source) -> AbstractContextManager[Raster]:
        raise NotImplementedError


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> TextDomain:
    fake = TextDomain()
    monkeypatch.setitem(DOMAINS, "images", lambda: fake)
    return fake


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, PipelineConfig, Workspace]:
    root = tmp_path / "data"
    root.mkdir()
    workspace = Workspace(tmp_path / "workspace")
    workspace.prepare()
    return root, make_config(root, workspace.root), workspace


Place = tuple[Path, PipelineConfig, Workspace]

# --------------------------------------------------------------------------------------------------------- accounting


def test_every_file_ends_in_a_source_or_in_the_quarantine(place: Place, domain: TextDomain) -> None:
    root, _, workspace = place
    config = make_config(root, workspace.root, max_reject_share=0.6)
    for number in range(6):
        write(root, f"s/{number}.src", series="one", number=number)
    write(root, "t.src", odd=1)
    write(root, "u/bad1.src", series="bad", bad=1)
    write(root, "u/bad2.src", series="bad", bad=1, number=2)
    (root / "readme.txt").write_text("hello")
    (root / "empty.src").write_text("")
    (root / "copy.src").write_bytes((root / "t.src").read_bytes())
    (root / "dangling.src").symlink_to(root / "nowhere")
    summary = ingest(config, workspace)
    sources, quarantine = read_catalog(workspace), read_quarantine(workspace)
    used = [path for source in sources for path in source.files]
    covered = [
        str(path)
        for path in list_files(config)
        if str(path) in set(quarantine["uri"]) or str(path.parent) in set(quarantine["uri"])
    ]
    assert sorted(used + covered) == [str(path) for path in list_files(config)]
    assert len(used) == len(set(used)) == 7
    codes = dict(zip(quarantine["uri"].map(os.path.basename), quarantine["code"], strict=True))
    assert codes == {
        "readme.txt": "NOT_SOURCE",
        "empty.src": "EMPTY",
        "t.src": "DUPLICATE",
        "u": "BAD_SERIES",
        "dangling.src": "CANNOT_OPEN",
    }
    assert quarantine.loc[quarantine["junk"], "code"].tolist() == ["NOT_SOURCE"]
    duplicate = quarantine.loc[quarantine["code"] == "DUPLICATE"].iloc[0]
    assert f"the same content as {root / 'copy.src'}" in duplicate["reason"]
    assert summary.done == 2
    assert summary.rejected == {"BAD_SERIES": 1, "CANNOT_OPEN": 1, "DUPLICATE": 1, "EMPTY": 1}
    assert summary.notes == (
        "1 file(s) are of another kind and are left out (NOT_SOURCE 1); quarantine.parquet names them",
        "1 source(s) are marked ODD",
    )


def test_a_file_that_the_domain_forgets_is_named(
    place: Place, domain: TextDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, config, workspace = place
    for number in range(9):
        write(root, f"{number}.src")
    whole = domain.assemble
    monkeypatch.setattr(domain, "assemble", lambda records, context: list(whole(records, context))[1:])
    ingest(config, workspace)
    quarantine = read_quarantine(workspace)
    assert quarantine["code"].tolist() == ["NOT_ASSEMBLED"]
    assert quarantine["uri"].tolist() == [str(root / "0.src")]


# -------------------------------------------------------------------------------------------------------------- index


def test_a_known_file_is_not_opened_again(place: Place, domain: TextDomain) -> None:
    root, config, workspace = place
    write(root, "a.src")
    write(root, "b.src")
    (root / "junk.txt").write_text("x")
    first = ingest(config, workspace)
    assert (first.done, first.skipped) == (2, 0)
    before = {path.name: path.read_bytes() for path in (workspace.catalog, workspace.index, workspace.quarantine)}
    domain.opened.clear()
    second = ingest(config, workspace)
    assert domain.opened == []
    assert (second.done, second.skipped) == (0, 2)
    assert before == {
        path.name: path.read_bytes() for path in (workspace.catalog, workspace.index, workspace.quarantine)
    }


def test_changed_moved_and_vanished_files(place: Place, domain: TextDomain) -> None:
    root, config, workspace = place
    for name in "abc":
        write(root, f"{name}.src")
    ingest(config, workspace)
    ids = {Path(source.uri).name: source.source_id for source in read_catalog(workspace)}
    domain.opened.clear()
    write(root, "a.src", changed=1)
    (root / "b.src").rename(root / "moved.src")
    (root / "c.src").unlink()
    summary = ingest(config, workspace)
    assert sorted(domain.opened) == ["a.src", "moved.src"]
    after = {Path(source.uri).name: source.source_id for source in read_catalog(workspace)}
    assert after["moved.src"] == ids["b.src"]
    assert after["a.src"] != ids["a.src"]
    assert set(after) == {"a.src", "moved.src"}
    gone = ", ".join(sorted((ids["a.src"], ids["c.src"])))
    assert f"2 source(s) of the last catalog are gone or changed, such as {gone}" in summary.notes
    assert set(pd.read_parquet(workspace.index)["path"]) == {str(root / "a.src"), str(root / "moved.src")}


def test_another_way_of_reading_reads_headers_again_but_digests_nothing(
    place: Place, domain: TextDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, config, workspace = place
    write(root, "a.src")
    ingest(config, workspace)
    digested: list[Path] = []
    monkeypatch.setattr(fileindex, "digest_file", lambda path: digested.append(path) or digest_file(path))
    for variable, value in (("INDEX_VERSION", 99), ("__version__", "9.9")):
        domain.opened.clear()
        monkeypatch.setattr(fileindex, variable, value)
        ingest(config, workspace)
        assert domain.opened == ["a.src"]
    domain.opened.clear()
    monkeypatch.setenv("VITPIPE_KEY", "another key: the pseudonyms in the headers change")
    ingest(config, workspace)
    assert domain.opened == ["a.src"]
    assert digested == []
    domain.opened.clear()
    ingest(make_config(root, workspace.root, max_reject_share=0.9), workspace)
    assert domain.opened == []


def test_what_was_looked_at_before_a_failure_is_kept(place: Place, domain: TextDomain) -> None:
    root, config, workspace = place
    for name in "abcd":
        write(root, f"{name}.src")
    domain.fails_at = "c.src"
    with pytest.raises(TransientError):
        index_files(config, workspace, list_files(config))
    domain.fails_at = ""
    domain.opened.clear()
    summary = index_files(config, workspace, list_files(config))
    assert domain.opened == ["c.src", "d.src"]
    assert (summary.stage, summary.done, summary.skipped) == ("index", 2, 2)
    domain.opened.clear()
    # A killed run left the piece; meanwhile the list of files changed, so the batches are other ones.
    write(root, "e.src")
    for batch in plan_batches(config, workspace):
        index_files(config, workspace, batch)
    assert domain.opened == ["e.src"]
    build_catalog(config, workspace)
    assert len(read_catalog(workspace)) == 5
    assert list((workspace.root / "index").iterdir()) == []


def test_only_what_is_new_or_changed_is_planned_and_no_header_is_read_for_it(
    place: Place, domain: TextDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _, workspace = place
    for name in "abcd":
        write(root, f"{name}.src")
    (root / "link.src").symlink_to(root / "later")
    lenient = make_config(root, workspace.root, max_reject_share=0.5)
    ingest(lenient, workspace)
    asked: list[object] = []
    read = pd.read_parquet
    monkeypatch.setattr(
        fileindex.pd,
        "read_parquet",
        lambda *args, **options: asked.append(options["columns"]) or read(*args, **options),
    )
    # A link that leads nowhere has no cheap key: it is looked at each time.
    assert plan_batches(lenient, workspace) == [[root / "link.src"]]
    assert asked == [["path", "size", "mtime_ns"]]
    (root / "later").write_text("{}")
    write(root, "b.src", changed=1)
    write(root, "e.src")
    planned = [path.name for batch in plan_batches(lenient, workspace) for path in batch]
    assert planned == ["b.src", "e.src", "later", "link.src"]
    monkeypatch.setenv("VITPIPE_KEY", "another key: all headers are read again")
    assert len([path for batch in plan_batches(lenient, workspace) for path in batch]) == 7


def test_the_current_folder_is_rescanned_as_any_other(
    place: Place, domain: TextDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _, workspace = place
    write(root, "a/1.src")
    monkeypatch.chdir(root)
    config = make_config(Path(), workspace.root)
    assert list_files(config) == [Path("a/1.src")]
    ingest(config, workspace)
    assert plan_batches(config, workspace) == []


def test_the_catalog_indexes_files_that_came_late(place: Place, domain: TextDomain) -> None:
    root, config, workspace = place
    write(root, "a.src")
    assert build_catalog(config, workspace).done == 1


def test_names_that_are_not_utf8_are_rejected_in_words(place: Place, domain: TextDomain) -> None:
    root, _, workspace = place
    write(root, "a.src")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe.src")).write_text("{}")
    ingest(make_config(root, workspace.root, max_reject_share=0.5), workspace)
    quarantine = read_quarantine(workspace)
    assert quarantine["code"].tolist() == ["NAME_NOT_UTF8"]
    assert len(read_catalog(workspace)) == 1


# -------------------------------------------------------------------------------------------------------------- checks


def test_too_many_rejects_stop_the_run_after_the_quarantine_is_written(place: Place, domain: TextDomain) -> None:
    root, config, workspace = place
    write(root, "good.src")
    for number in range(3):
        (root / f"empty{number}.src").write_text("")
    (root / "junk.txt").write_text("x")
    with pytest.raises(TooManyRejected) as error:
        ingest(config, workspace)
    text = str(error.value)
    assert "3 of 4 file(s) were rejected, 75%, more than `source.max_reject_share: 0.2`" in text
    assert f"EMPTY: 3, first {root / 'empty0.src'}: the file holds no bytes" in text
    assert str(workspace.quarantine) in text
    assert len(read_quarantine(workspace)) == 4
    assert not workspace.catalog.exists()
    ingest(make_config(root, workspace.root, max_reject_share=0.75), workspace)
    assert len(read_catalog(workspace)) == 1


def test_a_rejected_series_weighs_as_much_as_its_files_and_copies_weigh_nothing(
    place: Place, domain: TextDomain
) -> None:
    root, config, workspace = place
    for number in range(6):
        write(root, f"good/{number}.src", series="good", number=number)
        (root / f"copy{number}.src").write_bytes((root / f"good/{number}.src").read_bytes().replace(b"good", b"good"))
    for number in range(4):
        write(root, f"bad/{number}.src", series="bad", bad=1, number=number)
    with pytest.raises(TooManyRejected, match=r"4 of 16 file\(s\)"):
        ingest(config, workspace)


def test_no_files_and_nothing_of_this_kind(place: Place, domain: TextDomain) -> None:
    root, config, workspace = place
    with pytest.raises(DataError, match="no files in"):
        ingest(config, workspace)
    (root / "readme.txt").write_text("x")
    with pytest.raises(DataError, match=r"none of the 1 file\(s\).*as images \(NOT_SOURCE 1, such as .*readme.txt"):
        ingest(config, workspace)
    # Most files are of another kind and the rest is broken: the kind is what must be said, not the share of rejects.
    (root / "a-first.src").write_text("")
    (root / "more.txt").write_text("x")
    with pytest.raises(DataError, match=r"\(EMPTY 1, NOT_SOURCE 2, such as .*more.txt: another kind"):
        ingest(config, workspace)


def test_mixed_channels_name_the_sources_and_what_to_set(place: Place, domain: TextDomain) -> None:
    root, config, workspace = place
    for number in range(5):
        write(root, f"grey{number}.src")
    write(root, "rgb.src", channels="r,g,b")
    with pytest.raises(DataError) as error:
        ingest(config, workspace)
    text = str(error.value)
    assert f"1 channel(s) (r) in dn: 5 source(s): {root / 'grey0.src'}, {root / 'grey1.src'}" in text
    assert f"3 channel(s) (r, g, b) in dn: 1 source(s): {root / 'rgb.src'}" in text
    assert "a pipeline of its own" in text
    assert "source.bands" not in text
    write(root, "rgb.src", units="HU")
    with pytest.raises(DataError, match=r"1 channel\(s\) \(r\) in HU: 1 source"):
        ingest(config, workspace)


def test_mixed_bands_say_to_set_the_bands(place: Place, domain: TextDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    root, _, workspace = place
    monkeypatch.setitem(DOMAINS, "geotiff", lambda: domain)
    config = make_config(root, workspace.root, kind="geotiff")
    write(root, "a.src")
    write(root, "b.src", channels="r,g")
    with pytest.raises(DataError, match=r"set `source\.bands`"):
        ingest(config, workspace)


def test_ten_thousand_files_are_quick(place: Place, domain: TextDomain) -> None:
    root, config, workspace = place
    size = 10_000
    rows = [
        (str(root / f"{number:06d}.src"), 10, number, "r", f"{number:032x}", json.dumps({"n": number}), "", "", False)
        for number in range(size)
    ]
    index = pd.DataFrame(rows, columns=list(fileindex._COLUMNS))
    fileindex.write_index(workspace.index, index)
    began = time.process_time()
    records, rejected = fileindex.split_index(fileindex.merge_index(workspace))
    sources = [item for item in domain.assemble(records, None) if isinstance(item, Source)]  # type: ignore[arg-type]
    write_catalog(workspace, sources)
    assert len(read_catalog(workspace)) == size
    assert not rejected
    assert time.process_time() - began < 8
    assert config.name == "t"
