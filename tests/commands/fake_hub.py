"""The endpoints of the Hugging Face hub that an upload calls, on loopback."""

import hashlib
import json
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """As much of the hub as an upload needs. Weights go by LFS, as there.

    Attributes:
        files: what was committed, by path.
        breaks: how many uploads of weights are cut off.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.breaks = 0
        self.uploads = 0
        self.tokens: set[str | None] = set()
        self.created: list[dict[str, Any]] = []
        self.refusal: tuple[int, dict[str, str], bytes] | None = None  # status, headers and body of every answer


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            self.server.tokens.add(self.headers["Authorization"])
            files = [{"type": "file", "path": path, "oid": "0", "size": 1} for path in self.server.files]
            self.answer(files)
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.refusal is not None:
            status, headers, content = self.server.refusal
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)
            return
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.address}/me/shapes"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": f["path"], "uploadMode": modes[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = []
            for wanted in json.loads(body)["objects"]:
                href = f"{self.server.address}/store/{wanted['oid']}"
                known = wanted["oid"] in self.server.stored
                objects.append({**wanted} if known else {**wanted, "actions": {"upload": {"href": href}}})
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[value["path"]] = b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[value["path"]] = self.server.stored[value["oid"]]
                elif line["key"] == "deletedFile":
                    del self.server.files[value["path"]]
            self.answer({"commitUrl": f"{self.server.address}/me/shapes/commit/1", "commitOid": "1", "success": True})
        else:
            self.send_error(404)

    def do_PUT(self) -> None:
        self.server.uploads += 1
        if self.server.breaks:
            self.server.breaks -= 1
            self.rfile.read(100)
            self.connection.close()  # in the middle of the weights
            return
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.stored[oid] = content
        self.answer({})

    def answer(self, content: Any) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_: Any) -> None:
        pass


def private(created: dict[str, Any]) -> Any:
    """What was asked of a new repository; older libraries call it `private`."""
    return created.get("visibility", created.get("private"))
