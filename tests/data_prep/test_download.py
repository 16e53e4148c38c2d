"""Downloads against a server of the test's own on 127.0.0.1; nothing else is ever contacted."""

import subprocess
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep import download_videos
from data_prep.download_videos import download
from data_prep.extract_frames import extract
from data_prep.lists import Line, distinct, read_list, safe_name
from mtld_core.config import UserError, seconds


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


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("/\u52d5\u753b.mp4", "\u52d5\u753b.mp4"),
        ("/%E5%8B%95%E7%94%BB.mp4", "\u52d5\u753b.mp4"),
        ("/two words.mp4?key=\u00fc", "two_words.mp4"),
        ("/50%25 off.mp4", "50_off.mp4"),
        ("/50%.mp4", "50.mp4"),
    ],
)
def test_addresses_as_people_write_them(clip, tmp_path, path, file):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "video/mp4")
            self.end_headers()
            self.wfile.write(clip)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        got = download(f"http://127.0.0.1:{http.server_port}{path}", tmp_path, progress=False)
        http.shutdown()
    assert got.name == file and got.read_bytes() == clip
    assert asked[0].isascii() and urllib.parse.unquote(asked[0]) == urllib.parse.unquote(path)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:99999/a.mp4",
        "http://127.0.0.1:port/a.mp4",
        "http://[::1/a.mp4",
        "http:///a.mp4",
        "http://127.0.0.1:-1/a.mp4",
        "http://" + 70 * "\u00fc" + ".example/a.mp4",
        "http://a\u3002\u3002b/a.mp4",
    ],
)
def test_impossible_addresses_are_named(tmp_path, url):
    with pytest.raises(UserError) as caught:
        download(url, tmp_path / "new", progress=False)
    assert str(caught.value).startswith(f"{url}: ") and "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_host_that_no_lookup_takes_is_named(tmp_path, monkeypatch):
    monkeypatch.undo()  # the label is too long for any look-up, so nobody is asked
    for host in ("a" * 70 + ".example", "a..example"):
        with pytest.raises(UserError, match=f"http://{host}/a.mp4: "):
            download(f"http://{host}/a.mp4", tmp_path, progress=False)


def test_letters_of_a_host(tmp_path):
    assert download_videos._address("http://M\u00fcller.example:80/\u00e9?q=\u00e9 1").geturl() == (
        "http://xn--mller-kva.example:80/%C3%A9?q=%C3%A9%201"
    )
    assert download_videos._address("http://[::1]:80/a b").geturl() == "http://[::1]:80/a%20b"


