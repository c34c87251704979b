"""The parts of the runner that can be looked at by themselves."""

import asyncio
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from libs.common.models import NativeFile
from libs.common.native import Platform, package_of
from services.runner.compatibility import require_platform
from services.runner.endings import RunFailed
from services.runner.events import Failed, Returned, Verdict, dispatch
from services.runner.lines import LineReader
from services.runner.outputs import content_type_of
from services.runner.scratch import Scratch, ScratchError, _make_private
from services.runner.templates import TemplateError, render
from services.runner.values import UnstorableValue, clean_text, clean_value, parse_json, require_storable

_LINUX = Platform("linux", "x64", "glibc")


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        ({}, None),
        ({"a.node": "linux/x64/glibc"}, None),
        ({"a.node": "linux/x64"}, None),
        ({"a.node": "darwin/arm64"}, "a.node"),
        ({"a.node": "linux/arm64/glibc"}, "a.node"),
        ({"a.node": "linux/x64/musl"}, "a.node"),
        ({"a.node": "nonsense"}, "a.node"),
        ({"node_modules/p/l.node": "linux/x64/glibc", "node_modules/p/d/m.node": "darwin/arm64"}, None),
        (
            {"node_modules/p/l.node": "linux/x64/glibc", "node_modules/q/m.node": "darwin/arm64"},
            "node_modules/q/m.node",
        ),
        (
            {"node_modules/@s/p/l.node": "linux/x64/glibc", "node_modules/@s/q/m.node": "darwin/arm64"},
            "node_modules/@s/q/m.node",
        ),
        (
            {"node_modules/p/l.node": "linux/x64", "node_modules/p/node_modules/q/m.node": "darwin/arm64"},
            "node_modules/p/node_modules/q/m.node",
        ),
    ],
)
def test_native_files_are_judged_by_the_package_that_holds_them(files: dict[str, str], refused: str | None) -> None:
    native = [NativeFile(path=path, platform=platform) for path, platform in files.items()]
    if refused is None:
        require_platform(native, _LINUX)
    else:
        with pytest.raises(RunFailed, match=f"member {refused} needs {files[refused]}; this runner is linux/x64/glibc"):
            require_platform(native, _LINUX)


@pytest.mark.parametrize(
    ("path", "package"),
    [
        ("a.node", ""),
        ("dist/native/a.node", ""),
        ("node_modules/p/a.node", "node_modules/p"),
        ("node_modules/@s/p/build/a.node", "node_modules/@s/p"),
        ("node_modules/p/node_modules/q/a.node", "node_modules/p/node_modules/q"),
        ("vendor/node_modules/p/a.node", "vendor/node_modules/p"),
        ("node_modules/a.node", "node_modules"),
    ],
)
def test_the_package_of_a_file_is_the_innermost(path: str, package: str) -> None:
    assert package_of(path) == package


class _Sink:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def ready(self) -> None:
        self.seen.append("ready")

    def started(self) -> None:
        self.seen.append("started")

    def log(self, level: str, message: str, fields: dict[str, Any] | None) -> None:
        self.seen.append((level, message, fields))

    def progress(self, fraction: float | None, message: str | None) -> None:
        self.seen.append((fraction, message))

    def ended(self, verdict: Verdict) -> None:
        self.seen.append(verdict)


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        (b'{"type":"ready"}', ["ready"]),
        (
            b'{"type":"log","level":"warning","message":"m\\u0000","fields":{"a":"\\ud800"}}',
            [("warning", "m�", {"a": "?"})],
        ),
        (b'{"type":"log","level":"shout","message":"m","fields":[1]}', [("info", "m", None)]),
        (b'{"type":"progress","fraction":2,"message":5}', [(1.0, None)]),
        (b'{"type":"progress","fraction":true}', [(None, None)]),
        (b'{"type":"result","value":{"a":[1]}}', [Returned({"a": [1]})]),
        (b'{"type":"result"}', [Returned(None)]),
        (b'{"type":"result","value":NaN}', [Failed("result_not_json", "The handler returned what is not JSON.")]),
        (b'{"type":"error"}', [Failed("Error", "The handler failed and did not say why.")]),
        (b'{"type":"error","name":"E","message":"m","stack":"s"}', [("error", "s", None), Failed("E", "m")]),
        (b"[" * 100_000, [("warning", "an event of 100000 bytes was not understood and dropped", None)]),
        (b"\xff", [("warning", "an event of 1 bytes was not understood and dropped", None)]),
        (b'{"type":["log"]}', [("warning", "an event of 16 bytes was not understood and dropped", None)]),
    ],
)
def test_events_are_read_with_distrust(line: bytes, seen: list[Any]) -> None:
    sink = _Sink()
    dispatch(line, sink, max_result_bytes=1000)
    assert sink.seen == seen


async def test_lines_come_out_whatever_the_chunks_and_never_too_long() -> None:
    data = b"one\n\n" + b"x" * 25 + b"\ny\nlast"
    for size in range(1, len(data) + 1):
        cut: list[bytes] = []
        dropped: list[bytes] = []
        for lines, is_cut in ((cut, True), (dropped, False)):
            reader = LineReader(lines.append, 10, cut=is_cut)
            for start in range(0, len(data), size):
                reader.data_received(data[start : start + size])
            reader.connection_lost(None)
        assert cut == [b"one", b"", b"x" * 10, b"x" * 10, b"x" * 5, b"y", b"last"]
        assert dropped == [b"one", b"", b"x" * 10, b"y", b"last"]
    await asyncio.sleep(0)


