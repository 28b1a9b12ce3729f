"""Swaps the layers of a model: torch.nn's for rnnkit's, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from .layers.cells import GRUCell, LSTMCell, RNNCell
from .layers.norm import LayerNorm
from .layers.rnn import GRU, LSTM, RNN

Kind = type[nn.Module]
LAYER = ("input_size", "hidden_size", "num_layers", "bias", "bidirectional")
CELL = ("input_size", "hidden_size", "bias")
# The arguments that say which parameters a layer has; its other attributes are carried over.
ARGUMENTS: dict[Kind, tuple[str, ...]] = {
    RNN: (*LAYER, "nonlinearity"),
    LSTM: (*LAYER, "proj_size"),
    GRU: LAYER,
    RNNCell: (*CELL, "nonlinearity"),
    LSTMCell: CELL,
    GRUCell: CELL,
    LayerNorm: ("normalized_shape", "elementwise_affine"),
}
OURS = {kind.__name__: kind for kind in ARGUMENTS}
THEIRS = {name: getattr(nn, name) for name in OURS}
# What every module has: its dictionaries, mostly.
COMMON = frozenset(vars(nn.Module()))


class Target(NamedTuple):
    """The library that layers go to, and its class for each class of the other."""

    library: str
    kinds: dict[Kind, Kind]


TO_RNNKIT = Target("rnnkit", {THEIRS[name]: OURS[name] for name in OURS})
TO_TORCH = Target("torch.nn", {OURS[name]: THEIRS[name] for name in OURS})


@dataclass(frozen=True)
class Report:
    """What became of a model's layers, by their names in it; the model itself is "".

    swapped: the repr of each layer that was swapped.
    kept: of each that was left alone, why.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = []
        for title, entries in (("swapped", self.swapped), ("left alone", self.kept)):
            lines.append(f"{title}: {len(entries)}")
            lines += [f"  {name or '(the model)'}: {text}" for name, text in entries.items()]
        return "\n".join(lines)


def convert(model: nn.Module, return_report: bool = False) -> Any:
    """Swaps the torch.nn layers of a model for rnnkit's, which compute the same.

    These are RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell and LayerNorm. A new layer holds the very
    Parameters and buffers of the old one, so that optimizers, tied weights and gradients stay as
    they are, and whatever else was set on it; a layer used in several places stays one. A layer is
    left alone where something would be lost: a subclass, a parametrized layer, one with hooks or
    with something in a method's place, one whose parameters are no plain ones (a DTensor, say), and
    what torch.compile or FSDP hold on to.

    Args:
        model: any module. It is changed in place, unless it is itself such a layer: then the new
            layer is returned, and the old one still works.
        return_report: whether to return, beside the model, a Report of what was swapped and what
            was not, and why. It prints well.

    Returns the model, or the model and the report.

    Raises TypeError unless the model is a torch.nn.Module.
    """
    return swap(model, TO_RNNKIT, is_torch, return_report)


def revert(model: nn.Module, return_report: bool = False) -> Any:
    """Swaps the rnnkit layers of a model for torch.nn's, as `convert` does the other way.

    What torch.nn lacks is left alone, and the report names the option or the class.
    """
    return swap(model, TO_TORCH, is_rnnkit, return_report)


def swap(
    model: nn.Module, to: Target, concerned: Callable[[nn.Module], bool], return_report: bool
) -> Any:
    """Makes all new layers before it puts one in place: an error leaves the model as it was."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, got: {type(model).__name__}")
    report = Report()
    made: dict[nn.Module, nn.Module | str] = {}
    places: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not concerned(module):
            continue
        held = why_held(name)
        if held is None and module not in made:
            made[module] = counterpart(module, to)
        found = held or made[module]
        if isinstance(found, str):
            report.kept[name] = found
        else:
            report.swapped[name], places[name] = repr(module), found
    for new in places.values():
        if isinstance(new, nn.RNNBase):
            new._init_flat_weights()  # its list of them, made before it got these
    for name, new in places.items():
        if name:
            model.set_submodule(name, new)
    model = places.get("", model)
    return (model, report) if return_report else model


def is_rnnkit(module: nn.Module) -> bool:
    """Whether a module's class is one of ours, or derived from one."""
    return any(kind.__module__.startswith("rnnkit.") for kind in type(module).__mro__)


def is_torch(module: nn.Module) -> bool:
    """Whether a module's class is one of torch.nn's layers, derived from one, or named like one, as
    those of quantized and scripted layers are.
    """
    scripted = isinstance(module, torch.jit.ScriptModule)
    name = module.original_name if scripted else type(module).__name__
    return (isinstance(module, tuple(THEIRS.values())) or name in THEIRS) and not is_rnnkit(module)


def why_held(name: str) -> str | None:
    """Why a module of that name cannot be put aside: one around it keeps it elsewhere, too."""
    parts = name.split(".")
    if parts[-1] == "_orig_mod":
        return "torch.compile holds it; swap it before"
    if "_fsdp_wrapped_module" in parts:
        return "FullyShardedDataParallel holds its parameters; swap it before"
    return None


def counterpart(module: nn.Module, to: Target) -> nn.Module | str:
    """A layer of the other library with all that the module has, or why there is none."""
    kind = type(module)
    if parametrize.is_parametrized(module):
        return "it is parametrized"
    if kind not in to.kinds:
        return f"{to.library} has no {kind.__module__}.{kind.__qualname__}"
    hooks = [name for name, value in vars(module).items() if name.endswith("_hooks") and value]
    if hooks:
        return f"it has {', '.join(hooks)}"
    plain, new = empty(kind, module), empty(to.kinds[kind], module)
    added = [name for name in vars(module) if name not in vars(plain)]
    taken = [name for name in added if hasattr(plain, name) or hasattr(new, name)]
    if taken:
        return f"it was given its own {', '.join(taken)}"
    fill(new, module, plain)
    # What differs from torch.nn's defaults shows in the repr of either library.
    more = module.extra_repr().removeprefix(new.extra_repr()).removeprefix(", ")
    if more:
        return f"{to.library}.{kind.__name__} has no {more}"
    for name, expected in plain._parameters.items():
        found = module._parameters.get(name)
        if expected is None and found is not None:
            return f"{name} is not None"
        if expected is not None and not is_plain(found, expected.shape):
            return f"{name} is not a torch.nn.Parameter of shape {tuple(expected.shape)}"
    return new


def is_plain(value: Any, shape: torch.Size) -> bool:
    """Whether it is a parameter of that shape, and no DTensor or quantized or lazy one."""
    return type(value) is nn.Parameter and value.shape == shape


def empty(kind: Kind, like: Any) -> nn.Module:
    """A layer of a class with parameters as those of a layer of either library, without memory."""
    name = kind.__name__
    arguments = {argument: getattr(like, argument) for argument in ARGUMENTS[OURS[name]]}
    if name == "LayerNorm":
        arguments["bias"] = like.bias is not None
    return kind(**arguments, device="meta")


def fill(new: nn.Module, module: nn.Module, plain: nn.Module) -> None:
    """Gives a new layer all that the module has; plain: the module as it was when it was made."""
    for name, value in vars(module).items():
        # Not what only a layer of this library has of itself, such as torch.nn's list of weights.
        if (name in vars(new)) == (name in vars(plain)):
            vars(new)[name] = copy.copy(value) if name in COMMON else value
