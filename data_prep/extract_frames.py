"""Videos to arcs: `<dataset_root>/<arc>/frame_0000.png ...`, one arc a video, or one a shot.

    python data_prep/extract_frames.py SOURCE DATASET_ROOT [--fps 12 --height 64 --width 64 ...]

An arc is written into a hidden folder and renamed when it is whole; `.arc.json` inside tells what it was made
from, so that it is not made again. Threads, not processes: decoding, resizing and PNG compression all let go
of Python's lock.
"""

import argparse
import bisect
import collections
import contextlib
import glob
import json
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import psutil

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_prep.picture import png_bytes
from data_prep.report import ArcRow, Extraction, contact_sheet
from data_prep.sources import find_jobs
from data_prep.video import Video, at_rate, is_repeat
from mtld_core.config import UserError, nearest, seconds
from mtld_core.data.cuts import cuts_of_arcs
from mtld_core.files import sha256, write_json
from mtld_core.frames import Fit, fit_frame
from mtld_core.runtime import command, core_count, progress_bar

RECORD = ".arc.json"
SCRATCH = ".extracting-"
FRAMES_VERSION = 2  # raised whenever video.py or picture.py make other frames of the same video
THUMB = (32, 32)  # pixels of the small pictures in which cuts are looked for


def extract(
    source,
    dataset_root,
    fps=0,
    height=0,
    width=0,
    fit="crop",
    start=0,
    duration=0,
    drop_duplicates=False,
    split_scenes=False,
    workers=0,
    progress=True,
):
    """Cut videos into arcs of PNG frames under `dataset_root` and return an `Extraction`.

    source: "sample" (the bundled clip), a video, a folder of videos (not its subfolders), or a text file of
        lines "url name [start] [duration]"; a url may be a path beside the list. Downloads go to
        `<dataset_root>/.videos/`.
    fps: frames a second, 0 as is. A tick gets the frame that the video shows then, so frames are skipped or
        come again.
    height, width, fit: as `mtld_core.frames.fit_frame`; 0 as is.
    start, duration: seconds or "m:ss" or "h:mm:ss"; duration 0: to the end. Those of a list's line go first.
    drop_duplicates: leave out frames that repeat the last kept one.
    split_scenes: an arc for each shot, `<name>_shot_000` ... workers: threads; 0: one a core.

    A finished arc is kept where video, settings and version of this tool are the same, else replaced. A video
    that fails is named in `failed`; the others go on. Raises UserError for a bad setting or list, or when
    nothing worked.
    """
    settings = {
        "fps": fps,
        "height": height,
        "width": width,
        "fit": fit,
        "start": seconds(start),
        "duration": seconds(duration),
        "drop_duplicates": drop_duplicates,
        "split_scenes": split_scenes,
    }
    _check(settings, workers)
    root = Path(dataset_root).expanduser()
    was_there = root.exists()
    jobs, unusable = find_jobs(source, root, settings, progress)
    _sweep(root)
    rows, failed = _extract_all(jobs, root, workers, progress)
    failed = sorted(unusable + failed)
    if not rows:
        if not was_there:
            with contextlib.suppress(OSError):  # downloads are kept
                root.rmdir()
        (name, reason), *others = failed
        more = f" (and {len(others)} more failed)" if others else ""
        raise UserError(f"{name}: {reason}{more}")
    try:
        sheet = contact_sheet(root, rows)
    except OSError as error:
        what = f"contact_sheet.png cannot be written ({error.strerror or error})"
        raise UserError(f"{root}: the frames are there, but {what}") from error
    return Extraction(root, rows, failed, sheet)


