"""A headless Chromium driven through its own debugging protocol on a pipe; nothing but the standard library.

Not a test. The profile is fresh and the browser reaches nothing by itself, so `requests` lists what a page asks for.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--no-first-run",
    "--disable-domain-reliability", "--disable-breakpad", "--metrics-recording-only", "--remote-debugging-pipe",
)  # fmt: skip
# The protocol is read from descriptor 3 and written to 4, wherever this process has its pipes.
_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
_KEYS = {  # key: (code, number, text)
    "Enter": ("Enter", 13, "\r"), "Escape": ("Escape", 27, ""), "Tab": ("Tab", 9, ""), "Space": ("Space", 32, " "),
    "ArrowLeft": ("ArrowLeft", 37, ""), "ArrowRight": ("ArrowRight", 39, ""), "End": ("End", 35, ""),
}  # fmt: skip
CTRL, SHIFT = 2, 8


class Page:
    """One page of a browser; `problems` has the complaints of its console and its policy, `requests` every address asked."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = to_browser, from_browser
        self._rest, self._number, self._session = b"", 0, ""
        self.problems: list[str] = []
        self.requests: list[str] = []

    def attach(self) -> None:
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _message(self, timeout_sec: float = 60) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_sec
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"The browser said nothing in {timeout_sec} s.")
            piece = os.read(self._in, 1 << 16)
            if not piece:
                raise RuntimeError("The browser ended.")
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def go(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The value of an expression; a promise's once it is settled."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression: str, timeout_sec: float = 60) -> Any:
        """The value of an expression once it is true."""
        deadline = time.monotonic() + timeout_sec
        while time.monotonic() < deadline:
            if value := self.js(expression):
                return value
            time.sleep(0.02)
        raise TimeoutError(f"Not true in {timeout_sec} s: {expression}; {self.js('document.body.innerText')}")

    def press(self, key: str, modifiers: int = 0) -> None:
        code, number, text = _KEYS[key]
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        typed = {"text": text} if text and not modifiers else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def write(self, text: str, where: str) -> None:
        """Put text into a field, in place of what it holds."""
        self.js(f"document.querySelector({where!r}).focus(); document.querySelector({where!r}).select()")
        self.call("Input.insertText", text=text)

    def click(self, where: str) -> None:
        self.js(f"document.querySelector({where!r}).click()")

    def look(self, width: int = 1280, height: int = 900, scheme: str = "light", motion: str = "no-preference") -> None:
        """Set the window's size in CSS pixels and what the reader prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def names(self) -> list[tuple[str, str]]:
        """(role, accessible name) of everything that can take the focus."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if any(prop["name"] == "focusable" and prop["value"]["value"] for prop in node.get("properties", []))
        ]


@contextmanager
def chrome(profile: Path) -> Iterator[Page]:
    """A browser with a fresh profile, and its one page."""
    assert BINARY is not None
    its_in, our_out = os.pipe()
    our_in, its_out = os.pipe()
    launch = [sys.executable, "-c", _LAUNCH, str(its_in), str(its_out), BINARY, *_OPTIONS]
    process = subprocess.Popen(
        [*launch, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(its_in, its_out),
        env={**os.environ, "HOME": str(profile)},  # also its reports of crashes stay in the profile
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(its_in)
    os.close(its_out)
    try:
        page = Page(our_out, our_in)
        page.attach()
        yield page
    finally:
        process.terminate()
        process.wait(20)
        os.close(our_out)
        os.close(our_in)
