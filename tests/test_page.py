"""The page server: what it answers, what it refuses, and what a browser lets a page do."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browser import complaints, open_browser, requested, serving, wait_for

from keyface_cli.errors import KeyFaceError, PageError
from keyface_cli.web.page import MAX_BODY, Page

HTML = """<!doctype html><title>A page</title><link rel="icon" href="data:,">
<style>body { color: rgb(1, 2, 3) }</style>
<body><audio id="sound" src="sound.wav" preload="auto"></audio>
<script>
"use strict";
window.loaded = fetch("double?x=4").then(r => r.json());
window.post = body => fetch("keep", {
  method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)
}).then(r => r.json());
</script>
"""
SOUND = bytes(range(256)) * 1000


@pytest.fixture
def kept() -> list[Any]:
    """What the page has posted."""
    return []


@pytest.fixture
def page(tmp_path: Path, kept: list[Any]) -> Iterator[Page]:
    """A served page with one handler of each kind."""

    def double(fields: dict[str, str]) -> dict[str, int]:
        return {"y": 2 * int(fields["x"])}

    def keep(body: Any) -> int:
        if body == "refuse":
            raise KeyFaceError("not this", "another one")
        kept.append(body)
        return len(kept)

    (tmp_path / "sound.wav").write_bytes(SOUND)
    files = {"sound.wav": tmp_path / "sound.wav", "gone.wav": tmp_path / "gone.wav"}
    page = Page(HTML, get={"double": double}, post={"keep": keep}, files=files)
    with serving(page):
        yield page


def ask(
    page: Page, path: str, method: str = "GET", body: bytes | None = None, **headers: str | None
) -> tuple[int, bytes, http.client.HTTPResponse]:
    """Send a request with the path as it is; headers given as None are left out."""
    given = {
        "Host": f"127.0.0.1:{page.port}",
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=30)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    if body is not None and "Content-Length" not in given:
        given["Content-Length"] = str(len(body))
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, data, response


def get(page: Page, name: str, **headers: str | None) -> tuple[int, bytes]:
    return ask(page, f"/{page.token}/{name}", **headers)[:2]


def post(page: Page, name: str, body: bytes, **headers: str | None) -> tuple[int, Any]:
    headers = {"Content_Type": "application/json", **headers}
    status, data, _ = ask(page, f"/{page.token}/{name}", "POST", body, **headers)
    return status, json.loads(data)


def test_page_and_handlers_answer(page: Page, kept: list[Any]) -> None:
    assert page.url == f"http://127.0.0.1:{page.port}/{page.token}/"
    assert len(page.token) >= 32
    assert get(page, "") == (200, HTML.encode())
    assert get(page, "double?x=21") == (200, b'{"y": 42}')
    assert post(page, "keep", b'{"a": [1, null]}') == (200, 1)
    assert kept == [{"a": [1, None]}]
    status, body, response = ask(page, f"/{page.token}/", "HEAD")
    assert (status, body, response.getheader("Content-Length")) == (200, b"", str(len(HTML)))


def test_tokens_and_ports_differ() -> None:
    with Page("") as one, Page("") as other:
        assert one.token != other.token
        assert one.port != other.port


@pytest.mark.parametrize(
    "path",
    ["/", "/double?x=1", "//", "/{t}x/", "/{T}/", "/x{t}/double", "http://h/{t}/", "/%C3%BC/"],
)
def test_no_answer_without_the_token(page: Page, path: str) -> None:
    swapped = page.token.swapcase()
    status, body, _ = ask(page, path.format(t=page.token, T=swapped))
    assert status == 403
    assert page.token.encode() not in body


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1.evil.example:{port}"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1{port}"},
        {"Host": "10.0.0.1:{port}"},
        {"Host": None},
        {"Origin": "http://evil.example"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_strangers_are_refused(page: Page, kept: list[Any], headers: dict[str, Any]) -> None:
    given = {k: v and v.format(port=page.port) for k, v in headers.items()}
    assert get(page, "double?x=1", **given)[0] == 403
    assert get(page, "sound.wav", **given)[0] == 403
    assert post(page, "keep", b"1", **given)[0] == 403
    assert kept == []


def test_own_names_are_answered(page: Page) -> None:
    for host in (f"localhost:{page.port}", f"LOCALHOST:{page.port}", f"127.0.0.1:{page.port}"):
        assert get(page, "double?x=1", Host=host)[0] == 200
        assert get(page, "double?x=1", Host=host, Origin=f"http://{host}")[0] == 200
    assert get(page, "double?x=1", Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("nothing", 404),
        ("../", 404),
        ("..%2f..%2fetc%2fpasswd", 404),
        ("sound.wav/x", 404),
        ("gone.wav", 404),
        ("keep", 405),
    ],
)
def test_unknown_paths_are_refused(page: Page, name: str, status: int) -> None:
    assert get(page, name)[0] == status


def test_bad_bodies_are_refused(page: Page, kept: list[Any]) -> None:
    assert post(page, "keep", b'{"a"')[0] == 400
    assert post(page, "keep", b"[" * 100_000)[0] == 400
    assert post(page, "keep", b"1", Content_Type="text/plain")[0] == 415
    assert post(page, "keep", b"1", Content_Type=None)[0] == 415
    assert post(page, "keep", b"1", Content_Length=None)[0] == 400
    assert post(page, "keep", b"1", Content_Length="-1")[0] == 400
    assert post(page, "keep", b"", Content_Length=str(MAX_BODY + 1))[0] == 413
    chunk = b"%x\r\n%s1\r\n0\r\n\r\n" % (MAX_BODY + 1, b" " * MAX_BODY)  # not read to its end
    chunked = {"Content_Length": None, "Transfer_Encoding": "chunked"}
    assert post(page, "keep", chunk, **chunked)[0] == 400
    assert post(page, "double", b"1")[0] == 405
    assert post(page, "", b"1")[0] == 405
    assert post(page, "other", b"1")[0] == 404
    assert ask(page, f"/{page.token}/keep", "PUT", b"1")[0] == 405
    assert kept == []


def test_errors_of_handlers_are_told(page: Page, caplog: pytest.LogCaptureFixture) -> None:
    assert post(page, "keep", b'"refuse"') == (400, {"error": "not this", "hint": "another one"})
    assert not caplog.records
    assert get(page, "double?x=one")[0] == 500
    assert "the page's request failed: double?x=one" in caplog.text
    assert get(page, "double?x=1")[0] == 200


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        (None, 200, 0, 255_999),
        ("bytes=0-99", 206, 0, 99),
        ("bytes=1000-", 206, 1000, 255_999),
        ("bytes=-10", 206, 255_990, 255_999),
        ("bytes=255999-999999", 206, 255_999, 255_999),
        ("bytes=0-1,5-6", 200, 0, 255_999),
        ("bytes=9-1", 200, 0, 255_999),
        ("bytes=-", 200, 0, 255_999),
        ("bytes=-0", 200, 0, 255_999),
        ("bytes=-999999", 200, 0, 255_999),
        ("seconds=1-2", 200, 0, 255_999),
    ],
)
def test_ranges_of_files(page: Page, asked: str | None, status: int, first: int, last: int) -> None:
    found, body, response = ask(page, f"/{page.token}/sound.wav", Range=asked)
    assert (found, body) == (status, SOUND[first : last + 1])
    assert response.getheader("Accept-Ranges") == "bytes"
    assert response.getheader("Content-Type") == "audio/wav"
    whole = f"bytes {first}-{last}/256000" if status == 206 else None
    assert response.getheader("Content-Range") == whole


def test_range_beyond_the_end_is_refused(page: Page) -> None:
    for asked in ("bytes=256000-", "bytes=256000-256001"):
        status, body, response = ask(page, f"/{page.token}/sound.wav", Range=asked)
        assert (status, len(body) < 100) == (416, True)
        assert response.getheader("Content-Range") == "bytes */256000"


def test_every_answer_carries_the_policy(page: Page) -> None:
    names = ("", "double?x=1", "double?x=no", "gone.wav", "other", "sound.wav")
    answers = [ask(page, path)[2] for path in ("/", *(f"/{page.token}/{name}" for name in names))]
    answers.append(ask(page, f"/{page.token}/sound.wav", Range="bytes=0-9")[2])
    answers.append(ask(page, f"/{page.token}/sound.wav", Range="bytes=256000-")[2])
    answers.append(ask(page, f"/{page.token}/keep", "POST", b"x")[2])
    assert [one.status for one in answers] == [403, 200, 200, 500, 404, 404, 200, 206, 416, 415]
    for headers in (one.headers for one in answers):
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert headers.get_all("Cache-Control") == ["no-store"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Connection"] == "close"
        assert headers["Server"].strip() == "keyface"


def test_stop_ends_serving_after_the_answer() -> None:
    page = Page("", post={"close": lambda _: page.stop()})
    with ExitStack() as stack:
        stack.enter_context(serving(page))
        assert post(page, "close", b"null") == (200, None)
    with pytest.raises(ConnectionRefusedError):
        get(page, "")


@pytest.mark.parametrize(
    "said",
    [
        "",
        "GET / HTTP/1.1\r\nHost",
        "GET /{t}/sound.wav HTTP/1.1\r\nHost: localhost:{p}\r\n\r\n",
        "POST /{t}/keep HTTP/1.1\r\nHost: localhost:{p}\r\n"
        "Content-Type: application/json\r\nContent-Length: 9\r\n\r\n[1",
    ],
)
def test_a_stalled_client_holds_up_nobody(page: Page, kept: list[Any], said: str) -> None:
    with socket.create_connection(("127.0.0.1", page.port)) as stalled:
        stalled.sendall(said.format(t=page.token, p=page.port).encode())
        assert get(page, "double?x=1")[0] == 200
        assert post(page, "keep", b"2") == (200, 1)
    assert kept == [2]


def test_a_stalled_client_is_let_go(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyface_cli.web.page._Handler.timeout", 0.1)
    with socket.create_connection(("127.0.0.1", page.port), timeout=30) as stalled:
        stalled.sendall(b"GET / HTTP/1.1\r\nHost")
        assert stalled.recv(1) == b""


def test_handlers_run_one_at_a_time() -> None:
    running, most = [], []

    def slow(_: dict[str, str]) -> None:
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()

    with serving(page := Page("", get={"slow": slow})), ThreadPoolExecutor(8) as pool:
        assert [s for s, _ in pool.map(lambda _: get(page, "slow"), range(8))] == [200] * 8
    assert most == [1] * 8


def test_answers_hold_no_nan() -> None:
    with serving(page := Page("", get={"nan": lambda _: float("nan")})):
        status, body = get(page, "nan")
    assert (status, "not JSON compliant" in json.loads(body)["error"]) == (500, True)


def test_served_on_ipv6() -> None:
    try:
        page = Page("x", host="::1")
    except PageError:
        pytest.skip("no IPv6")
    with serving(page) as url:
        assert url == f"http://[::1]:{page.port}/{page.token}/"
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.read() == b"x"


def test_stop_before_serving_ends_it_at_once() -> None:
    with Page("") as page:
        page.stop()
        page.serve()


def test_address_in_use_is_an_error() -> None:
    with Page("") as page:
        with pytest.raises(PageError, match=f"cannot be served on 127.0.0.1 port {page.port}: "):
            Page("", port=page.port)
        for host, port in (("no.such.host.invalid", 0), ("127.0.0.1", 99_999)):
            with pytest.raises(PageError, match=f"served on {host} port {port}"):
                Page("", host=host, port=port)


def test_on_every_address_any_literal_address_is_a_name() -> None:
    with serving(page := Page("x", host="0.0.0.0")):
        assert page.url.startswith(f"http://localhost:{page.port}/")
        for host in ("192.168.1.7", "localhost", socket.gethostname(), "[fe80::1]"):
            assert get(page, "", Host=f"{host}:{page.port}")[0] == 200
        for host in ("evil.example", "1.2.3.4.evil.example", "*", ""):
            assert get(page, "", Host=f"{host}:{page.port}")[0] == 403


def test_ctrl_c_ends_the_program_cleanly_and_nothing_is_printed() -> None:
    code = (
        "from keyface_cli.web.page import Page\n"
        "with Page('') as page:\n"
        "    print(page.url, flush=True)\n"
        "    try: page.serve()\n"
        "    except KeyboardInterrupt: print('ended')\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        urllib.request.urlopen(url, timeout=30).close()  # answered once it serves
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{url[:-2]}/", timeout=30)
        port = int(url.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as odd:
            odd.sendall(b"GET http://[/ HTTP/1.1\r\n\r\n")
            odd.recv(1)
        os.kill(child.pid, signal.SIGINT)
        assert child.communicate(timeout=30) == ("ended\n", "")
    assert child.returncode == 0


def test_browser_runs_the_page_and_nothing_else(page: Page, kept: list[Any]) -> None:
    with open_browser() as browser:
        browser.get(page.url)
        assert wait_for(browser, "window.loaded") == {"y": 8}
        assert (
            browser.execute_script("return getComputedStyle(document.body).color") == "rgb(1, 2, 3)"
        )
        assert browser.execute_script("return window.post({a: 1})") == 1
        assert kept == [{"a": 1}]
        assert complaints(browser) == []
        names = {url.removeprefix(page.url) for url in requested(browser)}
        assert names == {"", "sound.wav", "double?x=4", "keep"}
        with serving(other := Page("")):
            for code in (
                f"fetch('{other.url}')",
                f"new Promise((good, bad) => Object.assign(new Image, {{onload: good, onerror: bad,"
                f" src: '{other.url}'}}))",
                "new Promise((good, bad) => { const s = document.createElement('script');"
                " s.text = 'window.injected = 1'; document.body.append(s);"
                " window.injected ? good() : bad() })",
            ):
                script = f"return {code}.then(() => 'done', () => 'blocked')"
                assert browser.execute_script(script) == "blocked", code
        said = " ".join(complaints(browser))
        assert all(f"{kind}-src" in said for kind in ("connect", "img", "script"))
