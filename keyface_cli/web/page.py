"""Serve one page to the person at this machine: its file, its data and its sounds, nothing else.

A page is one HTML file without outside requests. Its address holds a random token; without it, from
another site's script (`Origin`), or under another name (`Host`, which is how DNS rebinding comes
in) nothing is answered. The Content-Security-Policy lets the page speak to this server only.
The server is Werkzeug's own, which is made for one machine rather than for the web.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import secrets
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseServer
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug import exceptions
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.utils import send_file
from werkzeug.wrappers import Request, Response

from keyface_cli.errors import KeyFaceError, PageError

logger = logging.getLogger(__name__)

Get = Callable[[dict[str, str]], Any]
Post = Callable[[Any], Any]

LOCAL = "127.0.0.1"
MAX_BODY = 16 * 2**20  # bytes of a POST
_ADDRESSES = r"[\d.]+|\[[\da-f:.]+\]"  # as hosts; rebinding needs a name that DNS answers for


class Page(AbstractContextManager["Page"]):
    """A page and what it may ask for; use it as a context manager, and `serve` inside.

    Paths are relative to the page, as in `fetch("curve")`. Handlers run one at a time. What they
    return is sent as JSON, a Werkzeug `Response` as it is; a `KeyFaceError` becomes status 400 with
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
        self.html, self.headers = html, _headers(html)
        self.get, self.post, self.files = dict(get or {}), dict(post or {}), dict(files or {})
        self.token = secrets.token_urlsafe(24)
        self._lock = threading.Lock()  # held while a handler runs and its answer is sent
        self._server = _listen(self._respond, host, port)
        self.port = self._server.port
        address = ipaddress.ip_address(self._server.host)
        name = f"[{address}]" if address.version == 6 else str(address)
        names = [re.escape(name), *(["localhost"] if address.is_loopback else [])]
        if address.is_unspecified:  # 0.0.0.0, which is reached at any address of the machine
            name, names = "localhost", ["localhost", re.escape(socket.gethostname()), _ADDRESSES]
        self._hosts = re.compile(f"({'|'.join(names)}):{self.port}", re.ASCII | re.IGNORECASE)
        self.url = f"http://{name}:{self.port}/{self.token}/"

    def __exit__(self, *_: object) -> None:
        self._server.server_close()

    def serve(self) -> None:
        """Answer requests until `stop`; Ctrl-C passes through."""
        with self:
            self._server.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        """End `serve`, once the request that is being answered has its answer; any thread may."""

        def end() -> None:
            with self._lock:
                self._server.shutdown()

        threading.Thread(target=end, name="page-stop", daemon=True).start()

    def _respond(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request (WSGI), and send the answer before the lock of its handler is free."""
        request = Request(environ)
        request.max_content_length = MAX_BODY
        with ExitStack() as held:
            response = held.enter_context(self._answer(request, held))
            response.headers.update(self.headers)
            blocks, status, headers = response.get_wsgi_response(environ)
            write = start_response(status, headers)
            for block in blocks:
                write(block)
        return ()

    def _answer(self, request: Request, held: ExitStack) -> Response:
        try:
            return self._run(self._admit(request), request, held)
        except exceptions.HTTPException as refused:
            response = refused.get_response()
            response.data = json.dumps({"error": refused.description})
            response.mimetype = "application/json"
            return response
        except KeyFaceError as error:
            return _json({"error": str(error), "hint": error.hint}, 400)
        except Exception as error:
            logger.exception("the page's request failed: %s", request.full_path.split("/")[-1])
            return _json({"error": f"unexpected {type(error).__name__}: {error}"}, 500)

    def _admit(self, request: Request) -> str:
        """Return the path after the token; refuse what another site's page may have sent."""
        host = request.headers.get("Host", "")
        if not self._hosts.fullmatch(host):
            raise exceptions.Forbidden("this is not the address of the page")
        origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
        if origin not in (None, f"http://{host}") or site not in (None, "none", "same-origin"):
            raise exceptions.Forbidden("the request comes from another site")
        _, token, *rest = (*request.path.split("/", 2), "")
        if not secrets.compare_digest(token.encode(), self.token.encode()):
            raise exceptions.Forbidden("the token is missing or wrong")
        return rest[0]

    def _run(self, name: str, request: Request, held: ExitStack) -> Response:
        if request.method == "POST" and name in self.post:
            try:
                body = request.get_json()  # of a media type that no other site's form can send
            except RecursionError as error:
                raise exceptions.BadRequest("the body is nested too deeply") from error
            held.enter_context(self._lock)
            return _json(self.post[name](body))
        if request.method in ("GET", "HEAD"):
            if not name:
                return Response(self.html, mimetype="text/html")
            if name in self.files:
                return _file(self.files[name], request)
            if name in self.get:
                held.enter_context(self._lock)
                found = self.get[name](request.args.to_dict())
                return found if isinstance(found, Response) else _json(found)
        if name in {"", *self.get, *self.post, *self.files}:
            raise exceptions.MethodNotAllowed
        raise exceptions.NotFound


def _json(answer: Any, status: int = 200) -> Response:
    return Response(json.dumps(answer, allow_nan=False), status, mimetype="application/json")


def _file(path: Path, request: Request) -> Response:
    try:
        asked, size = request.range, path.stat().st_size
        if not asked or asked.units != "bytes" or asked.ranges[1:] or asked.ranges[0][0] < -size:
            request.environ.pop("HTTP_RANGE", None)  # other forms are answered by the whole (RFC)
        return send_file(path, request.environ, "audio/wav" if path.suffix == ".wav" else None)
    except OSError as error:
        raise exceptions.NotFound(f"the file is gone: {error.strerror}") from error


def _headers(html: str) -> dict[str, str]:
    """Return what every answer carries: this server only, and only the page's own code."""
    allowed = {}
    for kind in ("script", "style"):
        texts = re.findall(f"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
        digests = [b64encode(sha256(text.encode()).digest()).decode() for text in texts]
        allowed[kind] = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return {
        "Cache-Control": "no-store",
        "Content-Security-Policy": (
            f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; "
            "connect-src 'self'; media-src 'self' blob:; img-src 'self' data: blob:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


class _Server(ThreadedWSGIServer):
    """The sockets; threads end with the program, a stalled client holds up nothing."""

    serve_forever = BaseServer.serve_forever  # that of Werkzeug keeps Ctrl-C to itself

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("the connection to %s broke", client_address, exc_info=True)


class _Handler(WSGIRequestHandler):
    """One connection, which is closed after its answer."""

    server_version, sys_version = "keyface", ""
    timeout = 60.0  # seconds, for a client that has stopped reading or sending
    log_request = BaseHTTPRequestHandler.log_request  # without colours

    def log(self, type: str, message: str, *args: Any) -> None:
        logger.debug(message, *args)


def _listen(app: WSGIApplication, host: str, port: int) -> _Server:
    try:
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        name = str(address[0])
        # bound here: where Werkzeug's own binding fails, it prints why and ends the program
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((name, port))
            sock.listen()
            return _Server(name, port, app, _Handler, passthrough_errors=True, fd=sock.fileno())
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PageError(
            f"the page cannot be served on {host} port {port}: {reason}",
            "leave the port out to take a free one",
        ) from error
