"""convert and revert: the same parameters in other layers, and nothing else changed."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from layer_variants import assert_same, close, leaves, randn, run
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkit

T, B, I, H = 5, 3, 4, 6  # noqa: E741
# Of every class, and of each argument that a class takes, a layer and the shape of its input.
STEPS, STEP = (T, B, I), (B, I)
LAYERS = {
    "rnn": (nn.RNN, {}, STEPS),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}, STEPS),
    "lstm": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}, STEPS),
    "lstm projected": (nn.LSTM, {"proj_size": 2, "bias": False}, STEPS),
    "lstm dropout": (nn.LSTM, {"dropout": 0.5}, STEPS),
    "gru": (nn.GRU, {"num_layers": 2, "batch_first": True}, STEPS),
    "gru no bias": (nn.GRU, {"bias": False}, STEPS),
    "rnn cell": (nn.RNNCell, {"nonlinearity": "relu"}, STEP),
    "lstm cell": (nn.LSTMCell, {}, STEP),
    "gru cell": (nn.GRUCell, {"bias": False}, STEP),
    "norm": (nn.LayerNorm, {}, STEPS),
    "norm no bias": (nn.LayerNorm, {"bias": False, "eps": 1e-3}, STEPS),
    "norm plain": (nn.LayerNorm, {"elementwise_affine": False}, STEPS),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name, **more):
    kind, options, _ = LAYERS[name]
    given = {"dtype": torch.double} | options | more
    return kind(I, **given) if kind is nn.LayerNorm else warned(kind, I, H, **given)


def warned(kind, *args, **given):
    """torch.nn warns of dropout in a single layer, once, when the layer is made."""
    if given.get("dropout") and given.get("num_layers", 1) == 1:
        with pytest.warns(UserWarning, match="dropout"):
            return kind(*args, **given)
    return kind(*args, **given)


def call(module, x):
    return module(x)


def same_parameters(a, b):
    """Whether both have the very same parameters under the same names, in the same order."""
    pairs = zip(a.named_parameters(), b.named_parameters(), strict=True)
    return all(left[0] == right[0] and left[1] is right[1] for left, right in pairs)


class Model(nn.Module):
    """Layers in every kind of container, one of them used twice, and two with a tied weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.LSTM(I, H)
        self.blocks = nn.ModuleList(nn.ModuleDict({"rnn": nn.GRU(H, H)}) for _ in range(2))
        self.again = self.blocks[1]["rnn"]
        self.blocks[0]["rnn"].weight_hh_l0 = self.again.weight_hh_l0
        self.head = nn.Sequential(nn.LayerNorm(H), nn.Dropout(0.1), nn.Linear(H, I))

    def forward(self, x):
        x, _ = self.first(x)
        for block in self.blocks:
            x, _ = block["rnn"](x)
        x, _ = self.again(x)
        return self.head(x)


NAMES = ["first", "blocks.0.rnn", "blocks.1.rnn", "again", "head.0"]


