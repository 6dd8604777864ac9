"""The whole configuration as frozen dataclasses: YAML in and out, `a.b=c` overrides, no unknown key.

`effdet_tf/presets.py` fills them in for D0-D7x, Lite0-4 and the cell presets.
"""

from __future__ import annotations

import os
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from effdet_tf._version import __version__
from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write
from effdet_tf.files.untrusted import parse_yaml
from effdet_tf.geometry import MASK_SIZE
from effdet_tf.settings import build, leaves, plain, set_value


@dataclass(frozen=True)
class MaskConfig:
    """The instance-mask head; box-aligned crops of a fine feature, see `model.mask_head.MaskHead`."""

    enabled: bool = True
    stride: int = 4  # of the mask feature, input pixels; 2 keeps the outline of a 15 px cell
    channels: int = 16  # of the mask feature
    head: Literal["filters", "convolution"] = "filters"
    hidden: int = 8  # channels between the head's filters
    size: int = MASK_SIZE  # side of the predicted bitmap
    expand: float = 0.1  # the crop is the box grown by this share on every side
    samples: int = 32  # instances per image whose mask is trained in one step


@dataclass(frozen=True)
class ModelConfig:
    """The network. A level l has stride 2**l input pixels."""

    backbone: str = "efficientnet-b0"  # "custom": a Keras model that is passed to build_network and load
    stem_stride: Literal[1, 2] = 2  # 1 halves every stride of the backbone; weights still fit
    backbone_levels: tuple[int, ...] = (3, 4, 5)
    min_level: int = 3
    max_level: int = 7
    fpn_channels: int = 64
    fpn_repeats: int = 3
    fusion: Literal["fast", "sum"] = "fast"
    head_repeats: int = 3
    activation: Literal["swish", "relu6"] = "swish"
    drop_connect: float = 0.2  # stochastic depth of the last backbone block
    batch_norm_momentum: float = 0.99
    mask: MaskConfig = field(default_factory=MaskConfig)


@dataclass(frozen=True)
class AnchorConfig:
    """Anchors of each level: `scale * stride * 2**(o / octaves)` per ratio, or explicit `sizes`."""

    scale: float = 4.0
    octaves: int = 3
    ratios: tuple[float, ...] = (1.0, 2.0, 0.5)  # width / height
    # How a box is told from an anchor. center: moved centre and scaled sides. sides: the distance of each
    # side from the anchor's centre, as anchor-free detectors have it: with one size and one ratio a location
    # is a point, and the size only says what it expects at first.
    code: Literal["center", "sides"] = "center"
    sizes: tuple[tuple[float, ...], ...] = ()  # px per level, in place of scale and octaves
    from_data: bool = False  # training replaces `sizes` by those that fit the data

    @property
    def per_location(self) -> int:
        """Anchors at each feature location."""
        return (len(self.sizes[0]) if self.sizes else self.octaves) * len(self.ratios)


@dataclass(frozen=True)
class AssignConfig:
    """Label assignment: how anchors are matched to cells; `assignment.assign` tells of the methods."""

    method: Literal["iou", "atss", "task_aligned"] = "iou"
    positive_iou: float = 0.5
    negative_iou: float = 0.5  # between the two an anchor is ignored
    force_match: bool = True  # the best anchor of every cell is positive whatever its IoU
    candidates: int = 10  # anchors a cell (task_aligned); locations a level and cell (atss: 9 in the paper)
    reach: int = 3  # locations around the centre that task_aligned looks at, in every direction and level
    score_power: float = 1.0  # of task_aligned
    iou_power: float = 6.0


@dataclass(frozen=True)
class LossConfig:
    """The loss terms and their weights."""

    class_loss: Literal["focal", "quality_focal"] = "focal"
    alpha: float = 0.25
    gamma: float = 1.5
    box_loss: Literal["huber", "giou", "ciou"] = "huber"
    huber_delta: float = 0.1
    class_weight: float = 1.0
    box_weight: float = 50.0
    mask_weight: float = 1.0
    mask_dice: float = 1.0  # weight of Dice beside the cross-entropy of masks


