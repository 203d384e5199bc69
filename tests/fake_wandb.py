"""A server with the part of W&B's protocol that an online run needs. It keeps the rows of each run's history."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROJECT = {"id": "p", "name": "coldstart", "entity": {"id": "e", "name": "me"}}


class FakeWandb(ThreadingHTTPServer):
    """The server.

    Attributes:
        histories: by the id of a run, the rows of its history.
        status: HTTP status of every answer but the first page's; None: no answer at all.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.histories: dict[str, list[dict[str, Any]]] = {}
        self.status: int | None = 200
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def variables(self, home: Path) -> dict[str, str]:
        """The environment variables that make wandb use this server, and no files of the user."""
        return {"HOME": str(home), "WANDB_BASE_URL": self.address, "WANDB_API_KEY": "a" * 40}

    def answer(self, path: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks for."""
        if path.endswith("/file_stream"):
            self._take_rows(path.split("/")[4], sent.get("files", {}).get("wandb-history.jsonl"))
            return {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", sent.get("query", ""))
        operation, given = found[1] if found else "", sent.get("variables") or {}
        if operation == "RunResumeStatus":
            known = given["name"] in self.histories
            return {"data": {"model": PROJECT | {"bucket": self._bucket(given["name"]) if known else None}}}
        if operation == "UpsertBucket":
            name = given.get("name") or given["id"].removeprefix("id_")
            is_new = name not in self.histories
            self.histories.setdefault(name, [])
            return {"data": {"upsertBucket": {"bucket": self._bucket(name), "inserted": is_new}}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.address}/file"} for name in given["files"]]
            return {"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}}
        return {"data": {}}

    def _take_rows(self, name: str, part: dict[str, Any] | None) -> None:
        if part is not None:
            rows = self.histories.setdefault(name, [])
            rows[part["offset"] :] = [json.loads(line) for line in part["content"]]

    def _bucket(self, name: str) -> dict[str, Any]:
        rows = self.histories[name]
        tails = {"historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]"}
        counts = {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0}
        texts = {"config": "{}", "summaryMetrics": "{}", "wandbConfig": '{"t": {"value": 1}}'}
        return {"id": f"id_{name}", "name": name, "displayName": name, "project": PROJECT} | tails | counts | texts


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: FakeWandb

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = self.server.status if self.path != "/" else 200
        if status is None:
            self.server.closing.wait()
            return
        is_json = status == 200 and ("graphql" in self.path or "file_stream" in self.path)
        answer = self.server.answer(self.path, json.loads(body)) if is_json else {}
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = _any

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def serving() -> Iterator[FakeWandb]:
    """Run a server in a thread of its own."""
    with FakeWandb() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
