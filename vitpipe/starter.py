"""A starter ``pipeline.yaml`` from a look at a folder: what kind of data, which labels, which tiles, which model.

Everything is guessed from the values, nothing is asked, and each guess is said, so that the file can be mended by hand.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import yaml

from vitpipe.atomic import write_file
from vitpipe.config import PipelineConfig, RasterLabels
from vitpipe.digest import digest_file
from vitpipe.domains.base import Domain, ScanContext
from vitpipe.domains.known import DOMAINS, domain_of
from vitpipe.errors import ConfigError, DataError, LabelError
from vitpipe.ingest import list_files
from vitpipe.label_files import without_labels
from vitpipe.loading import parse_config
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Findings, Json, Rejected, Source
from vitpipe.starter_ground import guess_ground_labels, say_unplaced
from vitpipe.starter_labels import LabelGuess, guess_drawn_labels, guess_folder_labels, guess_table_labels
from vitpipe.starter_stac import plain_name, read_stac, stac_configuration

SAMPLE_FILES = 2000
"""Headers looked at: enough to match a label table, few enough to take seconds."""
_NO_IMAGE = ("NOT_AN_IMAGE", "NO_PIXELS")

_TABLE_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class _Look:
    """What a sample of the files turned out to be."""

    kind: str
    sources: tuple[Source, ...]
    rejected: tuple[Rejected, ...]
    n_files: int
    n_looked_at: int


def write_starter(data: Path, out: Path, *, overwrite: bool) -> Findings:
    """Look at `data` and write a pipeline file.

    Args:
        data: folder (or one file) of DICOM files, GeoTIFF scenes or photographs, with or without a table of labels; or
            the file of a STAC catalog, collection or item.
        out: the file to write; the paths in it are relative to it where `data` lies below its folder.
        overwrite: replace an existing file.

    Raises:
        ConfigError: `data` is missing, or `out` exists.
        DataError: nothing in `data` can be read.
    """
    if not data.exists():
        raise ConfigError(f"no folder or file at {data.absolute()}; give the folder that holds the data")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; name the file to write, such as {out / 'pipeline.yaml'}")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; pass --force to overwrite it, or --out to write elsewhere")
    data = data.resolve()
    if (stac := read_stac(data)) is not None:
        values, lines = stac_configuration(data, stac, _relative(data, out.resolve().parent))
        return _write(out, values, lines)
    key = Pseudonymiser(os.urandom(32))
    look = _look_at(data, key)
    lines = [_describe(look), *say_unplaced(look.kind, look.sources, data)]
    root, sources = _narrow_to_bands(data, look, lines)
    labels = _guess_labels(data, root, (look, sources), key, lines)
    lines += labels.lines if labels else ["no labels found: the run will ingest and tile, and stop before training"]
    lines += _left_over(look, sources, root, labels)
    values = _configuration(root, look.kind, sources, labels, out)
    lines += _explain(values)
    return _write(out, values, lines)


def _write(out: Path, values: dict[str, Json], lines: Sequence[str]) -> Findings:
    parse_config(values, origin="the guessed configuration")
    with write_file(out.resolve()) as partial:
        partial.write_text(_render(values, lines), encoding="utf-8")
    return Findings(lines=tuple(lines), values={"config": values, "path": str(out)})


def _look_at(data: Path, key: Pseudonymiser) -> _Look:
    # A file may be a DICOMDIR, which stands for the files that it names.
    paths = list_files(_look_config("dicom" if data.is_file() else "images", data))
    if not paths:
        raise DataError(
            f"{data} holds no file; give the folder that holds the data (names that begin with a dot are left out)"
        )
    step = max(1, len(paths) // 60)
    scores = {kind: _score(domain_of(kind), kind, paths[::step], data, key) for kind in DOMAINS}
    kind = max(scores, key=lambda name: scores[name])
    if scores[kind] == 0:
        raise DataError(
            f"none of {len(paths[::step])} files looked at below {data} is a DICOM file, a GeoTIFF or a photograph;"
            " give the folder that holds them"
        )
    # A few neighbours rather than a stride: the instances of one series lie side by side.
    sample = paths[:SAMPLE_FILES]
    context = ScanContext(root=data, pseudonym=key, recipe=_look_config(kind, data).source)
    domain = domain_of(kind)
    records: list[FileRecord] = []
    rejected: list[Rejected] = []
    for path in sample:
        header = domain.index(path, context)
        if isinstance(header, Rejected):
            rejected.append(header)
        else:
            records.append(FileRecord(str(path), path.stat().st_size, 0, digest_file(path), header))
    # The same content twice is one source.
    by_id: dict[str, Source] = {}
    for item in domain.assemble(records, context):
        if isinstance(item, Rejected):
            rejected.append(item)
        else:
            by_id.setdefault(item.source_id, item)
    sources = list(by_id.values())
    if not sources:
        reasons = "; ".join(f"{item.code}: {item.reason}" for item in rejected[:3])
        raise DataError(f"{data}: no {kind} source could be read: {reasons}")
    return _Look(kind, tuple(sources), tuple(rejected), len(paths), len(sample))


def _look_config(kind: str, path: Path) -> PipelineConfig:
    return parse_config({"name": "look", "source": {"kind": kind, "path": str(path)}}, origin="look")


def _score(domain: Domain, kind: str, paths: Sequence[Path], data: Path, key: Pseudonymiser) -> float:
    """Share of the files that a domain takes; a plain TIFF counts half as a scene when it is not georeferenced."""
    context = ScanContext(root=data, pseudonym=key, recipe=_look_config(kind, data).source)
    taken = 0.0
    for number, path in enumerate(paths):
        header = domain.index(path, context)
        if isinstance(header, Rejected):
            continue
        # One file at a time: a number tells it from others as well as its content does.
        record = FileRecord(str(path), path.stat().st_size, 0, f"{number:032x}", header)
        found = [item for item in domain.assemble([record], context) if isinstance(item, Source)]
        if kind == "geotiff" and not any(item.grid.crs for item in found):
            taken += 0.5
        elif kind == "images":
            # A georeferenced TIFF is readable as a photograph too; the scene is the better reading.
            taken += 0.9
        else:
            taken += 1
    return taken / max(len(paths), 1)


def _describe(look: _Look) -> str:
    looked = "" if look.n_looked_at == look.n_files else f" (the first {look.n_looked_at} looked at)"
    codes = Counter(item.code for item in look.rejected if not item.junk)
    text = f"{look.n_files} files{looked}: {len(look.sources)} {look.kind} sources"
    if codes:
        text += ", rejected: " + ", ".join(f"{count} x {code}" for code, count in codes.most_common())
    shapes = Counter((source.grid.height, source.grid.width, source.channels) for source in look.sources)
    (height, width, channels), _ = shapes.most_common(1)[0]
    return f"{text}; mostly {height} x {width}, {len(channels)} channel{'s' if len(channels) > 1 else ''}"


def _narrow_to_bands(data: Path, look: _Look, lines: list[str]) -> tuple[Path, tuple[Source, ...]]:
    """Where sources differ in channels, keep one kind: one file with the most bands, or the commonest channels.

    Rasters of classes beside scenes of several bands are no scenes, however many they are.
    """
    counts = Counter(source.channels for source in look.sources)
    if len(counts) == 1:
        return data, look.sources
    most = max(counts, key=len)
    if look.kind == "geotiff" and len(most) > 1:
        # GDAL takes its time to load: only where there are scenes.
        from vitpipe.labels.raster import is_class_raster

        maps = {item.source_id for item in look.sources if len(item.channels) == 1 and is_class_raster(Path(item.uri))}
        counts = Counter(source.channels for source in look.sources if source.source_id not in maps)
    if counts[most] == 1:
        (chosen,) = (source for source in look.sources if source.channels == most)
        lines.append(f"the sources differ in channels; taking the one with most of them, {Path(chosen.uri).name}")
        return Path(chosen.uri), (chosen,)
    common = counts.most_common(1)[0][0]
    return data, tuple(source for source in look.sources if source.channels == common)


def _left_over(look: _Look, sources: Sequence[Source], root: Path, labels: LabelGuess | None) -> list[str]:
    """Say what to do with sources of other channels that would be ingested too; label rasters will not be."""
    kept = {source.source_id for source in sources}
    others = [source for source in look.sources if source.source_id not in kept]
    if root.is_file() or not others:
        return []
    said: list[str] = []
    if labels is not None and labels.values["kind"] == "raster":
        recipe = RasterLabels.model_validate(labels.values)
        _, named = without_labels([source.uri for source in others], root, recipe)
        said += [f"{len(named)} file(s) are taken as labels and not as scenes"] if named else []
        if len(named) == len(others):
            return said
    common = sources[0].channels
    kinds = {source.channels for source in look.sources}
    shared = set.intersection(*map(set, kinds))
    remedy = f", or name common bands in `source.bands`: {', '.join(sorted(shared))}" if shared else ""
    return [
        *said,
        f"the sources differ in channels ({len(kinds)} kinds); {len(sources)} of {len(look.sources)} have"
        f" {', '.join(common)}: keep these in a folder of their own{remedy}",
    ]


def _guess_labels(
    data: Path, root: Path, found: tuple[_Look, Sequence[Source]], key: Pseudonymiser, lines: list[str]
) -> LabelGuess | None:
    look, sources = found
    places = [data, *([data.parent] if data.is_dir() else [])]
    beside: list[Path] = []
    for place in dict.fromkeys(place if place.is_dir() else place.parent for place in places):
        depth = "**/*" if place == data else "*"
        beside += sorted(path for path in place.glob(depth) if path.is_file())
    files = list(dict.fromkeys(beside))
    for table in (path for path in files if path.suffix.lower() in _TABLE_SUFFIXES):
        try:
            guess = guess_table_labels(table, root, sources, key)
        except LabelError as error:
            lines.append(f"passed over: {error}")
            continue
        if guess:
            return guess
        lines.append(f"passed over: {table.name} (no column names the sources, or none looks like classes)")
    if look.kind == "dicom":
        drawn = guess_drawn_labels([Path(item.uri) for item in look.rejected if item.code in _NO_IMAGE])
        if drawn is not None:
            return drawn
    if (guess := guess_folder_labels(sources)) is not None:
        return guess
    size, _ = _tile_shape("geotiff", sources)
    return guess_ground_labels(files, sources, size, lines)


def _configuration(
    root: Path, kind: str, sources: Sequence[Source], labels: LabelGuess | None, out: Path
) -> dict[str, Json]:
    base = out.resolve().parent
    size, cut = _tile_shape(kind, sources)
    tiles: dict[str, Json] = {"cut": cut, "size": size}
    if labels is not None and labels.tile_px is not None:
        size = labels.tile_px
        tiles["size"] = size
        if labels.stride_px is not None:
            tiles["stride"] = labels.stride_px
    name = plain_name((root if root.is_dir() else root.parent).name)
    values: dict[str, Json] = {
        "name": name,
        "source": {"kind": kind, "path": _relative(root, base)},
        "tiles": tiles,
    }
    if any(source.units == "HU" for source in sources):
        values["preprocess"] = {"clip": [-200, 400]}
    if labels is None:
        return values
    values["labels"] = _label_values(labels, base)
    if kind == "geotiff" and any(source.grid.crs for source in sources):
        # What suits a country leaves one scene in one block, and what suits a scene tears a forest apart.
        values["source"] = {"kind": kind, "path": _relative(root, base), "block_m": "auto"}
    patch = next(edge for edge in (16, 8, 4, 2, 1) if size % edge == 0 and size // edge >= min(8, size))
    values["model"] = {
        "name": "vit_tiny_patch16_224",
        "weights": {"source": "random"},
        "patch_size": patch,
        **_fitting_width(),
    }
    n_labelled = max(labels.n_labelled, 1)
    values["train"] = {
        "recipe": "full",
        "epochs": _epochs(labels, size, n_labelled),
        "batch_size": 64 if n_labelled >= 512 else 16,
        "augment": {"flip_horizontal": True, "flip_vertical": True, "quarter_turns": True}
        if kind == "geotiff"
        else {"translate": 0.05, "scale": 0.1, "rotate_degrees": 10.0},
    }
    values["register"] = {"model": name}
    return values


def _epochs(labels: LabelGuess, size: int, n_labelled: int) -> int:
    """Small sets need more passes; the bounds keep a first run at minutes on a laptop."""
    if labels.values.get("per") == "pixel":
        # Each tile is many examples, and costs by its pixels.
        return min(200, max(20, 30_000 * 64**2 // (n_labelled * size**2)))
    return min(60, max(10, 30_000 // n_labelled))


def _label_values(labels: LabelGuess, base: Path) -> dict[str, Json]:
    values = dict(labels.values)
    if isinstance(values.get("path"), str):
        values["path"] = _relative(Path(str(values["path"])), base)
    return values


def _relative(path: Path, base: Path) -> str:
    """Relative where the path lies below the file's folder, else absolute."""
    return path.relative_to(base).as_posix() or "." if path.is_relative_to(base) else str(path)


