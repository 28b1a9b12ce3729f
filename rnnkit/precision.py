"""How products are rounded."""

from __future__ import annotations

from typing import Any

import torch

AMD = torch.version.hip is not None


def precision_of(dtype: torch.dtype, layers: str = "rnn") -> str:
    """How float32 products are rounded, by the switch that torch.nn's layers ("rnn" or "conv")
    follow.
    """
    switches: Any = torch.backends
    # Each inherits from the next where it says none.
    order = (getattr(switches.cudnn, layers), switches.cudnn, switches)
    precision = next((s.fp32_precision for s in order if s.fp32_precision != "none"), "ieee")
    return "tf32" if dtype == torch.float32 and not AMD and precision == "tf32" else "ieee"
