"""The cells: equations in torch, one registration each."""

from . import gru, lstm, rnn
from .cell import CELLS, Cell, Inner, Parameter, find, register

__all__ = ["CELLS", "Cell", "Inner", "Parameter", "find", "gru", "lstm", "register", "rnn"]
