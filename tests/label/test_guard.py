"""Who may talk to the server: plain ASGI, no server needed."""

from __future__ import annotations

import asyncio
import base64
import json
from urllib.parse import urlencode

import pytest

from medvol.core.errors import ConfigError
from medvol.label import Guard, require_safe_address

PASSWORD = "correct horse battery"
LOCAL = ("127.0.0.1", "localhost", "::1")


async def inner(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'"inside"'})


def ask(guard, path="/info/", method="GET", body=b"", **headers):
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    raw = [(k.encode(), v.encode()) for k, v in {"host": "127.0.0.1:8000", **headers}.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def log_in(guard, password):
    form = urlencode({"username": "anyone", "password": password}).encode()
    return ask(guard, "/auth/token", "POST", form)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
def test_the_machines_own_names_are_served(host):
    assert ask(Guard(inner, LOCAL), host=host) == (200, "inside")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", ""])
def test_a_foreign_host_name_is_rejected(host):
    assert ask(Guard(inner, LOCAL), host=host)[0] == 421


def test_a_page_of_another_site_is_rejected_and_our_own_is_not():
    guard = Guard(inner, LOCAL)
    assert ask(guard, origin="http://evil.example")[0] == 403
    assert ask(guard, origin="null")[0] == 403
    assert ask(guard, origin="http://127.0.0.1:8000") == (200, "inside")


@pytest.mark.parametrize("path", ["/", "/info/", "/infer/x", "/static/ohif/index.html", "/logs/"])
@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Basic !!!", "Basic eDp5"])
def test_without_the_password_nothing_is_served(path, authorization):
    guard = Guard(inner, password=PASSWORD)
    assert ask(guard, path, authorization=authorization)[0] == 401


def test_slicers_login_opens_the_server():
    guard = Guard(inner, password=PASSWORD)
    assert ask(guard, "/auth/")[1]["enabled"] is True
    status, answer = log_in(guard, PASSWORD)
    assert status == 200
    bearer = f"{answer['token_type']} {answer['access_token']}"
    assert ask(guard, authorization=bearer) == (200, "inside")
    assert ask(guard, "/auth/token/valid", authorization=bearer)[0] == 200


def test_a_browsers_login_opens_the_server():
    basic = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    assert ask(Guard(inner, password=PASSWORD), authorization=basic) == (200, "inside")


def test_after_a_wrong_guess_not_even_the_right_one_is_looked_at_for_a_second(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("medvol.label.guard.time.monotonic", lambda: now[0])
    guard = Guard(inner, password=PASSWORD)
    assert log_in(guard, "guess")[0] == 401
    assert log_in(guard, PASSWORD)[0] == 401
    now[0] += 1.1
    assert log_in(guard, PASSWORD)[0] == 200


def test_two_servers_have_different_tokens():
    assert Guard(inner, password=PASSWORD).token != Guard(inner, password=PASSWORD).token


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "scanner.example"])
@pytest.mark.parametrize(
    ("is_allowed", "password", "word"),
    [
        (False, None, "--allow-remote"),
        (False, PASSWORD, "--allow-remote"),
        (True, None, "MEDVOL_LABEL_PASSWORD"),
        (True, "short", "MEDVOL_LABEL_PASSWORD"),
    ],
)
def test_an_address_others_can_reach_is_rejected_without_flag_and_password(
    host, is_allowed, password, word
):
    with pytest.raises(ConfigError, match=word):
        require_safe_address(host, is_allowed, password)


def test_loopback_needs_nothing_and_remote_goes_with_both():
    for host in LOCAL:
        assert require_safe_address(host, False, None) is None
    assert require_safe_address("0.0.0.0", True, PASSWORD) is None
