"""Serve one page to the person at this machine: its file, its data and its sounds, nothing else.

A page is one HTML file without outside requests. Its address holds a random token; without it, from
another site's script (`Origin`), or under another name (`Host`, which is how DNS rebinding comes
in) nothing is answered. The Content-Security-Policy lets the page speak to this server only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import mimetypes
import re
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import parse_qsl, unquote

from keyface_cli.errors import KeyFaceError, PageError

logger = logging.getLogger(__name__)


class Content(NamedTuple):
    """What a handler answers where that is no JSON: bytes, and their media type."""

    data: bytes
    kind: str


Get = Callable[[dict[str, str]], Any]
Post = Callable[[Any], Any]

LOCAL = "127.0.0.1"
MAX_BODY = 16 * 2**20  # bytes of a POST
_BLOCK = 2**18  # bytes of a file that are in memory at once
_TIMEOUT_S = 60.0  # for a client that has stopped reading or sending
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


class Page:
    """A page and what it may ask for; use it as a context manager, and `serve` inside.

    Paths are relative to the page, as in `fetch("curve")`. Handlers run one at a time. What they
    return is sent as JSON, a `Content` as it is; a `KeyFaceError` becomes status 400 with
    `{"error", "hint"}`.

    Args:
        html: the page; its scripts and styles are in it as plain `<script>` and `<style>`.
        get: path -> function of the query's fields.
        post: path -> function of the body, which must be JSON.
        files: path -> file, sent whole or in byte ranges, so that sounds and videos can be sought.
        host: address to listen on; anything but a loopback address opens the page to a network.
        port: number, or 0 for a free one.

    Raises:
        PageError: the address cannot be listened on.
    """

    def __init__(
        self,
        html: str,
        *,
        get: Mapping[str, Get] | None = None,
        post: Mapping[str, Post] | None = None,
        files: Mapping[str, Path] | None = None,
        host: str = LOCAL,
        port: int = 0,
    ) -> None:
        self.html = html.encode()
        self.policy = _policy(html)
        self.get, self.post, self.files = dict(get or {}), dict(post or {}), dict(files or {})
        self.token = secrets.token_urlsafe(24)
        self.lock = threading.Lock()  # held while a handler runs and its answer is sent
        self._stopping = False
        self._server = _listen(self, host, port)
        name, number = self._server.server_address[:2]
        self.names, self.on_any = _names(str(name)), _is_any(str(name))
        shown = "localhost" if self.on_any else str(name)
        shown = f"[{shown}]" if ":" in shown else shown
        self.url = f"http://{shown}:{number}/{self.token}/"

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.server_close()

    def serve(self) -> None:
        """Answer requests until `stop`; Ctrl-C passes through."""
        try:
            if not self._stopping:
                self._server.serve_forever(poll_interval=0.05)
        finally:
            self._server.server_close()

    def stop(self) -> None:
        """End `serve`, once the request that is being answered has its answer; any thread may."""
        self._stopping = True

        def end() -> None:
            with self.lock:
                self._server.shutdown()

        threading.Thread(target=end, name="page-stop", daemon=True).start()

    def knows(self, host: str) -> bool:
        """Say whether a `Host` header names this server.

        On every address (0.0.0.0) any literal address does: rebinding needs a name that the
        attacker's own DNS answers for.
        """
        name, _, port = host.rpartition(":")
        if port != str(self.port):
            return False
        return name.strip("[]").lower() in self.names or (self.on_any and _is_address(name))


class _Server(ThreadingHTTPServer):
    """The sockets; threads end with the program, a stalled client holds up nothing."""

    daemon_threads = True
    block_on_close = False
    page: Page

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("the connection to %s broke", client_address, exc_info=True)


def _listen(page: Page, host: str, port: int) -> _Server:
    try:
        if not 0 <= port < 2**16:  # the C library would take it modulo that
            raise OverflowError("ports go from 1 to 65535")
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        cls = type("_Server", (_Server,), {"address_family": family})
        server: _Server = cls(address[:2], _Handler)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PageError(
            f"the page cannot be served on {host} port {port}: {reason}",
            "leave the port out to take a free one",
        ) from error
    server.page = page
    return server


def _is_any(address: str) -> bool:
    return ipaddress.ip_address(address).is_unspecified


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _names(address: str) -> set[str]:
    """Return the host names that requests may use for the address that is listened on."""
    names = {address}
    if ipaddress.ip_address(address).is_loopback or _is_any(address):
        names.add("localhost")
    if _is_any(address):
        names.add(socket.gethostname().lower())
    return names


def _policy(html: str) -> str:
    """Return the Content-Security-Policy: this server only, and only the page's own code."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    allowed = {kind: " ".join(found) or "'none'" for kind, found in hashes.items()}
    return (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; "
        "connect-src 'self'; media-src 'self' blob:; img-src 'self' data: blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Refused(Exception):
    """A request that gets no answer but a status."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """One connection: every request is checked, answered and closed."""

    protocol_version = "HTTP/1.1"
    server_version = "keyface"
    sys_version = ""
    timeout = _TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *arguments: Any) -> None:
        logger.debug(format, *arguments)

    def _answer(self, method: Callable[[str, str], None]) -> None:
        self.close_connection = True
        try:
            self._check_sender()
            path, _, query = self.path.partition("?")
            method(self._name(path), query)
        except _Refused as refused:
            logger.debug("refused: %s", refused)
            self._send_json({"error": str(refused)}, refused.status)
        except KeyFaceError as error:
            self._send_json({"error": str(error), "hint": error.hint}, HTTPStatus.BAD_REQUEST)
        except (ConnectionError, TimeoutError):
            logger.debug("the client went away")
        except Exception as error:
            logger.exception("the page's request failed: %s", self.path.split("/")[-1])
            message = f"unexpected {type(error).__name__}: {error}"
            self._send_json({"error": message}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _check_sender(self) -> None:
        """Refuse what another site's page may have sent, knowingly or by a rebound name."""
        host = self.headers.get("Host", "")
        if len(self.headers.get_all("Host", [])) != 1 or not self.server.page.knows(host):
            raise _Refused(HTTPStatus.FORBIDDEN, "this is not the address of the page")
        origin = self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        if origin not in (None, f"http://{host}") or site not in ("none", "same-origin"):
            raise _Refused(HTTPStatus.FORBIDDEN, "the request comes from another site")

    def _name(self, path: str) -> str:
        """Return the path after the token."""
        _, token, *rest = (*unquote(path).split("/", 2), "")
        if not hmac.compare_digest(token.encode(), self.server.page.token.encode()):
            raise _Refused(HTTPStatus.FORBIDDEN, "the token is missing or wrong")
        return rest[0]

    def _get(self, name: str, query: str) -> None:
        page = self.server.page
        if not name:
            self._send(page.html, "text/html; charset=utf-8")
        elif name in page.get:
            fields = dict(parse_qsl(query, keep_blank_values=True))
            with page.lock:
                answer = page.get[name](fields)
                if isinstance(answer, Content):
                    self._send(*answer)
                else:
                    self._send_json(answer)
        elif name in page.files:
            self._send_file(page.files[name])
        else:
            raise self._unknown(name, page.post)

    def _post(self, name: str, query: str) -> None:
        page = self.server.page
        if name not in page.post:
            raise self._unknown(name, {"": None, **page.get, **page.files})
        body = self._read_json()
        with page.lock:
            self._send_json(page.post[name](body))

    def _unknown(self, name: str, others: Mapping[str, Any]) -> _Refused:
        if name in others:
            return _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed")
        return _Refused(HTTPStatus.NOT_FOUND, "not found")

    def _read_json(self) -> Any:
        # a form of another site can send no such type without asking first
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,18}", length, re.ASCII):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the length of the body is missing")
        if int(length) > MAX_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large")
        data = self.rfile.read(int(length))
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {error}") from error

    def _send_json(self, answer: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(answer, allow_nan=False).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._begin(status, kind, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(
        self, status: HTTPStatus, kind: str, length: int, extra: Mapping[str, str] | None = None
    ) -> None:
        headers = {
            "Content-Type": kind,
            "Content-Length": str(length),
            "Connection": "close",
            "Cache-Control": "no-store",
            "Content-Security-Policy": self.server.page.policy,
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            **(extra or {}),
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_file(self, path: Path) -> None:
        try:
            file = path.open("rb")
        except OSError as error:
            raise _Refused(HTTPStatus.NOT_FOUND, f"the file is gone: {error.strerror}") from error
        kind = "audio/wav" if path.suffix == ".wav" else mimetypes.guess_type(path.name)[0]
        with file:
            size = file.seek(0, 2)
            asked = self._range(size)
            part = range(size) if asked is None else asked
            extra = {"Accept-Ranges": "bytes"}
            status = HTTPStatus.OK if asked is None else HTTPStatus.PARTIAL_CONTENT
            if asked is not None and not asked:
                status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                extra["Content-Range"] = f"bytes */{size}"
            elif asked is not None:
                extra["Content-Range"] = f"bytes {part[0]}-{part[-1]}/{size}"
            self._begin(status, kind or "application/octet-stream", len(part), extra)
            if self.command != "HEAD" and part:
                self._copy(file, part)

    def _copy(self, file: BinaryIO, part: range) -> None:
        """Send bytes of a file; where it has shrunk since, the client sees the end come early."""
        file.seek(part.start)
        left = len(part)
        while left and (block := file.read(min(_BLOCK, left))):
            self.wfile.write(block)
            left -= len(block)

    def _range(self, size: int) -> range | None:
        """Return the bytes asked for; None where it is all, or a form that is not served (RFC)."""
        found = _RANGE.fullmatch(self.headers.get("Range", ""))
        if not found or found.group() == "bytes=-":
            return None
        first, last = found.groups()
        if not first:
            return range(max(0, size - int(last)), size)
        if last and int(last) < int(first):
            return None
        return range(int(first), min(size, int(last) + 1) if last else size)
