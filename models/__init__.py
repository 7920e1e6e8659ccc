"""Networks on lk_triton: RepLKNet in three forms, its checkpoints and its registry; see docs/checkpoints.md."""

from .checkpoints import CheckpointInfo, CheckpointMismatch, inspect_checkpoint, load_checkpoint, save_checkpoint
from .reference import published_form, randomize_
from .registry import create_model, list_models, register
from .replknet import RepLKNet
from .variants import replknet_3, replknet_7, replknet_13, replknet_25, replknet_31b, replknet_31l, replknet_xl

__all__ = [
    "CheckpointInfo",
    "CheckpointMismatch",
    "RepLKNet",
    "create_model",
    "inspect_checkpoint",
    "list_models",
    "load_checkpoint",
    "published_form",
    "randomize_",
    "register",
    "replknet_3",
    "replknet_7",
    "replknet_13",
    "replknet_25",
    "replknet_31b",
    "replknet_31l",
    "replknet_xl",
    "save_checkpoint",
]
