"""purge-legacy-caches: finds the directories of the old system, and touches nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from services.builder.legacy import delete_cache, find_caches

_DATA = "services/catalog/data"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout of the old system, and things beside it."""
    root = tmp_path / "checkout"
    for name in (
        f"{_DATA}/example-bundles/loader/0.1.0.tgz",
        f"{_DATA}/example-bundles/nested/bundle-runtime-cache/a",
        f"{_DATA}/job-bundles/a.tgz",
        f"{_DATA}/catalog.json",
        "apps/worker/tmp/bundle-runtime-cache/abc/index.js",
        "bundle-runtime-cache/x",
        "docs/bundle-runtime-cache.md",
        ".git/refs/heads/bundle-runtime-cache/fix",
        "elsewhere/job-bundles/a.tgz",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    return root


def _purge(root: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "services.builder", "purge-legacy-caches", "--root", str(root), *options],
        capture_output=True,
        text=True,
        check=False,
    )


def _tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() or path.is_symlink())


def test_it_lists_with_sizes_and_deletes_nothing_without_apply(root: Path) -> None:
    before = _tree(root)
    done = _purge(root)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"found: {_DATA}/example-bundles: 2 files, 2000 bytes",
        f"found: {_DATA}/job-bundles: 1 files, 1000 bytes",
        "found: bundle-runtime-cache: 1 files, 1000 bytes",
        "found: apps/worker/tmp/bundle-runtime-cache: 1 files, 1000 bytes",
        f"4 directories, 5000 bytes below {root}. Nothing was deleted; --apply does that.",
    ]
    assert _tree(root) == before


def test_it_deletes_exactly_these_with_apply(root: Path) -> None:
    (root / "apps/worker/tmp/bundle-runtime-cache/out").symlink_to(root / "docs")
    assert _purge(root, "--apply").returncode == 0
    assert _tree(root) == [
        ".git/refs/heads/bundle-runtime-cache/fix",
        "docs/bundle-runtime-cache.md",
        "elsewhere/job-bundles/a.tgz",
        f"{_DATA}/catalog.json",
    ]
    again = _purge(root, "--apply")
    assert (again.returncode, again.stdout) == (0, f"0 directories, 0 bytes below {root}.\n")


@pytest.mark.parametrize("link", ["services", "services/catalog", _DATA, f"{_DATA}/example-bundles"])
def test_it_follows_no_link_out_of_the_root(root: Path, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    (root / link).rename(outside)
    (root / link).symlink_to(outside)
    before = _tree(outside)
    done = _purge(root, "--apply")
    assert done.returncode == 1
    assert f"refused: {link} is a link" in done.stdout
    assert _tree(outside) == before
    assert (root / link).is_symlink()
    assert not (root / "bundle-runtime-cache").exists()


def test_it_neither_follows_nor_removes_a_runtime_cache_that_is_a_link(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (root / "apps/worker/tmp/bundle-runtime-cache").rename(outside)
    (root / "apps/worker/tmp/bundle-runtime-cache").symlink_to(outside)
    done = _purge(root, "--apply")
    assert done.returncode == 1
    assert "refused: apps/worker/tmp/bundle-runtime-cache is a link" in done.stdout
    assert _tree(outside) == ["abc/index.js"]


def test_a_link_to_a_directory_with_caches_is_not_entered(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "bundle-runtime-cache").mkdir(parents=True)
    (root / "apps/link").symlink_to(outside)
    assert _purge(root, "--apply").returncode == 0
    assert (outside / "bundle-runtime-cache").is_dir()


def test_the_root_itself_may_be_reached_by_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert _purge(tmp_path / "link", "--apply").returncode == 0
    assert not (root / "bundle-runtime-cache").exists()


def test_a_root_that_is_no_directory_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    done = _purge(tmp_path / "missing")
    assert (done.returncode, done.stderr) == (2, f"{tmp_path / 'missing'} is not a directory\n")


def test_a_cache_whose_path_became_a_link_after_it_was_found_is_not_deleted(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    found = find_caches(root)
    (root / "services").rename(outside)
    (root / "services").symlink_to(outside)
    before = _tree(outside)
    with pytest.raises(NotADirectoryError):
        delete_cache(root, found.caches[0])
    assert _tree(outside) == before