@pytest.mark.parametrize("training", [True, False])
@every_layer
def test_there_and_back(name, training):
    theirs = make(name).train(training)
    before, text = dict(vars(theirs)), repr(theirs)
    ours = rnnkit.convert(theirs)
    assert type(ours) is getattr(rnnkit, type(theirs).__name__)
    assert repr(ours) == text and ours.training is training
    assert same_parameters(ours, theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    back = rnnkit.revert(ours)
    assert type(back) is type(theirs) and back is not theirs
    assert repr(back) == text and back.training is training
    assert same_parameters(back, theirs)
    # All that a layer knows of itself, but its references to its weights.
    assert vars(back).keys() == before.keys()
    for key, value in before.items():
        if "_flat_weight" not in key and key != "_parameters":
            assert vars(back)[key] == value, key
    if isinstance(back, nn.RNNBase):
        pairs = zip(back._flat_weights, theirs._flat_weights, strict=True)
        assert all(a is b for a, b in pairs)
        assert not back._weights_have_changed()


@every_layer
def test_same_results(name):
    theirs = make(name).eval()
    ours = rnnkit.convert(theirs)
    tensors = {"x": randn(*LAYERS[name][2])}
    expected = run(theirs, call, tensors)
    assert_same(run(ours, call, tensors, "default"), expected)
    assert_same(run(rnnkit.revert(ours), call, tensors), expected, 0.0, 0.0)


def test_model():
    torch.manual_seed(0)
    model = Model().double().eval()
    tensors, text, keys = {"x": randn(T, B, I)}, repr(model), list(model.state_dict())
    untouched = copy.deepcopy(model)
    expected = run(untouched, call, tensors)
    converted, report = rnnkit.convert(model, return_report=True)
    assert converted is model
    assert list(report.swapped) == NAMES and not report.kept
    assert type(model.first) is rnnkit.LSTM and type(model.head[0]) is rnnkit.LayerNorm
    assert model.again is model.blocks[1]["rnn"] and type(model.again) is rnnkit.GRU
    assert model.blocks[0]["rnn"].weight_hh_l0 is model.again.weight_hh_l0
    assert repr(model) == text and list(model.state_dict()) == keys
    assert_same(run(model, call, tensors, "default"), expected)
    reverted, report = rnnkit.revert(model, return_report=True)
    assert reverted is model and list(report.swapped) == NAMES and not report.kept
    assert not any(type(m).__module__.startswith("rnnkit") for m in model.modules())
    assert model.again is model.blocks[1]["rnn"]
    assert_same(run(model, call, tensors), expected, 0.0, 0.0)


def test_an_optimizer_made_before_trains_on():
    """Momentum included: three steps, converted after the first and reverted after the second."""
    torch.manual_seed(0)
    model = Model().double().eval()
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.Adam(m.parameters(), 0.1) for m in (model, twin)]
    for swap in (rnnkit.convert, rnnkit.revert, rnnkit.convert):
        for module, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            module(randn(T, B, I)).square().sum().backward()
            optimizer.step()
        assert swap(model) is model
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        close(a.detach(), b.detach(), 1e-10, name)


def test_frozen_parameters_and_gradients_stay():
    model = Model()
    model.first.weight_hh_l0.requires_grad_(False)
    model(torch.randn(T, B, I)).sum().backward()
    gradient = model.first.weight_ih_l0.grad
    rnnkit.convert(model)
    assert not model.first.weight_hh_l0.requires_grad
    assert gradient is not None and model.first.weight_ih_l0.grad is gradient


def test_what_users_set_stays():
    lstm = nn.LSTM(I, H)
    lstm.note = ["first"]
    lstm.batch_first = True
    lstm.register_buffer("seen", torch.zeros(1), persistent=False)
    lstm.register_parameter("extra", nn.Parameter(torch.zeros(2)))
    lstm.probe = nn.Identity()
    for layer in (rnnkit.convert(lstm), rnnkit.revert(rnnkit.convert(lstm))):
        assert layer.note is lstm.note and layer.batch_first is True
        assert layer.seen is lstm.seen and layer.probe is lstm.probe
        assert same_parameters(layer, lstm)
        assert layer.state_dict().keys() == lstm.state_dict().keys()


def test_the_old_layer_still_works_alone():
    """What is registered with one is not registered with the other; their parameters are one."""
    old = nn.LSTM(I, H).double()
    new = rnnkit.convert(old)
    calls = []
    old.register_forward_hook(lambda *_: calls.append("old"))
    old.register_buffer("mine", torch.zeros(1))
    x = randn(T, B, I)
    close(new(x)[0], old(x)[0], 1e-12, "output")
    assert calls == ["old"] and not hasattr(new, "mine")


def test_twice_changes_nothing_more():
    model = rnnkit.convert(Model())
    layers = list(model.modules())
    again, report = rnnkit.convert(model, return_report=True)
    assert all(a is b for a, b in zip(again.modules(), layers, strict=True))
    assert not report.swapped and not report.kept
    _, report = rnnkit.revert(nn.Sequential(nn.GRU(I, H), nn.Linear(I, H)), return_report=True)
    assert not report.swapped and not report.kept


def test_draws_no_random_number():
    before = torch.random.get_rng_state()
    model = nn.Sequential(*(make(name) for name in LAYERS))
    torch.random.set_rng_state(before)
    rnnkit.revert(rnnkit.convert(model))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_warns_of_nothing(recwarn):
    layer = make("lstm dropout")
    recwarn.clear()
    assert rnnkit.revert(rnnkit.convert(layer)).dropout == 0.5
    assert not recwarn.list


def test_on_the_meta_device():
    with torch.device("meta"):
        model = rnnkit.convert(Model())
    assert {v.device.type for v in model.parameters()} == {"meta"}
    rnnkit.revert(model).to_empty(device="cpu")(torch.randn(T, B, I))


