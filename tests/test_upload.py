"""A run given away on the Hugging Face hub and on Kaggle: with their own clients, to servers on this machine."""

import base64
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import write_arcs
from kaggle_run import SITE
from steered import QUICK

from mtld_core.config import UserError
from mtld_core.share import main, upload_to_hub
from mtld_core.systems.opening import open_run
from mtld_core.train import train

ROOT = Path(__file__).parents[1]
SHA = "0123456789abcdef0123456789abcdef01234567"


class Services(http.server.ThreadingHTTPServer):
    """The hub and Kaggle in one; `files` by the service, `changed` lists what was not merely asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.kaggle, self.changed, self.models = None, {}, [], {}
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    # ---- the hub

    def do_GET(self):
        path, hub = self.path.partition("?")[0], self.server.hub
        if path == "/api/whoami-v2":
            return self.reply({"name": "me", "type": "user"})
        if path.startswith("/api/models/me/pong") and hub is None:
            return self.reply({"error": "not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
        if path in ("/api/models/me/pong", "/api/models/me/pong/revision/main"):
            siblings = [{"rfilename": name} for name in hub]
            return self.reply({"id": "me/pong", "sha": SHA, "siblings": siblings})
        if path.startswith("/api/models/me/pong/tree/"):
            files = [{"type": "file", "oid": "0", "size": len(hub[name]), "path": name} for name in hub]
            return self.reply(files)
        named = re.fullmatch(r"/me/pong/resolve/\w+/(.*)", path)
        if hub is None or named is None or named[1] not in hub:
            return self.reply({"error": "not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
        content = hub[named[1]]
        about = {"ETag": f'"{len(content)}"', "X-Repo-Commit": SHA, "Content-Type": "text/plain"}
        return self.reply(content, **about)

    do_HEAD = do_GET

    def do_POST(self):
        path, server = self.path.partition("?")[0], self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path.startswith("/api/v1/"):
            return self.reply(self.of_kaggle(path.rpartition("/")[2], json.loads(body)))
        if path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.reply({"files": files})
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        server.changed.append(path)
        if path == "/api/repos/create":
            server.hub = {}
            asked = json.loads(body)
            assert (
                asked.get("private") or asked.get("visibility") == "private"
            )  # as the client's version says it
            return self.reply({"url": f"{server.address}/me/pong"})
        assert path == "/api/models/me/pong/commit/main", path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                server.hub[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.reply({"commitUrl": f"{server.address}/me/pong/commit/{SHA}", "commitOid": SHA})

    # ---- Kaggle

    def of_kaggle(self, name, body):
        server = self.server
        if name in ("GetModel", "GetModelInstance"):
            return (
                {"slug": body["modelSlug"]}
                if name in server.models
                else {"code": 404, "message": "not found"}
            )
        server.changed.append(name)
        if name == "StartBlobUpload":
            return {"token": body["name"], "createUrl": f"{server.address}/blob/{body['name']}"}
        server.models["GetModel" if name == "CreateModel" else "GetModelInstance"] = body
        return {"url": f"{server.address}/models/me/pong", "ref": "me/pong"}

    def do_PUT(self):
        name = self.path.removeprefix("/blob/")
        self.server.kaggle[name] = self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({})

    def reply(self, content, code=200, **headers):
        if isinstance(content, dict) and content.get("code"):
            code = content["code"]
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    write_arcs(folder / "arcs", [20] * 6)
    train("mtld", "tiny", str(folder / "arcs"), QUICK, steps=2, run_dir=str(folder / "run"))
    return folder / "run"


def python(folder, services, *arguments):
    """Run Python with both clients, which reach this machine alone and know its servers as theirs."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site/sitecustomize.py").write_text(SITE)
    kaggle = {"KAGGLE_USERNAME": "me", "KAGGLE_KEY": "secret", "KAGGLE_API_ENVIRONMENT": "LOCALHOST"}
    hub = {"HF_ENDPOINT": services.address, "HF_TOKEN": "hf_secret", "HF_HOME": str(folder / "hf")}
    path = os.pathsep.join([str(folder / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"FAKE_KAGGLE": services.address, "HF_HUB_DISABLE_XET": "1"} | kaggle | hub
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_dry_run_says_what_sending_does_and_the_run_opens_from_the_hub(run, tmp_path):
    pytest.importorskip("huggingface_hub")
    command = ["-m", "mtld_core.share", str(run), "pong", "--hub", "me/pong", "--kaggle", "me/pong"]
    with Services() as services:
        said = python(tmp_path, services, *command)
        assert services.changed == [] and said.endswith("nothing was sent: the same with --send does it\n")
        assert "Hugging Face hub, as me\nme/pong is new: it is made private\n  README.md  0.00 MB\n" in said
        assert "Kaggle, as me; its words and licence: model-metadata.json" in said

        (tmp_path / "pong/README.md").write_text("---\na: b\n---\n# my own words\n")  # which stay
        said = python(tmp_path, services, *command, "--send")
        names = [
            "README.md",
            "config.json",
            "judgement.png",
            "model.safetensors",
            "preview.png",
            "recording.h5",
        ]
        names.append("report.json")
        for sent in (services.hub, services.kaggle):
            assert sorted(set(sent) - {".gitattributes"}) == names
            assert all(sent[name] == (tmp_path / "pong" / name).read_bytes() for name in names)
        assert services.models["GetModel"]["description"].startswith("# pong")
        assert services.models["GetModelInstance"]["body"]["licenseName"] == "Apache 2.0"
        assert said.count("sent: http") == 2

        changed = len(services.changed)
        said = python(tmp_path, services, *command)  # once more: both are there now
        assert said.count("me/pong is there: it gets another version") == 2 and ", replaced\n" in said
        assert len(services.changed) == changed

        code = "from mtld_core import open_run; print(open_run('hf://me/pong').run)"
        said = python(tmp_path, services, "-c", code)
        assert "fetching hf://me/pong into runs/me--pong" in said
    code = "from mtld_core import open_run; print(open_run('hf://me/pong').run.step)"
    assert python(tmp_path, services, "-c", code) == "2\n"  # and again without any network
    assert (tmp_path / "runs/me--pong/README.md").read_text().endswith("# my own words\n")


def test_the_card_shows_what_the_run_drew(run, tmp_path):
    assert main([str(run), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "![preview.png](preview.png)\n\n![judgement.png](judgement.png)" in card
    newest = sorted((run / "previews").glob("step_*.png"))[-1]
    assert (tmp_path / "out/preview.png").read_bytes() == newest.read_bytes()
    assert main([str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/preview.png").read_bytes() == newest.read_bytes()


def test_a_client_that_is_not_there_is_one_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs a package that is not installed: pip install huggingface_hub"):
        list(upload_to_hub(tmp_path, "me/pong"))
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        open_run("hf://me/pong")
    for words, message in (
        (["--hub", "pong"], "'pong' must be OWNER/NAME"),
        (["--kaggle", "me/a b"], "'me/a b' must be OWNER/NAME"),
    ):
        assert main([str(run), str(tmp_path / "out"), *words]) == 1
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([str(run), str(tmp_path / "a.pth"), "--hub", "me/pong"]) == 1
    assert "is a file: what is uploaded is a folder" in capsys.readouterr().err
