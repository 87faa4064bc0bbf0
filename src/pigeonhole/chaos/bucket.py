"""As much of Cloud Storage's JSON API as storage.py meets, with honest generation preconditions: `python -m … FOLDER PORT`.

What it has acknowledged is in a file under its name before that, so that kill -9 takes nothing; `overwritten` in a listing of the
bucket itself counts the objects that were ever written over.
"""

import json
import os
import re
import sys
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

PAGE = 1000
BOUNDARY = b"--==0=="  # what gcsfs puts between the parts of an upload


@dataclass
class Upload:
    """An object that comes in pieces, as those above 50 MiB do."""

    name: str
    expected: int | None
    data: bytearray = field(default_factory=bytearray)


@dataclass
class Objects:
    """Name -> generation, and the bytes in a file each."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()
        self.generations: dict[str, int] = {}
        self.uploads: dict[str, Upload] = {}
        for path in self.folder.iterdir():
            name, _, generation = path.name.rpartition("@")
            if generation.isdigit() and int(generation) > self.generations.get(unquote(name), 0):
                self.generations[unquote(name)] = int(generation)

    def path(self, name: str, generation: int) -> Path:
        return self.folder / f"{quote(name, safe='')}@{generation}"

    def write(self, name: str, data: bytes, expected: int | None) -> int | None:
        """The new generation; None, and nothing written, where the object has not the expected one (0: there is none)."""
        with self.lock:
            found = self.generations.get(name, 0)
            if expected not in (None, found):
                return None
            path = self.path(name, found + 1)
            aside = self.folder / f"{threading.get_ident()}.tmp"
            aside.write_bytes(data)
            aside.rename(path)
            self.generations[name] = found + 1
            self.path(name, found).unlink(missing_ok=True)
            return found + 1

    def delete(self, name: str) -> bool:
        with self.lock:
            generation = self.generations.pop(name, 0)
            if generation:
                self.path(name, generation).unlink(missing_ok=True)
            return bool(generation)

    def read(self, name: str) -> bytes:
        """Raises KeyError."""
        with self.lock:
            return self.path(name, self.generations[name]).read_bytes()

    def resource(self, name: str) -> dict[str, Any]:
        generation = self.generations[name]
        size = self.path(name, generation).stat().st_size
        return {"name": name, "bucket": "bucket", "size": str(size), "generation": str(generation)}

    def listing(self, prefix: str, delimiter: str, after: str) -> dict[str, Any]:
        with self.lock:
            below = {name: name.removeprefix(prefix) for name in self.generations if name.startswith(prefix)}
            inside = {name: rest.split(delimiter)[0] for name, rest in below.items() if delimiter and delimiter in rest}
            names = sorted(name for name in below if name not in inside and name > after)
            found = {
                "kind": "storage#objects",  # gcsfs looks at it from the second page on
                "items": [self.resource(name) for name in names[:PAGE]],
                "prefixes": sorted({f"{prefix}{folder}{delimiter}" for folder in inside.values()}),
            }
            return found | ({"nextPageToken": names[PAGE - 1]} if len(names) > PAGE else {})


class Handler(BaseHTTPRequestHandler):
    """GET lists or reads, POST writes, DELETE deletes."""

    objects: Objects
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if url.path.endswith("/o"):
            found = self.objects.listing(query.get("prefix", ""), query.get("delimiter", ""), query.get("pageToken", ""))
            self.answer(200, found)
            return
        name = unquote(url.path.split("/o/")[1])
        if name.endswith("locked"):
            self.refuse(401, "no role for you")
            return
        try:
            if query.get("alt") == "media":
                self.send_media(self.objects.read(name))
            else:
                self.answer(200, self.objects.resource(name))
        except KeyError:
            self.refuse(404, "Not Found")

    def do_POST(self) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True  # cut off on its way: as if it had never come
            return
        if "upload_id" in query:
            self.take_piece(query["upload_id"], body)
            return
        expected = int(query["ifGenerationMatch"]) if "ifGenerationMatch" in query else None
        if query["uploadType"] == "resumable":
            if expected not in (None, self.objects.generations.get(query["name"], 0)):
                self.refuse(412, "conditionNotMet")
                return
            upload_id = uuid.uuid4().hex
            self.objects.uploads[upload_id] = Upload(query["name"], expected)
            self.send(200, b"", Location=f"http://{self.headers['Host']}/upload?uploadType=resumable&upload_id={upload_id}")
            return
        if query["uploadType"] == "multipart":
            _, header, body = body.split(BOUNDARY + b"\nContent-Type: ", 2)
            query["name"] = json.loads(header.partition(b"\n\n")[2])["name"]
            body = body.partition(b"\n\n")[2].removesuffix(b"\n" + BOUNDARY + b"--")
        self.write(query["name"], body, expected)

    def take_piece(self, upload_id: str, piece: bytes) -> None:
        """The object is there with the last of them, if it still may be."""
        upload = self.objects.uploads[upload_id]
        upload.data += piece
        last, _, size = self.headers["Content-Range"].rpartition("-")[2].partition("/")  # of "bytes FIRST-LAST/SIZE"
        if int(last) + 1 < int(size):
            self.send(308, b"", Range=f"bytes=0-{last}")
            return
        del self.objects.uploads[upload_id]
        self.write(upload.name, bytes(upload.data), upload.expected)

    def write(self, name: str, data: bytes, expected: int | None) -> None:
        if self.objects.write(name, data, expected) is None:
            self.refuse(412, "conditionNotMet")
        else:
            self.answer(200, self.objects.resource(name))

    def do_DELETE(self) -> None:
        _, _, upload_id = self.path.partition("upload_id=")
        if upload_id:
            self.objects.uploads.pop(upload_id, None)
            self.send(499, b"")
        elif self.objects.delete(unquote(self.path.split("/o/")[1].partition("?")[0])):
            self.send(204, b"")
        else:
            self.refuse(404, "Not Found")

    def send_media(self, data: bytes) -> None:
        """All of an object, or the bytes that are asked for, the last one included."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked:
            self.send(206, data[int(asked[1]) : int(asked[2]) + 1])
        else:
            self.send(200, data)

    def refuse(self, code: int, message: str) -> None:
        self.answer(code, {"error": {"code": code, "message": message}})

    def answer(self, code: int, value: object) -> None:
        self.send(code, json.dumps(value).encode())

    def send(self, code: int, data: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Bucket(ThreadingHTTPServer):
    """Every name of a bucket is the same one: `gs://bucket`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.objects = Objects(folder)
        super().__init__(("127.0.0.1", port), type("BucketHandler", (Handler,), {"objects": self.objects}))

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed in the middle of a request; any other error is told."""
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


if __name__ == "__main__":
    os.umask(0o077)
    Bucket(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
