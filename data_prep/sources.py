"""What `extract_frames` is given: the sample, a video, a folder or a list becomes one job for each video."""

import dataclasses
from pathlib import Path

from data_prep.download_videos import download
from data_prep.lists import distinct, read_list, safe_name
from mtld_core.data.folder import VIDEO_SUFFIXES
from mtld_core.runtime import UserError, seed_of

SAMPLE = Path(__file__).parent / "sample" / "bigbuckbunny.mp4"


@dataclasses.dataclass
class Job:
    """One video, or a part of it, that becomes one arc or its shots."""

    arc: str
    path: Path
    source: str  # a path or an address, for people and for telling two videos of one name apart
    settings: dict


def find_jobs(source, root, settings, progress):
    """The videos to do, each with an arc's name of its own, and what could not be downloaded as (source, reason)."""
    failed, path = [], SAMPLE if source == "sample" else Path(source).expanduser()
    if path.is_dir():
        paths = sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith("."))
        if not paths:
            raise UserError(f"{path}: no video in this folder (looked for {', '.join(sorted(VIDEO_SUFFIXES))})")
        found = [(p.stem, p, str(p.resolve()), settings) for p in paths]
    elif not path.is_file():
        raise UserError(
            f"source={str(source)!r}: no such file or folder (looked in {Path.cwd()}); wanted is a video, a folder, "
            'a list file or "sample"'
        )
    elif path.suffix.lower() not in VIDEO_SUFFIXES and _is_text(path):
        found, failed = _fetch(path, root / ".videos", settings, progress)
    else:
        found = [(path.stem, path, str(path.resolve()), settings)]
    names = distinct([safe_name(name) for name, *_ in found])
    return [Job(name, *rest) for name, (_, *rest) in zip(names, found, strict=True) if rest[0]], failed


def _is_text(path):
    with open(path, "rb") as file:
        return b"\0" not in file.read(4096)


def _fetch(list_file, folder, settings, progress):
    """(name, path, url, settings) of each line, and (url, reason) of each that failed; its path is None."""
    found, failed = [], []
    for line in read_list(list_file):
        given = {"start": line.start, "duration": line.duration}
        own = settings | {key: value for key, value in given.items() if value is not None}
        path, source = list_file.parent / line.url, line.url
        try:
            if "://" in line.url:
                stem = f"{seed_of(line.url):016x}"  # two lines with one address share one file
                path = next(folder.glob(f"{stem}.*"), None) or download(line.url, folder, stem, progress)
            elif path.is_file():
                source = str(path.resolve())
            else:
                raise UserError("no such file beside the list, and no http:// or https:// address")
        except (UserError, OSError) as error:
            path = None
            failed.append((source, str(error).removeprefix(f"{source}: ")))
        found.append((line.name, path, source, own))
    return found, failed
