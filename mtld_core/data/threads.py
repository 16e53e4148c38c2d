"""Work on many frames in several threads, with a progress bar.

Threads, not processes: Pillow, OpenCV and hashlib let go of Python's lock while they work, and threads need
no `if __name__ == "__main__"`, no copy of a CUDA context and no second store.
"""

import os
from concurrent.futures import ThreadPoolExecutor

from mtld_core.runtime import progress_bar


def core_count():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(function, count, workers=0, label=None):
    """Call `function(i)` for every i in range(count), in `workers` threads (0: one a core); the first error
    is raised.

    label: what the progress bar says; None shows none. Where nobody watches (a batch log) it writes every 30
    s at most.
    """
    workers = workers or core_count()
    chunk = max(
        1, min(64, count // (8 * workers))
    )  # calls a thread takes at once: the queue stays small beside the frames

    def work(start):
        stop = min(start + chunk, count)
        for i in range(start, stop):
            function(i)
        return stop - start

    bar = progress_bar(total=count, desc=label, disable=label is None)
    with bar, ThreadPoolExecutor(workers) as pool:
        for done in pool.map(work, range(0, count, chunk)):
            bar.update(done)