def test_values_that_postgresql_cannot_keep_are_found() -> None:
    for value in ("a\0", {"\0": 1}, [["\0"]], float("nan"), float("inf"), "\ud800", {1, 2}, object()):
        with pytest.raises(UnstorableValue):
            require_storable(value)
    deep: Any = None
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UnstorableValue):
        require_storable(deep)
    assert require_storable({"a": "\\u0000", "ü": [None, True, 1.5]}) > 0
    for text in ("NaN", "[Infinity]", "{", "[" * 100_000, "1" * 5000):
        with pytest.raises(UnstorableValue):
            parse_json(text)
    assert clean_text("a\0\ud800b" + "c" * 10, 4) == "a�?b…"
    assert clean_value({"a\0": ["\0", 1]}) == {"a�": ["�", 1]}


def test_templates_keep_types_and_refuse_what_means_nothing() -> None:
    scope = {"parameters": {"a": {"b": [1, None]}, "n": None, "s": "x"}, "steps": {}}
    assert render("{{ parameters.a }}", scope) == {"b": [1, None]}
    assert render("{{parameters.n}}", scope) is None
    assert render("<{{ parameters.s }}-{{ parameters.a.b.0 }}-{{ parameters.n }}>", scope) == "<x-1-null>"
    assert render(["{{ parameters.s }}", {"k": "{{ parameters.s }}{{ parameters.s }}"}, 5], scope) == [
        "x",
        {"k": "xx"},
        5,
    ]
    for text in (
        "{{ }}",
        "{{ a b }}",
        "{{ parameters..s }}",
        "{{ other.x }}",
        "{{ parameters.s.t }}",
        "{{ parameters.a.b.9 }}",
    ):
        with pytest.raises(TemplateError):
            render(text, scope)
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    with pytest.raises(TemplateError, match="nested"):
        render(deep, scope)


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("a.svg", "image/svg+xml"),
        ("a.csv", "text/csv"),
        ("a.json", "application/json"),
        ("a.parquet", "application/vnd.apache.parquet"),
        ("a.csv.gz", "application/gzip"),
        ("a", "application/octet-stream"),
        ("a.duckdb", "application/octet-stream"),
    ],
)
def test_content_types_follow_from_names(path: str, content_type: str) -> None:
    assert content_type_of(path) == content_type


def test_scratch_sweeps_what_dead_runners_left_and_nothing_else(tmp_path: Path) -> None:
    dead, alive = tmp_path / "runner-dead", tmp_path / "runner-alive"
    for root in (dead, alive):
        (root / "run_1-1" / "bundle").mkdir(parents=True)
        root.with_name(root.name + ".lock").touch()
    (tmp_path / "something-else").mkdir()
    home = dead / "run_1-1" / "home"
    stray = subprocess.Popen(["sleep", "600"], env={"HOME": str(home)}, start_new_session=True)
    holder = os.open(alive.with_name("runner-alive.lock"), os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    scratch = Scratch.open(tmp_path)
    assert stray.wait(5) == -9
    assert not dead.exists()
    assert (alive / "run_1-1" / "bundle").exists()
    scratch.close()
    os.close(holder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runner-alive", "runner-alive.lock", "something-else"]


def test_a_run_directory_is_gone_whatever_is_in_it_and_however_it_ends(tmp_path: Path) -> None:
    scratch = Scratch.open(tmp_path)
    with pytest.raises(KeyError), scratch.run_directory("run_1-1") as run:
        (run.bundle / "locked").mkdir()
        (run.bundle / "locked" / "file").touch()
        (run.bundle / "locked").chmod(0)
        (run.tmp / "link").symlink_to("/etc")
        raise KeyError
    assert not run.root.exists()
    assert Path("/etc/passwd").exists()
    scratch.close()
    assert list(tmp_path.iterdir()) == []


def test_without_a_setting_bundles_live_on_tmpfs_where_there_is_room_and_all_else_on_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tmpfs, temporary = tmp_path / "shm", tmp_path / "tmp"
    for place in (tmpfs, temporary):
        place.mkdir()
    monkeypatch.setattr("services.runner.scratch._TMPFS", tmpfs)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    scratch = Scratch.open(None)
    with scratch.run_directory("a-1", bundle_bytes=1000) as run:
        assert run.bundle.is_relative_to(tmpfs)
        assert run.bundle.parent.parent.stat().st_mode & 0o777 == 0o700
        assert run.outputs.is_relative_to(temporary)
    with scratch.run_directory("b-1", bundle_bytes=10**18) as run:
        assert run.bundle.is_relative_to(temporary)
    scratch.close()
    assert list(tmpfs.iterdir()) == list(temporary.iterdir()) == []


def test_a_scratch_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "stowage-0"
    place.mkdir(mode=0o755)
    with pytest.raises(ScratchError, match="not a directory of this user alone"):
        _make_private(place)
    place.rmdir()
    place.symlink_to(tmp_path)
    with pytest.raises(ScratchError):
        _make_private(place)


def test_settings_that_are_wrong_are_named() -> None:
    environment = {"PATH": os.environ["PATH"], "STOWAGE_RUNNER_CONCURENCY": "3", "STOWAGE_RUNNER_PORT": "x"}
    finished = subprocess.run(
        [sys.executable, "-m", "services.runner", "serve"], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert "STOWAGE_RUNNER_CONCURENCY" in finished.stderr
    assert json.dumps(finished.stdout) == '""'
