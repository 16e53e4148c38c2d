"""Recordings with a JSONL log: order, pairing of frames and controls, gaps, and what is refused in which
words.
"""

import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mtld_core.config import UserError
from mtld_core.data import open_dataset
from mtld_core.generate.source import read_source


def entry(i, **fields):
    return {"frame_filename": f"f/{i}.png", "controls": [i / 8, -i], "timestamp": i / 10} | fields


def put(root, entries, log="recording_log.jsonl"):
    """A recording; frame i, as in "f/<i>.png", is a picture of the value i. Entries that are no dicts are
    lines as such.
    """
    (root / "f").mkdir(parents=True, exist_ok=True)
    for i in range(len(entries)):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(root / f"f/{i}.png")
    lines = [json.dumps(one) if isinstance(one, dict) else one for one in entries]
    (root / log).write_text("\n".join(lines) + "\n")
    return root


def read(path, **options):
    return open_dataset(path, progress=False, **options)


def arcs(data):
    """{name: (values of its frames, their numbers)}"""
    return {
        arc.name: (data.frames[arc.start : arc.stop, 0, 0, 0].tolist(), arc.numbers.tolist())
        for arc in data.arcs
    }


def test_frames_and_controls_are_paired_in_the_order_of_time(tmp_path):
    data = read(put(tmp_path / "d", [entry(0), entry(2), entry(1), entry(3)]))
    assert (data.kind, data.path, data.size) == ("recording", str(tmp_path / "d"), (8, 8))
    assert arcs(data) == {"episode_0": ([0, 1, 2, 3], [0, 1, 2, 3])}
    assert data.actions.dtype == torch.float32
    assert data.actions.tolist() == [[i / 8, -i] for i in range(4)]
    assert data.warnings == ["recording_log.jsonl: line 3: time stamps out of order, sorted by time"]


def test_episodes_are_arcs_and_integer_actions_win_over_controls(tmp_path):
    entries = [entry(i, episode=[7, 2][i % 2], action=i % 3) for i in range(10)]  # two games recorded at once
    data = read(put(tmp_path / "d", entries))
    assert arcs(data) == {
        "episode_2": ([1, 3, 5, 7, 9], [*range(5)]),
        "episode_7": ([0, 2, 4, 6, 8], [*range(5)]),
    }
    assert data.actions.dtype == torch.int64 and data.actions.tolist() == [1, 0, 2, 1, 0, 0, 2, 1, 0, 2]
    assert data.warnings == []
    del entries[4]["action"]
    assert read(put(tmp_path / "d", entries)).actions.shape == (10, 2), "one without: the controls of all"


