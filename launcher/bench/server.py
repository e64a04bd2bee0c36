"""The server that is measured: its address, and what it says of itself beside its answers."""

import http.client
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from engine.protocol import Member
from launcher.bench.metrics import OUTPUT_TOKENS, Page, parse_metrics
from launcher.errors import LauncherError, Refused

_GET_S = 15.0
"""Until an answer to one of our own questions."""
_REPORTED_S = 5.0
"""Until `/metrics` shows what has been answered: processes report every
`coordinator.metrics_interval_s`."""
_POLL_S = 0.1


class NoServer(LauncherError):
    """It does not answer as an OpenAI-compatible server does."""


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Plan(msgspec.Struct):
    actual: list[Member]


@dataclass(frozen=True, slots=True)
class Server:
    """An OpenAI-compatible server."""

    host: str
    port: int
    tls: bool = False
    prefix: str = ""
    """Of its paths, before `/v1`."""
    api_key: str | None = None

    @classmethod
    def at(cls, url: str, api_key: str | None = None) -> "Server":
        """The server at a URL, whose path may end with `/v1`.

        Raises:
            Refused: It is no URL.
        """
        hint = "bench.url=http://127.0.0.1:8000"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as problem:
            raise Refused(f"bench.url must be a URL: {url} ({problem})", hint) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refused(f"bench.url must be http://HOST:PORT or https://HOST: {url}", hint)
        tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), tls, prefix, api_key)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"

    def model(self) -> str:
        """The first model that it lists.

        Raises:
            NoServer: It lists none.
        """
        path = "/v1/models"
        try:
            status, body = self._get(path)
        except (OSError, http.client.HTTPException) as problem:
            raise NoServer(f"{self.url} does not answer: {problem}", "start it first") from problem
        try:
            if status == 200:
                return msgspec.json.decode(body, type=_Models).data[0].id
        except (msgspec.DecodeError, IndexError):
            pass
        shown = body[:200].decode(errors="replace")
        hint = "bench.api_key_file=FILE" if status in (401, 403) else "bench.model=NAME"
        raise NoServer(f"{self.url}{path} lists no model: HTTP {status} {shown}", hint)

    def metrics(self, output_tokens: float = 0.0) -> Page | None:
        """What it counts; None: it has no such page, or does not tell in time.

        Args:
            output_tokens: Waits a little until it has counted so many.
        """
        deadline = time.monotonic() + _REPORTED_S
        while True:
            body = self._find("/metrics")
            if body is None:
                return None
            page = parse_metrics(body.decode(errors="replace"))
            total = page.total(OUTPUT_TOKENS)
            is_late = page.has_ranks and (total or 0.0) < output_tokens
            if not is_late or time.monotonic() >= deadline:
                return page
            time.sleep(_POLL_S)

    def members(self) -> list[Member]:
        """The processes of a Flotilla; none of another server."""
        body = self._find("/plan")
        try:
            return msgspec.json.decode(body, type=_Plan).actual if body else []
        except msgspec.DecodeError:
            return []

    def _find(self, path: str) -> bytes | None:
        try:
            status, body = self._get(path)
        except (OSError, http.client.HTTPException):
            return None
        return body if status == 200 else None

    def _get(self, path: str) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self.tls else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=_GET_S)
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            connection.request("GET", self.prefix + path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
