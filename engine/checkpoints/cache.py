"""Directories made once and kept: complete or not there, whoever starts and whatever is killed."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import CacheError

Progress = Callable[[str], None]
"""Takes one plain line about what is going on."""

LOCK_DEADLINE_S = 3600
"""Longest wait for another process that makes the same directory; its download takes less."""
_LOCK_POLL_S = 0.1
_MANIFEST = "flotilla.json"
_OWN_DEPTH = 4
"""A file, its directory, that of its kind and `flotilla` are ours alone."""


def silent(_line: str) -> None:
    """Progress that nobody reads."""


def cached_directory(
    key: str,
    build: Callable[[Path], None],
    progress: Progress = silent,
    *,
    kind: str = "models",
) -> Path:
    """The directory `key` of the cache; if it is not there or damaged, `build` fills a new one.

    One process builds, others wait for it. The directory gets its name when it is complete, so
    that a killed build leaves only a temporary directory, which the next build removes.

    Args:
        key: Name of the directory: what it holds and the version of its recipe.
        build: Fills the empty directory that it is given.
        progress: Told when it waits for another process, or makes a damaged directory again.
        kind: Part of the cache that the directory belongs to.

    Raises:
        CacheError: The cache cannot be written, or another process has been building for too long.
    """
    root = _cache_root() / kind
    directory = root / key
    try:
        if _is_complete(directory):
            return directory
        for part in (*reversed(root.parents), root):  # `parents=True` would not heed the mode
            if not part.exists():
                part.mkdir(mode=0o700, exist_ok=True)
        with _lock(root / f"{key}.lock", progress):
            if not _is_complete(directory):
                _build(directory, build, progress)
    except OSError as error:
        raise _not_writable(root, error) from error
    return directory


def only_ours(file: Path, what: str) -> Path:
    """The file of a cached directory, if only we and root can write it.

    Args:
        file: In the directory, not below it.
        what: Is read from it; for messages.

    Raises:
        CacheError: Others can write it, or replace it.
    """
    for named in (file, file.resolve()):  # the cache may be a link to where others write
        for depth, path in enumerate((named, *named.parents)):
            status = path.stat()
            # Above our own directories: group-writable ones are usual where everybody has a group.
            forbidden = 0o022 if depth < _OWN_DEPTH else 0o002
            others_write = status.st_mode & forbidden and not status.st_mode & stat.S_ISVTX
            if status.st_uid not in (os.geteuid(), 0) or others_write:
                raise CacheError(
                    f"others than this user can write {path}, which {what} would be loaded from",
                    f"chmod go-w {path}, or XDG_CACHE_HOME=DIR with a directory of your own",
                )
    return file


def remove_stale(kind: str, is_current: Callable[[Path], bool]) -> None:
    """Removes what nobody is going to use of one part of the cache, and nobody makes right now.

    Args:
        kind: Part of the cache; its keys have no dot.
        is_current: Takes a directory, which may not be there.
    """
    root = _cache_root() / kind
    # A directory, its lock, and what killed builds of it have left: `key`, `key.lock`, `.key.*`.
    for key in {path.name.removeprefix(".").partition(".")[0] for path in root.iterdir()}:
        if is_current(root / key):
            continue
        with contextlib.suppress(OSError):
            fd = os.open(root / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if _try_lock(fd):
                    for path in (root / key, *root.glob(f".{key}.*")):
                        shutil.rmtree(path, ignore_errors=True)
                    (root / f"{key}.lock").unlink()
            finally:
                os.close(fd)


def _cache_root() -> Path:
    # A relative XDG_CACHE_HOME is to be ignored. Source: XDG Base Directory Specification.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = Path(os.path.expanduser("~")) / ".cache"
    return base / "flotilla"


def _is_complete(directory: Path) -> bool:
    """Whether every file of the manifest, which is written last, is there in its full size."""
    try:
        sizes = json.loads((directory / _MANIFEST).read_bytes())
        return all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, ValueError):
        return False


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    """Holds the lock file; the kernel gives it back when the process ends, however it ends."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_DEADLINE_S
        has_waited = False
        while not _try_lock(fd):
            if not has_waited:
                progress(f"waiting for another process that makes {path.stem}")
                has_waited = True
            if time.monotonic() > deadline:
                raise CacheError(
                    f"another process has held {path} for {LOCK_DEADLINE_S} s"
                    f" ({__name__}.LOCK_DEADLINE_S)",
                    f"end that process; `fuser {path}` names it",
                )
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _build(directory: Path, build: Callable[[Path], None], progress: Progress) -> None:
    """Makes `directory`; the caller holds its lock."""
    prefix = f".{directory.name}."
    for stale in directory.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
    try:
        new = temporary / "new"
        new.mkdir()
        build(new)
        sizes = {
            str(file.relative_to(new)): file.stat().st_size
            for file in sorted(new.rglob("*"))
            if file.is_file()
        }
        (new / _MANIFEST).write_text(json.dumps(sizes, indent=1))
        if directory.exists():
            progress(f"replacing {directory}: its files are not complete")
            directory.rename(temporary / "old")
        new.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _not_writable(root: Path, error: OSError) -> CacheError:
    hint = "XDG_CACHE_HOME=DIR puts the cache into another directory"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = f"free some space there, or {hint}"
    return CacheError(f"cannot write the cache {root}: {error.strerror or error}", hint)
