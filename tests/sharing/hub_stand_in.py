"""A stand-in for the hub: the routes that its client asks for, over HTTP on this machine, repositories in memory."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


class Hub:
    """Repositories by name: ``{"private": bool, "commits": {hash: {path: bytes}}, "head": hash}``."""

    def __init__(self):
        self.repositories = {}
        self.blobs = {}  # large files that were uploaded, by SHA-256
        self.asked = []  # (method, path) of every request
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def put(self, name: str, files: dict[str, bytes], private: bool = False) -> str:
        """Commit a repository as it shall be now; returns the commit's hash."""
        listed = repr(sorted((path, hashlib.sha256(content).hexdigest()) for path, content in files.items()))
        commit = hashlib.sha1(listed.encode()).hexdigest()
        entry = self.repositories.setdefault(name, {"private": private, "commits": {}})
        entry["commits"][commit] = dict(files)
        entry["head"] = commit
        return commit

    def files(self, name: str, revision: str = "main") -> dict[str, bytes] | None:
        entry = self.repositories[name]
        return entry["commits"].get(entry["head"] if revision == "main" else revision)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments):
        pass

    def _answer(self, content=b"", status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, code):
        self._answer({"error": code}, 404, X_Error_Code=code, X_Error_Message=code)

    def _handle(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        routes = (
            ("POST", r"/api/validate-yaml", self._validate),
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/models/([^/]+/[^/]+)/preupload/main", self._preupload),
            ("POST", r"/api/models/([^/]+/[^/]+)/commit/main", self._commit),
            ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/blobs/(\w+)", self._blob),
            ("GET", r"/api/models/([^/]+/[^/]+)", self._info),
            ("GET", r"/api/models/([^/]+/[^/]+)/revision/(.+)", self._info),
            ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self._tree),
            ("GET|HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        )
        for method, pattern, answer in routes:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split("|"):
                if match.groups() and "/" in match[1] and match[1] not in self.hub.repositories:
                    return self._missing("RepoNotFound")
                return answer(*match.groups())
        return self._answer({"error": "no such route"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _validate(self):
        head = yaml.safe_load(json.loads(self.body)["content"].split("---")[1])
        good = head["license"] in ("mit", "apache-2.0") and all(isinstance(tag, str) for tag in head["tags"])
        self._answer({} if good else b'"license" must be one of [apache-2.0, mit, ...]', 200 if good else 400)

    def _create(self):
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if name not in self.hub.repositories:
            private = asked.get("private") or asked.get("visibility") == "private"
            self.hub.put(name, {".gitattributes": b""}, bool(private))
        self._answer({"url": f"{self.hub.address}/{name}"})

    def _preupload(self, name):
        files = json.loads(self.body)["files"]
        modes = {True: "lfs", False: "regular"}
        answers = [
            {"path": f["path"], "uploadMode": modes[f["path"].endswith(".safetensors")], "shouldIgnore": False}
            for f in files
        ]
        self._answer({"files": answers})

    def _batch(self, name):
        wanted = json.loads(self.body)["objects"]
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.hub.address}/blobs/{entry['oid']}"}}} for entry in wanted
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _blob(self, oid):
        good = hashlib.sha256(self.body).hexdigest() == oid
        self.hub.blobs[oid] = self.body
        self._answer(status=200 if good else 400)

    def _commit(self, name):
        files = dict(self.hub.files(name))
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.put(name, files)
        self._answer({"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit})

    def _info(self, name, revision="main"):
        files = self.hub.files(name, revision)
        if files is None:
            return self._missing("RevisionNotFound")
        entry = self.hub.repositories[name]
        sha = entry["head"] if revision == "main" else revision
        siblings = [{"rfilename": path} for path in files]
        return self._answer({"id": name, "sha": sha, "private": entry["private"], "siblings": siblings})

    def _tree(self, name, revision):
        files = self.hub.files(name, revision).items()
        self._answer([{"type": "file", "path": path, "size": len(c), "oid": _sha1(c)} for path, c in files])

    def _resolve(self, name, revision, path):
        content = self.hub.files(name, revision)[path]
        commit = self.hub.repositories[name]["head"] if revision == "main" else revision
        self._answer(content, ETag=f'"{_sha1(content)}"', X_Repo_Commit=commit)


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
