"""What lies beside the SavedModels: settings for TensorFlow Serving, and how to ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from effdet_tf.config import Config
from effdet_tf.files import atomic_write
from export.saved_model import MAX_PIXELS

BATCHING_FILE, SERVING_FILE = "batching_parameters.txt", "SERVING.md"
NAME = "cells"
_GRPC_LIMIT = 4 * 2**20  # bytes, what a gRPC client receives unless told otherwise

_BATCHING = """\
# BatchingParameters of TensorFlow Serving, for CPUs: --enable_batching --batching_parameters_file=THIS
#
# The graph takes the images of a batch one after the other, since they differ in size: larger batches
# are not faster. What batching is for here is a bound: so many images are computed at a time, so many
# wait, and what is more is refused at once (UNAVAILABLE) rather than filling the memory.

# One image a request. A larger value also takes requests of several images, and puts images of
# different clients into one batch: then they wait for each other, all answers have as many rows as
# the image with the most cells, and requests to `tensor` must all be of one size.
max_batch_size { value: 1 }

# Nothing is gained by waiting for more images.
batch_timeout_micros { value: 0 }

# Images that are computed at a time. Each of them uses several cores for its convolutions: about half
# the number of cores is fastest, and memory grows with it.
num_batch_threads { value: 2 }

# Images that may wait: their encoded bytes stay in memory.
max_enqueued_batches { value: 64 }

# allowed_batch_sizes is left out: it pads batches for accelerators that compile for each size.
"""

_SERVING = """\
# Serving

Written by effdet_tf's `export.main`. Commands are meant to be run in this folder.

## TensorFlow Serving

```
docker run --rm -p 8500:8500 -p 8501:8501 \\
  -v "$PWD/saved_model:/models/{name}:ro" \\
  -v "$PWD/batching_parameters.txt:/batching_parameters.txt:ro" \\
  -e MODEL_NAME={name} tensorflow/serving \\
  --enable_batching=true --batching_parameters_file=/batching_parameters.txt \\
  --enable_serialization_as_tensor_content=true --rest_api_timeout_in_ms=60000
```

**This command is not run by effdet_tf's tests**: they have no container engine. They run exported models
through TensorFlow's C API, `saved_model_cli`, and behind a small server with TensorFlow Serving's own
messages and its REST form. That server comes along, for trials, not for production:

```
python -m export.server saved_model
```

The highest version is served; a new one is taken into service, after its warm-up requests
(`assets.extra/tf_serving_warmup_requests`) have been answered, without a restart. gRPC listens on
8500, REST on 8501. Put a limit on the size of requests in front of the server where strangers reach it.

## The files that `effdet_tf predict` writes, from a server

```
python -m export.client --url http://localhost:8501 IMAGES --out DIR
python -m export.client --url grpc://localhost:8500 IMAGES --out DIR
```

## Signatures

| name | input | output |
|---|---|---|
| `serving_default` | `image_bytes` string [B]: PNG (8 or 16 bit) or JPEG files | {outputs}`count`, {about} |
{label_row}| `tensor` | `images` float32 [B, H, W, {channels}], raw pixels | {outputs}`count` |
| `part` | as `tensor`, with `mean` and `std` [B, 1 or {channels}] of the whole image | as `tensor` |
| `network` | `images`, normalised, sides multiples of the stride | the network's raw outputs |
| `info` | `query` string [B], any text | `metadata` string [B]: JSON with classes, scores, normalisation |

N is the largest count in the batch: **read `count[i]` rows of image i, the rest is 0.**

- `boxes` float32 [B, N, 4]: y0, x0, y1, x1 in pixels of the image, y1 and x1 after the last pixel
- `scores` float32 [B, N]: best first, from {score_threshold}; count a cell from {report_score} on
- `classes` int32 [B, N]: {classes}
{masks}- `count` int32 [B]: cells of the image, at most {limit}; with that many, weaker ones are missing
- `height`, `width` int32 [B]: of the image, px; 0 where it is not ok
- `ok` bool [B], `error` string [B]: an image that cannot be used does not fail the others; its `ok` is
  false, its count 0, and `error` says why: it is empty, damaged, neither PNG nor JPEG, or has more than
  {max_pixels:,} pixels (height x width; `export.main --max-pixels` sets it)
{labels}
## REST

```
curl -s http://localhost:8501/v1/models/{name}:predict -d @- <<END
{{"inputs": {{"image_bytes": [{{"b64": "$(base64 -w0 IMAGE.png)"}}]}}}}
END
```

```
{{"outputs": {{"count": [2], "ok": [true], "error": [""], "height": [520],
             "width": [704], "boxes": [[[10.5, 20.25, 31.0, 44.5], [...]]], "scores": [[0.91, 0.64]],
             "classes": [[0, 0]]{rest_masks}}}}}
```

With `"instances": [{{"image_bytes": {{"b64": ...}}}}]` in place of `inputs`, the answer is
`{{"predictions": [{{"boxes": [...], "count": 2, ...}}]}}`, one object for each image.
{label_rest}
## gRPC

