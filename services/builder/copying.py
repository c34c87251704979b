"""Copying a source into a workspace: what people wrote, without what tools made of it."""

import os
import shutil
import stat
from pathlib import Path

from libs.common.errors import Unprocessable

_MADE_BY_TOOLS = frozenset(
    {
        "node_modules", "dist", "__pycache__", "coverage", "venv",
        ".angular", ".cache", ".docusaurus", ".eggs", ".git", ".gradle", ".hg", ".hypothesis", ".idea",
        ".ipynb_checkpoints", ".mypy_cache", ".next", ".nox", ".npm", ".nuxt", ".nx", ".nyc_output", ".output",
        ".parcel-cache", ".pnpm-store", ".pytest_cache", ".rollup.cache", ".ruff_cache", ".serverless", ".svelte-kit",
        ".svn", ".tox", ".turbo", ".venv", ".vercel", ".vite", ".vscode", ".webpack", ".wireit", ".wrangler", ".yarn",
    }
)  # fmt: skip
_FILES_MADE_BY_TOOLS = frozenset({".DS_Store", ".eslintcache", ".stylelintcache", "npm-debug.log"})
# tsc takes these for proof that `dist`, which is left out, is up to date, and would write nothing.
_SUFFIXES_MADE_BY_TOOLS = (".tsbuildinfo", ".pyc")


def copy_source(source: Path, target: Path) -> int:
    """Copy a source to `target`, which is made, and return how many files there are.

    Left out are `node_modules`, `dist`, caches and folders of tools, wherever they are. Links are kept; one that leads
    out of the source is refused, as are devices, sockets and FIFOs: Unprocessable names it.
    """
    return _copy_directory(source, target, source)


def _copy_directory(directory: Path, target: Path, root: Path) -> int:
    target.mkdir()
    count = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                _copy_link(path, target / entry.name, root)
                count += 1
            elif entry.is_dir():
                if entry.name not in _MADE_BY_TOOLS:
                    count += _copy_directory(path, target / entry.name, root)
            elif entry.name not in _FILES_MADE_BY_TOOLS and not entry.name.endswith(_SUFFIXES_MADE_BY_TOOLS):
                _copy_file(path, target / entry.name, root)
                count += 1
    return count


def _copy_file(path: Path, target: Path, root: Path) -> None:
    if not path.is_file():
        raise Unprocessable(
            f"{path.relative_to(root)} is neither a file nor a directory nor a link; a source holds nothing else. "
            "Remove it."
        )
    shutil.copyfile(path, target, follow_symlinks=False)
    target.chmod(stat.S_IMODE(path.stat().st_mode) & 0o755 | 0o600)


def _copy_link(path: Path, target: Path, root: Path) -> None:
    destination = path.readlink()
    lexical = Path(os.path.normpath(path.parent / destination))
    real = path.resolve()
    if destination.is_absolute() or not lexical.is_relative_to(root) or not real.is_relative_to(root.resolve()):
        raise Unprocessable(
            f"{path.relative_to(root)} is a link that leads out of the source ({destination}). "
            "Replace it by what it points to, or by a relative link inside the source."
        )
    target.symlink_to(destination)
