"""How products are rounded."""

from __future__ import annotations

import torch

AMD = torch.version.hip is not None
switch = torch._C._get_fp32_precision_getter


def precision_of(dtype: torch.dtype, layers: str = "rnn") -> str:
    """How float32 products are rounded, by the switch that torch.nn's layers ("rnn" or "conv")
    follow.
    """
    if dtype != torch.float32 or AMD:
        return "ieee"
    # What torch.backends.cudnn.rnn.fp32_precision reads, which inherits where it says none: the
    # modules on the way there take the time of several operations.
    return "tf32" if switch("cuda", layers) == "tf32" else "ieee"
