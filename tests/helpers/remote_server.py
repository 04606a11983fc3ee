"""A local web server with injected faults: once, several times or always, for matching file names."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Fault:
    """What happens to requests for files whose name matches `pattern`, `times` times."""

    pattern: str
    times: int
    status: int = 200
    cut: float = 1.0
    """Share of the body that is sent before the connection closes."""
    wrong: bool = False
    """Send other bytes."""
    stall_s: float = 0.0
    """Silence in mid-body."""


@dataclass
class Site:
    """A folder served on a free port, and the requests to it."""

    folder: Path
    ranges: bool = True
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(file, Range header) of each request."""
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self) -> Counter[str]:
        return Counter(name for name, _ in self.asked)

    def fault_for(self, name: str) -> Fault:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, name):
                    fault.times -= 1
                    return fault
        return Fault("", 0)


@contextmanager
def serve(folder: Path) -> Iterator[Site]:
    site = Site(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self, site)

        def log_message(self, format: str, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/faces"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


def answer(request: BaseHTTPRequestHandler, site: Site) -> None:
    name = request.path.removeprefix("/faces/")
    wanted = request.headers.get("Range", "")
    with site.lock:
        site.asked.append((name, wanted))
    fault = site.fault_for(name)
    path = site.folder / name
    request.close_connection = True  # or a closed site would keep answering
    status = fault.status if fault.status != 200 else 200 if path.is_file() else 404
    if status != 200:
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.send_header("Connection", "close")
        request.end_headers()
        return
    body = path.read_bytes()
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted) if site.ranges else None
    if found:
        body = body[int(found[1]) : int(found[2] or len(body)) + 1]
        status = 206 if body else 416
    if fault.wrong:
        body = bytes(len(body))
    request.send_response(status)
    request.send_header("Content-Length", str(len(body)))
    request.send_header("Connection", "close")  # else a client may ask again on a connection that we are closing
    request.end_headers()
    sent = int(fault.cut * len(body))
    try:
        request.wfile.write(body[: sent // 2])
        request.wfile.flush()
        time.sleep(fault.stall_s)
        request.wfile.write(body[sent // 2 : sent])
    except OSError:  # the client has closed the connection
        pass
