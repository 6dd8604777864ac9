"""A stranger's exported network is looked at before it runs: it may hold the operators of our exports alone.

A SavedModel is a program: its operators could read and write files. One that stays within the lists below
computes numbers and does nothing else; how long it takes is not known before.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from effdet_tf.errors import UserError
from effdet_tf.files.limits import allow

_AGAIN = "nothing of it was run; export it again with `python -m export.main`"
# What exports of every preset and option hold; then what layers of Keras, in a backbone of one's own, add.
_OPERATORS = set(
    """
    Abs AddV2 All Any AsString BatchMatMulV2 BiasAdd Cast Ceil ConcatV2 ConcatenateDataset Const Conv2D
    DatasetToSingleElement DecodeJpeg DecodePng DecodeRaw DepthwiseConv2dNative EnsureShape Equal Exp
    ExpandDims ExtractJpegShape Fill Floor FloorDiv FloorMod FusedBatchNormV3 GatherV2 Greater
    GreaterEqual Identity IdentityN If IgnoreErrorsDataset Less LessEqual LogicalAnd LogicalNot
    LogicalOr MapDataset MatMul Max MaxPool Maximum Mean Min Minimum Mul Neg NoOp NonMaxSuppressionV5
    OnesLike Pack Pad PadV2 PartitionedCall Placeholder Prod Range ReadVariableOp RealDiv Relu Relu6
    Reshape ResizeBilinear Round ScaleAndTranslate SelectV2 Shape Sigmoid Size Sqrt Square Squeeze
    StatefulPartitionedCall StatelessIf StatelessWhile StridedSlice StringJoin StringLength Sub Substr
    Sum TakeDataset TensorDataset TensorListFromTensor TensorListGetItem TensorListReserve
    TensorListSetItem TensorListStack TensorScatterUpdate Tile TopKV2 Transpose VarHandleOp Where While
    ZerosLike

    Add AddN ArgMax AvgPool BatchToSpaceND BroadcastTo ClipByValue Conv3D DepthToSpace DisableCopyOnRead
    Einsum Elu Erf Erfc FusedBatchNorm FusedBatchNormV2 GatherNd LeakyRelu Log Log1p LogSoftmax
    MirrorPad NotEqual Pow ResizeBicubic ResizeNearestNeighbor Rsqrt Select Selu Sign Slice Softmax
    Softplus Softsign SpaceToBatchND SpaceToDepth Split SplitV SquaredDifference StopGradient Tanh
    Unpack
    """.split()
)
# Saving and restoring, in functions of these names alone, which nothing that runs may call.
_SAVING = ("__inference__traced_save", "__inference__traced_restore")
_SAVING_OPERATORS = _OPERATORS | set(
    """
    AssignVariableOp MergeV2Checkpoints RestoreV2 SaveV2 ShardedFilename StaticRegexFullMatch
    """.split()
)
_OBJECTS = {"user_object", "function", "bare_concrete_function", "variable", "constant"}
_LITE_OPERATORS = set(
    """
    ADD BATCH_MATMUL CAST CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE DIV EXP FILL FLOOR
    FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GREATER GREATER_EQUAL LESS LOGICAL_AND LOGISTIC MAXIMUM
    MAX_POOL_2D MINIMUM MUL NEG NON_MAX_SUPPRESSION_V5 PACK PAD QUANTIZE RANGE REDUCE_MAX RELU RESHAPE
    ROUND SELECT SELECT_V2 SHAPE SLICE STRIDED_SLICE SUB SUM TILE TOPK_V2 WHILE

    ABS ADD_N ARG_MAX AVERAGE_POOL_2D BROADCAST_ARGS BROADCAST_TO CEIL DEPTH_TO_SPACE ELU EQUAL
    EXPAND_DIMS GELU HARD_SWISH IF LEAKY_RELU LESS_EQUAL LOG LOGICAL_NOT LOGICAL_OR LOG_SOFTMAX MEAN
    MIRROR_PAD NOT_EQUAL PADV2 POW PRELU REDUCE_ALL REDUCE_ANY REDUCE_MIN REDUCE_PROD RELU6 RELU_N1_TO_1
    RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SIGN SOFTMAX SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE
    SQUARED_DIFFERENCE SQUEEZE TANH TRANSPOSE TRANSPOSE_CONV UNPACK WHERE ZEROS_LIKE
    """.split()
)
_MANY = 2**24  # values of a constant above which they must be written out


def check_saved_model(folder: Path) -> Any:
    """Hold a SavedModel to the operators of our exports, by its file alone: nothing of it is loaded.

    Returns:
        What is in the file, as `SavedModel` of TensorFlow's protobufs.

    Raises:
        UserError: when it is damaged, or holds anything else.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "saved_model.pb"
    try:
        allow("bytes", path.stat().st_size, path)
        model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise UserError(f"{folder}: not a readable SavedModel ({error}); export it again") from None
    if len(model.meta_graphs) != 1:
        raise UserError(f"{folder}: holds {len(model.meta_graphs)} graphs, an export of ours one; {_AGAIN}")
    graph = model.meta_graphs[0]
    functions = {one.signature.name: one for one in graph.graph_def.library.function}
    saving = {name for name in functions if name.startswith(_SAVING)}
    for where, nodes in (("", graph.graph_def.node), *((k, one.node_def) for k, one in functions.items())):
        known = _SAVING_OPERATORS if where in saving else _OPERATORS
        for node in nodes:
            if node.op not in known:
                raise UserError(
                    f"{folder}: holds the operator {node.op}, which no export of ours has and which may do "
                    f"more than compute; {_AGAIN}"
                )
            if where and saving & set(_called(node)):
                raise UserError(f"{folder}: writes or reads files where it should compute; {_AGAIN}")
            _check_constant(node, folder)
    objects = graph.object_graph_def
    kinds = {node.WhichOneof("kind") for node in objects.nodes}
    stored = any(node.saveable_objects for node in objects.nodes)
    offered = {name for node in objects.nodes for name in node.function.concrete_functions}
    offered |= {node.bare_concrete_function.concrete_function_name for node in objects.nodes}
    if kinds - _OBJECTS or stored or saving & (offered | set(objects.concrete_functions)):
        raise UserError(f"{folder}: holds objects that no export of ours has; {_AGAIN}")
    return model


