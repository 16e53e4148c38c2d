"""push.py: what it refuses before anything is sent, and a push through Kaggle's own client to a server on
this machine.
"""

import http.server
import json
import os
import subprocess
import sys
import threading

import kernel_build
import pytest
from kaggle_run import ROOT, SITE
from kernel_metadata import FILE, read_metadata
from mtld_kaggle import MARKER, PACKAGES

from mtld_core.config import UserError

GOOD = json.loads((ROOT / "kaggle" / "02_train" / FILE).read_text())


# ---- the metadata


@pytest.mark.parametrize("name", ["01_extract_frames", "02_train", "03_generate", "04_compare", "gpu_check"])
def test_the_projects_own_metadata_is_right(name):
    values = read_metadata(ROOT / "kaggle" / name / FILE)
    folder = ROOT / "kaggle" / name if name == "gpu_check" else ROOT / "notebooks"
    assert values["code_file"] == f"{name}.ipynb" and (folder / values["code_file"]).is_file()
    assert values["enable_internet"] is False and values["is_private"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enable_internt": False}, "there is no field 'enable_internt'; did you mean 'enable_internet'"),
        ({"dataset_source": []}, "did you mean 'dataset_sources'"),
        ({"enable_gpu": True}, "there is no field 'enable_gpu'"),
        (
            {"machine_shape": "NvidiaTeslaT4x2"},
            "'NvidiaTeslaT4x2' is no GPU that Kaggle has; did you mean 'NvidiaTeslaT4'",
        ),
        ({"machine_shape": "nvidiateslat4"}, "machine_shape"),
        ({"machine_shape": None}, "machine_shape must be of type str"),
        ({"is_private": "true"}, "is_private must be of type bool, not 'true'"),
        ({"enable_internet": 0}, "enable_internet must be of type bool"),
        ({"language": "Python"}, "language must be one of 'python'"),
        ({"kernel_type": "script"}, "kernel_type must be one of 'notebook'"),
        ({"code_file": "../02_train.ipynb"}, "code_file must be a notebook's plain name"),
        ({"code_file": "02_train.py"}, "code_file must be a notebook's plain name"),
        ({"title": "MTLD"}, "title must have 5 to 50 characters, 'MTLD' has 4"),
        ({"title": "M" * 51}, "has 51"),
        ({"title": "MTLD 2 training"}, "id must be INSERT_USERNAME/mtld-2-training"),
        ({"id": "mtld-2-train"}, "id must be owner/kernel-slug"),
        ({"id": "me/MTLD-2-train"}, "id must be owner/kernel-slug"),
        ({"id": "me/mtld-2-train/3"}, "id must be owner/kernel-slug"),
        ({"dataset_sources": "me/film"}, "dataset_sources must be a list"),
        ({"dataset_sources": ["film"]}, "dataset_sources: 'film' must be owner/dataset-slug"),
        (
            {"dataset_sources": ["datasets/me/film"]},
            "dataset_sources: 'datasets/me/film' must be owner/dataset-slug",
        ),
        ({"dataset_sources": [7]}, r"dataset_sources\[0\] must be of type str"),
        (
            {"kernel_sources": ["code/me/mtld-2-train"]},
            "kernel_sources: 'code/me/mtld-2-train' must be owner/kernel-slug",
        ),
        ({"competition_sources": ["c/digits"]}, "competition_sources: 'c/digits' must be competition-slug"),
        (
            {"model_sources": ["me/model"]},
            "model_sources: 'me/model' must be owner/model-slug/framework/variation/version",
        ),
        (
            {"docker_image_pinning_type": "newest"},
            "docker_image_pinning_type must be one of 'original', 'latest'",
        ),
    ],
)
def test_a_mistake_in_the_metadata_names_file_field_and_way_out(change, message, tmp_path):
    path = tmp_path / FILE
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError, match=message) as error:
        read_metadata(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "field", ["id", "title", "code_file", "language", "kernel_type", "is_private", "enable_internet"]
)
def test_a_field_whose_default_is_kaggles_own_must_be_there(field, tmp_path):
    (tmp_path / FILE).write_text(json.dumps({name: value for name, value in GOOD.items() if name != field}))
    with pytest.raises(UserError, match=f"{field} is missing"):
        read_metadata(tmp_path / FILE)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "must be a JSON object"), ("[ü]", "codec can't decode")],
)
def test_a_file_that_is_no_object_is_named(text, message, tmp_path):
    (tmp_path / FILE).write_text(text, encoding="utf-16" if text == "[ü]" else None)
    with pytest.raises(UserError, match=message):
        read_metadata(tmp_path / FILE)
    with pytest.raises(UserError, match="No such file"):
        read_metadata(tmp_path / "elsewhere" / FILE)


