"""A notebook as a Kaggle kernel: made self-contained, pushed, watched, and its outputs fetched.

    python kaggle/push.py 02_train --check        say whether its metadata and parameters are right
    python kaggle/push.py 02_train --build DIR    write the kernel, and to DIR/inputs/ the dataset to attach
    python kaggle/push.py 02_train -p dataset_root me/film    push it, wait for its end, fetch what it wrote

The exit code is 0 only if all went well, for a push: if the kernel ran to its end (docs/commands.md lists the
others). kaggle/README.md tells the whole way.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kernel_build import INPUTS, build_inputs, make_kernel
from kernel_metadata import PLACEHOLDER

from mtld_core.config import RunGivenUp, UserError, can_write, check
from mtld_core.runs.folder import REPORT, read_report
from mtld_core.runtime import command, reaching

CLIENT = "'kaggle>=2.2'"
PATIENCE = 10  # looks in a row that may fail, after which the watch ends


def push(notebook, parameters, owner, out, poll_seconds):
    """Push a kernel, wait for its end and fetch its outputs into `out`.

    Raises UserError unless it completed, RunGivenUp where the run in it gave up.
    """
    check(0 < poll_seconds < 86400, f"--poll-seconds must be above 0, a day at most, not {poll_seconds}")
    api = _client()
    kernel = make_kernel(notebook, parameters, owner or api.config_values["username"])
    name, out = kernel.metadata["id"], Path(out or f"runs/kaggle_{kernel.name}")
    with can_write(out, "name another --out"):  # said before hours of work
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, reaching("pushing failed", CLIENT):
        kernel.write(Path(folder))
        answer = api.kernels_push(folder)
    _check_answer(answer, name)
    print(f"{name} version {answer.version_number}: {answer.url}", flush=True)
    status, why = _watch(api, name, poll_seconds)
    with reaching("fetching the outputs failed", CLIENT):
        files, _ = api.kernels_output(name, str(out), force=True)
    print(f"{len(files)} files in {out}")
    # the runs in these files, and not what an earlier push left
    runs = sorted(Path(file).parent for file in files if Path(file).name == REPORT)
    given_up = [reason for run in runs if (reason := _why_given_up(run, kernel.run_dir))]
    if given_up:
        raise RunGivenUp(given_up[-1])
    if status != "COMPLETE":
        reason = f": {why}" if why else ""
        raise UserError(f"{name} ended with status {status}{reason}; its log is in {out}")


def _why_given_up(run, run_dir):
    """Say how a run of the outputs ended; why, if it is the kernel's own run and was given up, else ""."""
    with reaching(f"reading {run / REPORT} failed", CLIENT):
        report = read_report(run)
        print(f"{run}: {report['status']} at step {report['step']} ({report['reason']})")
        if report.get("given_up") and _is_own(run, run_dir):
            return f"{run_dir or run}: {report['reason']}"
    return ""


def _is_own(folder, run_dir):
    """Whether a folder of the outputs is the kernel's own run: run_dir, or "" for a dated one in runs/."""
    if run_dir:
        return folder.name == Path(run_dir).name
    return folder.parent.name == "runs"


def _client():
    """Kaggle's own client, signed in."""
    said = io.StringIO()  # it explains on the page what is one line here
    with contextlib.redirect_stdout(said), reaching("Kaggle", CLIENT):
        from kaggle.api.kaggle_api_extended import KaggleApi

        api = KaggleApi()
        api.authenticate()
        return api


def _check_answer(answer, name):
    if answer.error:
        raise UserError(f"Kaggle refused {name}: {answer.error}")
    refused = {
        *answer.invalid_dataset_sources,
        *answer.invalid_competition_sources,
        *answer.invalid_model_sources,
    }
    # before its first version a kernel cannot be its own input
    refused |= {*answer.invalid_kernel_sources} - {name}
    if refused:
        raise UserError(
            f"Kaggle has no {', '.join(sorted(refused))}, so version {answer.version_number} runs without: "
            f"cancel it at {answer.url}, upload what is missing, push again"
        )


def _watch(api, name, poll_seconds):
    """(status, why it failed) at the kernel's end."""
    seen, failures = None, 0
    while seen not in ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED"):
        time.sleep(poll_seconds)
        try:
            with reaching("asking for the status failed", CLIENT):
                answer = api.kernels_status(name)
        except UserError as error:
            failures += 1
            if failures == PATIENCE:
                raise UserError(
                    f"{error}; the kernel may still run: later, `kaggle kernels output {name}` fetches it"
                ) from None
            continue
        failures = 0
        if answer.status.name != seen:
            seen = answer.status.name
            print(f"{time.strftime('%H:%M:%S')} {seen.lower()}", flush=True)
    return seen, answer.failure_message or ""


@command
def main():
    parser = argparse.ArgumentParser(
        description="A notebook as a Kaggle kernel: check, build, or push, watch and fetch."
    )
    parser.add_argument(
        "notebook", help="02_train, notebooks/02_train.ipynb, or a folder with a kernel-metadata.json"
    )
    todo = parser.add_mutually_exclusive_group()
    todo.add_argument(
        "--build", metavar="DIR", help="write the kernel and the dataset to attach; contacts no Kaggle"
    )
    todo.add_argument("--check", action="store_true", help="only say whether all is right")
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        dest="parameters",
        help="a parameter of the notebook, as for papermill",
    )
    parser.add_argument(
        "--owner", default=os.environ.get("KAGGLE_USERNAME", ""), help="your name on Kaggle; a push knows it"
    )
    parser.add_argument("--out", help="where a push puts the outputs; default: runs/kaggle_<notebook>")
    parser.add_argument(
        "--poll-seconds", type=float, default=30, help="between two looks at a running kernel"
    )
    args = parser.parse_args()
    if not (args.build or args.check):
        return push(args.notebook, args.parameters, args.owner, args.out, args.poll_seconds)
    kernel = make_kernel(args.notebook, args.parameters, args.owner)
    if args.build:
        folder = Path(args.build)
        kernel.write(folder)
        build_inputs(folder / "inputs" / INPUTS, args.owner)
        print(
            f"{folder / kernel.metadata['code_file']}; upload {folder / 'inputs' / INPUTS} as a dataset, once"
        )
        if not args.owner:
            print(f"{PLACEHOLDER} stands for your name in the .json files; --owner NAME fills it in")
    print(f"{kernel.name} is right: {len(kernel.text)} bytes")


if __name__ == "__main__":
    sys.exit(main())