def _tile_shape(kind: str, sources: Sequence[Source]) -> tuple[int, str]:
    edge = int(median(min(source.grid.height, source.grid.width) for source in sources))
    if kind == "geotiff":
        return (edge if edge <= 96 else 64 if edge <= 512 else 224), "grid"
    return min(128, max(16, edge // 16 * 16)), "whole"


def _fitting_width() -> dict[str, Json]:
    """Choose the width of a model that trains in minutes on what is here."""
    if _has_cuda():
        return {}
    return {"embed_dim": 96, "depth": 4, "num_heads": 3}


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _explain(values: Mapping[str, Json]) -> list[str]:
    tiles, model, source = values["tiles"], values.get("model"), values["source"]
    lines = [f"tiles: {_inline(tiles)}"]
    if isinstance(source, dict) and source.get("block_m") == "auto":
        lines.append(
            "splits: by blocks of ground, as large as labels resemble each other and as leaves twenty (`source.block_m:"
            " auto`); the first run chooses the size, and it stays"
        )
    if model is not None:
        lines.append(
            f"model: {_inline(model)} - from scratch; with weights from timm or a file a small set does better"
        )
        lines.append(f"training: {_inline(values['train'])}")
    return lines


def _inline(value: Json) -> str:
    """Give a value as it may stand in a line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True).strip()


def _render(values: Mapping[str, Json], lines: Sequence[str]) -> str:
    comments = "".join(f"# {line}\n" for line in ("Written by `vitpipe init`. What was found and guessed:", *lines))
    order = ("name", "source", "labels", "tiles", "preprocess", "model", "train", "register")
    body = {key: values[key] for key in order if key in values}
    return comments + "\n" + yaml.safe_dump(body, sort_keys=False, width=120, allow_unicode=True)
