"""Whether a request may come in, as far as keys say."""

import hashlib
import hmac
from collections.abc import Sequence


class KeyCheck:
    """Tells whether an `Authorization` header holds one of the keys, in a time that tells nothing.

    Digests are compared, all of them: neither a key's length nor its place in the list shows.
    """

    def __init__(self, api_keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in api_keys]

    @property
    def is_open(self) -> bool:
        """There is nothing to check."""
        return not self._digests

    def admits(self, authorization: bytes) -> bool:
        """Whether it is `Bearer KEY` with a known key."""
        scheme, _, key = authorization.partition(b" ")
        given = _digest(key.strip())
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(given, known)
        return found and scheme.lower() == b"bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
