"""The three ways in which published files of this series name the same arrays.

| style   | stem               | a convolution of the second stage | classifier |
|---------|--------------------|-----------------------------------|------------|
| current | `stem.0.conv`      | `blocks.3.conv0.conv`             | `fc`       |
| old     | `conv1_1._conv`    | `bb_1_0.conv0._conv`              | `out`      |
| wsl     | `_conv_stem._conv` | `_conv2_0._conv0._conv`           | `_out`     |

`distill.models.specs.NAMINGS` defines them; here they are read backwards. Files from before PaddleClas
2.1 have the old names, among them ResNet50_vd_v2, ResNet50_vd_ssld_v2 and Fix_ResNet50_vd_ssld_v2.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from distill.models.specs import NAMINGS, KeyNaming

Value = TypeVar("Value")
Place = tuple[str | int, ...]
"""Where in a network an array belongs, e.g. ("block", 3, "0", "bn", "_mean"), whatever its name."""


def naming_style(keys: Iterable[str]) -> str | None:
    """Returns the key of `NAMINGS` that fits most of the keys, or None where it fits none."""
    keys = list(keys)
    fits = {style: sum(bool(pattern.fullmatch(key)) for key in keys) for style, pattern in _PATTERNS.items()}
    best = max(fits, key=lambda style: fits[style])
    return best if fits[best] else None


def rename(arrays: Mapping[str, Value], own_keys: Iterable[str]) -> dict[str, Value]:
    """Renames a file's arrays to the names of the model that takes them.

    Args:
        arrays: Anything by key, in any of the styles.
        own_keys: The model's own keys, in any of the styles.

    Returns:
        All of `arrays`; those that belong nowhere in the model keep their name, for the caller to report.
    """
    own_keys, keys = list(own_keys), list(arrays)
    own_name = dict(zip(_places(own_keys), own_keys, strict=True))
    strays = {key: f"{key} (of another naming style)" for key in own_keys}  # must not pass for the model's own
    return {
        own_name.get(place, strays.get(key, key)): arrays[key] for key, place in zip(keys, _places(keys), strict=True)
    }


def is_classifier(key: str) -> bool:
    """Whether the key is the weight or the bias of the last, fully connected layer, in any style."""
    matches = (pattern.fullmatch(key) for pattern in _PATTERNS.values())
    return any(match is not None and match["classifier"] is not None for match in matches)


def _places(keys: list[str]) -> list[Place]:
    """Returns where each key belongs; a key of no style is its own place."""
    style = naming_style(keys)
    if style is None:
        return [(key,) for key in keys]
    matches = [_PATTERNS[style].fullmatch(key) for key in keys]
    # Some styles number blocks through the network, others in each stage: count them in their order.
    blocks = sorted({_block(match.groupdict()) for match in matches if match is not None and match["block"]})
    number = {block: index for index, block in enumerate(blocks)}
    return [
        (key,) if match is None else _place(NAMINGS[style], match, number)
        for key, match in zip(keys, matches, strict=True)
    ]


def _place(naming: KeyNaming, match: re.Match[str], number: Mapping[tuple[int, int], int]) -> Place:
    if match["classifier"]:
        return ("classifier", match["classifier"])
    layer = "conv" if match["convolution"] else "bn"
    if match["stem"]:
        return ("stem", naming.stem.index(match["stem"]), layer, match["array"])
    return ("block", number[_block(match.groupdict())], match["conv_index"] or "shortcut", layer, match["array"])


def _block(groups: Mapping[str, str | None]) -> tuple[int, int]:
    """Returns (stage, position), or (0, index) where the style does not tell stages apart."""
    stage = groups.get("block_stage") or groups.get("block_stage_index") or 0
    position = groups.get("block_position") or groups.get("block_index") or 0
    return int(stage), int(position)


def _pattern(naming: KeyNaming) -> re.Pattern[str]:
    """Returns what matches every key of a style and takes it apart."""
    stem = "|".join(map(re.escape, naming.stem))
    conv = f"{_backwards(naming.conv, 'conv')}|{re.escape(naming.shortcut)}"
    layer = f"(?P<convolution>{re.escape(naming.convolution)})|{re.escape(naming.batch_norm)}"
    return re.compile(
        rf"(?:(?P<stem>{stem})|(?P<block>{_backwards(naming.block, 'block')})\.(?:{conv}))\.(?:{layer})\.(?P<array>\w+)"
        rf"|{re.escape(naming.classifier)}\.(?P<classifier>weight|bias)"
    )


def _backwards(template: str, prefix: str) -> str:
    """Returns the pattern that takes a formatted template apart, each number a group `prefix_name`."""
    return re.sub(r"\\{(\w+)\\}", rf"(?P<{prefix}_\1>\\d+)", re.escape(template))


_PATTERNS = {style: _pattern(naming) for style, naming in NAMINGS.items()}
