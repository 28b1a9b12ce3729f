"""The layers of a functional model, if they form a chain."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from .weights import refuse


class Link(NamedTuple):
    """A layer of a chain, the tensor that it takes, and its mask."""

    layer: Any
    input: Any
    mask: Any


def chain(model: Any) -> list[Any]:
    """The layers from a model's only input to its only output; ValueError if it is no chain."""
    for name in ("inputs", "outputs"):
        if len(getattr(model, name)) != 1:
            refuse(model, f"expected one of its {name}, got {len(getattr(model, name))}")
    links: list[Link] = []
    tensor = model.outputs[0]
    while not node_of(tensor).is_input:
        links.insert(0, link(model, node_of(tensor)))
        tensor = links[0].input
    check_masks(model, links)
    return [layer for layer, _, _ in links]


def node_of(tensor: Any) -> Any:
    """The call of a layer or an operation that gave a tensor."""
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]


def link(model: Any, node: Any) -> Link:
    """A call as part of a chain; ValueError unless it is of one tensor and gives one."""
    inputs, options = node.arguments.args, dict(node.arguments.kwargs)
    mask = options.pop("mask", None)
    given = [name for name, value in options.items() if value is not None and value is not False]
    one = len(inputs) == 1 and isinstance(inputs[0], keras.KerasTensor)
    if not one or given or len(node.outputs) != 1:
        taken = ", ".join([f"{len(node.input_tensors)} tensors", *given])
        refuse(
            node.operation,
            f"in {model.name!r} it is called with {taken} and gives {len(node.outputs)}; "
            "expected a chain of layers, each called with one tensor only",
        )
    return Link(node.operation, inputs[0], mask)


def check_masks(model: Any, links: list[Link]) -> None:
    """ValueError unless each mask is the one that Keras hands from layer to layer by itself."""
    made: tuple[Any, ...] = ()
    for layer, input, mask in links:
        if mask is not None and compared(mask) != made:
            refuse(layer, f"in {model.name!r} it is called with a mask of another origin")
        if type(layer) is keras.layers.Masking:
            made = (id(input), layer.mask_value)
        elif type(layer) is keras.layers.Embedding and layer.mask_zero:
            made = (id(input), 0)
        elif not layer.supports_masking:
            made = ()


def compared(mask: Any) -> tuple[Any, ...]:
    """Which tensor a mask compares with which value, as Masking and Embedding do."""
    node = node_of(mask)
    if type(node.operation).__name__ == "Any":
        node = node_of(node.arguments.args[0])
    if type(node.operation).__name__ != "NotEqual":
        return (None,)
    tensor, value = node.arguments.args
    return (id(tensor), value)
