"""Join two TFLite models into one: the outputs of the first feed the inputs of the second."""

from __future__ import annotations

from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

_OPTIONAL = -1  # in place of a tensor that an operator does without


def merge(first: bytes, second: bytes) -> bytes:
    """Join two models with one signature each.

    Args:
        first: runs first; each of its outputs feeds the second's input of that name.
        second: its other inputs become inputs of the whole.

    Returns:
        A model with one signature, under the second's key: the inputs of the first and the other ones of
        the second, and the outputs of the second.

    Raises:
        ValueError: when an output of the first has no input to feed, or one of another shape or type.
    """
    head, tail = _read(first), _read(second)
    (before,), (after,) = head.signatureDefs, tail.signatureDefs
    main, added = head.subgraphs[0], tail.subgraphs[0]
    fed = _fed(before, after, main, added)

    buffers = len(head.buffers) - 1  # buffer 0 of either is the empty one
    codes = len(head.operatorCodes)
    graphs = len(head.subgraphs) - 1  # the second's main subgraph becomes a part of the first's
    head.buffers += tail.buffers[1:]
    head.operatorCodes += tail.operatorCodes

    for graph in tail.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer += buffers if tensor.buffer else 0
        for operator in graph.operators:
            operator.opcodeIndex += codes
            _renumber_subgraphs(operator, graphs)

    place = {}
    for index, tensor in enumerate(added.tensors):
        if index in fed:
            place[index] = fed[index]
        else:
            place[index] = len(main.tensors)
            main.tensors.append(tensor)
    for operator in added.operators:
        for field in ("inputs", "outputs", "intermediates"):
            setattr(operator, field, _placed(getattr(operator, field), place))
    main.operators += added.operators
    new = [entry for entry in after.inputs if entry.tensorIndex not in fed]
    for entry in (*new, *after.outputs):
        entry.tensorIndex = place[entry.tensorIndex]
    main.inputs = np.array([*main.inputs, *(entry.tensorIndex for entry in new)], np.int32)
    main.outputs = _placed(added.outputs, place)
    head.subgraphs += tail.subgraphs[1:]
    before.inputs += new
    before.outputs, before.signatureKey = after.outputs, after.signatureKey
    return bytes(flatbuffer_utils.convert_object_to_bytearray(head))


def custom_operators(model: bytes) -> list[str]:
    """Names of a model's operators that are no TFLite builtins, Flex operators included."""
    custom = schema.BuiltinOperator.CUSTOM
    return sorted(
        {
            (code.customCode or b"?").decode()
            for code in _read(model).operatorCodes
            if code.builtinCode == custom or code.customCode
        }
    )


def _read(model: bytes) -> Any:
    return flatbuffer_utils.convert_bytearray_to_object(bytearray(model))


def _fed(before: Any, after: Any, main: Any, added: Any) -> dict[int, int]:
    """Tensor of the second model -> tensor of the first that takes its place."""
    wanted = {entry.name: entry.tensorIndex for entry in after.inputs}
    fed = {}
    for entry in before.outputs:
        name = entry.name.decode()
        if entry.name not in wanted:
            raise ValueError(f"the first model's output {name} is no input of the second")
        ours, theirs = main.tensors[entry.tensorIndex], added.tensors[wanted[entry.name]]
        if list(ours.shape) != list(theirs.shape) or ours.type != theirs.type:
            shapes = f"{list(ours.shape)} and {list(theirs.shape)}, types {ours.type} and {theirs.type}"
            raise ValueError(f"{name} differs between the two models: shapes {shapes}")
        fed[wanted[entry.name]] = entry.tensorIndex
    return fed


def _placed(indices: Any, place: dict[int, int]) -> Any:
    """Tensor indices in the joined subgraph."""
    if indices is None:
        return None
    return np.array([_OPTIONAL if i == _OPTIONAL else place[i] for i in indices], np.int32)


def _renumber_subgraphs(operator: Any, shift: int) -> None:
    """Move the subgraphs that loops, branches and calls refer to, whatever their options are called."""
    for options in (operator.builtinOptions, operator.builtinOptions2):
        for name, value in vars(options).items() if options is not None else ():
            if "subgraph" in name.lower() and value is not None:
                moved = value + shift if isinstance(value, int) else [index + shift for index in value]
                setattr(options, name, moved)
