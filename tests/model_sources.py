"""Places that models come from, made for tests: wheels in a folder, a hub on the loopback."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from eva_local.config.specs import HubSource, ModelSpec, WheelSource

COMMIT = "c0ffee" + "0" * 34


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder: Path, name: str, files: dict[str, bytes], version: str = "1.0") -> Path:
    """Write a wheel that pip accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    about = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in {**files, **about}.items():
            archive.writestr(path, content)
    return wheel


def make_parts(folder: Path, data: bytes, parts: int) -> None:
    """Put `data` in as many wheels as `wheel_spec` asks for."""
    size = -(-len(data) // parts)
    for i in range(parts):
        file = f"part{i + 1}/data/part{i:02}.bin"
        make_wheel(folder, f"weights-part{i + 1}", {file: data[i * size : (i + 1) * size]})


def wheel_spec(data: bytes, parts: int = 1, **fields: object) -> ModelSpec:
    source = WheelSource("weights-part{n}==1.0", "part{n}/data/part{i:02}.bin", parts)
    return ModelSpec(**{"name": "m", "source": source, "sha256": sha256(data), **fields})


def hub_spec(revision: str = "main", file: str = "sub/m.gguf", **fields: object) -> ModelSpec:
    source = HubSource("owner/model", file, revision)
    return ModelSpec(**{"name": "m", "source": source, **fields})


@dataclass
class Hub:
    """A server that answers as the hub does for one file of one repository, and `others` of it.

    cut_at: send only so many bytes of each following answer and close; breaking: and answer the
    next GET with 500. broken: answer every GET with 500. error: status and X-Error-Code for
    everything. served: what is sent, where it is not what was promised; wrong: the same for the
    others. listed: of these files alone, and `about`, its API tells.
    """

    data: bytes
    commit: str = COMMIT
    cut_at: list[int] = field(default_factory=list)
    broken: bool = False
    breaking: bool = False
    listed: list[str] | None = None
    about: dict[str, object] = field(default_factory=dict)
    error: tuple[int, str] | None = None
    served: bytes | None = None
    storage: str = ""
    others: dict[str, bytes] = field(default_factory=dict)
    wrong: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    authorised: set[tuple[str, bool]] = field(default_factory=set)

    @property
    def gets(self) -> list[tuple[str, str | None]]:
        return [
            (path, span)
            for method, path, span in self.requests
            if method == "GET" and not path.startswith("/api/")
        ]

    def description(self) -> bytes:
        """Return what the API tells of the repository, its files in the order of their names."""
        files = {"sub/m.gguf": self.data, **self.others}
        names = sorted(files) if self.listed is None else self.listed
        siblings = [{"rfilename": name, "size": len(files.get(name, b"GGUF"))} for name in names]
        told = {"id": "owner/model", "sha": self.commit, "siblings": siblings, **self.about}
        return json.dumps(told).encode()


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """Run the hub and give its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        hub.authorised.add((self.path, "authorization" in self.headers))
        failure = hub.error or self._failure()
        if failure is not None:
            status, code = failure
            self._head(status, {"X-Error-Code": code} if code else {}, 0)
        elif self.path.startswith("/api/"):
            data = hub.description()
            self._head(200, {"Content-Type": "application/json"}, len(data))
            self.wfile.write(data)
        elif hub.storage and self.path != "/storage":
            self._head(302, {"Location": f"{hub.storage}/storage", **self._description()}, 0)
        else:
            self._send()

    def _failure(self) -> tuple[int, str] | None:
        if self.hub.broken and self.command == "GET":
            return 500, ""
        if self.path == "/storage":
            return None
        asked = r"/owner/model/resolve/([^/]+)/(.+)|/api/models/owner/model/revision/(.+)\?.+"
        match = re.fullmatch(asked, self.path)
        if match is None:
            return 404, "RepoNotFound"
        if (match[1] or match[3]) not in ("main", self.hub.commit):
            return 404, "RevisionNotFound"
        if match[3] or match[2] in ("sub/m.gguf", *self.hub.others):
            return None
        return 404, "EntryNotFound"

    def _data(self) -> tuple[bytes, bytes]:
        """Return what is promised of a file, and what is sent of it."""
        hub = self.hub
        for name, data in hub.others.items():
            if self.path.endswith(f"/{name}"):
                return data, hub.wrong.get(name, data)
        return hub.data, hub.data if hub.served is None else hub.served

    def _description(self) -> dict[str, str]:
        data, _ = self._data()
        return {
            "X-Repo-Commit": self.hub.commit,
            "X-Linked-Etag": f'"{sha256(data)}"',
            "X-Linked-Size": str(len(data)),
            # The hub offers its own protocol for each large file; it must not be taken up.
            "X-Xet-Hash": sha256(data),
        }

    def _send(self) -> None:
        hub, span = self.hub, self.headers.get("Range")
        _, data = self._data()
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        fields = {"Accept-Ranges": "bytes", **self._description()}
        if span:
            fields["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(206 if span else 200, fields, len(data) - start)
        if self.command == "HEAD":
            return
        rest = data[start:]
        if hub.cut_at:
            rest = rest[: hub.cut_at.pop(0)]
            self.close_connection = True
            hub.broken = hub.breaking
        self.wfile.write(rest)

    def _head(self, status: int, fields: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in {**fields, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