@dataclass(frozen=True)
class DataConfig:
    """What the network is fed."""

    channels: Literal[1, 3] = 1
    crop_size: tuple[int, int] = (512, 512)  # height, width of a training crop
    # fit: an image is scaled to fit crop_size, its ratio kept, and padded at the bottom and right, in
    # training (before the random scale) and in prediction. none: every pixel counts as it is.
    resize: Literal["none", "fit"] = "none"
    zoom: float = 1.0  # with resize=none: every image is magnified this much, in training and prediction
    # Diameters (root of height x width of the box) at 5, 50 and 95 % of the training cells, px before `zoom`;
    # training fills it in. Empty: not known, and no image is scaled to it (`prediction.sizing`).
    cell_size: tuple[float, ...] = ()
    um_per_px: float = 0.0  # side of a pixel of the training images in micrometres; 0: unknown, or several
    # By mean and std of each image (image), of what of it shows cells (content: without borders, bars,
    # saturated areas and hot pixels, evenly lit; `effdet_tf.images.content`), or by these (fixed):
    normalization: Literal["image", "content", "fixed"] = "image"
    # Of "fixed", one value or one per channel, in units of 8-bit pixels: a 16-bit image is divided by
    # 257 first. The default is the LIVECell paper's.
    mean: float | tuple[float, ...] = 128.0
    std: float | tuple[float, ...] = 11.58
    max_instances: int = 2000  # cells per image for loader, NMS, exports and metrics
    crops_per_image: int = 1
    # Share of the crops that each source gives, by its name (`convert --source`); those that are not named
    # share the rest in proportion to their images. Empty: every image gives as many crops as any other.
    source_share: dict[str, float] = field(default_factory=dict)
    # Within a source, 0: every image gives as many crops; .5: in proportion to the square root of its cells,
    # so that the few dense images of a set are not drowned by many sparse ones.
    balance: float = 0.0
    cache_mb: int = 2000  # decoded images are kept in memory up to this size


@dataclass(frozen=True)
class AugmentConfig:
    """Per-image random changes in training."""

    short_sides: tuple[int, ...] = ()  # px; when given, one is chosen instead of scale_range
    # Log-uniform; with data.resize=fit it is relative to the fitted image and uniform, as in the reference.
    scale_range: tuple[float, float] = (0.7, 1.4)
    flip: bool = True  # left and right ...
    flip_vertical: bool = True  # ... and, where `flip` is on, top and bottom
    rot90: bool = True
    brightness: float = 0.2  # added, in units of the image's standard deviation
    contrast: tuple[float, float] = (0.7, 1.4)
    # Other microscopes (`training.looks`), each in one crop of two, and all off by default:
    gamma: tuple[float, float] = (1.0, 1.0)  # exponent of the tone curve, log-uniform
    blur: float = 0.0  # largest Gaussian sigma, px of the image
    noise: float = 0.0  # largest deviation of the noise, in units of the image's
    jpeg: float = 100.0  # lowest quality
    vignette: float = 0.0  # largest fall of the light from one side of a crop to the other, deviations
    invert: float = 0.0  # share of the crops whose contrast is reversed
    min_visible: float = 0.25  # a cell cut to less of its box than this is neither cell nor background


@dataclass(frozen=True)
class TrainConfig:
    """How the weights are learned."""

    batch: int = 8
    epochs: int = 30
    minutes: float = 0.0  # above 0: train this long whatever `epochs` says
    init: str = ""  # weights to start from: `imagenet`, a run, a checkpoint; empty = random
    # Where `init` is a whole network: its weights stay the best ones if training makes them no better on the
    # validation images.
    keep_better: bool = True
    # Likewise: share of its weights in the result, the mean of start and end, so that more stays of what it
    # knew (Wortsman et al. 2022, arXiv:2109.01903). Training on from few images raises it.
    start_share: float = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    warmup: float = 0.05  # share of the training
    weight_decay: float = 4e-5
    clip_norm: float = 10.0
    ema: float = 0.998
    seed: int = 0
    mixed_precision: Literal["auto", "on", "off"] = "auto"  # auto: where a GPU gains from it
    xla: Literal["auto", "on", "off"] = "auto"  # TensorFlow's step, compiled by XLA; auto: on one GPU
    evaluate_every: int = 1  # epochs
    evaluate_images: int = 0  # of each validation set each time; 0 = all of them
    save_minutes: float = 5.0  # a checkpoint at least this often, besides each epoch's


@dataclass(frozen=True)
class PostprocessConfig:
    """From raw outputs to cells."""

    score_threshold: float = 0.05  # class score from which a candidate counts: as a cell, and for its votes
    min_score: float = 0.0  # score that a cell needs: what is weaker before its mask votes alone
    top_k: int = 5000  # candidates that reach NMS
    # hard: a cell goes when a better one overlaps it by nms_iou. soft: its score falls with the overlap
    # (Gaussian, Bodla et al., 2017), as the reference EfficientDet has it.
    nms: Literal["hard", "soft"] = "hard"
    nms_iou: float = 0.5
    soft_nms_sigma: float = 0.5
    # A kept box becomes the mean of the candidates that overlap it by this IoU; 0 leaves it as it is.
    vote_iou: float = 0.0
    class_agnostic: bool = True
    mask_scoring: bool = True  # score x mean probability inside the mask
    # Probability from which on a pixel of a mask counts in full for that mean, and less towards .5. With .5
    # one pixel that two builds of a network round apart moves the score by .001 and more.
    mask_sure: float = 0.5
    # Pairs (score as the network gives it, share of such cells that match an annotated one at IoU .5), both
    # rising, from (0, 0) to (1, 1): lines between them make of every score that probability. Training fits
    # them on the validation images; empty: scores stay as the network gives them.
    calibration: tuple[tuple[float, float], ...] = ()
    report_score: float = 0.5  # a cell needs it to be counted or drawn; tuned on validation data

    def as_given(self) -> PostprocessConfig:
        """These settings with the scores that the network gives itself."""
        score = float(self.uncalibrated(self.report_score))
        return replace(self, calibration=(), report_score=score)

    def calibrated(self, scores: np.ndarray | float) -> np.ndarray:
        """The scores that are reported, float64, of those that the network gives."""
        return self._between(scores, 0, 1)

    def uncalibrated(self, scores: np.ndarray | float) -> np.ndarray:
        """The scores that the network gave, float64, of those that are reported."""
        return self._between(scores, 1, 0)

    def _between(self, scores: np.ndarray | float, known: int, wanted: int) -> np.ndarray:
        pairs = np.array(self.calibration or ((0.0, 0.0), (1.0, 1.0)))
        return np.interp(scores, pairs[:, known], pairs[:, wanted])