def test_moves_and_loads_as_before():
    model = Model()
    state = Model().state_dict()
    rnnkit.convert(model).double().load_state_dict(state)
    assert torch.equal(model.first.weight_ih_l0, state["first.weight_ih_l0"].double())
    rnnkit.revert(model).float()
    close(model.first.weight_ih_l0.detach(), state["first.weight_ih_l0"], 0.0, "weight")
    assert model(torch.randn(T, B, I)).dtype == torch.float32


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("swap", [rnnkit.convert, lambda m: rnnkit.revert(rnnkit.convert(m))])
def test_copies_and_files(swap, way):
    model, x = swap(Model().eval()), torch.randn(T, B, I)
    if way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, file := io.BytesIO())
        other = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    expected = model(x)
    assert other.first.weight_ih_l0 is not model.first.weight_ih_l0
    assert torch.equal(other(x), expected)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(other(x), expected)


def test_packed_sequences_and_flatten_parameters():
    theirs = nn.LSTM(I, H, batch_first=True, bidirectional=True).double()
    ours = rnnkit.convert(theirs)
    x = pack_padded_sequence(randn(B, T, I), torch.tensor([3, 5, 1]), True, enforce_sorted=False)
    results = []
    for lstm in (theirs, ours):
        lstm.flatten_parameters()
        output, state = lstm(x)
        results.append([output.data, *state])
    for a, b in zip(*results, strict=True):
        close(a, b, 1e-12, "result")


@every_layer
def test_attributes_that_code_reads(name):
    """Every public attribute of torch.nn's layers is there, but the checks of their forward, and
    the one private one that is read much."""
    theirs = make(name)
    ours = rnnkit.convert(theirs)
    checks = {
        "check_forward_args",
        "check_hidden_size",
        "check_input",
        "get_expected_cell_size",
        "get_expected_hidden_size",
        "permute_hidden",
    }
    names = {n for n in dir(theirs) if n == "_all_weights" or not n.startswith("_")}
    for n in names - checks:
        found, expected = getattr(ours, n), getattr(theirs, n)
        if isinstance(expected, torch.Tensor):
            assert found is expected, n
        elif not callable(expected) and n != "all_weights":
            assert found == expected, n
    if isinstance(theirs, nn.RNNBase):
        pairs = zip(leaves(ours.all_weights), leaves(theirs.all_weights), strict=True)
        assert all(a is b for a, b in pairs)


class Derived(nn.LSTM):
    pass


def parametrized(layer):
    parametrize.register_parametrization(layer, "weight_hh_l0", nn.Identity())


def old_weight_norm(layer):
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(layer, "weight_hh_l0")


def plain_tensor(layer):
    weight = layer.weight_hh_l0.detach()
    del layer.weight_hh_l0
    layer.weight_hh_l0 = weight


def other_shape(layer):
    layer.weight_hh_l0 = nn.Parameter(torch.zeros(1, 2))


class Special(nn.Parameter):
    pass


def special_parameter(layer):
    layer.weight_hh_l0 = Special(layer.weight_hh_l0.detach())


def hook(register):
    return lambda layer: getattr(layer, f"register_{register}_hook")(lambda *_: None)


# What may be done to a layer, and what the report says of it.
CHANGES = {
    "parametrization": (parametrized, "parametrized"),
    "weight_norm": (lambda m: parametrizations.weight_norm(m, "weight_hh_l0"), "parametrized"),
    "old weight_norm": (old_weight_norm, "_forward_pre_hooks"),
    "pruning": (lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5), "_forward_pre_hooks"),
    "forward hook": (hook("forward"), "_forward_hooks"),
    "forward pre-hook": (hook("forward_pre"), "_forward_pre_hooks"),
    "backward hook": (hook("full_backward"), "_backward_hooks"),
    "backward pre-hook": (hook("full_backward_pre"), "_backward_pre_hooks"),
    "state_dict hook": (hook("state_dict_post"), "_state_dict_hooks"),
    "state_dict pre-hook": (hook("state_dict_pre"), "_state_dict_pre_hooks"),
    "loading hook": (hook("load_state_dict_post"), "_load_state_dict_post_hooks"),
    "loading pre-hook": (hook("load_state_dict_pre"), "_load_state_dict_pre_hooks"),
    "its own forward": (lambda m: setattr(m, "forward", m.forward), "its own forward"),
    "compile": (lambda m: m.compile(), "its own _compiled_call_impl"),
    "plain tensor": (plain_tensor, "its own weight_hh_l0"),
    "other shape": (other_shape, "weight_hh_l0 is not a torch.nn.Parameter of shape (24, 6)"),
    "special parameter": (special_parameter, "weight_hh_l0 is not a torch.nn.Parameter"),
    "missing parameter": (lambda m: delattr(m, "weight_hh_l0"), "weight_hh_l0 is not"),
}


