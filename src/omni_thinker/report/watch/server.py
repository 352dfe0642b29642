"""A small server of one run: the moment as a page that keeps itself up to date, and the report below it.

It reads the run's directory only, so it works beside a study, after it, and where a study was killed."""

import socket
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from markupsafe import Markup

from omni_thinker.errors import UserError
from omni_thinker.report.html import context, environment, page
from omni_thinker.report.watch.state import State, Watched

PORT = 8642
_LEAST_S, _SHARE = 20.0, 0.1
"""While a study runs, a report is drawn anew after so many seconds at the earliest, and takes this share of the time at
the most: it needs the processor that the study works on."""


class Pages:
    """The pages of a run; drawn once, whoever asks."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where there is no run."""
        self._run, self._reading, self._drawing = Watched(path), threading.Lock(), threading.Lock()
        self._version, self._report, self._next = "", "", 0.0

    def whole(self) -> str:
        """The page that a browser opens."""
        state = self._state()
        return page("watch.html.j2", {"name": state.name, "live": Markup(self._live(state))}, "watch")  # noqa: S704

    def live(self) -> str:
        """The part that changes all the time."""
        return self._live(self._state())

    def report(self) -> tuple[str, str]:
        """The report as far as there is one, and the version that it is of."""
        with self._drawing:
            state = self._state()
            if state.version != self._version and (state.ended or time.monotonic() >= self._next):
                began = time.monotonic()
                self._version, self._report = state.version, self._draw()
                self._next = time.monotonic() + max(_LEAST_S, (time.monotonic() - began) / _SHARE)
            return self._version, self._report

    @staticmethod
    def _live(state: State) -> str:
        return environment().get_template("live.html.j2").render(state=state)

    def _state(self) -> State:
        with self._reading:
            return self._run.state()

    def _draw(self) -> str:
        try:
            with self._reading:
                run = self._run.report()
        except UserError as exc:  # a file that is being written, or a damaged one
            return environment().from_string("<p>{{ why }}</p>").render(why=str(exc))
        if run is None:
            return ""
        values = context(run)
        template = "sections.html.j2" if (run.path / "result.json").is_file() else "training.html.j2"
        return environment().get_template(template).render(**values)


class Handler(BaseHTTPRequestHandler):
    """Answers GET of three pages to who asked for this machine by a name of its own."""

    server_version = "omni-thinker"
    sys_version = ""

    def __init__(self, pages: Pages, names: frozenset[str] | None, *rest: Any) -> None:
        """names: of this machine that a request may be for; None for any."""
        self._pages, self._names = pages, names
        super().__init__(*rest)

    def do_GET(self) -> None:
        """The page, its live part, or the report."""
        # A page of another site can make a browser ask us, but not by our name: it is read by nobody else.
        if self._names is not None and _host(self.headers.get("Host", "")) not in self._names:
            self._send(403, "this server answers to the names of its own machine", "text/plain")
            return
        path, _, query = self.path.partition("?")
        try:
            self._answer(path, query)
        except (BrokenPipeError, ConnectionResetError):
            pass  # who asked has gone
        except Exception as exc:  # of a run that is damaged in a way that nobody thought of
            self._send(500, f"this page can't be made: {type(exc).__name__}: {exc}", "text/plain")

    def _answer(self, path: str, query: str) -> None:
        match path:
            case "/":
                self._send(200, self._pages.whole())
            case "/live":
                self._send(200, self._pages.live())
            case "/report":
                version, text = self._pages.report()
                known = query == f"have={version}"
                self._send(204 if known else 200, "" if known else text, version=version)
            case _:
                self._send(404, "no such page", "text/plain")

    def _send(self, code: int, text: str, kind: str = "text/html", version: str = "") -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Version", version)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line every two seconds tells nobody anything."""


class Server(ThreadingHTTPServer):
    """Serves one run until it is shut down."""

    daemon_threads = True

    def __init__(self, run: Path, host: str = "127.0.0.1", port: int | None = None) -> None:
        """port: None for the usual one, or another where it is taken. Raises UserError where there is no run, and where
        host and port can't be had."""
        if not host:
            raise UserError("is empty; leave it out for this machine alone", key="--host")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        names = _names(host)
        handler = partial(Handler, Pages(run), names)
        try:
            super().__init__((host, PORT if port is None else port), handler)
        except OSError as exc:
            if port is not None:
                raise UserError(f"{host}:{port} can't be served: {exc.strerror or exc}", key="--port") from None
            try:
                super().__init__((host, 0), handler)
            except OSError as again:
                raise UserError(f"{host} can't be served: {again.strerror or again}", key="--host") from None

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://[{host}]:{port}/" if self.address_family == socket.AF_INET6 else f"http://{host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that was closed is no fault of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _names(host: str) -> frozenset[str] | None:
    """The names that requests to `host` may be for: those of this machine, or any where all the network may ask."""
    try:
        loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        loopback = False
    return frozenset({"localhost", "127.0.0.1", "[::1]", host}) if loopback else None


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdigit() else header).lower()