# ---- a push to a server on this machine

SERVICE = "/api/v1/kernels.KernelsApiService/"
REPORT = {"status": "stopped", "step": 120, "reason": "time budget spent"}


class FakeKaggle(http.server.ThreadingHTTPServer):
    """Answers as Kaggle does; `requests` keeps what it was sent, as (name, JSON)."""

    def __init__(self, statuses=("QUEUED", "RUNNING", "RUNNING", "COMPLETE"), saved=None, broken=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.statuses, self.broken = [], list(statuses), list(broken)
        self.saved = {
            "versionNumber": 3,
            "url": "https://example.org/me/mtld-2-train",
            "ref": "/me/mtld-2-train",
        } | (saved or {})
        self.files = {
            "runs/film/report.json": json.dumps(REPORT).encode(),
            "runs/film/latest.json": b"{}",
            "large": bytes(100_000),
        }
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def sent(self, name):
        return [body for request, body in self.requests if request == name]

    def answer(self, name, body):
        if name == "SaveKernel":
            return self.saved
        if name == "GetKernelSessionStatus":
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            return {"status": status} | ({"failureMessage": "out of memory"} if status == "ERROR" else {})
        assert name == "ListKernelSessionOutput", name
        names = sorted(self.files)  # a page at a time
        here = int(body.get("pageToken") or 0)
        more = {"nextPageToken": str(here + 1)} if here + 1 < len(names) else {}
        return {
            "files": [{"url": f"{self.address}/file/{names[here]}", "fileName": names[here]}],
            "log": "[]",
        } | more


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        name = self.path.removeprefix(SERVICE)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((name, body))
        if self.server.broken and self.server.broken[0] == name:
            self.server.broken.pop(0)
            return self.reply(503, b'{"code": 503, "message": "come back later"}')
        return self.reply(200, json.dumps(self.server.answer(name, body)).encode())

    def do_GET(self):
        self.reply(200, self.server.files[self.path.removeprefix("/file/")], "application/octet-stream")

    def reply(self, code, data, kind="application/json"):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def push(folder, *arguments, address="http://127.0.0.1:9", **environment):
    """`python kaggle/push.py ...` with the real client and the connections of this machine only: (exit code,
    what it said).
    """
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    account = {
        "KAGGLE_USERNAME": "me",
        "KAGGLE_KEY": "secret",
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "FAKE_KAGGLE": address,
    }
    environment = (
        {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(folder / "site")}
        | account
        | environment
    )
    environment = {name: value for name, value in environment.items() if value}
    command = [sys.executable, str(ROOT / "kaggle" / "push.py"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_push_sends_the_kernel_waits_and_fetches(tmp_path):
    with FakeKaggle(
        saved={"invalidKernelSources": ["me/mtld-2-train"]}
    ) as kaggle:  # the first version has no earlier one
        code, said = push(tmp_path, "02_train", "-p", "steps", "500", "-p", "dataset_root", "me/film", "--poll-seconds", "0.05",
                          address=kaggle.address)  # fmt: skip
        assert code == 0, said
        [sent] = kaggle.sent("SaveKernel")
        assert (sent["slug"], sent["newTitle"], sent["machineShape"]) == (
            "me/mtld-2-train",
            "MTLD 2 train",
            "NvidiaTeslaT4",
        )
        assert (sent["isPrivate"], sent["enableInternet"]) == (True, False)
        assert sent["datasetDataSources"] == ["me/mtld-inputs", "me/film"] and sent["kernelDataSources"] == [
            "me/mtld-2-train"
        ]
        source = "".join(cell["source"] for cell in json.loads(sent["text"])["cells"])
        assert "steps = 500" in source and "mtld_kaggle.bring_run" in source and "b64decode" in source
        assert len(sent["text"]) < 1_000_000
        assert len(kaggle.sent("GetKernelSessionStatus")) == 4
        for name, content in kaggle.files.items():
            assert (tmp_path / "runs" / "kaggle_02_train" / name).read_bytes() == content
    assert "version 3" in said and "running" in said and "complete" in said
    assert "stopped at step 120 (time budget spent)" in said


def test_the_check_of_a_gpu_is_sent_and_its_file_fetched(tmp_path):
    with FakeKaggle(["COMPLETE"]) as kaggle:
        kaggle.files = {"gpu_check.json": b'{"card": "Tesla T4"}'}
        code, said = push(tmp_path, "gpu_check", "--poll-seconds", "0.01", address=kaggle.address)
        assert code == 0, said
        [sent] = kaggle.sent("SaveKernel")
        assert (sent["slug"], sent["machineShape"]) == ("me/mtld-gpu-check", "NvidiaTeslaT4")
        assert sent["enableInternet"] is False and "gpu_check.py" in sent["text"]
    fetched = tmp_path / "runs" / "kaggle_gpu_check" / "gpu_check.json"
    assert fetched.read_bytes() == kaggle.files["gpu_check.json"]


@pytest.mark.parametrize(
    ("statuses", "message"),
    [
        (("RUNNING", "ERROR"), "ended with status ERROR: out of memory; its log is in here"),
        (
            ("CANCEL_REQUESTED", "CANCEL_ACKNOWLEDGED"),
            "ended with status CANCEL_ACKNOWLEDGED; its log is in here",
        ),
    ],
)
def test_a_kernel_that_does_not_complete_is_a_failure_and_its_log_is_fetched(statuses, message, tmp_path):
    with FakeKaggle(statuses) as kaggle:
        code, said = push(
            tmp_path, "03_generate", "--out", "here", "--poll-seconds", "0.05", address=kaggle.address
        )
    assert code == 1 and said.splitlines()[-1] == f"error: me/mtld-3-generate {message}", said
    assert (tmp_path / "here" / "mtld-3-generate.log").exists()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (
            {"error": "Maximum batch GPU session count reached"},
            "Kaggle refused me/mtld-2-train: Maximum batch GPU",
        ),
        (
            {"invalidDatasetSources": ["me/mtld-inputs"]},
            "Kaggle has no me/mtld-inputs, so version 3 runs without: cancel it at",
        ),
    ],
)
def test_what_kaggle_refuses_is_said_in_a_line(saved, message, tmp_path):
    with FakeKaggle(saved=saved) as kaggle:
        code, said = push(tmp_path, "02_train", address=kaggle.address)
        assert not kaggle.sent("GetKernelSessionStatus")
    assert code == 1 and message in said.splitlines()[-1], said


def test_a_short_gap_in_the_network_does_not_end_the_watch(tmp_path):
    with FakeKaggle(["COMPLETE"], broken=["GetKernelSessionStatus"] * 3) as kaggle:
        code, said = push(tmp_path, "02_train", "--poll-seconds", "0.01", address=kaggle.address)
        assert code == 0 and len(kaggle.sent("GetKernelSessionStatus")) == 4, said


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (["SaveKernel"], "pushing failed: come back later"),
        (
            ["GetKernelSessionStatus"] * 10,
            "asking for the status failed: come back later; the kernel may still run",
        ),
        (["ListKernelSessionOutput"], "fetching the outputs failed: come back later"),
    ],
)
def test_a_server_that_fails_is_said_in_a_line(broken, message, tmp_path):
    with FakeKaggle(["COMPLETE"], broken=broken) as kaggle:
        code, said = push(tmp_path, "02_train", "--poll-seconds", "0.01", address=kaggle.address)
    assert code == 1 and said.splitlines()[-1].startswith(f"error: {message}"), said


