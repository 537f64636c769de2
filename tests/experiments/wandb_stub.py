"""A W&B server on loopback that knows as much as ``wandb sync`` and the declaration of lineage ask for.

It keeps what it is sent, so that a test can look at what would have arrived at a real server.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "radiology"
MOMENT = "2026-01-01T00:00:00Z"
KEY = "0123456789abcdef0123456789abcdef01234567"


class Stub:
    """What a server has been sent.

    Attributes:
        url: Its address.
        runs: By id: the fields of ``UpsertBucket``, and ``history``: the rows in the order of arrival.
        order: Run ids in the order in which they began.
        artifacts: By id: name, type, aliases, metadata, run and digest.
        files: Content by storage path.
        uses: (run id, artifact id) that were declared.
        views: Reports and saved views, as sent.
        operations: Names of the GraphQL operations, in order.
        unknown: Operations that it has no answer for.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.runs: dict[str, dict[str, Any]] = {}
        self.order: list[str] = []
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.uses: list[tuple[str, str]] = []
        self.views: list[dict[str, Any]] = []
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self.lock = threading.Lock()

    def answer(self, query: str, values: dict[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL operation."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else "anonymous"
        self.operations.append(name)
        handler = getattr(self, f"on_{name.lower()}", None)
        if handler is None:
            self.unknown.append(f"{name}: {query} {json.dumps(values)[:400]}")
            return {}
        return dict(handler(values))

    def project(self, values: dict[str, Any]) -> dict[str, Any]:
        name = values.get("project") or values.get("projectName") or "hepastage"
        return {"id": "project", "name": name, "entity": {"id": "entity", "name": ENTITY}}

    def on_runresumestatus(self, values: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(values["name"])
        bucket = None
        if run is not None:
            rows = [json.dumps(row) for row in run["history"]]
            bucket = {
                "id": f"bucket-{values['name']}", "name": values["name"], "summaryMetrics": "{}",
                "displayName": None, "logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0,
                "historyTail": json.dumps(rows[-1:]), "eventsTail": "[]", "config": run["config"], "tags": [],
                "notes": None, "wandbConfig": "{}",
            }  # fmt: skip
        return {"model": {**self.project(values), "bucket": bucket}}

    def on_upsertbucket(self, values: dict[str, Any]) -> dict[str, Any]:
        name = values["name"]
        if name not in self.runs:
            self.order.append(name)
            self.runs[name] = {"history": [], "config": "{}"}
        self.runs[name].update({key: value for key, value in values.items() if value is not None})
        bucket = {"id": f"bucket-{name}", "name": name, "displayName": values.get("displayName"), "description": None,
                  "config": "{}", "sweepName": None, "project": self.project(values),
                  "historyLineCount": len(self.runs[name]["history"])}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def on_createrunfiles(self, values: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": file, "uploadUrl": f"{self.url}/put/{values['run']}/{file}"} for file in values["files"]]
        return {"createRunFiles": {"runID": f"bucket-{values['run']}", "uploadHeaders": [], "files": files}}

    def on_serverfeaturesquery(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def on_createartifact(self, values: dict[str, Any]) -> dict[str, Any]:
        sent = values["input"]
        key = f"artifact-{len(self.artifacts)}"
        self.artifacts[key] = {
            "name": sent["artifactCollectionName"], "type": sent["artifactTypeName"], "run": sent["runName"],
            "aliases": [item["alias"] for item in sent["aliases"] or []], "digest": sent["digest"],
            "metadata": json.loads(sent["metadata"] or "{}"), "state": "PENDING", "files": {},
        }  # fmt: skip
        return {
            "createArtifact": {
                "artifact": {"id": key, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            }
        }

    def on_createartifactmanifest(self, values: dict[str, Any]) -> dict[str, Any]:
        return self.manifest("createArtifactManifest", f"manifest-{values['artifactID']}")

    def on_updateartifactmanifest(self, values: dict[str, Any]) -> dict[str, Any]:
        return self.manifest("updateArtifactManifest", values["artifactManifestID"])

    def manifest(self, what: str, key: str) -> dict[str, Any]:
        file = {"id": f"file-{key}", "uploadUrl": f"{self.url}/put/{key}.json", "uploadHeaders": []}
        return {what: {"artifactManifest": {"id": key, "file": file}}}

    def on_createartifactfiles(self, values: dict[str, Any]) -> dict[str, Any]:
        edges: list[dict[str, Any]] = []
        for file in values["input"]["artifactFiles"]:
            key = file["artifactID"]
            self.artifacts[key]["files"][file["name"]] = path = f"{key}/{file['name']}"
            edges.append({"node": {"storagePath": path, "uploadUrl": f"{self.url}/put/{path}", "uploadHeaders": [],
                                   "uploadMultipartUrls": None, "artifact": {"id": key}}})  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_commitartifact(self, values: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[values["artifactID"]]
        artifact["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": values["artifactID"], "digest": artifact["digest"]}}}

    def on_useartifact(self, values: dict[str, Any]) -> dict[str, Any]:
        sent = values.get("input", values)
        self.uses.append((sent["runName"], sent["artifactID"]))
        return {"useArtifact": {"artifact": {"id": sent["artifactID"]}}}

    def on_viewer(self, values: dict[str, Any]) -> dict[str, Any]:
        return {
            "viewer": {"id": "viewer", "entity": ENTITY, "username": "reader", "flags": "{}", "teams": {"edges": []}}
        }

    def on_getdefaultentity(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "viewer", "entity": ENTITY}}

    def on_run(self, values: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(values["name"])
        if run is None:
            return {"project": {"run": None}}
        empty = dict.fromkeys(("sweepName", "commit", "description", "notes", "heartbeatAt"))
        shown = {
            **empty, "id": f"bucket-{values['name']}", "projectId": "1", "tags": [], "name": values["name"],
            "displayName": run.get("displayName"), "state": "finished", "config": "{}", "group": run.get("groupName"),
            "jobType": run.get("jobType"), "readOnly": False, "createdAt": MOMENT, "systemMetrics": "{}",
            "summaryMetrics": "{}", "historyLineCount": len(run["history"]), "historyKeys": {},
            "user": {"name": "reader", "username": "reader"},
        }  # fmt: skip
        return {"project": {"run": shown}}

    def on_artifactmembershipbyname(self, values: dict[str, Any]) -> dict[str, Any]:
        name, _, alias = values["name"].partition(":")
        found = [key for key, item in self.artifacts.items() if item["name"] == name and alias in item["aliases"]]
        if not found:
            return {"project": {"artifactCollectionMembership": None}}
        (key,) = found
        item = self.artifacts[key]
        project = {"id": "project", "internalId": "project", "name": values["project"], "entity": {"name": ENTITY}}
        collection = {"__typename": "ArtifactSequence", "name": name, "project": project}
        aliases = [{"__typename": "ArtifactAlias", "id": f"{key}-{word}", "alias": word} for word in item["aliases"]]
        artifact = {
            "__typename": "Artifact", "id": key, "artifactSequence": collection, "versionIndex": 0,
            "artifactType": {"name": item["type"]}, "description": None, "metadata": json.dumps(item["metadata"]),
            "ttlDurationSeconds": -1, "ttlIsInherited": False, "tags": [], "historyStep": None,
            "state": item["state"], "size": 1, "digest": item["digest"], "commitHash": None,
            "fileCount": len(item["files"]), "createdAt": MOMENT, "updatedAt": None, "aliases": [],
        }  # fmt: skip
        member = {
            "__typename": "ArtifactCollectionMembership", "id": f"member-{key}", "versionIndex": 0,
            "createdAt": MOMENT, "aliases": aliases, "artifactCollection": collection, "artifact": artifact,
        }  # fmt: skip
        return {"project": {"artifactCollectionMembership": member}}

    def on_projectinternalid(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"id": "project", "internalId": "UHJvamVjdDoxOjE="}}

    def on_getprojects(self, values: dict[str, Any]) -> dict[str, Any]:
        node = {"__typename": "Project", "id": "project", "name": "liver", "entityName": ENTITY, "createdAt": MOMENT,
                "isBenchmark": False, "user": None}  # fmt: skip
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": page, "edges": [{"node": node}]}}

    def on_upsertview(self, values: dict[str, Any]) -> dict[str, Any]:
        self.views.append(values)
        project = {"id": "project", "name": values["projectName"], "entityName": values["entityName"]}
        view = {key: values.get(key) for key in ("type", "name", "displayName", "description", "spec")}
        return {"upsertView": {"view": {**view, "id": f"view-{len(self.views)}", "project": project,
                                        "updatedAt": MOMENT}, "inserted": True}}  # fmt: skip

    on_upsertview2 = on_upsertview

    def stored(self, artifact: str, file: str) -> bytes:
        """The content of an artifact's file."""
        return self.files[self.artifacts[artifact]["files"][file]]


@contextmanager
def stub_server() -> Iterator[Stub]:
    """Serve on a free port of loopback until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    stub = Stub(f"http://127.0.0.1:{server.server_address[1]}")
    _Handler.stubs[server.server_address[1]] = stub
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stubs: dict[int, Stub] = {}  # noqa: RUF012 (the server makes its handlers itself, so they share it)

    def do_POST(self) -> None:
        stub = self.stubs[self.server.server_address[1]]  # type: ignore[index]  # typed as a Unix socket too
        body = self._body()
        answer: dict[str, Any] = {}
        with stub.lock:
            if self.path == "/graphql":
                sent = json.loads(body)
                answer = {"data": stub.answer(sent["query"], sent.get("variables") or {})}
            elif found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                part = json.loads(body).get("files", {}).get("wandb-history.jsonl")
                if part is not None:
                    rows = stub.runs[found[1]]["history"]
                    rows[part["offset"] :] = [json.loads(row) for row in part["content"]]
        self._reply(json.dumps(answer).encode())

    def do_PUT(self) -> None:
        stub = self.stubs[self.server.server_address[1]]  # type: ignore[index]  # typed as a Unix socket too
        body = self._body()
        md5 = self.headers.get("Content-MD5")
        if md5 is not None:
            assert base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode() == md5
        with stub.lock:
            stub.files[self.path.removeprefix("/put/")] = body
        self._reply(b"")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the screen."""