```python
import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

channel = grpc.insecure_channel(
    "localhost:8500", options=[("grpc.max_receive_message_length", 64 * 2**20)]
)
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
request = predict_pb2.PredictRequest()
request.model_spec.name = "{name}"
request.model_spec.signature_name = "serving_default"
data = open("IMAGE.png", "rb").read()
request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([data], shape=[1]))
answer = stub.Predict(request, timeout=60)
found = {{key: tf.make_ndarray(value)[0] for key, value in answer.outputs.items()}}
count = found["count"]
print(count, found["boxes"][:count], found["scores"][:count])
```

### Size of a message

A cell takes {cell} bytes: {cell_sum}. An image
with 2,000 cells takes 2,000 x {cell} = {thousands:,} bytes ({mib:.1f} MiB); a batch takes its number of
images times the row count of the fullest one. Without
`--enable_serialization_as_tensor_content=true` TensorFlow Serving writes each byte of a mask as a number
of one or two bytes: up to {worst:.1f} MiB for 2,000 cells.

gRPC clients refuse to RECEIVE more than 4 MiB unless `grpc.max_receive_message_length` is set as above
(`export.client --max-message MIB`): {fits}. TensorFlow Serving
itself has no such limit on requests.

## Batching

`batching_parameters.txt` bounds what is computed at a time: see the comments in it. With it a request holds
one image; leave `--enable_batching` out, or raise `max_batch_size`, to send several.
"""

_MASKS = """\
- `masks` uint8 [B, N, {side}, {side}]: probability times 255 over the area of `mask_boxes` float32 [B, N, 4]
  (y0, x0, y1, x1), which may be a little larger than the box; a pixel belongs to the cell above 127.5 after
  bilinear interpolation
"""
_LABEL_ROW = "| `label_map` | `image_bytes`, likewise | `labels`, `count`, {about} |\n"
_LABELS = """\
- `labels` int32 [B, H, W] of the largest image, cut yours out by `height` and `width`: 0 is background,
  cell k has the value k. Cells from {report_score} on; where they overlap the higher score has the pixel,
  and a cell that keeps less than half of its mask is left out
"""
_LABEL_REST = """
A label image in place of cells, for clients that only show or count:

```
curl -s http://localhost:8501/v1/models/{name}:predict -d @- <<END
{{"signature_name": "label_map", "inputs": {{"image_bytes": [{{"b64": "$(base64 -w0 IMAGE.png)"}}]}}}}
END
```

`{{"outputs": {{"labels": [[[0, 0, 1, 1, ...], ...]], "count": [2], ...}}}}`
"""


def write(folder: Path, predictor: Any, max_pixels: int = MAX_PIXELS) -> None:
    """Write `batching_parameters.txt` and `SERVING.md`.

    Args:
        folder: of the export, the one above `saved_model`.
        predictor: has the `config` that was exported.
        max_pixels: largest height x width that the SavedModel decodes.
    """
    for name, text in (
        (BATCHING_FILE, _BATCHING),
        (SERVING_FILE, serving_text(predictor.config, max_pixels)),
    ):
        with atomic_write(Path(folder) / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def serving_text(config: Config, max_pixels: int) -> str:
    """Text of SERVING.md for one configuration; see `write`."""
    masked, side = config.model.mask.enabled, config.model.mask.size
    parts = {"box": 16, "score": 4, "class": 4}
    if masked:
        parts |= {"mask box": 16, "mask": side * side}
    cell = sum(parts.values())
    whole = 2000 * cell
    images = _GRPC_LIMIT // whole
    common = {"name": NAME, "side": side, "report_score": config.postprocess.report_score}
    common["about"] = "`height`, `width`, `ok`, `error`"
    return _SERVING.format(
        **common,
        channels=config.data.channels,
        limit=config.data.max_instances,
        score_threshold=config.postprocess.score_threshold,
        classes=", ".join(f"{k} {name}" for k, name in enumerate(config.class_names)),
        max_pixels=max_pixels,
        outputs="`boxes`, `scores`, `classes`, " + ("`masks`, `mask_boxes`, " if masked else ""),
        masks=_MASKS.format(**common) if masked else "",
        label_row=_LABEL_ROW.format(**common) if masked else "",
        labels=_LABELS.format(**common) if masked else "",
        label_rest=_LABEL_REST.format(**common) if masked else "",
        rest_masks=', "masks": [...], "mask_boxes": [...]' if masked else "",
        cell=f"{cell:,}",
        cell_sum=" + ".join(f"{size} ({name})" for name, size in parts.items()),
        thousands=whole,
        mib=whole / 2**20,
        worst=2000 * (cell + (side * side if masked else 0)) / 2**20,
        fits=f"{images} such image{'s' if images > 1 else ''} at a time fit into that"
        if images
        else "not even one such image fits into that",
    )
