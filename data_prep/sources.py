"""What `extract_frames` is given: the sample, a video, a folder or a list becomes one job for each video."""

import dataclasses
import os
from pathlib import Path

from data_prep.download_videos import download
from data_prep.lists import distinct, read_list, safe_name, text_of
from data_prep.video import is_animated_webp
from mtld_core.chance import seed_of
from mtld_core.config import UserError, find, looked_in
from mtld_core.data.folder import VIDEO_SUFFIXES
from mtld_core.files import can_be_read

SAMPLE = Path(__file__).parent / "sample" / "bigbuckbunny.mp4"
MOST_TEXT = 1 << 22  # bytes of a list


@dataclasses.dataclass
class Job:
    """One video, or a part of it, that becomes one arc or its shots."""

    arc: str
    path: Path
    source: str  # a path or an address, for people and for telling two videos of one name apart
    settings: dict


def find_jobs(source, root, settings, progress):
    """(a `Job` for each video, each with an arc's name of its own; (source, reason) of each that failed).

    `root` is made when the source is known to exist. Raises UserError where it does not, or `root` cannot be
    made.
    """
    path = SAMPLE if source == "sample" else Path(find(source))
    if os.path.isdir(path):
        try:
            paths = sorted(p for p in path.iterdir() if _is_video(p) and not p.name.startswith("."))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); make it readable first") from None
        if not paths:
            looked_for = ", ".join(sorted(VIDEO_SUFFIXES))
            raise UserError(f"{path}: no video in this folder (looked for {looked_for} and animated .webp)")
    elif not os.path.isfile(path):
        raise UserError(
            f"source={str(source)!r}: no such file or folder{looked_in(path)}; wanted is a video, a folder, "
            'a list file or "sample"'
        )
    else:
        paths = [path]
    lines = read_list(path) if _is_list(path) else None
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"dataset_root={str(root)!r}: {error.strerror}") from None
    if lines:
        found, failed = _fetch(lines, path.parent, root / ".videos", settings, progress)
    else:
        found = [(path.stem, path, os.path.realpath(path), settings) for path in paths]
        failed = []
    names = distinct([safe_name(name) for name, *_ in found])
    jobs = [Job(name, *rest) for name, (_, *rest) in zip(names, found, strict=True)]
    return [job for job in jobs if job.path], failed


def _is_video(path):
    """Whether what lies in a folder is to be extracted, by its name.

    A WebP, which may be one picture, is opened for that.
    """
    if path.suffix.lower() not in (*VIDEO_SUFFIXES, ".webp") or not can_be_read(path):
        return False
    if path.suffix.lower() != ".webp":
        return True
    try:
        return is_animated_webp(path)
    except OSError:  # named when it is opened again
        return True


def _is_list(path):
    """Whether a path is a text file, as far as its encoding is known or not."""
    if not path.is_file() or path.suffix.lower() in VIDEO_SUFFIXES or path.stat().st_size > MOST_TEXT:
        return False
    data = path.read_bytes()
    return b"\0" not in data or text_of(data) is not None


def _fetch(lines, beside, folder, settings, progress):
    """(name, path, url, settings) of each line, and (url, reason) of each that failed; its path is None."""
    found, failed = [], []
    for line in lines:
        given = {"start": line.start, "duration": line.duration}
        own = settings | {key: value for key, value in given.items() if value is not None}
        path, source = beside / line.url, line.url
        try:
            if "://" in line.url:
                stem = f"{seed_of(line.url):016x}"  # two lines with one address share one file
                path = next(folder.glob(f"{stem}.*"), None) or download(line.url, folder, stem, progress)
            elif os.path.isfile(path):
                source = os.path.realpath(path)
            else:
                raise UserError("no such file beside the list, and no http:// or https:// address")
        except (UserError, OSError) as error:
            path = None
            failed.append((source, str(error).removeprefix(f"{source}: ")))
        found.append((line.name, path, source, own))
    return found, failed
