"""The corpus, and some thousand inputs made of it: always the same ones. `make fuzz` goes on from there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from libs.common.archive import ArchiveReader, tar
from tests.fuzz import seeds, targets
from tests.fuzz.campaign import Report, attack
from tests.fuzz.targets import TARGETS
from tests.unit.archives import well_formed

_COUNTS = {"tar": 4000, "archive": 2000, "manifest": 10_000, "native": 4000}


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found(name: str) -> None:
    report = Report()
    attack(TARGETS[name], 1, report, count=_COUNTS[name])
    assert [finding.reason for finding in report.findings] == []
    assert report.inputs[name] == _COUNTS[name]
    assert report.taken[name] > 10  # inputs that are all refused at the first byte would show nothing


def test_corpus_is_what_its_script_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {name: seeds.read(name) for name in TARGETS}
    monkeypatch.setattr(seeds, "CORPUS", tmp_path)
    seeds.write()
    for name in ("tar", "manifest", "native"):  # what a library compresses depends on its version
        made = seeds.read(name)
        assert made.items() <= kept[name].items()
        assert all(extra.startswith("found-") for extra in kept[name].keys() - made.keys())


def _forgetful(feed: Callable[[ArchiveReader, bytes], None]) -> Callable[[ArchiveReader, bytes], None]:
    return lambda reader, chunk: feed(reader, chunk) if len(chunk) != 511 else None


def test_reader_that_depends_on_the_pieces_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArchiveReader, "feed", _forgetful(ArchiveReader.feed))
    report = Report()
    attack(TARGETS["archive"], 1, report, count=100)
    assert report.findings


def test_member_that_tarfile_reads_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = b"".join(well_formed()) + bytes(1024)
    assert targets.tar_stream(stream)
    monkeypatch.setattr(tar, "_text", lambda field: field.partition(b"\0")[0].lower().replace(b"s", b"z"))
    with pytest.raises(AssertionError):
        targets.tar_stream(stream)


def test_exception_of_another_kind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> bool:
        return bool(data[3_000_000])

    report = Report()
    attack(targets.Target("native", broken, TARGETS["native"].mutate), 1, report, count=3)
    assert len(report.findings) == 3
    assert "IndexError" in report.findings[0].reason
