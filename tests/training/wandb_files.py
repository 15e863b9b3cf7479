"""Read what W&B has written, and stand in for its server."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 32768, 7


def chunks(content: bytes) -> list[bytes]:
    """Take a `.wandb` file apart: LevelDB's log format behind a header of 7 bytes.

    Source: https://github.com/google/leveldb/blob/main/doc/log_format.md: blocks of 32 KiB, in each fragments with a
    checksum (4 bytes), a length (2) and a type (1): whole, first, middle or last.
    """
    assert content[:4] == b":W&B"
    found: list[bytes] = []
    place = _HEADER
    while place + _HEADER <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        fragment = content[place + _HEADER : place + _HEADER + length]
        if kind in (1, 2):
            found.append(fragment)
        elif found:
            found[-1] += fragment
        place += _HEADER + length
    return found


@dataclass
class WrittenRun:
    """A run as it stands in a `.wandb` file."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    def series(self, name: str) -> list[Any]:
        return [row[name] for row in self.history if name in row]


def read_run(file: Path) -> WrittenRun:
    """Read a `.wandb` file, once the service has written it to its end."""
    deadline = time.monotonic() + 30
    while True:
        found = WrittenRun()
        for chunk in chunks(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(chunk)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                found.run = record.run
                update(found.config, record.run.config.update)
            elif kind == "config":
                update(found.config, record.config.update)
            elif kind == "summary":
                update(found.summary, record.summary.update)
            elif kind == "history":
                row: dict[str, Any] = {}
                update(row, record.history.item)
                found.history.append(row)
            elif kind == "metric":
                found.metrics[record.metric.name or record.metric.glob_name] = record.metric
            elif kind == "exit":
                found.exit_code = record.exit.exit_code
        if found.exit_code is not None or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def update(values: dict[str, Any], items: Any) -> None:
    """Add items to nested values, as W&B adds them: `key` or `nested_key`, and JSON."""
    for item in items:
        *path, last = list(item.nested_key) or [item.key]
        place = values
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)


class Server:
    """As much of W&B's server as a run needs: GraphQL, file stream, uploads.

    Attributes:
        runs: What `upsertBucket` was told of each run, by its id, laid over each other.
        streamed: Lines of each streamed file, by run id and name.
        files: Uploaded files, by name.
        bodies: Everything that came in, without headers.
        keys: The keys that came in headers.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.streamed: dict[tuple[str, str], dict[int, str]] = {}
        self.files: dict[str, bytes] = {}
        self.bodies: list[bytes] = []
        self.keys: set[str] = set()
        self.dead = False  # it answers no more
        self.dies_at = b""  # what in a request makes it die
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                server.dead |= bool(server.dies_at) and server.dies_at in body
                if server.dead:
                    self.close_connection = True
                    return
                answer = json.dumps(server.answer(self.path, dict(self.headers), body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = handle_any

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
        self.bodies.append(body)
        if authorization := headers.get("Authorization"):
            self.keys.add(base64.b64decode(authorization.split()[1]).decode().partition(":")[2])
        if path == "/graphql":
            asked = json.loads(body)
            return {"data": self.graphql(asked["query"], asked.get("variables") or {})}
        if path.endswith("/file_stream"):
            run = path.split("/")[-2]
            for name, part in (json.loads(body).get("files") or {}).items():
                lines = self.streamed.setdefault((run, name), {})
                lines.update(enumerate(part["content"], part["offset"]))
        elif path.startswith("/storage/"):
            self.files[path.removeprefix("/storage/")] = body
        return {}

    def graphql(self, query: str, asked: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            run = self.runs.setdefault(asked["name"], {})
            run |= {name: value for name, value in asked.items() if value is not None}
            project = {"id": "P", "name": run["project"], "entity": {"id": "E", "name": "someone"}}
            names = ("name", "displayName", "config")
            bucket = {name: run.get(name) for name in names} | {"id": "R", "description": None, "sweepName": None}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0, "project": project}, "inserted": True}}
        if "viewer" in query:
            return {"viewer": {"id": "U", "entity": "someone", "username": "someone", "flags": "{}"}}
        if "createRunFiles" in query:
            run = asked["run"]
            files = [{"name": name, "uploadUrl": f"{self.url}/storage/{run}/{name}"} for name in asked["files"]]
            return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}
        if "createArtifact(" in query:
            artifact = {"id": "A", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "A"}}}
            return {"createArtifact": {"artifact": artifact}}
        return {"project": None} if "query ArtifactType" in query else {}
