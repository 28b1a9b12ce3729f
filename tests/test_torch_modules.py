"""torch's own database of modules, run on our recurrent layers: results, gradients, errors."""

import re

import pytest
import torch
from layer_variants import ON, assert_same, leaves, run
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import rnnkit

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
INFOS = {i.module_cls.__name__: i for i in module_db if i.module_cls.__module__.endswith(".rnn")}


def ask(function, info, dtype, training, requires_grad=False):
    return function(info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training)


def samples():
    for name in NAMES:
        for training in (True, False):
            torch.manual_seed(0)
            info = INFOS[name]
            entries = ask(info.module_inputs_func, info, torch.double, training, True)
            for k, entry in enumerate(entries):
                mode = "train" if training else "eval"
                yield pytest.param(name, entry, training, id=f"{name}-{k}-{mode}")


def test_every_family_has_samples():
    assert set(NAMES) == set(INFOS)
    assert {param.values[0] for param in samples()} == set(NAMES)


def call(entry):
    """The entry's call as a function of its differentiable tensors."""
    flat = {f"given{k}": v for k, v in enumerate(leaves(entry.forward_input.args))}

    def rebuild(value, left):
        if isinstance(value, PackedSequence):
            return PackedSequence(left.pop(0), *value[1:])
        if isinstance(value, torch.Tensor):
            return left.pop(0)
        return tuple(rebuild(part, left) for part in value)

    def function(module, **given):
        args = rebuild(entry.forward_input.args, list(given.values()))
        return module(*args, **entry.forward_input.kwargs)

    return function, flat


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(("name", "entry", "training"), list(samples()))
def test_equals_torch(name, entry, training, on):
    made = entry.constructor_input
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(*made.args, **made.kwargs, dtype=torch.double)
    ours = getattr(rnnkit, name)(*made.args, **made.kwargs, dtype=torch.double)
    ours.load_state_dict(theirs.state_dict())
    function, tensors = call(entry)
    expected = run(theirs.train(training), function, tensors)
    assert_same(run(ours.train(training), function, tensors, on), expected, 1e-9, 1e-9)


def errors():
    for name in NAMES:
        for training in (True, False):
            info = INFOS[name]
            entries = ask(info.module_error_inputs_func, info, torch.float, training)
            for k, entry in enumerate(entries):
                mode = "train" if training else "eval"
                yield pytest.param(name, entry, training, id=f"{name}-{k}-{mode}")


@pytest.mark.parametrize(("name", "entry", "training"), list(errors()))
def test_errors_as_torch(name, entry, training):
    made = entry.module_error_input.constructor_input

    def construct():
        return getattr(rnnkit, name)(*made.args, **made.kwargs)

    if entry.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(entry.error_type, match=entry.error_regex):
            construct()
        return
    module, given = construct().train(training), entry.module_error_input.forward_input
    with pytest.raises(entry.error_type) as caught:
        module(*given.args, **given.kwargs)
    assert re.search(entry.error_regex, str(caught.value))