@pytest.mark.parametrize("library", [nn, rnnkit], ids=["convert", "revert"])
@pytest.mark.parametrize("change", CHANGES)
def test_left_alone(change, library):
    layer, plain = library.LSTM(I, H), library.LSTM(I, H)
    apply, reason = CHANGES[change]
    apply(layer)
    model = nn.Sequential(layer, plain)
    swap, other = (rnnkit.convert, rnnkit) if library is nn else (rnnkit.revert, nn)
    _, report = swap(model, return_report=True)
    assert model[0] is layer and type(model[1]) is other.LSTM
    assert list(report.swapped) == ["1"] and list(report.kept) == ["0"]
    assert reason in report.kept["0"], report
    assert swap(layer) is layer


def test_names_that_the_other_library_uses():
    """A counter called as one of our methods, say: it would stand in the method's way."""
    lstm = nn.LSTM(I, H)
    lstm.step = 3
    _, report = rnnkit.convert(lstm, return_report=True)
    assert report.kept == {"": "it was given its own step"}


def test_hooks_that_are_gone_do_not_matter():
    lstm = nn.LSTM(I, H)
    handles = [getattr(lstm, f"register_{kind}_hook")(lambda *_: None) for kind in
               ("forward", "forward_pre", "full_backward", "full_backward_pre")]  # fmt: skip
    for handle in handles:
        handle.remove()
    assert type(rnnkit.convert(lstm)) is rnnkit.LSTM


class Mine(rnnkit.LSTM):
    pass


def test_other_classes_are_named():
    quantized = torch.ao.nn.quantizable.LSTM(I, H)
    _, report = rnnkit.convert(nn.ModuleList([Derived(I, H), quantized]), return_report=True)
    assert not report.swapped
    assert report.kept["0"] == f"rnnkit has no {__name__}.Derived"
    assert report.kept["1"] == "rnnkit has no torch.ao.nn.quantizable.modules.rnn.LSTM"
    model = nn.ModuleList([Mine(I, H), rnnkit.CausalConv1d(I, H, 2), nn.Linear(I, H)])
    _, report = rnnkit.revert(model, return_report=True)
    assert not report.swapped
    assert report.kept["0"] == f"torch.nn has no {__name__}.Mine"
    assert report.kept["1"] == "torch.nn has no rnnkit.layers.conv.CausalConv1d"
    assert list(report.kept) == ["0", "1"]


# Every option that torch.nn lacks, and the words in which a revert declines it.
NORM = "layer_norm=True"
OPTIONS = [
    ("RNN", {"layer_norm": True}, NORM),
    ("LSTM", {"layer_norm": rnnkit.NormOptions(carry=True)}, "layer_norm=NormOptions(carry=True)"),
    ("LSTM", {"peephole": True}, "peephole=True"),
    ("GRU", {"reset_after": False}, "reset_after=False"),
    ("LSTM", {"zoneout": (0.1, 0.2)}, "zoneout=(0.1, 0.2)"),
    ("GRU", {"recurrent_dropout": 0.1}, "recurrent_dropout=0.1"),
    ("GRU", {"weight_dropout": 0.1}, "weight_dropout=0.1"),
    ("RNN", {"num_heads": 2}, "num_heads=2"),
    ("LSTM", {"forget_bias": 1.0}, "forget_bias=1.0"),
    ("LSTM", {"save_memory": 2}, "save_memory=2"),
    ("RNNCell", {"layer_norm": True}, NORM),
    ("LSTMCell", {"peephole": True, "num_heads": 3}, "peephole=True, num_heads=3"),
    ("GRUCell", {"reset_after": False, "zoneout": 0.1}, "reset_after=False, zoneout=0.1"),
]


@pytest.mark.parametrize(("name", "options", "words"), OPTIONS, ids=lambda v: str(v)[:40])
def test_options_that_torch_lacks(name, options, words):
    layer = getattr(rnnkit, name)(I, H, bias=name != "GRUCell", **options)
    found, report = rnnkit.revert(layer, return_report=True)
    assert found is layer and not report.swapped
    assert set(report.kept[""].removeprefix(f"torch.nn.{name} has no ").split(", ")) == set(
        words.split(", ")
    )


