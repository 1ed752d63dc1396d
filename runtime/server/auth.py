"""API keys from a file. Only their SHA-256 stays in memory, and the file is read again whenever it changes."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

import structlog

from plimsoll.api.errors import SpecError
from plimsoll.api.keys import read_keys
from plimsoll.runtime.server.asgi import PARTITION, App, Receive, Scope, Send
from plimsoll.runtime.server.errors import ApiError

#: Probes carry no key; everything else does, so a path added later is closed until someone opens it.
OPEN_PATHS = frozenset({"/health", "/ready"})
FIELD = "api-keys"

log = structlog.get_logger("plimsoll.server")


class KeyFile:
    """One key a line; blank lines and lines that start with `#` are ignored.

    With a file that is unreadable, damaged or empty, every request is refused: losing it must never open the server.

    Raises:
        SpecError: at construction, when the file cannot be read, holds no key, or one that no client can send.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._stamp: tuple[int, int, int] | None = None
        self._digests: tuple[bytes, ...] = ()
        try:
            self._reload(self._stat())
        except OSError as error:
            raise SpecError("cannot read the API keys file", field=FIELD, value=str(path), fix=str(error)) from None
        if not self._digests:
            raise SpecError("the API keys file holds no key", field=FIELD, value=str(path), fix="Write one key a line")

    def _stat(self) -> tuple[int, int, int]:
        found = os.stat(self.path)
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _reload(self, stamp: tuple[int, int, int]) -> None:
        keys = read_keys(self.path.read_bytes(), field=FIELD, where=str(self.path))
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)
        self._stamp = stamp

    def allows(self, key: str) -> bool:
        """Compares with every key, in time that does not depend on which one matches."""
        try:
            stamp = self._stat()
            if stamp != self._stamp:
                self._reload(stamp)
        except (OSError, SpecError) as error:
            if self._digests or self._stamp is not None:
                log.error("every request is refused: the API keys file cannot be used", reason=str(error))
            self._digests, self._stamp = (), None
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found


class RequireKey:
    """ASGI middleware: no key, no answer, on every path but the probes."""

    def __init__(self, app: App, keys: KeyFile) -> None:
        self.app = app
        self.keys = keys
        self.secret = secrets.token_bytes(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            key = self._allowed(scope)
            if key is None:
                raise ApiError(
                    401,
                    "Missing or wrong API key: send it as `Authorization: Bearer KEY`, or as `x-api-key: KEY`.",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            # By a secret of this process: what names a part of the cache says nothing of the key.
            scope[PARTITION] = hmac.digest(self.secret, key.encode("latin-1"), "sha256").hex()
        await self.app(scope, receive, send)

    def _allowed(self, scope: Scope) -> str | None:
        """The right key that a request brings as OpenAI's clients do, as Anthropic's do, or as both; None without."""
        given: dict[bytes, list[str]] = {b"authorization": [], b"x-api-key": []}
        for name, value in scope["headers"]:
            if name in given:
                given[name].append(value.decode("latin-1"))
        if max(map(len, given.values())) > 1:
            return None
        keys = [key.strip() for key in given[b"x-api-key"]]
        for value in given[b"authorization"]:
            scheme, _, key = value.partition(" ")
            if scheme.lower() == "bearer":
                keys.append(key.strip())
        return next(filter(self.keys.allows, keys), None)