@dataclass(frozen=True)
class TrustConfig:
    """By what a network says how good its result is, see `prediction.trust`; empty: it says nothing."""

    # Expected F1 at IoU .5: offset and slope of its log odds over those of the mean score.
    f1: tuple[float, ...] = ()
    # Log of cells that are there over cells found, in units of `prediction.trust.count_spread`: offset and
    # slope over 1 - mean score, of its 5 and of its 95 % end.
    count: tuple[float, ...] = ()
    known: tuple[tuple[float, ...], ...] = ()  # looks of the training images, see `prediction.likeness`


@dataclass(frozen=True)
class Config:
    """Everything that makes a run; `config.yaml` in a run folder holds it."""

    preset: str = "d0"
    class_names: tuple[str, ...] = ("cell",)
    category_ids: tuple[int, ...] = (1,)
    model: ModelConfig = field(default_factory=ModelConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    assign: AssignConfig = field(default_factory=AssignConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    trust: TrustConfig = field(default_factory=TrustConfig)

    def replace(self, **changes: Any) -> Config:
        """A copy with `section__key=value` changes, for example `data__channels=3`."""
        result = self
        for name, value in changes.items():
            result = set_value(result, name.split("__"), value, name, leaves(Config))
        return result

    def override(self, settings: typing.Iterable[str]) -> Config:
        """A copy with `a.b=c` settings applied; c is read as YAML.

        Raises:
            UserError: for a setting without `=`, an unknown key (names the near ones) or a value
                of the wrong type.
        """
        result = self
        for setting in settings:
            key, separator, text = setting.partition("=")
            if not separator:
                raise UserError(f"--set {setting!r}: write it as section.key=value")
            try:
                value = parse_yaml(text)
            except ValueError:
                raise UserError(f"--set {setting!r}: the value is not readable YAML") from None
            result = set_value(result, key.strip().split("."), value, key.strip(), leaves(Config))
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the configuration as YAML, atomically."""
        with atomic_write(path) as temporary:
            text = yaml.safe_dump(plain(self), sort_keys=False, default_flow_style=None, width=110)
            temporary.write_text(text, encoding="utf-8")


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read a configuration that `Config.save` wrote, or a hand-written part of one.

    Raises:
        UserError: when the file is missing, is not YAML, or holds an unknown key or a wrong value.
    """
    try:
        value = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise UserError(f"{path}: not a YAML file ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no configuration (a mapping of sections was expected)")
    try:
        return checked(build(Config, value, ""))
    except UserError as error:
        raise UserError(f"{path}: {error} (read by effdet_tf {__version__})") from None


def checked(config: Config) -> Config:
    """The configuration, when its classes, sizes of cells and calibration are such; UserError otherwise."""
    if not config.class_names or len(config.class_names) != len(set(config.category_ids)):
        counts = f"{len(config.class_names)} class_names, {len(set(config.category_ids))} category_ids"
        raise UserError(f"{counts}: each class needs one of both")
    sizes = config.data.cell_size
    if sizes and (len(sizes) != 3 or list(sizes) != sorted(sizes)):
        raise UserError(
            f"data.cell_size {list(sizes)}: give three rising diameters in px, at 5, 50 and 95 % of the cells"
        )
    pairs = config.postprocess.calibration
    if pairs and not (
        pairs[0] == (0.0, 0.0) and pairs[-1] == (1.0, 1.0) and (np.diff(np.array(pairs), axis=0) > 0).all()
    ):
        raise UserError(
            "postprocess.calibration: give pairs of numbers that both rise, from [0, 0] to [1, 1], or none"
        )
    trust, rows = config.trust, config.trust.known
    lengths = len(trust.f1) in (0, 2) and len(trust.count) in (0, 4)
    if not lengths or rows and (len(rows) < 16 or any(len(row) != 15 for row in rows)):
        raise UserError(
            "trust: f1 has 2 numbers, count 4, known 16 rows or more of 15; leave all three empty for none"
        )
    return config
