"""A GPU's memory: the errors that say that it is full, what can be given back, and copies to the host."""

import gc

import torch

# what cuBLAS and cuDNN say, and the driver, where torch's own allocator holds all that there is
FULL = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine",
    "CUDA error: out of memory",
)


def is_full(error):
    """Whether an exception says that a GPU's memory is full."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in FULL)


def peak_share(device):
    """The most that torch has held on a GPU since it was asked last, as a share of its memory; 0 of a CPU."""
    if device.type == "cpu":
        return 0.0
    most = torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return most / torch.cuda.get_device_properties(device).total_memory


def on_its_way(tensor):
    """Begin to copy a tensor to the host -> a function that waits for this copy alone, and returns it.

    What the GPU is given to do after it does not delay it. A tensor on a CPU is there already.
    """
    if tensor.device.type == "cpu":
        return lambda: tensor
    pinned = tensor.to("cpu", non_blocking=True)
    sent = torch.cuda.Event()
    sent.record(torch.cuda.current_stream(tensor.device))

    def arrived():
        sent.synchronize()
        return pinned.clone()  # so that the pinned memory, of which there is little, is free again

    return arrived


def collect():
    """Free what nothing uses any more. A run's networks and graphs go in circles, and so hold memory."""
    gc.collect()
    give_back()


def give_back():
    """Return to the driver what torch holds and nothing uses. Call it where no traceback holds tensors."""
    torch.cuda.empty_cache()
