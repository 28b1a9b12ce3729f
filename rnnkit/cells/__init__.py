"""The cells: equations in torch, one registration each."""

from . import gru, lstm, rnn
from .cell import CELLS, Cell, Inner, Norm, Parameter, find, normed, register

__all__ = [
    "CELLS",
    "Cell",
    "Inner",
    "Norm",
    "Parameter",
    "find",
    "gru",
    "lstm",
    "normed",
    "register",
    "rnn",
]
