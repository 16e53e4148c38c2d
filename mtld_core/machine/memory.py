"""A GPU whose memory is full: the errors that say so, and what can be given back."""

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


def give_back():
    """Return to the driver what torch holds and nothing uses. Call it where no traceback holds tensors."""
    torch.cuda.empty_cache()
