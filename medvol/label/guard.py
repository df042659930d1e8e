"""What stands before MONAI Label's own web app: who may ask, and from where."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LONGEST_FORM_BYTES = 4096
_WRONG_PASSWORD_PAUSE_S = 1.0


class Guard:
    """ASGI app around another: rejects foreign host names and users without the password set.

    A page from elsewhere that a browser is made to load under a name of its own (DNS rebinding)
    carries that name in its ``Host`` header and is rejected; a page of another site that sends
    requests carries an ``Origin``, and is rejected as well. With a password, 3D Slicer logs in as
    it does with any MONAI Label server (``/auth/token``); browsers ask for it (HTTP Basic, any
    user name). MONAI Label's own authentication needs a Keycloak server, and its token check
    fails with current PyJWT.

    Args:
        app: What is guarded.
        hosts: Host names that may be asked for; empty for any.
        password: What a user must know; None lets everybody in.
        token: What requests carry after logging in; a fresh one by default.
    """

    def __init__(
        self,
        app: App,
        hosts: tuple[str, ...] = (),
        password: str | None = None,
        token: str | None = None,
    ) -> None:
        self.app = app
        self.hosts = hosts
        self.password = password or None
        self.token = token or secrets.token_urlsafe(32)
        self._free_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, reject or hand on one connection; only http and start-up are served."""
        if scope["type"] == "http":
            headers = {key.decode("latin-1").lower(): value.decode("latin-1")
                       for key, value in scope["headers"]}  # fmt: skip
            route = (scope["method"], scope["path"].rstrip("/"))
            if self.password and route == ("POST", "/auth/token"):
                return await self._log_in(receive, send)
            if answer := self._own_answer(route, headers):
                status, content = answer
                return await _answer(send, status, content, _CHALLENGE if status == 401 else {})
        if scope["type"] in ("http", "lifespan"):
            await self.app(scope, receive, send)
        return None

    def _own_answer(
        self, route: tuple[str, str], headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any]] | None:
        """Status and content of what is answered here; None hands the request on."""
        host, origin = headers.get("host", ""), headers.get("origin", "")
        if self.hosts and _host_name(host) not in self.hosts:
            return 421, {"detail": "this server is not known by that name"}
        if origin and urlsplit(origin).netloc.lower() != host.lower():
            return 403, {"detail": "requests from another site's page are rejected"}
        return self._login_answer(route, headers) if self.password else None

    def _login_answer(
        self, route: tuple[str, str], headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any]] | None:
        if route == ("GET", "/auth"):
            return 200, {"enabled": True, "client_id": "medvol", "realm": ""}
        if not self._is_known(headers.get("authorization", "")):
            return 401, {"detail": "log in first"}
        is_asked = route == ("GET", "/auth/token/valid")
        return (200, {"username": "medvol"}) if is_asked else None

    async def _log_in(self, receive: Receive, send: Send) -> None:
        form = parse_qs(await _body(receive))
        given = form.get("password", [""])[0]
        if not self._is_password(given):
            return await _answer(send, 401, {"detail": "wrong password"}, _CHALLENGE)
        return await _answer(send, 200, {"access_token": self.token, "token_type": "Bearer"})

    def _is_known(self, authorization: str) -> bool:
        kind, _, value = authorization.partition(" ")
        if kind.lower() == "bearer":
            return hmac.compare_digest(value.encode(), self.token.encode())
        if kind.lower() != "basic":
            return False
        try:
            given = base64.b64decode(value, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            return False
        return self._is_password(given.partition(":")[2])

    def _is_password(self, given: str) -> bool:
        """At most one wrong guess a second is looked at, whoever guesses."""
        now = time.monotonic()
        if now < self._free_at:
            return False
        if hmac.compare_digest(given.encode(), (self.password or "").encode()):
            return True
        self._free_at = now + _WRONG_PASSWORD_PAUSE_S
        return False


_CHALLENGE = {"www-authenticate": 'Basic realm="medvol label"'}


def _host_name(host: str) -> str:
    """The name in a ``Host`` header.

    >>> _host_name("127.0.0.1:8000"), _host_name("[::1]:8000"), _host_name("Evil.example")
    ('127.0.0.1', '::1', 'evil.example')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


async def _body(receive: Receive) -> str:
    body, more = b"", True
    while more and len(body) <= _LONGEST_FORM_BYTES:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body[:_LONGEST_FORM_BYTES].decode("utf-8", "replace")


async def _answer(
    send: Send, status: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> None:
    body = json.dumps(content).encode()
    given = {"content-type": "application/json", "content-length": str(len(body)),
             **(headers or {})}  # fmt: skip
    raw = [(key.encode(), value.encode()) for key, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
