"""Several processes give what one gives, under DistributedDataParallel and FSDP2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from layer_variants import PLAIN, VARIANTS, close, randn
from processes import SECONDS, run
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkit
from rnnkit.cpu.library import why_no_kernels

B, T, I, H = 4, 5, 4, 6  # noqa: E741
Scenario = Callable[[], dict[str, Tensor]]


def together() -> bool:
    """Whether this is one of several processes, not the one that says what is right."""
    return dist.is_initialized()


def mean(value: Tensor) -> Tensor:
    """The mean over the processes."""
    if together():
        dist.all_reduce(value)
    return value / (dist.get_world_size() if together() else 1)


class Packed(nn.Module):
    """A layer that gets a PackedSequence."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(I, I, dtype=torch.double)
        self.layer = rnnkit.LSTM(I, H, dtype=torch.double)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        lengths = lengths.clamp(1)
        packed = pack_padded_sequence(self.linear(x), lengths, True, enforce_sorted=False)
        return pad_packed_sequence(self.layer(packed)[0], True, total_length=T)[0]


def every_layer() -> dict[str, nn.Module]:
    """Every kind of layer by name, each with the same weights in every process."""
    two = {"num_layers": 2, "batch_first": True, "bidirectional": True}
    variants = [v for v in VARIANTS if not v.minor]
    found = {v.cell: v.layer(I, H, **two) for v in variants}
    found |= {f"one {v.cell}": v.one(I, H) for v in variants}
    on: Any = {"dtype": torch.double}
    torch.manual_seed(0)
    return found | {
        "projected": rnnkit.LSTM(I, H, proj_size=3, **two, **on),
        "heads": rnnkit.GRU(I, H, num_heads=2, **two, **on),
        "no bias": rnnkit.LSTM(I, H, bias=False, **two, **on),
        "save_memory": rnnkit.LSTM(I, H, save_memory=2, peephole=True, **two, **on),
        "packed": Packed(),
        "LayerNorm": rnnkit.LayerNorm(I, activation="silu", **on),
        "CausalConv1d": rnnkit.CausalConv1d(
            I, H, 3, dilation=2, activation="gated", channels_last=True, **on
        ),
        "WaveNet": rnnkit.WaveNet(
            I, I, H, layers=3, blocks=2, local_channels=I, global_channels=I, **on
        ),
    }


class Everything(nn.Module):
    """Every layer on the same rows: x (B, T, I), lengths (B) and resets (B, T)."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        layers = every_layer()
        self.layers = nn.ModuleDict({name: layers[name] for name in names or layers})

    def forward(self, x: Tensor, lengths: Tensor, resets: Tensor) -> list[Tensor]:
        return [self.output(layer, x, lengths, resets) for layer in self.layers.values()]

    def output(self, layer: nn.Module, x: Tensor, lengths: Tensor, resets: Tensor) -> Tensor:
        if isinstance(layer, rnnkit.Recurrent):
            return layer(x, lengths=lengths, resets=resets)[0]
        if isinstance(layer, rnnkit.RecurrentCell):
            state = layer(x[:, 1], layer(x[:, 0]))
            return torch.stack(state if isinstance(state, tuple) else (state,), 1)
        if isinstance(layer, rnnkit.WaveNet):
            return layer(x.mT, local_condition=x.mT, global_condition=x[:, 0])
        return layer(x, lengths) if isinstance(layer, Packed) else layer(x)


def rows(first: int = 0, last: int = B) -> list[Tensor]:
    """These rows of the batch; among several processes, this one's share of them."""
    batch = randn(B, T, I), torch.tensor([5, 2, 0, 4]), randn(B, T, seed=2) > 0.8
    if together():
        share = (last - first) // dist.get_world_size()
        first += share * dist.get_rank()
        last = first + share
    return [v[first:last] for v in batch]


def losses(outputs: list[Tensor], count: int = B) -> Tensor:
    """Of each layer, so that the mean over processes is that over `count` rows."""
    count //= dist.get_world_size() if together() else 1
    return torch.stack([v.square().sum() / count for v in outputs])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}


def ddp(model: nn.Module, **options: Any) -> Any:
    return DistributedDataParallel(model, **options) if together() else model


