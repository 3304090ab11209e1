"""Records what timm, torchvision and transformers answer, for tests/distill/weights/test_foreign.py.

Run it by hand where torch, torchvision, timm and transformers are installed; the tests need none of them:

    python scripts/record_torch_outputs.py tests/distill/weights/recorded

It builds narrow networks with the libraries' own classes. Weights and images are functions of their names, so that the
files hold names, shapes and answers only. Two files of torch.save, of today's form and the one from before 1.6, hold
one tensor of each kind.
"""

import argparse
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

WIDTH = 0.25
CHANNELS = (16, 32, 64, 128)
NUM_CLASSES = 5
SIZES_PX = ((64, 64), (65, 71), (33, 47))  # height, width: odd ones too, where poolings that round differ


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the float32 array of a name and shape: the same everywhere, of a magnitude that suits the name."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    uniform = generator.random(shape)  # in [0, 1)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        found = 0.5 + uniform
    elif len(shape) == 1:
        found = 0.4 * (uniform - 0.5)
    else:
        found = (uniform - 0.5) * (12 / np.prod(shape[1:])) ** 0.5
    return found.astype(np.float32)


def narrow_torchvision(block: str, layers: tuple[int, int, int, int], **groups: int):
    """A ResNet of torchvision with a quarter of the channels; its class knows only 64 in the stem."""
    from torch import nn
    from torchvision.models import resnet

    class Narrow(resnet.ResNet):
        def __init__(self):
            super().__init__(getattr(resnet, block), [1, 1, 1, 1], num_classes=NUM_CLASSES, **groups)
            self.inplanes = CHANNELS[0]
            self.conv1 = nn.Conv2d(3, CHANNELS[0], 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(CHANNELS[0])
            for number, (channels, blocks) in enumerate(zip(CHANNELS, layers, strict=True)):
                stride = 1 if number == 0 else 2
                layer = self._make_layer(getattr(resnet, block), channels, blocks, stride=stride)
                setattr(self, f"layer{number + 1}", layer)
            self.fc = nn.Linear(self.inplanes, NUM_CLASSES)

    return Narrow()


def narrow_timm(block: str, layers: tuple[int, int, int, int], **options: object):
    """A ResNet of timm with a deep stem and a quarter of the channels."""
    from timm.models import resnet

    return resnet.ResNet(
        getattr(resnet, block),
        layers,
        num_classes=NUM_CLASSES,
        channels=CHANNELS,
        stem_width=CHANNELS[0] // 2,
        stem_type="deep",
        **options,
    )


def narrow_transformers(kind: str, layers: list[int]):
    """A ResNet of transformers with a quarter of the channels, answering with logits."""
    from transformers import ResNetConfig, ResNetForImageClassification

    widths = [4 * channels for channels in CHANNELS] if kind == "bottleneck" else list(CHANNELS)
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=CHANNELS[0], hidden_sizes=widths, depths=layers, layer_type=kind, num_labels=NUM_CLASSES
        )
    )


NETWORKS: dict[str, Callable] = {
    "torchvision ResNet18": lambda: narrow_torchvision("BasicBlock", (2, 2, 2, 2)),
    "torchvision ResNet50": lambda: narrow_torchvision("Bottleneck", (3, 4, 6, 3)),
    "torchvision ResNeXt101_32x8d_wsl": lambda: narrow_torchvision(
        "Bottleneck", (3, 4, 23, 3), groups=32, width_per_group=8
    ),
    "timm ResNet18_vd": lambda: narrow_timm("BasicBlock", (2, 2, 2, 2), avg_down=True),
    "timm ResNet50_vd": lambda: narrow_timm("Bottleneck", (3, 4, 6, 3), avg_down=True),
    "timm ResNet50_vc": lambda: narrow_timm("Bottleneck", (3, 4, 6, 3)),
    "transformers ResNet50": lambda: narrow_transformers("bottleneck", [3, 4, 6, 3]),
}
"""By library and our name of the network."""


def record(build: Callable) -> dict[str, np.ndarray]:
    """Returns a network's keys, shapes, and answers to images of each size."""
    import torch

    network = build().eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: torch.from_numpy(values(key, shape)) for key, shape in shapes.items() if shape}
    network.load_state_dict(found | {key: torch.tensor(7) for key, shape in shapes.items() if not shape})
    answers = {}
    for height, width in SIZES_PX:
        images = torch.from_numpy(values("images", (2, 3, height, width)))
        with torch.no_grad():
            answer = network(images)
        answers[f"{height}x{width}"] = getattr(answer, "logits", answer).numpy()
    lines = [f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items()]
    return {"shapes": np.array(lines), **answers}


def save_samples(folder: Path) -> None:
    """Saves one tensor of each kind in both forms of torch.save, and what they hold."""
    import torch

    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1, bias=False), torch.nn.BatchNorm2d(2)).state_dict()
    state["parameter"] = torch.nn.Parameter(torch.tensor([1.5, -2.0]))
    state["transposed"] = base.permute(2, 0, 1)
    state["slice"] = base[1, 1:, ::2]  # shares its storage with "transposed"
    state["expanded"] = torch.tensor([[3.0], [4.0]]).expand(2, 3)
    state["scalar"], state["empty"] = torch.tensor(0.1, dtype=torch.float64), torch.zeros(0, 3)
    for name in ("float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"):
        state[name] = torch.tensor([0.0, 1.0, 1.7]).to(getattr(torch, name))
    torch.save(state, folder / "kinds.pth")
    torch.save(state, folder / "kinds_before_1.6.pth", _use_new_zipfile_serialization=False)
    arrays = {
        key: (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        for key, value in state.items()
    }
    np.savez(folder / "kinds.npz", **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Where to write.")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in NETWORKS.items():
        np.savez_compressed(folder / f"{name.replace(' ', '_')}.npz", **record(build))
        print(f"recorded {name}")
    save_samples(folder)


if __name__ == "__main__":
    main()
