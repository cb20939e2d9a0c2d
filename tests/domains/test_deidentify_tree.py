"""Trees: resumable, never ended by one file, never mixed with the source or with another key."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deidentify_cases import KEY
from dicom_cases import instance, save, series
from pydicom import dcmread
from typer.testing import CliRunner

from flows.cli import app
from vitpipe import __version__
from vitpipe.domains.dicom.deidentify.judge import StatedJudge
from vitpipe.domains.dicom.deidentify.options import options_from
from vitpipe.domains.dicom.deidentify.tree import Recipe, deidentify_tree
from vitpipe.errors import ConfigError, DataError
from vitpipe.pseudonym import Pseudonymiser


def recipe(*options: str, key: Pseudonymiser = KEY) -> Recipe:
    return Recipe(options_from(options), key, StatedJudge(), "none")


def quarantine(target: Path) -> list[dict[str, str]]:
    with (target / "quarantine.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def snapshot(target: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in target.rglob("*.dcm") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    series(source / "a")
    (source / "notes.txt").write_text("text")
    calls: list[tuple[int, int]] = []
    first = deidentify_tree(source, target, recipe(), lambda done, total: calls.append((done, total)))
    assert (first.done, first.skipped, first.rejected) == (6, 0, {"NOT_DICOM": 1})
    assert calls == [(7, 7)]
    before = snapshot(target)
    assert len(before) == 6
    second = deidentify_tree(source, target, recipe())
    assert (second.done, second.skipped, second.rejected) == (0, 6, {"NOT_DICOM": 1})
    assert snapshot(target) == before
    assert quarantine(target)[0]["position"] == "0"


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    paths = series(source)
    deidentify_tree(source, target, recipe())
    whole = snapshot(target)
    lines = [line for line in (target / "ledger.jsonl").read_text().splitlines() if line]
    # Killed while the line of the fourth file was written, with half a file on the disk.
    (target / "ledger.jsonl").write_text("\n".join([*lines[:3], lines[3][:30]]))
    kept = {json.loads(line)["output"] for line in lines[:3]}
    for path in target.rglob("*.dcm"):
        if path.relative_to(target).as_posix() not in kept:
            path.unlink()
            (path.parent / f".partial-x-{path.name}").write_bytes(b"half")
    again = deidentify_tree(source, target, recipe())
    assert (again.done, again.skipped) == (len(paths) - 3, 3)
    assert {path: data for path, (data, _) in snapshot(target).items()} == {
        path: data for path, (data, _) in whole.items()
    }
    assert not list(target.rglob(".partial-*"))
    assert deidentify_tree(source, target, recipe()).skipped == len(paths)


def test_kill_9_at_any_time_leaves_what_the_next_run_completes(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    series(source, range(150))
    command = [sys.executable, "-m", "flows.cli", "deidentify", str(source), str(target)]
    # As the recipe here: the same key, the header alone decides on pixels.
    environment = os.environ | {"VITPIPE_KEY": "test key"}
    for files in (1, 80):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and sum(1 for _ in target.rglob("*.dcm")) < files:
            time.sleep(0.02)
        process.kill()
        process.communicate()
    assert 80 <= sum(1 for _ in target.rglob("*.dcm")) <= 150
    summary = deidentify_tree(source, target, recipe())
    assert summary.done + summary.skipped == 150
    assert not list(target.rglob(".partial-*"))
    deidentify_tree(source, tmp_path / "whole", recipe())
    trees = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*.dcm")}
        for root in (target, tmp_path / "whole")
    ]
    assert trees[0] == trees[1]
    assert len(trees[0]) == 150


def test_copies_and_conflicts_are_told_apart(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    first = save(instance(0), source / "a.dcm")
    shutil.copy(first, source / "b.dcm")
    save(instance(0, KVP=80), source / "c.dcm")
    summary = deidentify_tree(source, target, recipe())
    assert (summary.done, summary.rejected) == (1, {"CONFLICTING_SOP": 1, "DUPLICATE": 1})
    assert dcmread(next(target.rglob("*.dcm"))).KVP == 120
    assert [row["code"] for row in quarantine(target)] == ["DUPLICATE", "CONFLICTING_SOP"]


def test_two_processes_give_the_same_tree_as_one(tmp_path: Path) -> None:
    source = tmp_path / "in"
    series(source, range(70))
    for number in range(3):
        save(instance(number, KVP=80), source / f"x{number}")
        shutil.copy(source / f"{number + 60}", source / f"y{number}")
    save(instance(90, BurnedInAnnotation="YES"), source / "z")
    # The first of its place is rejected when it is written; the second takes the place.
    save(instance(91, BurnedInAnnotation="YES"), source / "z1")
    save(instance(91), source / "z2")
    one, two = tmp_path / "one", tmp_path / "two"
    alone = deidentify_tree(source, one, recipe(), processes=1)
    shared = deidentify_tree(source, two, recipe(), processes=2)
    assert (alone.done, alone.rejected) == (71, {"BURNED_IN_ANNOTATION": 2, "CONFLICTING_SOP": 3, "DUPLICATE": 3})
    assert (shared.done, shared.rejected) == (alone.done, alone.rejected)
    trees = [
        {path.relative_to(target): path.read_bytes() for path in target.rglob("*") if path.suffix in (".dcm", ".csv")}
        for target in (one, two)
    ]
    assert trees[0] == trees[1]
    assert len(trees[0]) == 72


def test_a_changed_file_replaces_its_result(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    path = save(instance(0), source / "a.dcm")
    deidentify_tree(source, target, recipe())
    save(instance(0, KVP=80, SeriesDescription="longer"), path)
    assert deidentify_tree(source, target, recipe()).done == 1
    (output,) = target.rglob("*.dcm")
    assert dcmread(output).KVP == 80
    save(instance(0, BurnedInAnnotation="YES"), path)
    save(instance(1), source / "b.dcm")
    summary = deidentify_tree(source, target, recipe())
    assert (summary.done, summary.rejected) == (1, {"BURNED_IN_ANNOTATION": 1})
    assert not output.exists()


def test_folders_in_each_other_are_refused(tmp_path: Path) -> None:
    series(tmp_path / "in")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "in", target_is_directory=True)
    for source, target in (
        (tmp_path / "in", tmp_path / "in" / "out"),
        (tmp_path / "in", tmp_path / "in"),
        (tmp_path / "in", link / "out"),
        (tmp_path / "in", tmp_path),
    ):
        with pytest.raises(ConfigError, match="lie in each other"):
            deidentify_tree(source, target, recipe())
    with pytest.raises(ConfigError, match="is no folder"):
        deidentify_tree(tmp_path / "nowhere", tmp_path / "out", recipe())


def test_another_key_or_other_options_are_refused(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    series(source)
    deidentify_tree(source, target, recipe())
    for other in (recipe("retain-dates"), recipe(key=Pseudonymiser(b"another"))):
        with pytest.raises(ConfigError, match="other options or another key"):
            deidentify_tree(source, target, other)


def test_another_release_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    series(source)
    deidentify_tree(source, target, recipe())
    assert json.loads((target / "recipe.json").read_text())["release"] == __version__
    # What a release makes of a file may differ from what the one before made of its neighbours.
    monkeypatch.setattr("vitpipe.domains.dicom.deidentify.tree.__version__", f"{__version__}.post9")
    with pytest.raises(ConfigError, match=r"another release, or with other options.*recipe\.json"):
        deidentify_tree(source, target, recipe())


def test_a_name_that_is_not_utf_8_ends_no_run(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    try:
        for number, name in enumerate((b"M\xfcller.dcm", b"M\xf6ller.dcm")):
            path = save(instance(number), source / "a.dcm")
            os.rename(path, os.fsencode(source) + b"/" + name)
        Path(os.fsdecode(os.fsencode(source) + b"/\xe4.txt")).write_text("text")
    except OSError:
        pytest.skip("needs a file system that takes any bytes as a name")
    save(instance(2), source / "b.dcm")
    first = deidentify_tree(source, target, recipe())
    assert (first.done, first.rejected) == (3, {"NOT_DICOM": 1})
    # They are told apart, and known again.
    second = deidentify_tree(source, target, recipe())
    assert (second.done, second.skipped, second.rejected) == (0, 3, {"NOT_DICOM": 1})


def test_no_file_or_none_that_can_be_written_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    with pytest.raises(DataError, match="there is no file"):
        deidentify_tree(source, tmp_path / "out", recipe())
    (source / "notes.txt").write_text("text")
    with pytest.raises(DataError, match="none of 1 files"):
        deidentify_tree(source, tmp_path / "out", recipe())


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    series(source, range(1))
    (source / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "elsewhere").mkdir()
    (source / "folder").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    summary = deidentify_tree(source, target, recipe())
    assert (summary.done, summary.rejected) == (1, {"LINKED_FOLDER": 1, "NOT_A_FILE": 1})


class TestCommand:
    def run(self, *arguments: object, key: str | None = "key") -> tuple[int, str]:
        result = CliRunner().invoke(app, ["deidentify", *map(str, arguments)], env={"VITPIPE_KEY": key})
        return result.exit_code, result.output

    def test_a_key_is_needed(self, tmp_path: Path) -> None:
        series(tmp_path / "in")
        code, output = self.run(tmp_path / "in", tmp_path / "out", key=None)
        assert code == 2
        assert "VITPIPE_KEY" in output
        assert "--key-file" in output
        assert not (tmp_path / "out").exists()

    def test_a_key_file_is_made_once_and_never_in_the_target(self, tmp_path: Path) -> None:
        series(tmp_path / "in")
        code, output = self.run(tmp_path / "in", tmp_path / "out", "--key-file", tmp_path / "out" / "key", key=None)
        assert code == 2
        assert "keep the key elsewhere" in output
        for target in ("one", "two"):
            assert self.run(tmp_path / "in", tmp_path / target, "--key-file", tmp_path / "key", key=None)[0] == 0
        assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
        one, two = (
            sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.dcm"))
            for name in ("one", "two")
        )
        assert one == two != []
        # An editor adds a newline; a text that is no secret is refused.
        (tmp_path / "key").write_text((tmp_path / "key").read_text() + "\n")
        assert self.run(tmp_path / "in", tmp_path / "one", "--key-file", tmp_path / "key", key=None)[0] == 0
        (tmp_path / "note").write_text("hi\n")
        code, output = self.run(tmp_path / "in", tmp_path / "three", "--key-file", tmp_path / "note", key=None)
        assert code == 2
        assert "too short to be a secret" in output

    def test_options_and_exit_codes(self, tmp_path: Path) -> None:
        series(tmp_path / "in")
        code, output = self.run(tmp_path / "in", tmp_path / "out", "--option", "retain-dates", "--json")
        assert code == 0
        assert json.loads(output)["done"] == 6
        assert self.run(tmp_path / "in", tmp_path / "x", "--option", "everything")[0] == 2
        assert self.run(tmp_path / "in", tmp_path / "x", "--ocr", "perhaps")[0] == 2
        (tmp_path / "empty").mkdir()
        assert self.run(tmp_path / "empty", tmp_path / "x")[0] == 3
