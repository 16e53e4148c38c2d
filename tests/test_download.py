"""Downloads against a server of the test's own on 127.0.0.1; nothing else is ever contacted."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep import download_videos
from data_prep.download_videos import download
from data_prep.lists import Line, distinct, read_list, safe_name, seconds
from mtld_core.runtime import UserError


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The bytes of a small video."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(12):
            picture = np.full((64, 64, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.fixture(scope="module")
def server(clip):
    """Address of a server: path -> (status, content type, claimed length or None, body)."""
    page = b"<html><head><title>My film</title></head><body><video src='/clip.mp4'></video></body></html>"
    answers = {
        "/clip.mp4": (200, "video/mp4", len(clip), clip),
        "/My%20clip.mp4": (200, "application/octet-stream", len(clip), clip),
        "/stream?id=7": (200, "video/mp4", None, clip),  # neither a suffix nor a length
        "/cut.mp4": (200, "video/mp4", len(clip) + 1000, clip),
        "/text.mp4": (200, "video/mp4", 5, b"hello"),
        "/page": (200, "text/html", len(page), page),
        "/plain": (200, "text/html", 6, b"<html>"),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, kind, length, body = answers.get(self.path, (404, "text/html", 4, b"gone"))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
            self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    """No proxy, and an error for whoever looks up another host."""
    import socket

    lookup = socket.getaddrinfo

    def local(host, *args, **kwargs):
        assert host in ("127.0.0.1", "localhost"), f"a test wants to contact {host}"
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("path", "name", "file"),
    [
        ("/clip.mp4", None, "clip.mp4"),
        ("/My%20clip.mp4", None, "My_clip.mp4"),
        ("/clip.mp4", "a/b c", "a_b_c.mp4"),
        ("/stream?id=7", "seven", "seven.mp4"),
    ],
)
def test_a_file_comes_as_it_is(server, clip, tmp_path, path, name, file):
    got = download(server + path, tmp_path, name, progress=False)
    assert got == tmp_path / file and got.read_bytes() == clip
    assert list(tmp_path.iterdir()) == [got]


@pytest.mark.parametrize("name", [None, "named"])
def test_a_page_goes_through_yt_dlp(server, clip, tmp_path, name):
    got = download(f"{server}/page", tmp_path, name, progress=False)
    assert got.name == f"{name or 'My_film_1'}.mp4" and got.read_bytes() == clip
    assert list(tmp_path.iterdir()) == [got]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nothing.mp4", "404 Not Found"),
        ("/nothing", "404"),
        ("/cut.mp4", r"broke after [\d,]+ of [\d,]+ bytes"),
        ("/text.mp4", r"what came \(5 bytes\) is not a video"),
        ("/plain", "Unsupported URL"),
    ],
)
def test_failures_are_one_line_and_leave_nothing(server, tmp_path, path, message):
    with pytest.raises(UserError, match=message) as caught:
        download(server + path, tmp_path, progress=False)
    assert str(caught.value).startswith(server + path) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_connection_and_wrong_scheme(tmp_path):
    with pytest.raises(UserError, match=r"no connection .*refused"):
        download("http://127.0.0.1:1/a.mp4", tmp_path, progress=False)
    with pytest.raises(UserError, match="only http"):
        download("file:///etc/passwd", tmp_path, progress=False)


def test_the_old_file_stays_when_the_new_one_breaks(server, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(b"old")
    with pytest.raises(UserError):
        download(f"{server}/cut.mp4", tmp_path, progress=False)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("cut.mp4", b"old")]


def test_the_script(server, clip, tmp_path):
    (tmp_path / "list.txt").write_text(f"{server}/clip.mp4 one\n{server}/nothing.mp4 two\n{server}/clip.mp4 one\n")
    command = [sys.executable, download_videos.__file__, tmp_path / "list.txt", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(download_videos.__file__).parents[1])
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "error: 1 of 3 videos could not be downloaded"
    assert "nothing.mp4: the server answered 404" in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.mp4", "one_2.mp4"]


def test_times_names_and_lists(tmp_path):
    assert [seconds(value) for value in (3, 1.5, "90", "1:30.5", "1:01:30")] == [3, 1.5, 90, 90.5, 3690]
    for wrong in ("", "-1", "1:2:3:4", "abc", "1e400", float("nan")):
        with pytest.raises(UserError, match="is not a time"):
            seconds(wrong)
    assert [safe_name(text) for text in ("..", "a b/c", ".hid", "\u00e9t\u00e9 1")] == [
        "video",
        "a_b_c",
        "hid",
        "\u00e9t\u00e9_1",
    ]
    assert distinct(["a", "A", "b", "a", "a_2"]) == ["a", "A_2", "b", "a_3", "a_2_2"]
    listing = tmp_path / "list.txt"
    listing.write_text("# all\nhttp://h/a#t=3 a 1:00 # first\n\n http://h/b  b\t0 2.5\n", encoding="utf-8-sig")
    assert read_list(listing) == [Line("http://h/a#t=3", "a", 60, None), Line("http://h/b", "b", 0, 2.5)]
    listing.write_text("# nothing\n")
    with pytest.raises(UserError, match="the list is empty"):
        read_list(listing)
