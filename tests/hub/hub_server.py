"""A server on this machine that speaks the part of the Hub's API that pushing and loading use.

Repositories are kept in memory. Files arrive as on the Hub: large ones through the LFS endpoints, the others inside
the commit. Faults can be ordered: `server.fail("PUT", times=2)` cuts the connection in the middle of a request.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"
USER = "somebody"
COMMIT = re.compile(r"^/api/(models|datasets)/([^/]+/[^/]+)/commit/main$")
PREUPLOAD = re.compile(r"^/api/(models|datasets)/([^/]+/[^/]+)/preupload/main$")
INFO = re.compile(r"^/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/[^/]+)?$")
TREE = re.compile(r"^/api/(models|datasets)/([^/]+/[^/]+)/tree/[^/]+(?:/(.*))?$")
BATCH = re.compile(r"^/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch$")
RESOLVE = re.compile(r"^/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)$")


@dataclass
class Repository:
    """Files of the one branch, and how often it was committed to."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(self.commits).encode()).hexdigest()


class HubServer(ThreadingHTTPServer):
    """The server with its repositories, by ("models" or "datasets", name)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.faults: dict[str, int] = {}
        self.log: list[str] = []
        self.guard = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fail(self, what: str, times: int) -> None:
        """Cut the next `times` requests whose "METHOD path" contains `what`."""
        self.faults[what] = times

    def count(self, what: str) -> int:
        """Requests so far whose "METHOD path" contains `what`."""
        return sum(what in line for line in self.log)


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def _answer(self, content, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {"X-Error-Message": message}
        self._answer({"error": message}, status, headers)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _fails(self) -> bool:
        """Log the request; cut the connection after part of it if a fault was ordered."""
        line = f"{self.command} {self.path}"
        with self.server.guard:
            self.server.log.append(line)
            for what, times in self.server.faults.items():
                if what in line and times > 0:
                    self.server.faults[what] -= 1
                    self.rfile.read(1)
                    self.close_connection = True
                    self.connection.close()
                    return True
        return False

    def _authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, kind: str, name: str) -> Repository | None:
        repository = self.server.repositories.get((kind, name))
        if repository is None or (repository.private and not self._authorized()):
            self._refuse(404, "RepoNotFound", "Repository not found")
            return None
        return repository

    # ------------------------------------------------------------------------------------------------------ reading

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self._fails():
            return
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            if self._authorized():
                self._answer({"name": USER, "type": "user", "orgs": []})
            else:
                self._refuse(401, "", "Invalid credentials in Authorization header")
        elif match := RESOLVE.match(path):
            self._resolve("datasets" if match[1] else "models", match[2], match[3])
        elif match := TREE.match(path):
            self._tree(match[1], match[2], match[3])
        elif match := INFO.match(path):
            self._info(match[1], match[2])
        else:
            self._refuse(404, "EntryNotFound", f"nothing at {path}")

    def _info(self, kind: str, name: str) -> None:
        repository = self._repository(kind, name)
        if repository is not None:
            files = [{"rfilename": file} for file in repository.files]
            self._answer({"id": name, "sha": repository.sha, "private": repository.private, "siblings": files})

    def _tree(self, kind: str, name: str, folder: str | None) -> None:
        repository = self._repository(kind, name)
        if repository is None:
            return
        entries = [
            {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for file, content in repository.files.items()
            if not folder or file.startswith(f"{folder}/")
        ]
        if folder and not entries:
            self._refuse(404, "EntryNotFound", f"no folder {folder}")
        else:
            self._answer(entries)

    def _resolve(self, kind: str, name: str, file: str) -> None:
        repository = self._repository(kind, name)
        if repository is None:
            return
        headers = {"X-Repo-Commit": repository.sha}
        if file not in repository.files:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": f"no file {file}"}
            self._answer({"error": "no such file"}, 404, headers)
            return
        content = repository.files[file]
        self._answer(content, 200, {**headers, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    # ------------------------------------------------------------------------------------------------------ writing

    def do_PUT(self) -> None:
        if self._fails():
            return
        oid = self.path.rpartition("/")[2]
        content = self._body()
        if hashlib.sha256(content).hexdigest() != oid:
            self._refuse(400, "", "content does not have the announced hash")
            return
        self.server.large_files[oid] = content
        self._answer({})

    def do_POST(self) -> None:
        if self._fails():
            return
        path, body = urlsplit(self.path).path, self._body()
        if path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif not self._authorized():
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := PREUPLOAD.match(path):
            self._preupload(match[1], match[2], json.loads(body))
        elif match := BATCH.match(path):
            self._batch(json.loads(body))
        elif match := COMMIT.match(path):
            self._commit(match[1], match[2], [json.loads(line) for line in body.splitlines()])
        else:
            self._refuse(404, "", f"nothing at {path}")

    def _create(self, wanted: dict) -> None:
        kind, owner = f"{wanted.get('type', 'model')}s", wanted.get("organization") or USER
        if owner != USER:
            self._refuse(
                403, "", f"You don't have the rights to create a {wanted['type']} under the namespace {owner}"
            )
            return
        name = f"{owner}/{wanted['name']}"
        url = f"{self.server.address}/{'datasets/' if kind == 'datasets' else ''}{name}"
        if (kind, name) in self.server.repositories:
            self._answer({"error": "You already created this repo", "url": url}, 409)
            return
        self.server.repositories[kind, name] = Repository(wanted.get("visibility") == "private")
        self._answer({"url": url, "name": name})

    def _preupload(self, kind: str, name: str, wanted: dict) -> None:
        if self._repository(kind, name) is not None:
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": file["path"], "uploadMode": modes[_is_large(file["path"])], "shouldIgnore": False}
                for file in wanted["files"]
            ]
            self._answer({"files": files})

    def _batch(self, wanted: dict) -> None:
        objects = []
        for item in wanted["objects"]:
            if item["oid"] not in self.server.large_files:
                item = {**item, "actions": {"upload": {"href": f"{self.server.address}/lfs/{item['oid']}"}}}
            objects.append(item)
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, kind: str, name: str, lines: list[dict]) -> None:
        repository = self._repository(kind, name)
        if repository is None:
            return
        files = dict(repository.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repository.files = files
        repository.commits += 1
        self._answer({"success": True, "commitOid": repository.sha, "commitUrl": f"{self.server.address}/{name}"})


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")
