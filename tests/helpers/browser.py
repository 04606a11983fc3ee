"""A page in headless Chromium, driven by the DevTools protocol over pipes, without port or package."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open pages with")

TIMEOUT_S = 60.0


class Page:
    """A tab. Errors of the page are in `problems`."""

    def __init__(self, send: int, receive: int) -> None:
        self.problems: list[str] = []
        self._send, self._receive = send, receive
        self._rest = b""
        self._number = 0
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._send, data) :]
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, f"{method}: {answer}"
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path) -> None:
        """Load a file and wait until its scripts have run."""
        url = path.resolve().as_uri()
        self.call("Page.navigate", url=url)
        until = time.monotonic() + TIMEOUT_S
        while not self.run(f"location.href === {json.dumps(url)} && document.readyState === 'complete'"):
            assert time.monotonic() < until, f"{path} is not loaded after {TIMEOUT_S:g} s"
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key, by its name in KeyboardEvent."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, selector: str) -> None:
        """Click on the center of the first element that the selector matches."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{place}.scrollIntoView({{block: 'center'}})")
        box = self.run(
            f"(({{left, top, width, height}}) => [left + width / 2, top + height / 2])({place}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select element, as a user does."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{place}.value = {json.dumps(value)}; {place}.dispatchEvent(new Event('change', {{bubbles: true}}))")

    def slide(self, selector: str, value: int) -> None:
        """Set a range input to a value, as a user's drag does."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{place}.value = {value}; {place}.dispatchEvent(new Event('input', {{bubbles: true}}))")

    def downloads_to(self, folder: Path) -> None:
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder.resolve()))

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path, width: int = 1280, height: int = 900) -> None:
        self.resize(width, height)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _note(self, event: dict[str, Any]) -> None:
        method, output = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(output["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and output["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(output["args"]))
        elif method == "Log.entryAdded" and output["entry"]["level"] in ("error", "warning"):
            self.problems.append(output["entry"]["text"])

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._receive], [], [], max(until - time.monotonic(), 0))
            assert ready, f"Chromium said nothing for {TIMEOUT_S:g} s"
            data = os.read(self._receive, 1 << 20)
            assert data, "Chromium is gone"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found


def high_pipe() -> list[int]:
    """A pipe whose descriptors avoid 3 and 4, which Chromium uses."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high


@contextmanager
def chromium_page() -> Iterator[Page]:
    """A tab of a new Chromium, which is closed afterwards."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        their_end, send = high_pipe()
        receive, their_other_end = high_pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        words = [CHROMIUM, *flags, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        silence = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, their_end, 3), (os.POSIX_SPAWN_DUP2, their_other_end, 4)]
        actions += [(os.POSIX_SPAWN_DUP2, silence, stream) for stream in (0, 1, 2)]
        process = os.posix_spawn(CHROMIUM, words, dict(os.environ), file_actions=actions, setpgroup=0)
        for end in (their_end, their_other_end, silence):
            os.close(end)
        try:
            yield Page(send, receive)
        finally:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(send)
            os.close(receive)
