"""Chromium without a screen, driven over a pipe by its own DevTools protocol.

A pipe needs no port and no package, and the protocol shows every request that a page makes.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Self

from waiting import PATIENCE_S, until

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-extensions",
    "--disable-sync",
    "--disable-component-update",
    "--disable-background-networking",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Keys that write, and keys that do something of the browser's own.
TEXTS = {"Enter": "\r"}
CODES = {"Enter": 13, "Escape": 27, "Tab": 9}


def find_browser() -> str | None:
    """Return the path of a Chromium or Chrome, or None."""
    found = [path for name in NAMES if (path := shutil.which(name))]
    return next(iter(found), None) or next((p for p in PLACES if Path(p).exists()), None)


class Browser:
    """One browser with one page; a context manager."""

    def __init__(self, program: str, profile: Path) -> None:
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        log = profile.with_suffix(".log")
        arguments = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        # Chromium reads commands from descriptor 3 and answers on 4.
        reading, writing = _high(read_there), _high(write_there)
        self._pid = os.posix_spawn(
            program,
            arguments,
            {**os.environ, "DBUS_SESSION_BUS_ADDRESS": "disabled:"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, reading, 3),
                (os.POSIX_SPAWN_DUP2, writing, 4),
            ],
            setpgroup=0,
        )
        os.close(reading)
        os.close(writing)
        self._in, self._out = read_here, write_here
        self._unread = b""
        self._calls = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        try:
            self.call("Browser.close")
        finally:
            os.close(self._in)
            os.close(self._out)
            self._wait()

    def _wait(self) -> None:
        for _ in range(100):
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                return
            time.sleep(0.05)
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its answer; events that come before it are kept."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def open(self, url: str, *, dark: bool = False, size: tuple[int, int] = (1280, 900)) -> None:
        """Open a page and wait until it is loaded; what was heard of earlier pages is dropped."""
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def settle(self) -> None:
        """Wait until two more frames were drawn, so that nothing that is due moves any more."""
        frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.call("Runtime.evaluate", expression=f"{frames}.then(() => 1)", awaitPromise=True)

    def point(self, selector: str, *, click: bool = False) -> None:
        """Move the pointer to the middle of an element, and click there."""
        x, y = self._middle(selector)
        kinds = ["mouseMoved"] + (["mousePressed", "mouseReleased"] if click else [])
        for kind in kinds:
            button = "left" if kind != "mouseMoved" else "none"
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def tap(self, selector: str) -> None:
        """Touch the middle of an element with a finger."""
        x, y = self._middle(selector)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key."""
        text = {"text": TEXTS.get(key, key)} if len(key) == 1 or key in TEXTS else {}
        code = {"windowsVirtualKeyCode": CODES[key]} if key in CODES else {}
        held = {"modifiers": 8} if shift else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **code, **held)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **code, **held)

    def type(self, text: str) -> None:
        """Write text where the cursor is, as an input method would."""
        self.call("Input.insertText", text=text)

    def wait(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        try:
            until(lambda: self.run(f"!!({expression})"))
        except AssertionError:
            raise AssertionError(f"it never came true: {expression}") from None

    def hear(self, complaint: str, count: int) -> str:
        """Wait until the page has complained of something so often; return all of it."""

        def heard() -> bool:
            # An answer brings along the events before it.
            self.run("1")
            return str(self.complaints()).count(complaint) >= count

        until(heard)
        return str(self.complaints())

    def screenshot(self, path: Path) -> None:
        """Write what is seen as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def requests(self) -> list[str]:
        """Return the URLs that the page asked for, its own first."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self) -> list[dict[str, Any]]:
        """Return what was written to the console, and exceptions."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [event for event in self.events if event["method"] in kinds]

    def _middle(self, selector: str) -> tuple[float, float]:
        x, y = self.run(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            "node.scrollIntoView({block: 'center'});"
            "const box = node.getClientRects()[0];"
            "return [box.left + box.width / 2, box.top + box.height / 2]; })()"
        )
        return x, y

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while b"\0" not in self._unread:
            left = max(0.0, end - time.monotonic())
            if not select.select([self._in], [], [], left)[0]:
                raise TimeoutError(f"the browser said nothing for {PATIENCE_S:.0f} s")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise ConnectionError("the browser ended; its words are in the .log of its profile")
            self._unread += data
        message, self._unread = self._unread.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer


def _high(descriptor: int) -> int:
    """Move a descriptor out of the way of 3 and 4."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


HOSTILE = [
    b"</script><script>window.hacked = 1</script>",
    b'<img src="http://127.0.0.1:9/x.png" onerror="window.hacked = 1">',
    "\u2028\u2029\u202eevil\u202c\u200f".encode(),
    b"<!--<script>",
    b"@@DATA@@ @@STYLE@@",
    b"]]>&lt;&amp;",
    b"\xff\xfe\x00\x1b[31m",
    "\U000e0041 \u00ad\ufeff".encode(),
]


# WCAG's contrast of every text node's colour to what is painted under it.
CONTRAST = """(() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const under = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  let worst = [99, ""];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!(own || node.dataset.mark) || node.disabled || !node.checkVisibility()) continue;
    const back = under(node);
    const style = getComputedStyle(node);
    const share = Number(style.opacity);
    const ink = parse(style.color).slice(0, 3).map((v, i) => v * share + back[i] * (1 - share));
    const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, node.className + ": " + node.textContent.slice(0, 40)];
  }
  return worst;
})()"""
