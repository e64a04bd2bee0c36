"""API keys of a deployment: from the config and from a file that only its owner can read."""

import os
import re
import shlex
import stat
from collections.abc import Sequence

from engine.access import Access
from launcher.config import FrontendConfig
from launcher.config_checks import KEY
from launcher.errors import Refused

_FORBIDDEN = stat.S_IRWXG | stat.S_IRWXO | stat.S_IXUSR
"""Everything but what 0600 allows."""
_KEYS = re.compile(r"^[^=]*api_keys[^=]*=|api_keys\W*:")
"""In an override: as its key, or in the value of a group."""
_MAX_FILE_BYTES = 1 << 20


def read_access(options: FrontendConfig) -> Access:
    """Both sources together, each key once.

    Raises:
        Refused: The file cannot be read, others can read it too, or it holds no usable key.
    """
    keys = list(options.api_keys)
    if options.api_key_file is not None:
        keys += _read_file(options.api_key_file)
    return Access(tuple(dict.fromkeys(keys)))


def without_keys(overrides: Sequence[str]) -> list[str]:
    """Overrides as they may be written down: `KEYS`, which no config takes, in place of keys."""
    return [f"{text.partition('=')[0]}=KEYS" if _KEYS.search(text) else text for text in overrides]


def _read_file(path: str) -> list[str]:
    option, quoted = "frontend.api_key_file", shlex.quote(path)
    try:
        with open(os.path.expanduser(path), "rb", opener=_open) as file:
            mode = os.fstat(file.fileno()).st_mode  # of what is read, whatever the name is by now
            if not stat.S_ISREG(mode):
                raise Refused(f"{option} must be a file: {path}", f"{option}=FILE")
            if mode & _FORBIDDEN:
                permissions = stat.S_IMODE(mode)
                raise Refused(
                    f"{option} must have mode 0600, nobody else may read keys:"
                    f" {path} (mode {permissions:04o})",
                    f"chmod 600 {quoted}",
                )
            content = file.read(_MAX_FILE_BYTES)
    except OSError as problem:
        message = f"{option} cannot be read, {problem.strerror}: {path}"
        raise Refused(message, f"{option}=FILE") from problem
    lines = [line.strip() for line in content.decode(errors="replace").splitlines()]
    keys = [line for line in lines if line]
    if not keys:
        raise Refused(f"{option} holds no key: {path}", f"openssl rand -hex 32 > {quoted}")
    for number, line in enumerate(lines, start=1):
        if line and not KEY.fullmatch(line):  # the message must not repeat it
            raise Refused(
                f"{option} must hold a key per line, printable ASCII without spaces:"
                f" {path}, line {number}",
                f"openssl rand -hex 32 > {quoted}",
            )
    return keys


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO must not keep the launcher waiting