def _called(node: Any) -> Iterator[str]:
    """Names of the functions that a node may call."""
    for value in node.attr.values():
        yield from (one.name for one in (value.func, *value.list.func) if one.name)


def _check_constant(node: Any, folder: Path) -> None:
    if node.op == "Const":
        tensor, values = node.attr["value"].tensor, 1
        for side in tensor.tensor_shape.dim:
            values *= max(side.size, 0)
        if values > _MANY and len(tensor.tensor_content) < values:
            raise UserError(f"{folder}: holds a constant of {values:,} values in a few bytes; {_AGAIN}")


def check_tflite(path: Path, data: bytes) -> None:
    """Hold a TFLite file to its own structure and to the operators of our exports, before it is run.

    Args:
        path: of the file, for messages.
        data: of the file.

    Raises:
        UserError: when a part lies outside the file, or it holds another operator.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)  # reads all of it; what lies outside raises
        operators = [_lite_name(code, schema) for code in model.operatorCodes]
        _check_places(model, len(operators))
    except UserError:
        raise
    except Exception as error:  # whatever Python makes of wrong offsets
        raise UserError(f"{path}: is damaged ({type(error).__name__}: {error}); copy it again") from error
    foreign = sorted(set(operators) - _LITE_OPERATORS)
    if foreign:
        raise UserError(f"{path}: holds the operator {foreign[0]}, which no export of ours has; {_AGAIN}")


def _lite_name(code: Any, schema: Any) -> str:
    number = max(code.builtinCode, code.deprecatedBuiltinCode)  # the older field holds small ones alone
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    return "CUSTOM" if code.customCode else names.get(number, str(number))


def _check_places(model: Any, operators: int) -> None:
    """Raise a ValueError for the number of a tensor, buffer, operator or graph that is not there."""

    def within(numbers: Any, end: int, lowest: int = 0) -> None:
        found = [] if numbers is None else [int(number) for number in numbers]
        if found and not (min(found) >= lowest and max(found) < end):
            raise ValueError(f"a number from {min(found)} to {max(found)} of {end}")

    for graph in model.subgraphs:
        tensors = graph.tensors or []
        within([tensor.buffer for tensor in tensors], len(model.buffers))
        within(graph.inputs, len(tensors))
        within(graph.outputs, len(tensors))
        for tensor in tensors:
            within(tensor.shape, _MANY * 64)
        for operator in graph.operators or []:
            within([operator.opcodeIndex], operators)
            within(operator.inputs, len(tensors), -1)  # -1: left out
            within(operator.outputs, len(tensors))
            within(operator.intermediates, len(tensors))
            options = operator.builtinOptions
            calls = [getattr(options, key, None) for key in ("condSubgraphIndex", "bodySubgraphIndex")]
            calls += [getattr(options, key, None) for key in ("thenSubgraphIndex", "elseSubgraphIndex")]
            within([number for number in calls if number is not None], len(model.subgraphs))
    for signature in model.signatureDefs or []:
        within([signature.subgraphIndex], len(model.subgraphs))
        tensors = model.subgraphs[signature.subgraphIndex].tensors or []
        for place in [*(signature.inputs or []), *(signature.outputs or [])]:
            within([place.tensorIndex], len(tensors))