def test_nobody_there_and_no_credentials_are_said_in_a_line(tmp_path):
    code, said = push(tmp_path, "02_train")
    assert code == 1 and said.splitlines()[-1].startswith("error: pushing failed: "), said
    code, said = push(tmp_path, "02_train", KAGGLE_USERNAME="", KAGGLE_KEY="")
    assert code == 1 and said.splitlines()[-1].startswith("error: Kaggle: no credentials: put kaggle.json"), (
        said
    )


def test_what_would_end_the_watch_is_said_before_the_push(tmp_path):
    (tmp_path / "file").write_text("")
    with FakeKaggle() as kaggle:
        for words, message in (
            (("--poll-seconds", "-1"), "--poll-seconds must be above 0, a day at most, not -1.0"),
            (("--poll-seconds", "nan"), "--poll-seconds must be above 0"),
            (("--out", "file"), "file cannot be written (File exists); name another --out"),
        ):
            code, said = push(tmp_path, "02_train", *words, address=kaggle.address)
            assert code == 1 and said.startswith(f"error: {message}") and said.count("\n") == 1, said
        assert not kaggle.requests


def test_another_page_of_that_name_is_not_taken_for_the_projects_own(tmp_path):
    page = tmp_path / "02_train.ipynb"
    page.write_bytes((ROOT / "notebooks/02_train.ipynb").read_bytes())
    code, said = push(tmp_path, page.name, "--check")
    assert code == 1 and "is not" in said and "copy yours over it" in said and said.count("\n") == 1
    page.unlink()
    for name in ("notebooks/02_train.ipynb", "notebooks/02_train.py"):
        assert push(tmp_path, str(ROOT / name), "--check")[0] == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("steps = 0", "steps = 60 * 1000"),
        lambda text: text.replace("steps = 0", "import os"),
        lambda text: text.replace("steps = 0", "steps = "),
        lambda text: text.replace('"parameters"', '"other"'),
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
    ],
)
def test_a_page_whose_parameters_cannot_be_read_is_said(change, tmp_path, monkeypatch):
    text = (ROOT / "notebooks/02_train.ipynb").read_text()
    assert change(text) != text
    (tmp_path / "page.ipynb").write_text(change(text))
    monkeypatch.setattr(kernel_build, "_page_of", lambda name: tmp_path / "page.ipynb")
    with pytest.raises(UserError, match=r"page\.ipynb is damaged, or its cell of parameters holds") as error:
        kernel_build.make_kernel("02_train")
    assert "\n" not in str(error.value)


