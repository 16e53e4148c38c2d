"""How torch's libraries for a GPU compute: how exactly, and by which of their kernels."""

import contextlib
import os

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
SAME_AGAIN = ":4096:8"  # with which cuBLAS promises the same result again


def chosen(device, config, system):
    """What a training by a `TrainConfig` asks of them, a dict for `set_to` and report.json.

    The precision "fp32" is meant exactly, everything else lets products of fp32 numbers be taken in TF32.
    Where all steps of the system compute on tensors of the same shapes, cuDNN may try which of its kernels is
    the fastest.
    """
    on_gpu = device.type == "cuda"
    return {
        "tf32": on_gpu and config.precision != "fp32",
        "cudnn_benchmark": on_gpu and system.steps_are_alike and not config.deterministic,
        "deterministic": config.deterministic,
    }


@contextlib.contextmanager
def without_trials():
    """Inside cuDNN tries no kernels: each shape that is seen once would cost time and memory."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def set_to(device, tf32, cudnn_benchmark, deterministic):
    """Inside they compute so, and afterwards as before: a notebook goes on. A CPU computes as it does."""
    cudnn = torch.backends.cudnn
    matmul = torch.get_float32_matmul_precision()
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(WORKSPACE)
    flags = contextlib.nullcontext()
    if device.type == "cuda":
        flags = cudnn.flags(cudnn.enabled, cudnn_benchmark, deterministic=deterministic, allow_tf32=tf32)
    try:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
        if deterministic:
            os.environ.setdefault(WORKSPACE, SAME_AGAIN)  # read when cuBLAS is first used
            torch.use_deterministic_algorithms(True, warn_only=True)
        with flags:
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        if workspace is None:
            os.environ.pop(WORKSPACE, None)
