"""A page on this machine: GET and HEAD over loopback, of what it was given and nothing else.

No part of an address is ever joined to a path. The page's own files are read at the start and found
by name in a table; all else are numbers that the page looks up in its own lists. The address holds
a key, for other users of the machine reach its loopback too.
"""

from __future__ import annotations

import http.server
import pathlib
import secrets
import socketserver
import sys
import traceback
import urllib.parse
from http import HTTPStatus
from typing import Any

from data_pipelines.spec import DataError
from kerass2.config import ConfigError
from kerass2.viewer.answers import Answer, BadRequest, Page

ADDRESS = "127.0.0.1"
# Names of this machine in a browser's address bar. Another name that leads here is an attack: DNS
# rebinding lets a foreign page ask the reader's loopback in its own name.
HOSTS = (ADDRESS, "localhost")
PAGES = pathlib.Path(__file__).parent / "pages"
LEAFLET = ("leaflet/leaflet.js", "leaflet/leaflet.css")
UPLOT = ("uplot/uPlot.iife.min.js", "uplot/uPlot.min.css")
# Page -> its files beside NAME.html, below PAGES.
FILES = {
    "map": ("common.css", "common.js", "map.js", *LEAFLET, *UPLOT),
    "patches": ("common.css", "common.js", "patches.js"),
    "run": ("common.css", "common.js", "run.js", *UPLOT),
}
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
HEADERS = {
    # data: is Leaflet's empty picture, which it gives to tiles that it throws away.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Server(http.server.ThreadingHTTPServer):
    """Serves one page; `serve_forever` until it is shut down."""

    daemon_threads = True

    def __init__(self, page: Page, port: int = 0) -> None:
        """Listen on a port of the loopback; 0: any free one.

        Raises:
            DataError: the port is taken, or not allowed.
        """
        self.page, self.key = page, secrets.token_urlsafe(9)
        self.files = read_files(page.name)
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            raise DataError(
                f"port {port}: {error.strerror or error}; expected a free one, or no --port for any"
            ) from error

    def server_bind(self) -> None:
        """As TCPServer: HTTPServer would ask the network for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/{self.key}/"

    @property
    def hosts(self) -> set[str]:
        """What a request may call this server."""
        return {f"{name}:{self.server_port}" for name in HOSTS}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def read_files(name: str) -> dict[str, Answer]:
    """The files of a page by the last part of their address; "" is the page itself."""
    files = {pathlib.PurePosixPath(file).name: PAGES / file for file in FILES[name]}
    files[""] = PAGES / f"{name}.html"
    return {
        address: Answer(path.read_bytes(), MEDIA_TYPES[path.suffix])
        for address, path in files.items()
    }


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "kerass2", ""
    # Of a connection that says nothing [s].
    timeout = 60

    def do_GET(self) -> None:
        """Answer."""
        if {"content-length", "transfer-encoding"} & {name.lower() for name in self.headers}:
            self.close_connection = True  # a body that nobody reads would be the next request
        self._send(*self._find())

    do_HEAD = do_GET

    def _find(self) -> tuple[HTTPStatus, Answer]:
        """What a request gets."""
        if why := self._refusal():
            return HTTPStatus.FORBIDDEN, _text(why)
        path, _, query = self.path.partition("?")
        first, *parts = path.removeprefix("/").split("/")
        key = secrets.compare_digest(first.encode(), self.server.key.encode())
        if not key or not parts or not path.startswith("/"):
            return HTTPStatus.NOT_FOUND, _text("not here; open the address that was printed, whole")
        if len(parts) == 1 and parts[0] in self.server.files:
            return HTTPStatus.OK, self.server.files[parts[0]]
        try:
            values = dict(urllib.parse.parse_qsl(query, max_num_fields=20))
        except ValueError as error:
            return HTTPStatus.BAD_REQUEST, _text(str(error))
        return self._ask(tuple(parts), values)

    def _ask(self, parts: tuple[str, ...], query: dict[str, str]) -> tuple[HTTPStatus, Answer]:
        """What the page answers, errors included."""
        try:
            answer = self.server.page.answer(parts, query)
        except BadRequest as error:
            return HTTPStatus.BAD_REQUEST, _text(str(error))
        except (DataError, ConfigError) as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, _text(str(error))
        except Exception:
            traceback.print_exc()
            why = "an error of the viewer; its terminal says which"
            return HTTPStatus.INTERNAL_SERVER_ERROR, _text(why)
        if answer is None:
            return HTTPStatus.NOT_FOUND, _text("not here")
        return HTTPStatus.OK, answer

    def _refusal(self) -> str:
        """Why a request is none of ours; empty where it is."""
        hosts, origins = (self.headers.get_all(name, []) for name in ("Host", "Origin"))
        ours = self.server.hosts
        if len(hosts) != 1 or hosts[0].lower() not in ours:
            return f"Host {', '.join(hosts) or 'missing'}; expected {' or '.join(sorted(ours))}"
        if any(origin.lower() not in {f"http://{host}" for host in ours} for origin in origins):
            return f"Origin {', '.join(origins)}; expected none, or this page's own"
        # An image in a foreign page bears no Origin; browsers say where it stands all the same.
        site = self.headers.get("Sec-Fetch-Site", "none")
        if site not in ("none", "same-origin") and self.headers.get("Sec-Fetch-Mode") != "navigate":
            return f"asked for by a page of another origin ({site})"
        return ""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Of requests that never reach do_GET: another method, or no HTTP."""
        self.close_connection = True
        if code == HTTPStatus.NOT_IMPLEMENTED:
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, "expected GET or HEAD"
        self._send(HTTPStatus(code), _text(message or HTTPStatus(code).phrase))

    def _send(self, status: HTTPStatus, answer: Answer) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.media_type)
        self.send_header("Content-Length", str(len(answer.content)))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each tile would bury what the terminal has to say."""


def _text(text: str) -> Answer:
    return Answer(f"{text}\n".encode(), "text/plain; charset=utf-8")
