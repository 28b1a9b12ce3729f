"""A bad argument of a layer raises; the message names it, what came and what was expected."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import rnnkit
from rnnkit import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

T, B, I, H = 4, 2, 3, 5  # noqa: E741
LAYERS, CELLS = (RNN, LSTM, GRU), (RNNCell, LSTMCell, GRUCell)
BOTH = LAYERS + CELLS
SINGLE, SINGLE_CELLS = (RNN, GRU), (RNNCell, GRUCell)
PAIR, PAIR_CELLS = (LSTM,), (LSTMCell,)
Type, Value, Runtime = TypeError, ValueError, RuntimeError


def zeros(*shape, **kwargs):
    return torch.zeros(*shape, **kwargs)


X, ROW, PACKED = zeros(T, B, I), zeros(T, I), pack_sequence([zeros(T, I), zeros(2, I)])
S, S_ROW = zeros(1, B, H), zeros(1, H)
LONG = torch.tensor([T, 1])


def refused(*args, on=X, **kwargs):
    """A call of a layer with these arguments after the input."""
    return lambda layer: layer(I, H)(on, *args, **kwargs)


def built(*args, **kwargs):
    """A construction with these arguments, or the sizes where none is given."""
    return lambda layer: layer(*(args or (I, H)), **kwargs)


# Name: layers, call, error, its message.
CONSTRUCTORS = {
    "input_size 0": (BOTH, built(0, H), Value, "input_size must be greater.*got 0"),
    "input_size -3": (BOTH, built(-3, H), Value, "input_size must be.*got -3"),
    "input_size float": (BOTH, built(3.0, H), Type, "input_size .*int, got: float"),
    "input_size None": (BOTH, built(None, H), Type, "input_size .*got: NoneType"),
    "hidden_size 0": (BOTH, built(I, 0), Value, "hidden_size must be.*got 0"),
    "hidden_size -1": (BOTH, built(I, -1), Value, "hidden_size must be.*got -1"),
    "hidden_size str": (BOTH, built(I, "5"), Type, "hidden_size .*int, got: str"),
    "hidden_size bool": (BOTH, built(I, True), Type, "hidden_size .*got: bool"),
    "num_layers 0": (LAYERS, built(I, H, 0), Value, "num_layers must be greater.*got 0"),
    "num_layers -1": (LAYERS, built(I, H, -1), Value, "num_layers must be greater.*got -1"),
    "num_layers float": (LAYERS, built(I, H, 2.0), Type, "num_layers .*int, got: float"),
    "bias 1": (LAYERS, built(bias=1), Type, "bias should be of type bool, got: int"),
    "batch_first str": (LAYERS, built(batch_first="no"), Type, "batch_first .*bool, got: str"),
    "bidirectional 2": (LAYERS, built(bidirectional=2), Type, "bidirectional .*got: int"),
    "dropout -0.1": (LAYERS, built(dropout=-0.1), Value, r"dropout .*\[0, 1\].*got -0.1"),
    "dropout 1.5": (LAYERS, built(dropout=1.5), Value, r"dropout .*\[0, 1\].*got 1.5"),
    "dropout nan": (LAYERS, built(dropout=float("nan")), Value, "dropout .*got nan"),
    "dropout str": (LAYERS, built(dropout="0.5"), Value, "dropout .*number.*got '0.5'"),
    "dropout None": (LAYERS, built(dropout=None), Value, "dropout .*number.*got None"),
    "dropout complex": (LAYERS, built(dropout=1j), Value, "dropout .*number.*got 1j"),
    "dropout True": (LAYERS, built(dropout=True), Value, "dropout .*number.*got True"),
    "proj_size = H": (PAIR, built(proj_size=H), Value, "proj_size.*smaller.*=5 and.*=5"),
    "proj_size > H": (PAIR, built(proj_size=9), Value, "proj_size.*smaller.*=9 and.*=5"),
    "proj_size -1": (PAIR, built(proj_size=-1), Value, "proj_size .*positive.*got -1"),
    "proj_size float": (PAIR, built(proj_size=2.0), Type, "proj_size .*int, got: float"),
    "proj_size str": (PAIR, built(proj_size="2"), Type, "proj_size .*int, got: str"),
    "proj_size": (SINGLE, built(proj_size=2), Value, "proj_size .*only supported for LSTM"),
    "nonlinearity": (
        (RNN, RNNCell),
        built(nonlinearity="gelu"),
        Value,
        "nonlinearity 'gelu'. Select from 'tanh' or 'relu'",
    ),
    "no nonlinearity": ((LSTM, GRU, LSTMCell, GRUCell), built(nonlinearity="tanh"), Type, "nonl"),
    "unknown option": (BOTH, built(depth=2), Type, "unexpected keyword argument 'depth'"),
    "option int": ((GRU, GRUCell), built(reset_after=0), Type, "reset_after .*bool, got: int"),
    "peephole": (
        (*SINGLE, *SINGLE_CELLS),
        built(peephole=True),
        Value,
        "(RNN|GRU).* not support peephole=True",
    ),
    "peephole 1": ((LSTM, LSTMCell), built(peephole=1), Type, "peephole .*bool, got: int"),
    "reset_after": (
        (LSTM, RNN, LSTMCell, RNNCell),
        built(reset_after=False),
        Value,
        "(LSTM|RNN).* not support reset_after=False",
    ),
    "integer dtype": (BOTH, built(dtype=torch.long), Runtime, "floating point"),
}
NAN = float("nan")
# A message of every option that there is a number for.
IN_01 = r"should be a number in range \[0, 1\), got"
OPTIONS = {
    "num_heads 2 of 5": (BOTH, built(num_heads=2), Value, "divide hidden_size.*=2 and.*=5"),
    "num_heads 0": (BOTH, built(num_heads=0), Value, "num_heads must be greater.*got 0"),
    "num_heads -1": (BOTH, built(num_heads=-1), Value, "num_heads must be greater.*got -1"),
    "num_heads float": (BOTH, built(num_heads=5.0), Type, "num_heads .*int, got: float"),
    "num_heads bool": (BOTH, built(num_heads=True), Type, "num_heads .*int, got: bool"),
    "num_heads proj": (
        PAIR,
        built(num_heads=5, proj_size=2),
        Value,
        "num_heads does not go with proj_size.*num_heads=5 and proj_size=2",
    ),
    "zoneout 1.0": (BOTH, built(zoneout=1.0), Value, f"zoneout {IN_01} 1.0"),
    "zoneout -0.1": (BOTH, built(zoneout=-0.1), Value, f"zoneout {IN_01} -0.1"),
    "zoneout nan": (BOTH, built(zoneout=NAN), Value, f"zoneout {IN_01} nan"),
    "zoneout str": (BOTH, built(zoneout="x"), Type, f"zoneout {IN_01}: 'x'"),
    "zoneout no str": (BOTH, built(zoneout=""), Type, f"zoneout {IN_01}: ''"),
    "zoneout True": (BOTH, built(zoneout=True), Type, f"zoneout {IN_01}: True"),
    "zoneout None": (BOTH, built(zoneout=None), Type, f"zoneout {IN_01}: None"),
    "zoneout tensor": (BOTH, built(zoneout=zeros(2)), Type, f"zoneout {IN_01}: tensor"),
    "zoneout ()": (BOTH, built(zoneout=()), Type, rf"zoneout {IN_01}: \(\)"),
    "zoneout second": ((LSTM, LSTMCell), built(zoneout=(0, 2)), Value, f"zoneout {IN_01} 2"),
    "zoneout pair": (
        (*SINGLE, *SINGLE_CELLS),
        built(zoneout=(0, 0.1)),
        Value,
        r"zoneout: expected at most 1 rates, one for each state, got \(0, 0.1\)",
    ),
    "zoneout three": (
        (LSTM, LSTMCell),
        built(zoneout=[0, 0, 0.1]),
        Value,
        r"zoneout: expected at most 2 rates, one for each state, got \[0, 0, 0.1\]",
    ),
    "zoneout proj": (
        PAIR,
        built(zoneout=(0.1, 0.2), proj_size=2),
        Value,
        r"zoneout of h does not go with proj_size.*zoneout=\(0.1, 0.2\) and proj_size=2",
    ),
    "recurrent_dropout 1.0": (
        LAYERS,
        built(recurrent_dropout=1.0),
        Value,
        f"recurrent_dropout {IN_01} 1.0",
    ),
    "recurrent_dropout str": (
        LAYERS,
        built(recurrent_dropout="0.5"),
        Type,
        f"recurrent_dropout {IN_01}: '0.5'",
    ),
    "recurrent_dropout proj": (
        PAIR,
        built(recurrent_dropout=0.5, proj_size=2),
        Value,
        "recurrent_dropout does not go with proj_size.*recurrent_dropout=0.5 and proj_size=2",
    ),
    "weight_dropout 1.0": (LAYERS, built(weight_dropout=1.0), Value, f"weight_dropout {IN_01} 1.0"),
    "weight_dropout -1": (LAYERS, built(weight_dropout=-1), Value, f"weight_dropout {IN_01} -1"),
    "weight_dropout True": (LAYERS, built(weight_dropout=True), Type, f"weight_.* {IN_01}: True"),
    "no dropout in a cell": (CELLS, built(recurrent_dropout=0.1), Type, "'recurrent_dropout'"),
    "forget_bias": (
        (RNN, GRU, RNNCell, GRUCell),
        built(forget_bias=1.0),
        Value,
        "forget_bias needs an LSTM with bias=True, got kind '(gru|rnn_tanh)' and bias=True",
    ),
    "forget_bias no bias": (
        (LSTM, LSTMCell),
        built(forget_bias=1.0, bias=False),
        Value,
        "forget_bias needs an LSTM with bias=True, got kind 'lstm' and bias=False",
    ),
    "forget_bias nan": (BOTH, built(forget_bias=NAN), Value, "forget_bias .*finite.*got nan"),
    "forget_bias str": (BOTH, built(forget_bias="1"), Type, "forget_bias .*finite.*got: '1'"),
    "forget_bias True": (BOTH, built(forget_bias=True), Type, "forget_bias .*finite.*got: True"),
    "layer_norm str": (BOTH, built(layer_norm="yes"), Type, "layer_norm .*NormOptions, got: str"),
    "layer_norm None": (BOTH, built(layer_norm=None), Type, "layer_norm .*got: NoneType"),
    "save_memory -1": (LAYERS, built(save_memory=-1), Value, "save_memory .*positive.*got -1"),
    "save_memory float": (LAYERS, built(save_memory=2.5), Type, "save_memory .*int, got: float"),
    "save_memory True": (LAYERS, built(save_memory=True), Type, "save_memory .*int, got: bool"),
    "save_memory None": (LAYERS, built(save_memory=None), Type, "save_memory .*got: NoneType"),
}
# The options of a norm are refused by themselves, or by the layer that has no such form.
NORMS = {
    "eps 0": (BOTH, {"eps": 0}, Value, "eps should be a number greater than 0, got 0"),
    "eps -1.0": (BOTH, {"eps": -1.0}, Value, "eps should be .* than 0, got -1.0"),
    "eps inf": (BOTH, {"eps": float("inf")}, Value, "eps should be .* than 0, got inf"),
    "eps nan": (BOTH, {"eps": NAN}, Value, "eps should be .* than 0, got nan"),
    "eps str": (BOTH, {"eps": "1"}, Type, "eps should be .* than 0, got: '1'"),
    "eps True": (BOTH, {"eps": True}, Type, "eps should be .* than 0, got: True"),
    "per_gate 1": (BOTH, {"per_gate": 1}, Type, "per_gate should be of type bool, got: int"),
    "carry None": (BOTH, {"carry": None}, Type, "carry should be of type bool, got: NoneType"),
    "norm bias str": (BOTH, {"bias": "no"}, Type, "bias should be of type bool, got: str"),
    "per_gate": ((RNN, RNNCell), {"per_gate": True}, Value, "RNN.* not support .*per_gate=True"),
    "carry": (
        (*SINGLE, *SINGLE_CELLS),
        {"carry": True, "eps": 0.1},
        Value,
        "(RNN|GRU).* not support layer_norm=NormOptions.*carry=True",
    ),
}


def normed(options):
    return lambda layer: layer(I, H, layer_norm=rnnkit.NormOptions(**options))


OPTIONS |= {name: (on, normed(options), *rest) for name, (on, options, *rest) in NORMS.items()}
CALLS = {
    "input list": (LAYERS, refused(on=[1.0]), Type, "input should be a Tensor.*got.*list"),
    "input None": (BOTH, refused(on=None), Type, "input should be a.*got.*NoneType"),
    "input 1-D": (LAYERS, refused(on=zeros(I)), Value, "input to be 2D or 3D, got 1D"),
    "input 4-D": (LAYERS, refused(on=zeros(1, 1, 1, I)), Value, "input to be 2D or 3D, got 4D"),
    "input wide": (LAYERS, refused(on=zeros(T, B, 7)), Runtime, "input.*Expected 3, got 7"),
    "input narrow": (LAYERS, refused(on=zeros(T, 1)), Runtime, "input.*Expected 3, got 1"),
    "input double": (BOTH, refused(on=zeros(B, I).double()), Value, "input dtype .*64"),
    "input long": (BOTH, refused(on=zeros(B, I).long()), Value, "input dtype .*int64"),
    "input device": (
        BOTH,
        refused(on=zeros(B, I, device="meta")),
        Value,
        r"input device \(meta\) does not match weight device \(cpu\)",
    ),
    "packed wide": (
        LAYERS,
        refused(on=pack_sequence([zeros(T, 7)])),
        Runtime,
        "input.*Expected 3, got 7",
    ),
    "cell states": (
        SINGLE,
        refused(return_cell_states=True),
        Value,
        "return_cell_states: (RNN|GRU) has no cell state",
    ),
    "packed 1-D": (LAYERS, refused(on=pack_sequence([zeros(T)])), Runtime, "2 dim.*got 1"),
    "cell input 3-D": (CELLS, refused(on=X), Value, "input to be 1D or 2D, got 3D"),
    "cell input wide": (CELLS, refused(on=zeros(B, 7)), Runtime, "input.*got 7 expected 3"),
}


def cell_hx(*values, on=None):
    """The same for a cell, whose input is one step."""
    return refused(values if len(values) > 1 else values[0], on=zeros(B, I) if on is None else on)


STATES = {
    "hx tensor": (PAIR, refused(S), Runtime, "hx: LSTM expects a tuple of 2.*got Tensor"),
    "hx of Nones": (PAIR, refused((None, None)), Runtime, "hx: .*2 Tensors.*NoneType, None"),
    "hx of three": (PAIR, refused((S, S, S)), Runtime, "hx: .*2 Tensors.*Tensor, Tensor, T"),
    "hx pair": (SINGLE, refused((S, S)), Runtime, "hx: .*expects a Tensor, got tuple of"),
    "hx int": (SINGLE, refused(3), Runtime, "hx: .*expects a Tensor, got int"),
    "hx rows": (SINGLE, refused(zeros(2, B, H)), Runtime, r"\(1, 2, 5\), got \[2, 2, 5\]"),
    "hx batch": (SINGLE, refused(zeros(1, 9, H)), Runtime, r"\(1, 2, 5\), got \[1, 9, 5\]"),
    "hx size": (SINGLE, refused(zeros(1, B, 9)), Runtime, r"\(1, 2, 5\), got \[1, 2, 9\]"),
    "h size": (PAIR, refused((S[..., 1:], S)), Runtime, r"hidden\[0\].*5\), got \[1, 2, 4\]"),
    "c size": (PAIR, refused((S, S[..., 1:])), Runtime, r"hidden\[1\].*5\), got \[1, 2, 4\]"),
    "hx 2-D": (SINGLE, refused(S_ROW), Runtime, "batched 3-D input, hx .*3-D but got 2-D"),
    "hx 3-D": (SINGLE, refused(S, on=ROW), Runtime, "unbatched 2-D.*2-D but got 3-D"),
    "cx 2-D": (PAIR, refused((S, S_ROW)), Runtime, r"hx and cx .*got \(3-D, 2-D\) tensors"),
    "hx packed": (SINGLE, refused(S_ROW, on=PACKED), Runtime, r"2, 5\), got \[1, 5\]"),
    "hx double": (SINGLE, refused(S.double()), Value, "hx dtype .*float64.*input dtype"),
    "cx double": (PAIR, refused((S, S.double())), Value, "hx dtype .*float64.*input dtype"),
    "hx device": (SINGLE, refused(S.to("meta")), Value, r"hx device \(meta\).*\(cpu\)"),
    "cell hx int": (SINGLE_CELLS, cell_hx(3), Runtime, "hx: .*expects a Tensor, got int"),
    "cell hx one": (PAIR_CELLS, cell_hx(S[0]), Runtime, "hx: .*2 Tensors, got Tensor"),
    "cell hx 3-D": (SINGLE_CELLS, cell_hx(S), Value, "hidden to be 1D or 2D, got 3D"),
    "cell hx 1-D": (SINGLE_CELLS, cell_hx(zeros(H)), Runtime, "hidden to be 2D.*got 1D"),
    "cell hx batch": (SINGLE_CELLS, cell_hx(zeros(9, H)), Runtime, "size 2 .*hidden0.*size 9"),
    "cell hx size": (SINGLE_CELLS, cell_hx(zeros(B, 9)), Runtime, "hidden0 .*got 9, expected 5"),
    "cell cx size": (PAIR_CELLS, cell_hx(S[0], zeros(B, 9)), Runtime, "hidden1 .*got 9.*5"),
    "cell hx double": (SINGLE_CELLS, cell_hx(S[0].double()), Value, "hx dtype .*float64"),
}
RAGGED = {
    "lengths > T": (refused(lengths=LONG + 1), Value, r"lengths: .*\[0, T = 4\], got 2 to 5"),
    "lengths < 0": (refused(lengths=LONG - 2), Value, r"lengths: .*\[0, T = 4\], got -1 to 2"),
    "lengths float": (refused(lengths=LONG.float()), Type, "lengths: .*integer.*float32"),
    "lengths bool": (refused(lengths=LONG > 1), Type, "lengths: .*integer.*torch.bool"),
    "lengths complex": (refused(lengths=LONG * 1j), Type, "lengths: .*integer.*complex"),
    "lengths list": (refused(lengths=[4, 1]), Type, "lengths: expected a Tensor, got list"),
    "lengths rows": (refused(lengths=LONG[:1]), Value, r"lengths: .*\(2,\), got \(1,\)"),
    "lengths 2-D": (refused(lengths=LONG[None]), Value, r"lengths: .*\(2,\), got \(1, 2\)"),
    "lengths row": (refused(lengths=LONG, on=ROW), Value, r"lengths: .*\(\), got \(2,\)"),
    "lengths packed": (refused(lengths=LONG, on=PACKED), Value, "lengths: .*PackedSequence"),
    "resets long": (
        refused(resets=zeros(T, B).long()),
        Type,
        "resets: .*bool, got torch.int64",
    ),
    "resets list": (refused(resets=[True]), Type, "resets: .*torch.bool, got list"),
    "resets (B, T)": (
        refused(resets=zeros(B, T) > 0),
        Value,
        r"resets: .*4, 2\), got \(2, 4\)",
    ),
    "resets (T,)": (refused(resets=zeros(T) > 0), Value, r"resets: .*\(4, 2\), got \(4,\)"),
    "resets row": (refused(resets=zeros(T, 1) > 0, on=ROW), Value, r"\(4,\), got \(4, 1\)"),
    "resets packed": (
        refused(resets=zeros(T, B) > 0, on=PACKED),
        Value,
        "resets: .*PackedSeq",
    ),
}


def rows():
    table = CONSTRUCTORS | OPTIONS | CALLS | STATES
    table |= {name: (LAYERS, *row) for name, row in RAGGED.items()}
    for name, (layers, *rest) in table.items():
        for layer in layers:
            yield pytest.param(layer, *rest, id=f"{layer.__name__}-{name}")


@pytest.mark.filterwarnings("ignore:dropout option")
@pytest.mark.parametrize(("layer", "call", "error", "message"), list(rows()))
def test_refused(layer, call, error, message):
    with pytest.raises(error, match=message):
        call(layer)


def test_batch_first_shapes_are_named():
    layer = LSTM(I, H, batch_first=True)
    with pytest.raises(ValueError, match=r"resets: expected shape \(4, 2\), got \(2, 4\)"):
        layer(X, resets=zeros(B, T) > 0)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 4, 5\)"):
        layer(X, (S, S))


def test_good_arguments_pass():
    """The table's own constants are valid: each row fails for its own fault."""
    for layer in LAYERS:
        hx, hx_row = ((S, S), (S_ROW, S_ROW)) if layer is LSTM else (S, S_ROW)
        layer(I, H)(X, hx, lengths=LONG, resets=zeros(T, B) > 0)
        layer(I, H)(ROW, hx_row, lengths=LONG[1], resets=zeros(T) > 0)
        layer(I, H)(PACKED, hx)
    for layer in BOTH:
        layer(I, H, num_heads=5, layer_norm=rnnkit.NormOptions(eps=0.1), zoneout=[0.1])
    LSTM(I, H, proj_size=2, zoneout=(0, 0.1), forget_bias=0, weight_dropout=0, save_memory=0)
    for cell in CELLS:
        cell(I, H)(zeros(B, I), (S[0], S[0]) if cell is LSTMCell else S[0])


def test_missing_parameters_of_a_cell():
    weights = [rnnkit.functional.Weights(zeros(4 * H, I), zeros(4 * H, H))]
    with pytest.raises(ValueError, match=r"weights\[0\].own: .* has 1 \(weight_ph"):
        rnnkit.functional.recurrent(X, None, weights, "lstm_peephole")


def test_unknown_cell():
    weights = [rnnkit.functional.Weights(zeros(H, I), zeros(H, H))]
    with pytest.raises(ValueError, match=r"unknown cell 'lstn': expected one of .*lstm"):
        rnnkit.functional.recurrent(X, None, weights, "lstn")
