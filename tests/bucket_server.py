"""A stand-in for Google Cloud Storage on this machine."""

import io
import socket
from http import HTTPStatus
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from dl.system import bucket


def serve(monkeypatch):
    """Starts the stand-in, with a bucket `stand-in`, and yields its address.

    It adds what the library lacks: requests for one generation of an object.
    """
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    from gcp_storage_emulator.server import Request, Response, Router, create_server

    handle = Router.handle

    def handle_if_generation_matches(self, method):
        handler = self._request_handler
        wanted = parse_qs(urlsplit(handler.path).query).get("ifGenerationMatch")
        if wanted is not None and method in ("POST", "DELETE"):
            body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
            handler.rfile = io.BytesIO(body)
            request = Request(handler, method)
            if method == "DELETE":
                name = unquote(urlsplit(handler.path).path.partition("/o/")[2])
            else:
                name = request.query["name"][0] if "name" in request.query else request.data["meta"]["name"]
            handler.rfile = io.BytesIO(body)
            there = self._request_handler.storage.objects.get("stand-in", {}).get(name, {})
            if there.get("generation", "0") != wanted[0]:
                response = Response(handler)
                response.status = HTTPStatus.PRECONDITION_FAILED
                response.json({"error": {"code": 412, "message": "another generation"}})
                response.close()
                return
        handle(self, method)

    close = Response.close

    def close_with_generation(self):  # TensorStore reads it
        name = unquote(urlsplit(self._handler.path).path.partition("/o/")[2])
        there = self._handler.storage.objects.get("stand-in", {}).get(name)
        if there is not None:
            self["x-goog-generation"] = there["generation"]
        close(self)

    monkeypatch.setattr(Response, "close", close_with_generation)
    monkeypatch.setattr(Router, "handle", handle_if_generation_matches)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = create_server("localhost", port, in_memory=True, default_bucket="stand-in")
    server.start()
    address = f"http://localhost:{port}"
    for name, value in environment(address).items():
        monkeypatch.setenv(name, value)
    bucket._client_of_process.cache_clear()
    yield address
    bucket._client_of_process.cache_clear()
    server.stop()


def environment(address):
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCE_METADATA_ROOT": "localhost:1",
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