def _extract_all(jobs, root, workers, progress):
    """(rows of the arcs that were made, [(video, why it failed)]), several videos at once."""
    failed = []
    stop = threading.Event()
    bar = progress_bar(unit=" frames", disable=not progress, delay=0.5)

    threads = workers or core_count()
    at_once = max(1, min(threads, len(jobs)))

    def one(job):
        bar.set_description_str(job.arc, refresh=False)
        try:
            return _extract_one(job, root, threads // at_once, stop, bar)
        except UserError as error:
            failed.append((job.source, str(error)))
        except OSError as error:  # a full disk, say
            failed.append((job.source, f"{error.strerror} ({error.filename or root})"))
        return []

    with bar, ThreadPoolExecutor(at_once) as pool:
        try:
            rows = [row for rows in pool.map(one, jobs) for row in rows]
        except BaseException:
            stop.set()  # the user's Stop must not wait for the videos that are being decoded
            raise
    return rows, failed


def _check(settings, workers):
    for name, most in {"fps": 1000, "height": 8192, "width": 8192}.items():
        if not 0 <= settings[name] <= most:
            raise UserError(f"{name} must be between 0 (as is) and {most}, not {settings[name]!r}")
    if settings["fit"] not in get_args(Fit):
        raise UserError(f"fit={settings['fit']!r} is unknown{nearest(settings['fit'], get_args(Fit))}")
    if workers < 0:
        raise UserError(f"workers must be 0 (one a core) or more, not {workers!r}")


# ---- one video


def _extract_one(job, root, threads, stop, bar):
    """Do one job and return its rows. Raises UserError, in words that do not name the video.

    threads: that pack its frames.
    """
    made_from = {
        "sha256": sha256(job.path),
        "bytes": job.path.stat().st_size,
        "settings": job.settings,
        "frames_version": FRAMES_VERSION,
    }
    old = _own_arcs(root, job, made_from["sha256"])
    if _is_finished(root, old, made_from):
        return [_row(arc, record, "kept") for arc, record in old.items()]
    scratch = root / f"{SCRATCH}{job.arc}-{os.getpid()}"
    scratch.mkdir()
    try:
        shots, facts = _write_frames(job, scratch, threads, stop, bar)
        facts |= {
            "schema": 1,
            "name": job.arc,
            "source": job.source,
            "made_from": made_from,
            "shots": len(shots),
        }
        new = {}
        for number, (rows, duplicates) in enumerate(shots):
            arc = f"{job.arc}_shot_{number:03d}" if job.settings["split_scenes"] else job.arc
            folder = scratch / "new" / arc
            folder.mkdir(parents=True)
            for i, row in enumerate(rows):
                (scratch / _frame_name(row)).rename(folder / _frame_name(i))
            seconds_long = round(len(rows) / facts["fps"], 3)
            new[arc] = facts | {"frames": len(rows), "seconds": seconds_long, "duplicates": duplicates}
            write_json(folder / RECORD, new[arc])
        old = _own_arcs(root, job, made_from["sha256"])
        if _is_finished(root, old, made_from):  # another process was faster
            return [_row(arc, record, "kept") for arc, record in old.items()]
        (scratch / "old").mkdir()
        for arc in [*new, *(old.keys() - new.keys())]:  # shots of an earlier run with other settings go, too
            if arc in old:
                (root / arc).rename(scratch / "old" / arc)
            if arc in new:
                (scratch / "new" / arc).rename(root / arc)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [_row(arc, record, "done") for arc, record in new.items()]


def _write_frames(job, scratch, threads, stop, bar):
    """Write the frames into `scratch`, packed by so many threads.

    Returns [(its frames, repeats dropped)] of the shots, and facts for the record.
    """
    s = job.settings
    begin = last = None
    written, dropped = [], []  # where each frame was in the video
    video = Video(job.path, s["start"], s["duration"])
    with open(scratch / "thumbs", "w+b") as thumbs, _Packers(threads) as packers:
        frames = _with_thumbs(video, thumbs) if s["split_scenes"] else video
        for shown in at_rate(frames, s["fps"]):
            if stop.is_set():
                raise UserError("stopped")
            begin = shown.begin if begin is None else begin
            rgb = fit_frame(shown.rgb, s["height"], s["width"], s["fit"])
            if last is not None and last.shape != rgb.shape:
                raise UserError(
                    f"the picture changes its size at {float(shown.begin):.2f} s; give height and width"
                )
            if s["drop_duplicates"] and last is not None and is_repeat(last, rgb):
                dropped.append(shown.index)
                continue
            packers.write(scratch / _frame_name(len(written)), rgb)
            written.append(shown.index)
            last = rgb
            bar.update()
        if not written:
            raise UserError(f"no frame begins within the {s['duration']:g} s from {s['start']:g} s on")
        cuts = []
        if s["split_scenes"]:
            thumbs.flush()
            small = np.memmap(thumbs, np.uint8, "r").reshape(-1, *THUMB, 3)
            cuts = cuts_of_arcs(small, [(0, len(small))], workers=1).tolist()
    shots, repeats = {}, collections.Counter(bisect.bisect_right(cuts, index) for index in dropped)
    for row, index in enumerate(written):
        shots.setdefault(bisect.bisect_right(cuts, index), []).append(row)
    steps, span = shown.index, shown.begin - begin - video.skipped
    if not steps:  # a single frame
        steps, span = 1, shown.end - begin
    rate = float(steps / span)
    fps = s["fps"] or round(rate, 3) or rate  # one frame in an hour is no rate of 0
    facts = {"original": shown.rgb.shape[:2], "size": last.shape[:2], "fps": fps, "note": video.note}
    return [(rows, repeats[shot]) for shot, rows in shots.items()], facts


class _Packers:
    """Threads that pack pictures and write them to disk, while the next are decoded: a `with` block.

    Packing costs more than decoding. Few pictures wait at a time. Raises OSError where one cannot be written.
    """

    def __init__(self, threads):
        self._pool, self._most = ThreadPoolExecutor(threads), 2 * threads
        self._waiting = collections.deque()

    def write(self, path, rgb):
        if len(self._waiting) == self._most:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(_write, path, rgb))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for each in self._waiting:
                each.result()


