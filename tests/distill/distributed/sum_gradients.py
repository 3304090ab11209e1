"""A rank that sums gradients behind or during the backward pass: sum_gradients.py behind|during FILE.

Two steps of two micro-batches each. Of the first step rank 1 has no second micro-batch, and there the first parameter,
which belongs to no network, gets a gradient on rank 0 alone. FILE-RANK.npz keeps the sums, and how many buckets were
begun before the backward pass ended.
"""

import sys

import numpy as np

from distill.parallel import import_paddle, setup_process

import_paddle()
import paddle  # noqa: E402

from distill.distributed.gradients import GradientSum  # noqa: E402
from distill.distributed.rank import rank_of_environment  # noqa: E402
from distill.distributed.world import joined  # noqa: E402
from distill.models import create_model  # noqa: E402

PARAMETERS_IN_BUCKET = 3000


def main() -> None:
    mode, file = sys.argv[1:]
    rank = rank_of_environment()
    with joined(rank, setup_process("cpu")) as world:
        paddle.seed(0)
        model = create_model("ResNet18_vd", 10, width=0.0625, stem_stride=1)
        spare = paddle.create_parameter([7], "float32", default_initializer=paddle.nn.initializer.Constant(2.0))
        parameters = [p for p in [spare, *model.parameters()] if not p.stop_gradient]
        sums = GradientSum(world, parameters, during_backward=mode == "during", bucket_elements=PARAMETERS_IN_BUCKET)
        kept, begun = {}, []
        for step in range(2):
            for turn in range(2):
                if (step, turn, rank.number) == (0, 1, 1):
                    continue
                images = np.random.default_rng([step, turn, rank.number]).random((4, 3, 28, 28), dtype=np.float32)
                loss = (model(paddle.to_tensor(images)) ** 2).sum()
                if step == 0 and rank.is_first:
                    loss = loss + (spare**2).sum()
                if turn == 1:
                    sums.before_last_backward()
                loss.backward()
            begun.append(len(sums._begun))
            if mode == "behind":
                world.wait()  # gloo would wait during the backward pass for a rank that waits here
            sums.finish()
            kept |= {f"{step}.{number}": parameter.grad.numpy() for number, parameter in enumerate(parameters)}
            for parameter in parameters:
                parameter.clear_gradient(set_to_zero=False)
        np.savez(f"{file}-{rank.number}.npz", begun=begun, buckets=len(sums._buckets), **kept)


if __name__ == "__main__":
    main()