def trained_once(*names: str, **options: Any) -> dict[str, Tensor]:
    """Twice, since DDP lays its buckets anew after the first time."""
    model = ddp(Everything(*names), **options)
    for _ in range(2):
        model.zero_grad()
        losses(model(*rows())).sum().backward()
    return gradients(model)


def accumulated(synchronised: bool) -> dict[str, Tensor]:
    """Gradients that add up over two halves of the rows."""
    model = ddp(Everything(), gradient_as_bucket_view=True)
    quiet = nullcontext if synchronised or not together() else model.no_sync
    for _ in range(2):
        model.zero_grad()
        with quiet():
            losses(model(*rows(0, B // 2))).sum().backward()
        losses(model(*rows(B // 2, B))).sum().backward()
    return gradients(model)


def without_rows() -> dict[str, Tensor]:
    """A process may come away empty-handed; torch has no PackedSequence of nothing, though."""
    names = [name for name in every_layer() if name != "packed"]
    model = ddp(Everything(*names))
    batch = rows(0, 2 * B)
    losses(model(*batch)).sum().backward()
    return gradients(model)


def compiled(*names: str) -> dict[str, Tensor]:
    """In a graph for each of many buckets, where torch makes the first as small as the others."""
    model = ddp(Everything(*names), bucket_cap_mb=1e-3)
    if together():
        model = torch.compile(model, backend="aot_eager")
    with mock.patch.object(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 0):
        losses(model(*rows())).sum().backward()
    found = gradients(model)
    return {name.removeprefix("_orig_mod.module."): v for name, v in found.items()}


def sharded(
    parts: Callable[[nn.Module], list[nn.Module]], *names: str, compiled: bool = False
) -> dict[str, Tensor]:
    """The losses of a short training, and the parameters that it ends with."""
    model = Everything(*names)
    if together():
        for part in (*parts(model), model):
            fully_shard(part, reshard_after_forward=True)
        if compiled:
            model.compile(backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    curves = []
    for _ in range(2):
        optimizer.zero_grad()
        found = losses(model(*rows()))
        found.sum().backward()
        optimizer.step()
        curves.append(mean(found.detach()))
    named = dict(zip(model.layers, torch.stack(curves).unbind(1), strict=True))
    options = StateDictOptions(full_state_dict=True)
    return named | get_model_state_dict(model, options=options)


def layers(model: nn.Module) -> list[nn.Module]:
    return [*model.layers.children()]


def owners(model: nn.Module) -> list[nn.Module]:
    """Every module that has parameters of its own, innermost first."""
    return [m for m in reversed([*model.modules()]) if [*m.parameters(recurse=False)]]


def streamed() -> dict[str, Tensor]:
    """Methods beside forward, on parameters that lie about in shards."""
    found, x = {}, randn(T, B, I)
    for variant in PLAIN:
        layer = variant.layer(I, H, 2)
        cell = variant.one(I, H)
        if together():
            fully_shard(layer, reshard_after_forward=True)
            fully_shard(cell, reshard_after_forward=True)
        for grad in (False, True):
            state = hx = None
            with torch.set_grad_enabled(grad):
                for x_t in x:
                    output, state = layer.step(x_t, state)
                    hx = cell(x_t, hx)
            found[f"{variant.cell}, grad {grad}"] = output.detach()
            last = hx[0] if isinstance(hx, tuple) else hx
            found[f"one {variant.cell}, grad {grad}"] = last.detach()
    return found


def generated() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = rnnkit.WaveNet(I, I, H, layers=3, blocks=1, dtype=torch.double)
    context = randn(B, I, 3)
    if together():
        fully_shard(model, reshard_after_forward=True)
        with pytest.raises(RuntimeError, match="DTensor"):
            model.generate(context, 4)
        register_fsdp_forward_method(model, "generate")
    return {"values": model.generate(context, 4)}


def in_bfloat16() -> dict[str, Tensor]:
    """FSDP's mixed precision is the layer in that precision."""
    torch.manual_seed(0)
    layer, x = rnnkit.LSTM(I, H, layer_norm=True), randn(T, B, I, dtype=torch.bfloat16)
    if together():
        fully_shard(layer, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    else:
        layer = layer.bfloat16()
    output, (h, _) = layer(x)
    assert output.dtype == torch.bfloat16
    return {"output": output.detach(), "h": h.detach()}


def initialised() -> dict[str, Tensor]:
    """Forget biases that are written when the parameters are in shards already."""
    found = {}
    for kind in (rnnkit.LSTM, rnnkit.LSTMCell):
        layer = kind(I, H, forget_bias=2.0, device="meta")
        if together():
            fully_shard(layer)
        layer.to_empty(device="cpu")
        for fill in (kind.reset_parameters, rnnkit.init.keras_):
            fill(layer)
            bias = next(v for name, v in layer.named_parameters() if name.startswith("bias_ih"))
            whole = bias.full_tensor() if together() else bias
            found[f"{kind.__name__}, {fill.__name__}"] = whole.detach()[H : 2 * H]
    return found


SCENARIOS: dict[str, Scenario] = {
    "DDP": trained_once,
    "DDP, views of buckets": partial(trained_once, gradient_as_bucket_view=True),
    "DDP, small buckets": partial(trained_once, bucket_cap_mb=1e-3),
    "DDP, static graph": partial(trained_once, static_graph=True),
    "DDP, unused parameters sought": partial(trained_once, find_unused_parameters=True),
    "DDP, accumulated": partial(accumulated, synchronised=False),
    "DDP, accumulated and synchronised": partial(accumulated, synchronised=True),
    "DDP, a process without rows": without_rows,
    "FSDP2 of layers": partial(sharded, layers),
    "FSDP2 of every module": partial(sharded, owners),
    "FSDP2, step": streamed,
    "FSDP2, generate": generated,
    "FSDP2, mixed precision": in_bfloat16,
    "FSDP2, initial values": initialised,
}
# What takes long, in a run of its own.
FEW = ("gru_norm", "LayerNorm", "CausalConv1d")
SLOW = {
    "DDP, compiled": partial(compiled, *FEW),
    "FSDP2, compiled": partial(sharded, layers, *FEW, compiled=True),
}


def play(scenarios: dict[str, Scenario], path: Path) -> None:
    """All scenarios, in one of the processes."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=SECONDS / 2))
    found = {name: scenario() for name, scenario in scenarios.items()}
    if dist.get_rank() == 0:
        torch.save(found, path)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("scenarios")
    printed = run(play, folder, 2, SCENARIOS, folder / "found.pt")
    # A gradient that comes in other strides than its parameter's costs DDP a copy.
    assert "strides" not in printed
    return torch.load(folder / "found.pt")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        close(found[key], value, 1e-10, key)


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_give_what_one_gives(name: str, played: Any) -> None:
    assert_same(played[name], SCENARIOS[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_so_do_they_where_it_takes_long(name: str, tmp_path: Path) -> None:
    run(play, tmp_path, 2, {name: SLOW[name]}, tmp_path / "found.pt")
    assert_same(torch.load(tmp_path / "found.pt")[name], SLOW[name]())


@pytest.fixture
def shards() -> Iterator[Callable[[Tensor], DTensor]]:
    """Makes a tensor one of those that have no memory of their own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    yield lambda value: distribute_tensor(value, mesh)
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["hx", "resets", "lengths", "bias_hh_l0", "weight_hh_l0"])
def test_shards_are_refused(name: str, shards: Any) -> None:
    """The address of their memory is 0, as it is of what is not given at all."""
    layer = rnnkit.GRU(I, H)
    given: dict[str, Any] = {}
    if name == "hx":
        given[name] = shards(torch.ones(1, B, H))
    elif name == "resets":
        given[name] = shards(torch.ones(T, B, dtype=torch.bool))
    elif name == "lengths":
        given[name] = shards(torch.ones(B, dtype=torch.long))
    else:
        setattr(layer, name, nn.Parameter(shards(torch.ones_like(getattr(layer, name)))))
    with pytest.raises((TypeError, RuntimeError), match="DTensor"):
        layer(torch.randn(T, B, I), **given)


@pytest.mark.skipif(
    why_no_kernels("lstm", torch.float32) is not None, reason="rnnkit's own kernels are not here"
)
def test_freed_weights_are_refused() -> None:
    """As FSDP frees them, which must be told of backward."""
    layer = rnnkit.LSTM(I, H)
    output, _ = layer(torch.randn(T, B, I, requires_grad=True))
    layer.weight_hh_l0.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match="got a Parameter"):
        output.sum().backward()