def _write(path, rgb):
    path.write_bytes(png_bytes(rgb))


def _with_thumbs(frames, file):
    """Pass the frames on, and write a small picture of each to `file`.

    So cuts are found at the full rate, whatever fps is. All have one shape, even if the video's changes.
    """
    for shown in frames:
        small = cv2.resize(shown.rgb, THUMB, interpolation=cv2.INTER_AREA)
        file.write(small.tobytes())
        yield shown


def _frame_name(number):
    return f"frame_{number:04d}.png"


# ---- what is there already


def _own_arcs(root, job, digest):
    """{arc: record} of what this tool made of the video before.

    Raises UserError where something else is in the way.
    """
    found = {}
    split = job.settings["split_scenes"]
    shots = sorted(root.glob(f"{glob.escape(job.arc)}_shot_[0-9][0-9][0-9]*"))
    for folder in [root / job.arc, *shots]:
        if not folder.exists():
            continue
        try:
            record = json.loads((folder / RECORD).read_text())
            made_from = record["source"], record["made_from"]["sha256"]
        except (OSError, ValueError, TypeError, KeyError):
            if split != (folder.name == job.arc):
                raise UserError(
                    f"{folder} is in the way, and this tool did not make it: move it away"
                ) from None
            continue
        if job.source != made_from[0] and digest != made_from[1]:
            raise UserError(
                f"{folder} was made from {record['source']}: rename one of the videos, or delete that arc"
            )
        found[folder.name] = record
    return found


def _is_finished(root, old, made_from):
    """Whether the arcs `old` are all there, whole, and made from just this."""
    for arc, record in old.items():
        frames = len(list((root / arc).glob("frame_*.png")))
        if (record["made_from"], record["shots"], record["frames"]) != (made_from, len(old), frames):
            return False
    return bool(old)


def _row(arc, record, status):
    facts = {key: record[key] for key in ("source", "frames", "fps", "seconds", "duplicates", "note")}
    original = tuple(record.get("original", record["size"]))
    fit = record["made_from"]["settings"]["fit"]
    return ArcRow(arc=arc, size=tuple(record["size"]), original=original, fit=fit, status=status, **facts)


def _sweep(root):
    """Remove what runs that were killed have left."""
    for folder in root.glob(f"{SCRATCH}*"):
        owner = folder.name.rpartition("-")[2]
        if owner.isdigit() and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner))):
            shutil.rmtree(folder, ignore_errors=True)


@command
def main():
    parser = argparse.ArgumentParser(description="Cut videos into arcs of PNG frames.")
    parser.add_argument(
        "source",
        help='"sample", a video, a folder of videos, or a text file of "url name [start] [duration]"',
    )
    parser.add_argument("dataset_root", help="where the arcs go")
    parser.add_argument("--fps", type=float, default=0, help="frames a second; 0: as is")
    parser.add_argument("--height", type=int, default=0, help="0: as is")
    parser.add_argument("--width", type=int, default=0, help="0: as is")
    parser.add_argument("--fit", default="crop", help="crop, pad or stretch")
    parser.add_argument("--start", default="0", help="seconds, m:ss or h:mm:ss")
    parser.add_argument("--duration", default="0", help="the same; 0: to the end")
    parser.add_argument(
        "--drop-duplicates", action="store_true", help="leave out frames that repeat the one before"
    )
    parser.add_argument("--split-scenes", action="store_true", help="an arc for each shot")
    parser.add_argument("--workers", type=int, default=0, help="threads; 0: one a core")
    extraction = extract(**vars(parser.parse_args()))
    print(extraction.table())
    print(f"Look at {extraction.contact_sheet}")
    extraction.check()


if __name__ == "__main__":
    sys.exit(main())
