"""A hub of Hugging Face with one image set, as far as `datasets` asks of one: over HTTP, on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

REVISION: Final = "1".zfill(40)


@contextmanager
def serving(name: str, files: dict[str, bytes]) -> Iterator[str]:
    """The address of a hub that has the set `name` of these files, by path."""
    api, resolve = f"/api/datasets/{name}", f"/datasets/{name}/resolve/"
    described = {"id": name, "sha": REVISION, "siblings": [{"rfilename": path} for path in files]}
    absent: dict[str, Any] = {"code": 404, "X-Error-Code": "EntryNotFound", "X-Repo-Commit": REVISION}

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            path = urlsplit(self.path).path
            asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if path == api or path.startswith(f"{api}/revision/"):
                self.say(json.dumps(described).encode())
            elif path.startswith(f"{api}/tree/"):
                folder = path.removeprefix(f"{api}/tree/").partition("/")[2]
                found = [] if folder else [entry_of(path) for path in files]
                self.say(json.dumps(found or {}).encode(), **({} if found else absent))
            elif path.startswith(f"{api}/paths-info/"):
                self.say(json.dumps([entry_of(path) for path in json.loads(asked)["paths"] if path in files]).encode())
            else:
                content = files.get(path.removeprefix(resolve).partition("/")[2]) if path.startswith(resolve) else None
                if content is None:
                    self.say(b"", **absent)
                else:
                    self.say(content, ETag=f'"{digest_of(content)}"', **{"X-Repo-Commit": REVISION})

        do_GET = do_HEAD = do_POST = answer  # noqa: N815

        def say(self, body: bytes, code: int = 200, **headers: str) -> None:
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def digest_of(content: bytes) -> str:
        return hashlib.sha1(content).hexdigest()

    def entry_of(path: str) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(files[path]), "oid": digest_of(files[path])}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