def test_an_impossible_line_does_not_stop_the_list(server, clip, tmp_path):
    lines = ["http://[::1/a.mp4 first", "http://127.0.0.1:99999/b.mp4 second", f"{server}/clip.mp4 third"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    extraction = extract(tmp_path / "list.txt", tmp_path / "root", progress=False)
    assert [row.arc for row in extraction.rows] == ["third"] and len(extraction.failed) == 2


def test_a_page_into_a_folder_with_a_percent_sign(server, clip, tmp_path):
    got = download(f"{server}/page", tmp_path / "100%(x)s: all", "named", progress=False)
    assert got == tmp_path / "100%(x)s: all" / "named.mp4" and got.read_bytes() == clip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_list_in_any_unicode_encoding(clip, tmp_path, encoding):
    (tmp_path / "\u52d5\u753b.mp4").write_bytes(clip)
    text = "# all of them\r\n\u52d5\u753b.mp4 film 0 0.5\r\n"
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    assert read_list(tmp_path / "list.txt") == [Line("\u52d5\u753b.mp4", "film", 0, 0.5)]
    assert extract(tmp_path / "list.txt", tmp_path / "root", progress=False).rows[0].frames == 5


def test_a_list_in_another_encoding_is_named(tmp_path):
    (tmp_path / "list.txt").write_bytes("caf\u00e9.mp4 caf\u00e9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"list\.txt: cannot be read as a text file; save it as UTF-8"):
        extract(tmp_path / "list.txt", tmp_path / "root", progress=False)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('"my film.mp4" "Part 2" 1:00 2', ("my film.mp4", "Part 2", 60, 2)),
        ("my film.mp4 part 1:00 2", ("my film.mp4", "part", 60, 2)),
        ("plain.mp4 My first film 0:05", ("plain.mp4", "My first film", 5, None)),
        ("plain.mp4\tMy first film", ("plain.mp4", "My first film", None, None)),
        ("http://h/my clip.mp4 first", ("http://h/my clip.mp4", "first", None, None)),
        ("http://h/watch?v=1 An interview 3", ("http://h/watch?v=1", "An interview", 3, None)),
        ("http://h/a.mp4 b.mp4", ("http://h/a.mp4", "b.mp4", None, None)),
        ('http://h/a.mp4 "# 1" # one', ("http://h/a.mp4", "# 1", None, None)),
        ("http://h/a.mp4 2001", ("http://h/a.mp4", "2001", None, None)),
        ("http://h/watch?v=1 interview.mp4 1:30", ("http://h/watch?v=1", "interview.mp4", 90, None)),
        ("http://h/v.mp4?token=x v.mp4 1:30", ("http://h/v.mp4?token=x", "v.mp4", 90, None)),
        ("http://h/get.php?id=5 clip.mp4 0:10 0:20", ("http://h/get.php?id=5", "clip.mp4", 10, 20)),
        ("http://h/get.php?id=5 clip.mp4 the end", ("http://h/get.php?id=5", "clip.mp4 the end", None, None)),
        ("http://h/page clip.mp4 1:30 5", ("http://h/page", "clip.mp4", 90, 5)),
        ("http://h/my clip.mp4?token=x first 5", ("http://h/my clip.mp4?token=x", "first", 5, None)),
        ('http://h/page "a clip.mp4" the end', ("http://h/page", "a clip.mp4 the end", None, None)),
        ("plain.mp4 clip.mp4 0:05", ("plain.mp4", "clip.mp4", 5, None)),
        ("a.mp4 trailer 4K", ("a.mp4", "trailer 4K", None, None)),
        ("a.mp4 trailer 2nd 0:05", ("a.mp4", "trailer 2nd", 5, None)),
        ("a.mp4 cut 2024-05-01", ("a.mp4", "cut 2024-05-01", None, None)),
    ],
)
def test_spaces_in_a_list(tmp_path, line, wanted):
    for name in ("my film.mp4", "plain.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text(line)
    assert read_list(tmp_path / "list.txt") == [Line(*wanted)]


@pytest.mark.parametrize("time", ["1:3x", "1,5", "90s", "1m30s", "-5", "1:2:3:4"])
def test_mistyped_times_are_named(tmp_path, time):
    (tmp_path / "list.txt").write_text(f"a.mp4 a\na.mp4 a {time}\n")
    with pytest.raises(UserError, match=rf"line 2 \('{time}' is not a time"):
        read_list(tmp_path / "list.txt")


def test_a_line_of_prose_is_named_and_the_others_go_on(clip, tmp_path):
    (tmp_path / "a.mp4").write_bytes(clip)
    prose = "and so it went on, " * 40
    (tmp_path / "list.txt").write_text(f"{prose}\na.mp4 a\n")
    extraction = extract(tmp_path / "list.txt", tmp_path / "root", progress=False)
    assert [row.arc for row in extraction.rows] == ["a"] and [source for source, _ in extraction.failed] == [
        "and"
    ]


def test_the_old_file_stays_when_the_new_one_breaks(server, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(b"old")
    with pytest.raises(UserError):
        download(f"{server}/cut.mp4", tmp_path, progress=False)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("cut.mp4", b"old")]


def test_the_script(server, clip, tmp_path):
    (tmp_path / "list.txt").write_text(
        f"{server}/clip.mp4 one\n{server}/nothing.mp4 two\n{server}/clip.mp4 one\n"
    )
    command = [sys.executable, download_videos.__file__, tmp_path / "list.txt", tmp_path / "out"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(download_videos.__file__).parents[1]
    )
    assert (
        done.returncode == 1
        and done.stderr.splitlines()[-1] == "error: 1 of 3 videos could not be downloaded"
    )
    assert "nothing.mp4: the server answered 404" in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.mp4", "one_2.mp4"]


def test_times_names_and_lists(tmp_path):
    assert [seconds(value) for value in (3, 1.5, "90", "1:30.5", "1:01:30")] == [3, 1.5, 90, 90.5, 3690]
    for wrong in (
        "",
        "-1",
        "1:2:3:4",
        "abc",
        "1e400",
        float("nan"),
        "9" * 400,
        "9" * 5000,
        f"{'9' * 400}:00",
    ):
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
    listing.write_text(
        "# all\nhttp://h/a#t=3 a 1:00 # first\n\n http://h/b  b\t0 2.5\n", encoding="utf-8-sig"
    )
    assert read_list(listing) == [Line("http://h/a#t=3", "a", 60, None), Line("http://h/b", "b", 0, 2.5)]
    listing.write_text("# nothing\n")
    with pytest.raises(UserError, match="the list is empty"):
        read_list(listing)
