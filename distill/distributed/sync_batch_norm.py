"""Batch normalisation over the micro-batches of all GPUs together, by Paddle's SyncBatchNorm.

The micro-batches of one turn are then one BN batch: what a stage learns depends on the number of GPUs, and the
statistics move once a turn, alike on all ranks. Untested so far, for want of several GPUs.
"""

import paddle

from distill.distributed.world import World
from distill.errors import UserError
from distill.parallel import Device
from distill.recipe import Stage


def synchronize(model: paddle.nn.Layer, stage: Stage, device: Device, world: World) -> None:
    """Replaces the BN layers of a network where the stage asks for it and there are several ranks.

    Raises:
        UserError: The device is a CPU.
    """
    if not stage.sync_batch_norm:
        return
    if device.kind != "gpu":
        raise UserError(
            f"stages.{stage.name}.sync_batch_norm: Paddle has no CPU kernel of it. Remove it, or train on GPUs; the "
            "statistics of all ranks move together without it too, see README.md"
        )
    if world.rank.size > 1:
        paddle.nn.SyncBatchNorm.convert_sync_batchnorm(model)


def check_full_turns(stage: Stage, images: int, world_size: int) -> None:
    """Refuses a stage that would leave a rank without a micro-batch while the others wait for its statistics.

    Args:
        stage: With `sync_batch_norm` or without.
        images: In an epoch.
        world_size: Ranks.

    Raises:
        UserError: An epoch is no whole number of steps, or a step no whole number of turns.
    """
    if not stage.sync_batch_norm or world_size == 1:
        return
    turn = stage.device_batch_size * world_size
    if images % stage.global_batch_size or stage.global_batch_size % turn:
        raise UserError(
            f"stages.{stage.name}.sync_batch_norm needs full micro-batches on all {world_size} ranks all the time: "
            f"global_batch_size {stage.global_batch_size} must be a multiple of {world_size} x device_batch_size "
            f"{stage.device_batch_size}, and the {images} images a multiple of global_batch_size. Leave some images "
            "out with `range`, or remove it"
        )