def test_every_option_is_declined():
    """No option of the signatures is missing above."""
    lists = [inspect.signature(c).parameters.values() for c in (rnnkit.LSTM, rnnkit.LSTMCell)]
    options = {p.name for ps in lists for p in ps if p.kind is p.KEYWORD_ONLY}
    assert options == {name for _, given, _ in OPTIONS for name in given}


def test_norm_with_activation_is_declined():
    _, report = rnnkit.revert(rnnkit.LayerNorm(I, activation="silu"), return_report=True)
    assert report.kept == {"": "torch.nn.LayerNorm has no activation='silu'"}


def test_report_prints():
    model = nn.Sequential(nn.GRU(I, H), Derived(I, H))
    _, report = rnnkit.convert(model, return_report=True)
    assert str(report).splitlines() == [
        "swapped: 1",
        "  0: GRU(4, 6)",
        "left alone: 1",
        f"  1: rnnkit has no {__name__}.Derived",
    ]
    _, report = rnnkit.convert(nn.GRU(I, H), return_report=True)
    assert "  (the model): GRU(4, 6)" in str(report)


@pytest.mark.parametrize("swap", [rnnkit.convert, rnnkit.revert])
def test_needs_a_module(swap):
    with pytest.raises(TypeError, match=r"model should be a torch\.nn\.Module, got: dict"):
        swap({})


def test_an_error_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.GRU(I, H), nn.LSTM(I, H))
    model[1].hidden_size = "many"
    with pytest.raises(TypeError):
        rnnkit.convert(model)
    assert type(model[0]) is nn.GRU


def test_compiled_models():
    """Layers inside a compiled model are swapped, and it is compiled anew; a layer that is itself
    compiled is left alone, since what was compiled of it is kept elsewhere."""
    x, model = randn(T, B, I), Model().double().eval()
    compiled = torch.compile(model, backend="eager")
    expected = compiled(x)
    _, report = rnnkit.convert(compiled, return_report=True)
    assert len(report.swapped) == 5 and type(model.first) is rnnkit.LSTM
    with rnnkit.backend("reference"):
        close(compiled(x), expected, 1e-12, "output")
    layer = torch.compile(nn.LSTM(I, H), backend="eager")
    assert rnnkit.convert(layer) is layer and type(layer._orig_mod) is nn.LSTM
    _, report = rnnkit.convert(nn.Sequential(layer), return_report=True)
    assert report.kept == {"0._orig_mod": "torch.compile holds it; swap it before"}


def test_a_converted_model_compiles_whole():
    model, x = rnnkit.convert(Model().double().eval()), randn(T, B, I)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    close(compiled(x), model(x), 1e-12, "output")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_layers_are_named():
    scripted = torch.jit.script(nn.Sequential(nn.LSTM(I, H)))
    _, report = rnnkit.convert(scripted, return_report=True)
    assert list(report.kept) == ["0"] and "RecursiveScriptModule" in report.kept["0"]


@pytest.fixture
def group(tmp_path):
    """A group of one process."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_distributed_data_parallel(group):
    """Its parameters are the layers', whoever holds them: it may be made before or after."""
    model, x = Model().double().eval(), randn(T, B, I)
    expected = run(copy.deepcopy(model), call, {"x": x})
    wrapped = nn.parallel.DistributedDataParallel(model)
    rnnkit.convert(wrapped)
    assert type(model.first) is rnnkit.LSTM
    output = wrapped(x)
    output.backward(randn(*output.shape, seed=50))
    close(output, expected[0][0], 1e-12, "output")
    for name, parameter in model.named_parameters():
        close(parameter.grad, expected[1][name], 1e-10, name)


def test_fully_sharded_layers_are_left_alone(group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(Model(), mesh=init_device_mesh("cpu", (1,)))
    _, report = rnnkit.convert(model, return_report=True)
    assert not report.swapped and list(report.kept) == NAMES


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("original", [True, False])
def test_first_generation_fsdp_is_left_alone(group, original):
    from torch.distributed.fsdp import FullyShardedDataParallel

    device = torch.device("cpu")
    model = FullyShardedDataParallel(Model(), device_id=device, use_orig_params=original)
    _, report = rnnkit.convert(model, return_report=True)
    assert not report.swapped and len(report.kept) == 5
    assert "FullyShardedDataParallel" in report.kept["_fsdp_wrapped_module.first"]