def test_check_and_build_contact_nobody(tmp_path):
    for name in ("02_train", "notebooks/02_train.ipynb", "02_train.ipynb", str(ROOT / "kaggle" / "02_train")):
        code, said = push(tmp_path, name, "--check")
        assert code == 0 and "02_train is right" in said, said
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / FILE).write_text(json.dumps(GOOD | {"machine_shap": ""}))
    code, said = push(tmp_path, "mine", "--check")
    assert code == 1 and said.splitlines() == [
        f"error: mine/{FILE}: there is no field 'machine_shap'; did you mean 'machine_shape'?"
    ]
    code, said = push(tmp_path, "02_train", "--check", "-p", "step", "4")
    assert code == 1 and said.splitlines() == [
        "error: the notebook has no parameter 'step'; did you mean 'steps'?"
    ]
    code, said = push(tmp_path, "02_tarin", "--check")
    assert code == 1 and said.splitlines() == [
        "error: there is no kernel '02_tarin'; did you mean '02_train'?"
    ]
    inputs = tmp_path / "built" / "inputs" / "mtld-inputs"  # what is there already is not made anew
    inputs.mkdir(parents=True)
    for name in (MARKER, *(f"{package.replace('-', '_')}-1-py3-none-any.whl" for package in PACKAGES)):
        (inputs / name).touch()
    code, said = push(tmp_path, "03_generate", "--build", "built", KAGGLE_USERNAME="")
    assert code == 0 and "INSERT_USERNAME stands for your name" in said, said
    assert read_metadata(tmp_path / "built" / FILE)["id"] == "INSERT_USERNAME/mtld-3-generate"
    assert "mtld_kaggle.find_run" in (tmp_path / "built" / "03_generate.ipynb").read_text()
    assert (inputs / "dataset-metadata.json").exists() and (inputs / "bigbuckbunny.mp4").exists()
