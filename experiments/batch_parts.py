"""A batch computed in parts: less memory, the same effective batch, and so the same cell."""

from __future__ import annotations

from jsonargparse import Namespace

from datamodules.errors import InputError


def compute_in_parts(config: Namespace, size: int | None) -> None:
    """Let a trainer load smaller batches and step after as many of them as make up the configured batch.

    Normalisation over the batch (batch norm's running statistics) sees the parts; all else is the same sum.

    Args:
        config: The parsed configuration; ``data.init_args.batch_size`` and ``trainer.accumulate_grad_batches``
            are changed in place.
        size: Scans (or patches) in a part; None changes nothing.

    Raises:
        InputError: The configured batch cannot be cut into such parts.
    """
    if size is None:
        return
    batch = config.data.init_args.get("batch_size")
    if batch is None:
        raise InputError("--part_size: this data module has no batch_size; leave --part_size out")
    if size < 1 or batch % size:
        raise InputError(
            f"--part_size {size}: does not divide data.init_args.batch_size, which is {batch}; give a divisor of it"
        )
    config.data.init_args.batch_size = size
    config.trainer.accumulate_grad_batches = int(config.trainer.get("accumulate_grad_batches") or 1) * (batch // size)