def test_controls_that_led_to_their_own_frame(tmp_path):
    root = put(tmp_path / "d", [entry(i, action=i, episode=i // 3) for i in range(6)])
    assert read(root).actions.tolist() == [0, 1, 2, 3, 4, 5]
    assert read(root, controls_lead_to="this").actions.tolist() == [1, 2, 2, 4, 5, 5]
    with pytest.raises(UserError, match="controls_lead_to must be 'next' or 'this', not 'last'"):
        read(root, controls_lead_to="last")


@pytest.mark.parametrize("sticks", [([1, 2], [3, 4]), ({"x": 1, "y": 2}, {"y": 4, "x": 3})])
def test_sticks_and_nanoseconds(tmp_path, sticks):
    controls = dict(zip(("leftStick", "rightStick"), sticks, strict=True))
    lines = [
        {"frame_filename": f"f\\{i}.png", "controls": controls, "server_timestamp_ns": 10**18 - i}
        for i in range(2)
    ]
    data = read(put(tmp_path / "d", lines))
    assert data.actions.tolist() == [[1, 2, 3, 4]] * 2
    assert read(tmp_path / "d/recording_log.jsonl").path.endswith(".jsonl")


def test_any_only_log_is_found_and_about_is_read(tmp_path):
    root = put(tmp_path / "d", [entry(i) for i in range(3)], log="mine.jsonl")
    assert read(root).about == {"controls_lead_to": "next"}
    (root / "recording.json").write_text('{"action_names": ["left", "right"]}')
    assert read(root).about == {"action_names": ["left", "right"], "controls_lead_to": "next"}
    (root / "recording.json").write_text("[")
    data = read(root)
    assert (
        data.about == {"controls_lead_to": "next"}
        and "recording.json: passed over, not a JSON object" in data.warnings[0]
    )
    (root / "other.jsonl").touch()
    with pytest.raises(UserError, match="holds no usable entry; wanted are lines such as"):
        read(root / "other.jsonl")


def test_the_cache_knows_the_log(tmp_path):
    entries = [entry(i) for i in range(40)]
    first = read(put(tmp_path / "d", entries), height=4, width=4)
    again = read(tmp_path / "d", height=4, width=4, memory="disk")
    assert torch.equal(first.frames, again.frames) and first.size == (4, 4)
    entries[20]["timestamp"] = 2.05
    assert arcs(read(put(tmp_path / "d", entries[::-1]), height=4, width=4)) == arcs(again)
    assert len(read(put(tmp_path / "d", entries[:20])).frames) == 20


def test_a_generation_starts_from_the_first_episode_that_is_long_enough(tmp_path):
    root = put(tmp_path / "d", [entry(i, episode=int(i > 1), action=i) for i in range(6)])
    config = SimpleNamespace(height=8, width=8)

    def starts(k):
        needs, run = SimpleNamespace(context=k), SimpleNamespace(training={})
        system = SimpleNamespace(needs=lambda: needs, config=config, run=run)
        source = read_source(system, str(root))
        return source.context[:, 0, 0, 0].tolist(), source.truth[:, 0, 0, 0].tolist()

    assert starts(1) == ([0], [1]) and starts(3) == ([2, 3, 4], [5])
    with pytest.raises(UserError, match="has 4 frames; this run starts from 5"):
        starts(5)


# ---- what is missing ends an arc


def windows(data, length=2):
    """The values of the frames of all windows."""
    return data.frames[data.windows(length)[:, None] + torch.arange(length)][..., 0, 0, 0].tolist()


MISSING = {
    "a line": lambda entries, root: entries.__setitem__(12, '{"frame_filename": "f/12.png", "contr'),
    "a frame": lambda entries, root: (root / "f/12.png").unlink(),
    "a damaged frame": lambda entries, root: (root / "f/12.png").write_bytes(b"no"),
}


@pytest.mark.parametrize("lead", ["next", "this"])
@pytest.mark.parametrize("what", MISSING)
def test_no_window_crosses_what_is_missing(tmp_path, what, lead):
    entries, root = [entry(i, action=i) for i in range(40)], tmp_path / "d"
    put(root, entries)
    MISSING[what](entries, root)
    (root / "recording_log.jsonl").write_text(
        "\n".join(one if isinstance(one, str) else json.dumps(one) for one in entries)
    )
    for _ in range(2):  # decoded, and from the cache
        data = read(root, controls_lead_to=lead)
        found = arcs(data)
        assert list(found) == ["episode_0", "episode_0b"]
        assert found["episode_0"][0] == [*range(12)] and found["episode_0b"][0] == [*range(13, 40)]
        assert data.row("episode_0b", found["episode_0b"][1][0]) == 12
        assert [11, 13] not in windows(data) and len(windows(data)) == 37
        paired = {"next": [*range(12), *range(13, 40)], "this": [*range(1, 12), 11, *range(14, 40), 39]}
        assert data.actions.tolist() == paired[lead]
        assert (
            len(data.warnings) == 1
            and ("line 13" if what == "a line" else "f/12.png: left out") in data.warnings[0]
        )


def test_a_lost_line_ends_an_arc_of_every_episode(tmp_path):
    entries = [entry(i, episode=i % 2) for i in range(60)]  # it is not known whose line it was
    entries[31] = "{"
    assert arcs(read(put(tmp_path / "d", entries))).keys() == {
        "episode_0",
        "episode_0b",
        "episode_1",
        "episode_1b",
    }


def test_a_gap_in_time_is_told_and_ends_an_arc(tmp_path):
    times = [0, 0.1, 0.2, 0.6, 0.7, 1.3, 1.4]  # 4 steps are passed over, 6 are not
    data = read(put(tmp_path / "d", [entry(i, timestamp=time) for i, time in enumerate(times)]))
    assert arcs(data) == {"episode_0": ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]), "episode_0b": ([5, 6], [5, 6])}
    assert data.warnings == [
        "recording_log.jsonl: line 6: 0.6 s after the frame before, not 0.1 s as elsewhere in episode 0: a "
        "new arc begins"
    ]


def test_equal_time_stamps_and_names_are_told_and_stay_in_order(tmp_path):
    entries = [entry(0), entry(1), entry(2, timestamp=0.1), entry(1, timestamp=0.2)]
    data = read(put(tmp_path / "d", entries))
    assert arcs(data)["episode_0"][0] == [0, 1, 2, 1]
    assert data.warnings == [
        "recording_log.jsonl: line 4: the frame_filename of an earlier line again",
        "recording_log.jsonl: line 3: the time stamp of another line again, kept in the file's order",
    ]


# ---- a clock that starts again, or is set back


def stretches(data):
    """{arc: the values of its frames}"""
    return {name: values for name, (values, _) in arcs(data).items()}


def log_of(times, **fields):
    return [entry(i, timestamp=time, **fields) for i, time in enumerate(times)]


AGAIN = {  # seconds of the lines -> how many lines each episode has
    "from 0, the same ticks": ([*range(20), *range(20)], [20, 20]),
    "between the ticks of before": ([*range(20), *(i + 0.5 for i in range(20))], [20, 20]),
    "soon, and for longer": ([*range(5), *range(30)], [5, 30]),
    "after two lines": ([0, 1, *range(12)], [2, 12]),
    "for three lines at the end": ([*range(20), *range(3)], [20, 3]),
    "before all that was": ([*range(100, 120), *range(20)], [20, 20]),
    "twice": ([*range(9), *range(7), *range(8)], [9, 7, 8]),
    "set back by three seconds": ([*range(20), *range(17, 30)], [20, 13]),
}


@pytest.mark.parametrize("unit", [1, 1 / 30])
@pytest.mark.parametrize("how", AGAIN)
def test_a_clock_that_starts_again_begins_an_episode_in_the_files_order(tmp_path, how, unit):
    times, counts = AGAIN[how]
    data = read(put(tmp_path / "d", log_of([time * unit for time in times], action=1)))
    found, start = arcs(data), 0
    assert list(found) == [f"episode_{i}" for i in range(len(counts))]
    for count, (values, numbers) in zip(counts, found.values(), strict=True):
        assert values == [*range(start, start + count)] and numbers == [*range(count)]
        start += count
    assert len(data.warnings) == len(counts) - 1
    assert f"line {counts[0] + 1}: the clock goes from" in data.warnings[0] and data.warnings[0].endswith(
        "episode_1"
    )


def test_a_clock_in_nanoseconds_that_starts_again(tmp_path):
    entries = log_of([0] * 40)
    for i, one in enumerate(entries):
        del one["timestamp"]
        one["server_timestamp_ns"] = 1714 * 10**15 + i % 20 * 33333333
    assert stretches(read(put(tmp_path / "d", entries))) == {
        "episode_0": [*range(20)],
        "episode_1": [*range(20, 40)],
    }


def test_each_episode_has_a_clock_of_its_own(tmp_path):
    """Two games at once, each from 0; then the recorder is started again, with the same numbers."""
    entries = [entry(i, episode=3 + i % 2, timestamp=i % 20 // 2) for i in range(40)]
    data = read(put(tmp_path / "d", entries))
    assert stretches(data) == {
        f"episode_{3 + k}": [*range(20 * (k // 2) + k % 2, 20 * (k // 2) + 20, 2)] for k in range(4)
    }
    data = read(put(tmp_path / "e", [entry(i, episode=i // 10, timestamp=i % 10) for i in range(40)]))
    assert data.warnings == [] and len(data.arcs) == 4, "an episode that begins at 0 is nothing odd"


LATE = {
    "two neighbours": [*range(10), 11, 10, *range(12, 20)],
    "the first two": [1, 0, *range(2, 20)],
    "the last two": [*range(18), 19, 18],
    "three together": [*range(10), 13, 10, 11, 12, *range(14, 20)],
    "here and there": [1, 0, 3, 2, 5, 4, *range(6, 20)],
    "by less than a step": [*range(10), 10.4, 10.1, *range(11, 20)],
    "everywhere": np.random.default_rng(0).permutation(20).tolist(),
    "from the end to the beginning": [*range(20)][::-1],
}


@pytest.mark.parametrize("how", LATE)
def test_lines_that_were_written_late_are_sorted_into_their_place(tmp_path, how):
    times = LATE[how]
    data = read(put(tmp_path / "d", log_of([time / 30 for time in times])))
    assert stretches(data) == {"episode_0": sorted(range(len(times)), key=lambda i: times[i])}
    assert len(data.warnings) == 1 and "out of order, sorted by time" in data.warnings[0]


def test_a_malformed_line_beside_a_clock_that_starts_again(tmp_path):
    entries = log_of([i % 20 for i in range(40)])
    entries[30] = "?"
    data = read(put(tmp_path / "d", entries))
    assert stretches(data) == {
        "episode_0": [*range(20)],
        "episode_1": [*range(20, 30)],
        "episode_1b": [*range(31, 40)],
    }


# ---- what is refused


def forty(**fields):
    return [*[entry(i) for i in range(40)], entry(40, **fields)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"controls": [1.0]}, "line 41: controls has 1 numbers and line 1 has 2"),
        ({"controls": [1.0, math.nan]}, r"line 41: controls \[1.0, nan\] are not finite"),
        ({"controls": [1e300, 1.0]}, r"line 41: controls \[1e\+300, 1.0\] are not finite"),
        (
            {"frame_filename": "../secret.png"},
            r"line 41: frame_filename '../secret.png' leads out of the recording's folder",
        ),
        ({"frame_filename": "f/../../secret.png"}, "line 41: .*leads out of"),
        ({"frame_filename": "..\\secret.png"}, "line 41: .*leads out of"),
        ({"frame_filename": "/etc/secret.png"}, "line 41: .*leads out of"),
        ({"frame_filename": "C:/secret.png"}, "line 41: .*leads out of"),
        ({"frame_filename": "c:\\secret.png"}, "line 41: .*leads out of"),
        ({"frame_filename": "\\\\server\\secret.png"}, "line 41: .*leads out of"),
        ({"frame_filename": "link.png"}, "line 41: .*leads out of"),
        ({"frame_filename": "folder/secret.png"}, "line 41: .*leads out of"),
    ],
)
def test_what_would_make_the_data_wrong_is_always_refused(tmp_path, fields, words):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    root = put(tmp_path / "d", forty(**fields))
    os.symlink(tmp_path / "secret.png", root / "link.png")
    os.symlink(tmp_path, root / "folder")
    with pytest.raises(UserError, match=words) as caught:
        read(root)
    assert str(root / "recording_log.jsonl") in str(caught.value) and "\n" not in str(caught.value)


def test_a_link_that_stays_inside_is_fine(tmp_path):
    root = put(tmp_path / "d", [entry(0), entry(1, frame_filename="again/0.png")])
    os.symlink(root / "f", root / "again")
    assert arcs(read(root))["episode_0"][0] == [0, 0]


@pytest.mark.skipif(os.name == "nt", reason="no file may be called so there")
@pytest.mark.parametrize("name", ["0:00:01.png", "f/0:00:01.png", "f\\0:01.png", "a:1.png", "a:b/1.png"])
def test_a_colon_in_a_frames_name_is_no_drive(tmp_path, name):
    root = put(tmp_path / "d", [entry(0), entry(1, frame_filename=name)])
    frame = root / name.replace("\\", "/")
    frame.parent.mkdir(exist_ok=True)
    os.replace(root / "f/1.png", frame)
    assert arcs(read(root))["episode_0"][0] == [0, 1]


MALFORMED = {
    "[1, 2]": "not a JSON object",
    "\\": "not valid JSON",
    "[" * 100_000: "not valid JSON",
    json.dumps({"frame_filename": "f/1.png", "timestamp": 1}): "no field 'controls'",
    json.dumps(
        {"frame_filenam": "f/1.png", "controls": [1, 1], "timestamp": 1}
    ): "did you mean 'frame_filenam'",
    json.dumps(entry(1, frame_filename=3)): "'frame_filename' is 3, not a file name",
    json.dumps(entry(1, controls="left")): "'controls' is no list of numbers",
    json.dumps(entry(1, controls=[None, 1])): "'controls' is no list of numbers",
    json.dumps(entry(1, controls={"leftStick": [1, 2]})): "no field 'rightStick'",
    json.dumps(entry(1, controls={"leftStick": [1], "rightStick": [1, 2, 3]})): "neither {x, y} nor",
    json.dumps(entry(1, timestamp="now")): "'timestamp' is 'now', not a number",
    json.dumps(entry(1, timestamp=math.nan)): "'timestamp' is nan, not a number",
    json.dumps(entry(1, timestamp=10**400)): "not a number",
    json.dumps(entry(1, action=1.5)): "'action' is 1.5, not a whole number",
    json.dumps(entry(1, action=-1)): "'action' is -1",
    json.dumps(entry(1, episode="first")): "'episode' is 'first'",
}


@pytest.mark.parametrize("line", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_line_is_named_and_many_are_refused(tmp_path, line):
    few = [*[entry(i) for i in range(20)], "", line]
    data = read(put(tmp_path / "d", few))
    assert len(data.frames) == 20 and len(data.warnings) == 1
    assert "line 22 left out" in data.warnings[0] and MALFORMED[line] in data.warnings[0]
    with pytest.raises(
        UserError, match=r"3 of 23 lines cannot be used \(more than 5 %\).*line 22 \(.*; line 23 \("
    ) as caught:
        read(put(tmp_path / "d", [*few, line, line]))
    assert MALFORMED[line] in str(caught.value)


def test_where_the_place_of_a_lost_line_is_not_known(tmp_path):
    with pytest.raises(
        UserError, match=r"line 3 out of the order of time, so where line 22 \(not valid JSON\) belongs"
    ):
        read(put(tmp_path / "d", [entry(0), entry(2), entry(1), *[entry(i) for i in range(3, 21)], "?"]))


def test_many_frames_that_are_missing_are_refused(tmp_path):
    root = put(tmp_path / "d", [entry(i) for i in range(20)])
    for i in (3, 5):
        (root / f"f/{i}.png").unlink()
    with pytest.raises(
        UserError, match=r"2 of 20 image files cannot be used .*f/3.png \(.*No such file.*f/5.png"
    ):
        read(root)


def test_a_clock_or_controls_of_a_malformed_first_line_do_not_count(tmp_path):
    lines = [json.dumps({"frame_filename": "0.png", "controls": [1.0, 2.0]})]
    for i in range(40):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(
            json.dumps({"frame_filename": f"{i}.png", "controls": [0.5], "server_timestamp_ns": i * 10**8})
        )
    (tmp_path / "recording_log.jsonl").write_text("\n".join(lines))
    data = open_dataset(tmp_path, progress=False)
    assert len(data.frames) == 40 and data.actions.shape == (40, 1) and "line 1" in data.warnings[0]
