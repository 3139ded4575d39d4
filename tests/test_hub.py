"""What is on this machine of the hub, what the hub says, and getting it: against a small hub on localhost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recap.utils.hub import Need, download, find

SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {"tokenizer.json": b'{"a": 1}', "config.json": b"{}", "model.safetensors": b"weights" * 1000}


class Hub(BaseHTTPRequestHandler):
    """Speaks as much of the hub's protocol as a download needs: `a/open`, `a/gated`, and nothing else."""

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "a/gated" in path:
            error = "GatedRepo" if "auth-check" in path else ""
            self.answer(403 if error else 200, {"id": "a/gated", "sha": SHA, "siblings": []}, {"X-Error-Code": error})
        elif "a/open" not in path:
            self.answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        elif "/resolve/" in path:
            name = path.rpartition("/")[2]
            self.answer(200, FILES[name], {"X-Repo-Commit": SHA, "ETag": f'"{name}"'})
        elif "/tree/" in path:
            listed = [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in FILES.items()]
            self.answer(200, listed, {})
        else:
            self.answer(200, {"id": "a/open", "sha": SHA, "siblings": [{"rfilename": name} for name in FILES]}, {})

    def answer(self, status: int, body: object, headers: dict[str, str]) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def in_a_process(code: str, home: Path, endpoint: str) -> str:
    """The hub's address and cache are read when its client is imported, so each case has a process of its own."""
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | own
    command = [sys.executable, "-c", f"from recap.utils.hub import *\n{code}"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_the_hub_says(hub: str, tmp_path: Path) -> None:
    code = (
        "needs = [Need('k', name, 'model', ()) for name in ('a/open', 'a/gated', 'a/nothing')]\n"
        "print(*refusals(needs).values(), sep='\\n')"
    )
    assert in_a_process(code, tmp_path, hub).splitlines() == [
        "",
        "gated: accept its licence on huggingface.co/a/gated, then `hf auth login`",
        "neither a folder nor a repository that the hub shows to you",
    ]
    nobody = "http://127.0.0.1:9"
    assert in_a_process(code, tmp_path, nobody).splitlines() == ["the hub cannot be reached from here"] * 3


def test_only_what_is_needed_is_fetched_and_then_found(hub: str, tmp_path: Path) -> None:
    code = (
        "tokenizer = Need('k', 'a/open', 'model', ('tokenizer*',), only=('*.json',))\n"
        "weights = Need('k', 'a/open', 'model', ('model.safetensors',))\n"
        "print(tokenizer.folder(), weights.folder())\n"
        "fetch(tokenizer)\n"
        "print(sorted(path.name for path in tokenizer.folder().iterdir()), weights.folder())\n"
        "fetch(weights)\n"
        "print(weights.folder() == tokenizer.folder(), len((weights.folder() / 'model.safetensors').read_bytes()))"
    )
    said = [line for line in in_a_process(code, tmp_path, hub).splitlines() if not line.startswith("──")]
    assert said == ["None None", "['config.json', 'tokenizer.json'] None", "True 7000"]


def test_folders_and_commands(tmp_path: Path) -> None:
    assert find(str(tmp_path), "model") == tmp_path
    assert find("no such/name at all", "model") is None
    need = Need("k", str(tmp_path), "model", ("model.safetensors",))
    assert need.folder() is None, "a folder without the file"
    (tmp_path / "model.safetensors").touch()
    assert need.folder() == tmp_path
    assert download("a/b", "dataset", "v2") == "hf download --repo-type dataset --revision v2 a/b"
