"""Batch-norm statistics of a student that several ranks train, moved as one rank would move them.

One rank that computes all micro-batches of a step in order moves the statistics r with each by

    r <- m r + (1 - m) s_j,    s_j those of micro-batch j, m the layer's momentum.

Several ranks compute a step's micro-batches in turn (micro-batch j = turn * ranks + rank, see `MicroBatchPlan`). Each
keeps the s_j of its own; they are exchanged with the gradients, and every rank applies the line above to all of them in
order. So the statistics are the same on all ranks and, but for rounding in the s_j, those of one rank. Micro-batches of
which nothing could be decoded, or that a short step does not have, are left out, as one rank leaves them out.
"""

import paddle
from paddle import Tensor, nn

from distill.distributed.rank import Rank
from distill.models.batch_norm import BATCH_NORMS


class MovingStatistics:
    """The statistics of the layers that are in training mode when this is made.

    Of one rank alone none, nor those of layers that Paddle synchronises itself: these are alike on all ranks.

    From then on a forward pass leaves in these layers the micro-batch's own statistics; `replay` puts the moving ones
    back behind each step.

    Args:
        model: In training mode, but for what is frozen.
        rank: This process.
    """

    def __init__(self, model: nn.Layer, rank: Rank) -> None:
        layers = [
            layer
            for layer in model.sublayers(include_self=True)
            if isinstance(layer, BATCH_NORMS)
            and layer.training
            and rank.size > 1
            and not isinstance(layer, nn.SyncBatchNorm)
        ]
        self._rank = rank
        self._statistics: list[Tensor] = [each for layer in layers for each in (layer._mean, layer._variance)]
        self._kept = paddle.concat([_like(layer, layer._momentum) for layer in layers]) if layers else None
        for layer in layers:
            layer._momentum = 0.0
        self._before: Tensor | None = None
        self._own: dict[int, Tensor] = {}  # by turn
        self._turns = 0

    def before_forward(self) -> None:
        """To be called before the forward pass of every micro-batch that has images."""
        if self._before is None and self._statistics:
            self._before = self._flat()

    def after_micro_batch(self, computed: bool) -> None:
        """Keeps what the forward pass of a micro-batch left, where there was one: the next turn of this rank begins."""
        if computed and self._statistics:
            self._own[self._turns] = self._flat()
        self._turns += 1

    def rows(self) -> list[Tensor]:
        """What is to be summed over all ranks: [micro-batches, 1 + D], or nothing where no statistics move.

        A row is 1 and the statistics of a micro-batch that this rank computed; zeros otherwise.
        """
        if not self._statistics:
            return []
        width = 1 + sum(each.size for each in self._statistics)
        one, nothing = paddle.ones([1]), paddle.zeros([width])
        rows = []
        for turn in range(self._turns):
            own = paddle.concat([one, self._own[turn]]) if turn in self._own else nothing
            rows += [own if number == self._rank.number else nothing for number in range(self._rank.size)]
        return [paddle.stack(rows)]

    def replay(self, rows: list[Tensor]) -> None:
        """Moves the statistics by those of all micro-batches of the step, which then ends.

        Args:
            rows: What `rows` gave, summed over all ranks; nothing where no rank computed anything.
        """
        if rows and self._kept is not None:
            state = self._before if self._before is not None else self._flat()
            state = replayed(state, rows[0], self._kept)
            parts = paddle.split(state, [each.size for each in self._statistics])
            with paddle.no_grad():
                for statistic, part in zip(self._statistics, parts, strict=True):
                    paddle.assign(part, statistic)
        self._before, self._own, self._turns = None, {}, 0

    def _flat(self) -> Tensor:
        with paddle.no_grad():
            return paddle.concat(self._statistics)


def replayed(state: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """The recursion of the module's docstring.

    Args:
        state: float32 [D], the statistics before the step.
        rows: float32 [J, 1 + D]: 1 and the statistics of micro-batch j; a row that begins with 0 is left out.
        kept: float32 [D], the momentum m.

    Returns:
        float32 [D].
    """
    with paddle.no_grad():
        for row in rows:
            state = paddle.where(row[:1] > 0, kept * state + (1.0 - kept) * row[1:], state)
    return state


def _like(layer: nn.Layer, value: float) -> Tensor:
    return paddle.full([2 * layer._mean.size], value)
