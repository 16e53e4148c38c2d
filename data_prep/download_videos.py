"""Download videos: files over HTTP(S) as they are, web pages through yt-dlp.

    python data_prep/download_videos.py LIST_FILE FOLDER

The list has lines "url name [start] [duration]"; `extract_frames.py` takes the same list, and downloads and
cuts in one go.
"""

import argparse
import http.client
import mimetypes
import os
import string
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_prep.lists import distinct, read_list, safe_name
from mtld_core.config import UserError
from mtld_core.data.folder import VIDEO_SUFFIXES
from mtld_core.files import atomic_path
from mtld_core.runtime import command, progress_bar

PIECE = 1 << 18  # bytes read at once
SILENCE = 30  # seconds without a byte after which a server counts as gone


def download(url, folder, name=None, progress=True):
    """Fetch the video behind `url` and return its path, `<folder>/<name>.<own suffix>`.

    name: None for the video's own. What the server sends as a video or as unnamed bytes is saved as it comes,
    anything else goes to yt-dlp. A file appears in `folder` only when it is whole and holds pictures. Raises
    UserError with one line that names the URL.
    """
    folder = Path(folder)
    address = _address(url)
    is_file = Path(address.path).suffix.lower() in VIDEO_SUFFIXES
    request = urllib.request.Request(
        address.geturl(), headers={"User-Agent": "Mozilla/5.0 (compatible; mtld)"}
    )
    try:
        with urllib.request.urlopen(request, timeout=SILENCE) as answer:
            kind = answer.headers.get_content_type() if "Content-Type" in answer.headers else ""
            if kind.startswith("video/") or kind in ("", "application/octet-stream", "binary/octet-stream"):
                own_name = Path(urllib.parse.unquote(address.path)).stem
                return _save(answer, url, folder, name or own_name, progress)
    except urllib.error.HTTPError as error:
        if is_file:
            raise UserError(f"{url}: the server answered {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise UserError(f"{url}: no connection ({getattr(error, 'reason', error)})") from None
    except (ValueError, OverflowError) as error:  # a host or a port that there cannot be
        raise UserError(f"{url}: not a possible address ({error})") from None
    return _yt_dlp(url, address.geturl(), folder, name, progress)


def _address(url):
    """A `urlsplit` result in the letters that a server understands, from an address as people write it.

    Raises UserError where there can be no such address.
    """
    try:
        address = urllib.parse.urlsplit(url.strip())
        host, port = address.hostname or "", address.port
        host = host if host.isascii() else host.encode("idna").decode()
    except ValueError as error:
        raise UserError(f"{url}: not a possible address ({error})") from None
    if address.scheme not in ("http", "https"):
        raise UserError(f"{url}: only http:// and https:// addresses can be downloaded")
    if not host:
        raise UserError(f"{url}: not a possible address (it names no server)")
    user, at, _ = address.netloc.rpartition("@")
    place = f"{user}{at}[{host}]" if ":" in host else f"{user}{at}{host}"
    if port is not None:
        place = f"{place}:{port}"
    path = urllib.parse.quote(address.path, safe=string.punctuation)
    query = urllib.parse.quote(address.query, safe=string.punctuation)
    return address._replace(netloc=place, path=path, query=query)


def _save(answer, url, folder, name, progress):
    """Write what a server sends, piece by piece."""
    suffix = Path(urllib.parse.urlsplit(url).path).suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        suffix = mimetypes.guess_extension(answer.headers.get_content_type()) or ".mp4"
    target = folder / (safe_name(name) + suffix)
    size, came = int(answer.headers.get("Content-Length") or 0), 0
    with atomic_path(target) as temporary:
        with open(temporary, "wb") as file, _bar(target.name, size, progress) as bar:
            while piece := answer.read(PIECE):
                file.write(piece)
                came += len(piece)
                bar.update(len(piece))
        if size and came != size:  # http.client takes a connection that closes early for the end
            raise UserError(f"{url}: the connection broke after {came:,} of {size:,} bytes; try again")
        _check_video(temporary, url)
    return target


def _yt_dlp(url, address, folder, name, progress):
    """Have yt-dlp fetch the first video of a page."""
    import yt_dlp

    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch,
        _bar(name or url, 0, progress) as bar,
    ):

        def tell(status):
            bar.total = status.get("total_bytes") or status.get("total_bytes_estimate")
            bar.update(status.get("downloaded_bytes", 0) - bar.n)

        options = {
            "outtmpl": f"{scratch.replace('%', '%%')}/video.%(ext)s",
            # the best pictures; sound is not needed, so no ffmpeg program to merge with either
            "format": "bv*/b",
            "playlist_items": "1",
            "progress_hooks": [tell],
            "quiet": True,
            "noprogress": True,
            "no_warnings": True,
            "color": "never",
            "socket_timeout": SILENCE,
            "logger": _Silent(),
        }
        try:
            with yt_dlp.YoutubeDL(options) as loader:
                info = loader.extract_info(address)
        except (yt_dlp.utils.YoutubeDLError, ValueError, OverflowError) as error:
            reason = str(error).removeprefix("ERROR: ").splitlines() or [type(error).__name__]
            raise UserError(f"{url}: {reason[0]}") from None
        info = info or {}
        if info.get("entries") is not None:
            info = next(iter(info["entries"]), None) or {}
        if not info.get("requested_downloads"):
            raise UserError(f"{url}: no video found on this page")
        came = Path(info["requested_downloads"][0]["filepath"])
        _check_video(came, url)
        own_name = info.get("title") or info.get("id") or came.stem
        target = folder / (safe_name(name or own_name) + came.suffix)
        os.replace(came, target)
    return target


class _Silent:
    """yt-dlp's messages: the error that it raises says the same."""

    debug = info = warning = error = staticmethod(lambda message: None)


def _bar(label, total, progress):
    return progress_bar(desc=label, total=total or None, unit="B", unit_scale=True, disable=not progress)


def _check_video(path, url):
    import av

    from data_prep.video import open_video, picture_stream

    try:
        with open_video(path) as container:
            if picture_stream(container) is not None:
                return
    except av.FFmpegError:
        pass
    raise UserError(f"{url}: what came ({path.stat().st_size:,} bytes) is not a video")


@command
def main():
    parser = argparse.ArgumentParser(description="Download the videos of a list.")
    parser.add_argument("list_file", help='text file of lines "url name [start] [duration]"')
    parser.add_argument("folder", type=Path, help="where the videos go")
    args = parser.parse_args()
    failed = []
    lines = read_list(args.list_file)
    names = distinct([safe_name(line.name) for line in lines])
    for line, name in zip(lines, names, strict=True):
        try:
            print(download(line.url, args.folder, name))
        except (UserError, OSError) as error:
            failed.append(str(error))
            print(error, file=sys.stderr)
    if failed:
        raise UserError(f"{len(failed)} of {len(lines)} videos could not be downloaded")


if __name__ == "__main__":
    sys.exit(main())
