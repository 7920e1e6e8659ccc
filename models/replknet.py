"""RepLKNet (Ding et al., CVPR 2022): a convolutional network with kernels up to 31x31, in three forms.

- *training*: every convolution with its BatchNorm, a small kernel beside each large one. The published checkpoints' keys.
- *merged*: one kernel and bias per large-kernel layer, as upstream's ``structural_reparam()`` leaves it.
- *fused*: no BatchNorm at all; a RepLKBlock is three convolutions, a ConvFFN two or one kernel, the stem four or two. For
  inference.

Conversions go forwards only. Upstream: github.com/DingXiaoH/RepLKNet-pytorch (MIT).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lk_triton.nn import ChannelAffine, ConvUnit, ReparamDepthwiseConv2d, Stem2d, memory_order
from lk_triton.nn.prepack import PrepackedConv2d

from .blocks import RepLKNetStage, Transition, channel_norm, dense3x3, depthwise3x3, pointwise, run

FORMS = ("training", "merged", "fused")
"""In the order of conversion."""

DEFAULT_EXAMPLE = (64, 224, 224)
"""Batch, height and width that ``prepare()`` packs for where none are given."""


class RepLKNet(nn.Module):
    """RepLKNet as a classifier, or with ``out_indices`` as a backbone.

    Args:
        large_kernel_sizes, layers, channels: per stage, the kernel size (odd), the number of block pairs, the width.
        small_kernel: size of the parallel kernel, None for none; it merges exactly because both sizes are odd.
        dw_ratio, ffn_ratio: widths of the depthwise layer and of the FFN, in units of the stage's width.
        num_classes: 0 for none: ``forward`` then returns the pooled, normalized features (N, num_features).
        in_chans: channels of the input.
        drop_path_rate: stochastic depth of the last block pair; it grows linearly from 0 over the pairs.
        out_indices: a tuple of stages (negative ones count from the end): ``forward`` returns the list of their maps, in
            order of stage, strides 4, 8, 16, 32, each a contiguous (N, C, H, W); ``norm`` and ``head`` do not exist.
        norm_intermediate_features: with ``out_indices``, a BatchNorm on every map that leaves (published for XL).
        merged, fused: build that form at once.
        device, dtype: of the parameters.

    ``forward(x)``: x (N, in_chans, H, W) of any height and width -> logits (N, num_classes).
    Between the first and the last layer maps are channel-major on a GPU, in the fused form, and channels_last on a CPU:
    each where its convolutions are fastest.

    Raises:
        ValueError: options that contradict each other (the text says which).
    """

    norm: nn.BatchNorm2d | ChannelAffine
    head: nn.Linear | nn.Identity

    def __init__(
        self,
        large_kernel_sizes: Sequence[int] = (31, 29, 27, 13),
        layers: Sequence[int] = (2, 2, 18, 2),
        channels: Sequence[int] = (128, 256, 512, 1024),
        small_kernel: int | None = 5,
        dw_ratio: float = 1.0,
        ffn_ratio: float = 4.0,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        norm_intermediate_features: bool = False,
        merged: bool = False,
        fused: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be at least 0 and below 1, got {drop_path_rate}")
        if not len(large_kernel_sizes) == len(layers) == len(channels) > 0:
            raise ValueError(
                "large_kernel_sizes, layers and channels need one entry per stage, got "
                f"{tuple(large_kernel_sizes)}, {tuple(layers)} and {tuple(channels)}"
            )
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        if norm_intermediate_features and out_indices is None:
            raise ValueError(
                "norm_intermediate_features normalizes the maps of a backbone: pass out_indices too, such as (0, 1, 2, 3)"
            )
        self._options: dict[str, Any] = {
            "large_kernel_sizes": tuple(large_kernel_sizes), "layers": tuple(layers), "channels": tuple(channels),
            "small_kernel": small_kernel, "dw_ratio": dw_ratio, "ffn_ratio": ffn_ratio, "in_chans": in_chans,
            "drop_path_rate": drop_path_rate, "out_indices": out_indices,
            "norm_intermediate_features": norm_intermediate_features,
        }  # fmt: skip
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = channels[-1]
        self.out_indices = None if out_indices is None else _stages(out_indices, len(layers), "out_indices")
        self.num_classes = num_classes if out_indices is None else 0
        self.channels_last_on_cpu = True
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, width in enumerate(channels)
        ]
        width = channels[0]
        self.stem = Stem2d(
            dense3x3(in_chans, width, fused, **options),
            depthwise3x3(width, 1, fused, **options),
            pointwise(width, width, "relu", fused, **options),
            depthwise3x3(width, 2, fused, **options),
        )
        pairs = sum(layers)
        rates = [drop_path_rate * i / max(pairs - 1, 1) for i in range(pairs)]
        self.stages = nn.ModuleList(
            RepLKNetStage(
                channels[i], large_kernel_sizes[i], small_kernel, dw_ratio, ffn_ratio,
                rates[sum(layers[:i]) : sum(layers[: i + 1])], norm_intermediate_features, merged, fused, **options,
            )
            for i in range(len(layers))
        )  # fmt: skip
        self.transitions = nn.ModuleList(Transition(a, b, fused, **options) for a, b in pairwise(channels))
        if self.out_indices is None:
            self.norm = channel_norm(channels[-1], fused, **options)
            self.head = _head(channels[-1], num_classes, **options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(self.stem, nn.ModuleList):  # pickled by a version whose stem was one
            self.stem = Stem2d(*self.stem).train(self.training)

    # ---- forward ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images (N, in_chans, H, W) -> logits (N, num_classes), or with ``out_indices`` a list of maps (N, C, H, W)."""
        if self.out_indices is None:
            return self.forward_head(self._run(x)[0])
        _, maps = self._run(x, self.out_indices, stop=max(self.out_indices))
        return [self._stage(i).norm(y).contiguous() for i, y in zip(self.out_indices, maps, strict=True)]

    def forward_features(self, x: Tensor) -> Tensor:
        """Images -> the last stage's map (N, num_features, H/32, W/32), before ``norm``."""
        return self._run(x, (len(self.stages) - 1,))[0].contiguous()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last stage's map -> logits, or with ``pre_logits`` the pooled, normalized features (N, num_features).

        Raises:
            RuntimeError: the network was built with ``out_indices`` and has no head.
        """
        self._need_head("forward_head")
        # The mean of an affine map is the affine map of the mean, so that the fused form may pool first.
        pool_first = isinstance(self.norm, ChannelAffine)
        x = self.norm(x.mean((2, 3))) if pool_first else self.norm(x).mean((2, 3))
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Images -> (last map, maps of the stages asked for), with timm's arguments.

        Args:
            indices: the last n stages if an int, all if None, otherwise those stages.
            norm: apply the norm that follows a stage, where it has one (the last stage of a classifier does).
            stop_early: run no stage after the last one asked for; the last map is then that stage's.
            output_fmt: "NCHW".
            intermediates_only: return the list alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        count = len(self.stages)
        if isinstance(indices, int) and not 0 < indices <= count:
            raise ValueError(f"indices={indices} asks for the last {indices} stages, there are {count}")
        wanted = range(count) if indices is None else range(count - indices, count) if isinstance(indices, int) else indices
        take = _stages(wanted, count, "indices")
        last, kept = self._run(x, take, stop=max(take) if stop_early else None)
        maps = [(self._norm_after(i)(y) if norm else y).contiguous() for i, y in zip(take, kept, strict=True)]
        return maps if intermediates_only else (last.contiguous(), maps)

    def _run(self, x: Tensor, keep: Collection[int] = (), stop: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """The last map that was computed and those of the stages in ``keep``, which leave the network: a fused one on a GPU
        stores them contiguously itself."""
        self._check_input(x)
        x = self._run_stem(memory_order.entering(x, self.channels_last_on_cpu))
        kept = []
        for i, stage in enumerate(self.stages):
            x = stage(self.transitions[i - 1](x) if i else x, memory_order.of_leaving(x) if i in keep else None)
            if i in keep:
                kept.append(x)
            if i == stop:
                break
        return x, kept

    def _run_stem(self, x: Tensor) -> Tensor:
        if not self.grad_checkpointing:
            return self.stem(x)
        x = self.stem[0](x)
        for unit in self.stem[1:]:
            x = run(unit, x, True)
        return x

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"expected images (N, {self.in_chans}, H, W), got shape {tuple(x.shape)}"
                + ("; add a batch dimension with x[None]" if x.dim() == 3 else "")
            )
        if x.shape[2] == 0 or x.shape[3] == 0:
            raise ValueError(f"images must be at least 1x1, got shape {tuple(x.shape)}")

    def _stage(self, index: int) -> RepLKNetStage:
        return cast("RepLKNetStage", self.stages[index])

    def _norm_after(self, index: int) -> nn.Module:
        is_last = index == len(self.stages) - 1
        return self.norm if is_last and self.out_indices is None else self._stage(index).norm

    # ---- the three forms -------------------------------------------------------------------------------------------

    @property
    def form(self) -> str:
        """``"training"``, ``"merged"`` or ``"fused"``: as far as every part is converted."""
        parts = [self.stem, self.stages, self.transitions, *([] if self.out_indices is not None else [self.norm])]
        modules = [module for part in parts for module in part.modules()]
        if not any(isinstance(module, _BatchNorm) for module in modules):
            return "fused"
        merged = all(module.merged for module in modules if isinstance(module, ReparamDepthwiseConv2d))
        return "merged" if merged else "training"

    def structural_reparam(self) -> RepLKNet:
        """Training form -> merged form, in place: the small kernels and their BatchNorms go into the large kernels."""
        return self._convert_and_prepare("merged")

    def reparameterize(self) -> RepLKNet:
        """Any form -> fused form, in place: every BatchNorm is folded; ends with ``prepare()``.

        Computed in float64 and stored in each parameter's dtype, on its device.

        Raises:
            RuntimeError: the network, or a part of it, is in training mode; it is left as it was.
        """
        return self._convert_and_prepare("fused")

    switch_to_deploy = reparameterize

    def _convert_and_prepare(self, form: str) -> RepLKNet:
        self.convert(form)
        return self.prepare()

    @torch.no_grad()
    def convert(self, form: str) -> RepLKNet:
        """To ``"merged"`` or ``"fused"``, in place and without ``prepare()``; nothing happens where it is there already.

        Raises:
            ValueError: ``form`` is unknown, or lies behind this network's form.
            RuntimeError: the network, or a part of it, is in training mode; it is left as it was.
        """
        self._need_eval("a conversion folds BatchNorms")
        steps = FORMS.index(form) - FORMS.index(self.form) if form in FORMS else -1
        if steps < 0:
            raise ValueError(f"cannot convert the {self.form} form to {form!r}: conversions go {' -> '.join(FORMS)}")
        if steps == 0:
            return self
        stages = [self._stage(i) for i in range(len(self.stages))]
        for stage in stages:
            stage.merge()
        if form == "merged":
            return self
        for part in (self.stem, self.transitions):
            for unit in part.modules():
                if isinstance(unit, ConvUnit):
                    unit.fuse()
        for stage in stages:
            stage.fuse()
        if self.out_indices is None:
            self.norm = ChannelAffine.from_batch_norm(cast("_BatchNorm", self.norm))
        return self

    def prepare(self, *example_shapes: Sequence[int]) -> RepLKNet:
        """Pack the weights of every layer that has a packed form, for inference on images of these shapes.

        Args:
            example_shapes: (N, in_chans, H, W) each; by default one batch of 64 images of 224x224.

        Raises:
            RuntimeError: the network, or a part of it, is in training mode.
            ValueError: an example shape is not one of images.
        """
        self._need_eval("prepare() packs weights for inference")
        batch, height, width = DEFAULT_EXAMPLE
        shapes: dict[PrepackedConv2d, list[tuple[int, int, int, int]]] = {}
        for example in example_shapes or ((batch, self.in_chans, height, width),):
            for layer, shape in self._layer_inputs(example):
                shapes.setdefault(layer, []).append(shape)
        for layer, inputs in shapes.items():
            layer.prepare(*inputs)
        return self

    def _layer_inputs(self, images: Sequence[int]) -> Iterator[tuple[PrepackedConv2d, tuple[int, int, int, int]]]:
        """Every layer that may hold packed weights, with the shape of its input, for images of this shape."""
        if not isinstance(images, Sequence) or len(images) != 4 or images[1] != self.in_chans or min(images) < 1:
            raise ValueError(f"an example shape must be images (N, {self.in_chans}, H, W), got {images!r}")
        n, _, h, w = images
        h, w = _halved(h), _halved(w)
        parts: list[nn.Module] = [self.stem]
        for i, stage in enumerate(self.stages):
            parts += [self.transitions[i - 1], stage] if i else [stage]
        for part in parts:
            for layer in part.modules():
                if isinstance(layer, PrepackedConv2d):
                    yield layer, (n, layer.in_channels, h, w)
                    if layer.stride[0] == 2:
                        h, w = _halved(h), _halved(w)

    def _need_eval(self, reason: str) -> None:
        training = next((name for name, module in self.named_modules() if module.training), None)
        if training is not None:
            raise RuntimeError(f"{reason}, but {training or 'the network'} is in training mode: call .eval() first")

    def twin(self, form: str, device: torch.device | str = "meta") -> RepLKNet:
        """A new network of the same architecture and head, in ``form``, with parameters of its own."""
        return RepLKNet(
            **self._options, num_classes=self.num_classes, merged=form == "merged", fused=form == "fused", device=device
        )

    # ---- timm's methods --------------------------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """The head: a Linear, or an Identity where ``num_classes`` is 0."""
        self._need_head("get_classifier")
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for ``num_classes`` classes (0: none), on the device and in the dtype of the network."""
        self._need_head("reset_classifier")
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool must be None or 'avg', got {global_pool!r}")
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head = _head(self.num_features, num_classes, device=like.device, dtype=like.dtype).train(self.training)

    def _need_head(self, what: str) -> None:
        if self.out_indices is not None:
            raise RuntimeError(f"{what}: a network built with out_indices has no head; build it with num_classes instead")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them, block by block."""
        self.grad_checkpointing = enable
        for stage in self.stages:
            cast("RepLKNetStage", stage).grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's grouping of parameter names by depth; a transition follows the blocks of the stage before it."""
        if coarse:
            return {"stem": r"^stem", "blocks": r"^(?:stages|transitions)\.(\d+)"}
        last = (99999,)
        return {
            "stem": r"^stem",
            "blocks": [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", last),
                (r"^transitions\.(\d+)", last),
                (r"^norm", last),
            ],
        }

    def no_weight_decay(self) -> set[str]:
        """Names of parameters to exempt besides the one-dimensional ones: none."""
        return set()


def _stages(indices: Sequence[int], count: int, name: str) -> tuple[int, ...]:
    """``indices`` as stages from the first to the last, without repetition."""
    indices = tuple(indices)
    if not indices or any(not -count <= i < count for i in indices):
        raise ValueError(f"{name} must hold stages from {-count} to {count - 1}, got {indices}")
    return tuple(sorted({i % count for i in indices}))


def _head(features: int, num_classes: int, **options: Any) -> nn.Linear | nn.Identity:
    return nn.Linear(features, num_classes, **options) if num_classes else nn.Identity()


def _halved(size: int) -> int:
    """Output size of a 3x3 convolution with stride 2 and padding 1."""
    return (size - 1) // 2 + 1
