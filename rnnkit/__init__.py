"""Drop-in recurrent, layer-norm and causal-convolution layers for PyTorch on fused kernels."""

from . import cells, dispatch, export, functional, init
from .conversion import convert, revert
from .dispatch import backend, explain
from .layers.cells import GRUCell, LSTMCell, RecurrentCell, RNNCell
from .layers.conv import CausalConv1d
from .layers.norm import LayerNorm
from .layers.options import NormOptions
from .layers.rnn import GRU, LSTM, RNN, Recurrent
from .layers.wavenet import WaveNet, WaveNetBlock
from .version import __version__

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "CausalConv1d",
    "GRUCell",
    "LSTMCell",
    "LayerNorm",
    "NormOptions",
    "RNNCell",
    "Recurrent",
    "RecurrentCell",
    "WaveNet",
    "WaveNetBlock",
    "__version__",
    "backend",
    "cells",
    "convert",
    "dispatch",
    "explain",
    "export",
    "functional",
    "init",
    "revert",
]
