"""A contender of the other benchmarks, not to be run alone: the same networks in PyTorch, as fast as it goes.

Run by a Python that has PyTorch (see `--torch-python` of the others); of this project it needs the source alone, from
which it takes the plan of the layers, so that both build the same network. Memory layout channels_last; a teacher has
its batch normalisation folded into the convolutions and, in bfloat16, weights in it.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from side_by_side import serve
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from distill.models.plan import BlockPlan, ConvPlan, plan_network
from distill.models.specs import check_model_name

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, ReLU where planned; see `distill.models.resnet.ConvNorm`."""

    def __init__(self, plan: ConvPlan) -> None:
        super().__init__()
        self.plan = plan
        stride = 1 if plan.average_pooled else plan.stride
        self.conv = nn.Conv2d(
            plan.in_channels,
            plan.out_channels,
            plan.kernel_px,
            stride,
            plan.kernel_px // 2,
            groups=plan.groups,
            bias=False,
        )
        self.norm: nn.Module = nn.BatchNorm2d(plan.out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """As ours."""
        if self.plan.average_pooled:
            features = F.avg_pool2d(features, 2, self.plan.stride, ceil_mode=True, count_include_pad=False)
        features = self.norm(self.conv(features))
        return F.relu(features, inplace=True) if self.plan.activation else features

    def fold(self) -> None:
        """Batch normalisation becomes part of the convolution."""
        self.conv = fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()


class Block(nn.Module):
    """relu(convolutions(x) + shortcut(x))."""

    def __init__(self, plan: BlockPlan) -> None:
        super().__init__()
        self.convs = nn.Sequential(*map(ConvNorm, plan.convs))
        self.shortcut = ConvNorm(plan.shortcut) if plan.shortcut is not None else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """As ours."""
        return F.relu(self.convs(features) + self.shortcut(features), inplace=True)


def build(name: str, num_classes: int) -> nn.Module:
    """The network of this name, in channels_last."""
    plan = plan_network(check_model_name(name), num_classes)
    network = nn.Sequential(
        *map(ConvNorm, plan.stem),
        nn.MaxPool2d(3, 2, 1),
        *(Block(block) for blocks in plan.stages for block in blocks),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(plan.tap_channels["embedding"], num_classes),
    )
    return network.to(memory_format=torch.channels_last)


def build_teacher(name: str, num_classes: int, precision: str) -> Callable[[Tensor], Tensor]:
    """Images float32 [N, 3, H, W] to float32 logits."""
    network = build(name, num_classes).eval()
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.fold()
    network.to(TYPES[precision], memory_format=torch.channels_last)

    def answer(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(images.to(TYPES[precision])).float()

    return answer


class Training:
    """Steps of a student on one batch, supervised or taught by a live teacher."""

    def __init__(self, options: argparse.Namespace, images: Callable[[], Tensor], teacher: Any) -> None:
        self._student = build(options.model, options.classes).train()
        self._images, self._teacher = images, teacher
        self._labels = torch.arange(options.batch) % options.classes
        self._autocast = options.precision == "bfloat16"
        self._optimizer = torch.optim.SGD(
            self._student.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, foreach=True
        )
        self.parameters = sum(p.numel() for p in self._student.parameters())

    def step(self) -> None:
        """Forward, backward, update."""
        images = self._images()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            logits = self._student(images)
        if self._teacher is None:
            loss = F.cross_entropy(logits.float(), self._labels)
        else:
            own, wanted = F.log_softmax(logits.float(), 1), F.log_softmax(self._teacher(images), 1)
            loss = F.kl_div(own, wanted, reduction="batchmean", log_target=True)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def contender(options: argparse.Namespace) -> tuple[Callable[[], object], dict[str, Any]]:
    """The step that the options ask for, and what it computes with."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    bytes_ = torch.randint(0, 256, (options.batch, 3, options.px, options.px), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def images() -> Tensor:
        return ((bytes_ / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    threads = torch.get_num_threads()
    facts: dict[str, Any] = {"description": f"PyTorch {torch.__version__}, channels_last", "threads": threads}
    if options.what == "teacher":
        answer = build_teacher(options.model, options.classes, options.precision)
        return (lambda: answer(images())), facts
    teacher = None
    if options.teacher is not None:
        teacher = build_teacher(options.teacher, options.classes, options.teacher_precision)
    training = Training(options, images, teacher)
    return training.step, facts | {"parameters": training.parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("teacher", "student"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", choices=TYPES, default="float32")
    parser.add_argument("--teacher", help="who teaches the student; default: labels alone")
    parser.add_argument("--teacher-precision", choices=TYPES, default="float32")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--px", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--classes", type=int, default=1000)
    options = parser.parse_args()
    serve(lambda: contender(options))


if __name__ == "__main__":
    main()
