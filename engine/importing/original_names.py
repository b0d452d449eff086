"""What the layers of a UNet are called in the implementation that Stable Diffusion was published with.

The inverse of diffusers' conversion of single files, by which LoRAs of such UNets are understood: trainers for Stable Diffusion
XL name layers so. There, a block is a number in one list from the first convolution on, and its parts are numbers too.
"""

from __future__ import annotations

import re

OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def original_name(layer: str, layers_per_block: int, attends: frozenset[int]) -> str:
    """Of a layer of a UNet2DConditionModel. attends: the numbers of its up blocks that have attentions."""
    if layer in OUTSIDE:
        return OUTSIDE[layer]
    found = _BLOCK.fullmatch(layer)
    if not found:
        return layer
    way, part = found[1], found[3]
    block, number = int(found[2] or 0), int(found[4])
    inner = RESNET.get(found[5], found[5]) if part == "resnets" else found[5]
    if way == "mid":  # resnet, attention, resnet
        return f"middle_block.{2 * number if part == 'resnets' else 1}.{inner}"
    if part == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers_per_block + 1)}.0.op"
    if part == "upsamplers":  # behind the last resnet of its block, and its attention
        return f"output_blocks.{block * (layers_per_block + 1) + layers_per_block}.{1 + (block in attends)}.conv"
    first = 1 if way == "down" else 0  # the first convolution
    blocks = "input_blocks" if way == "down" else "output_blocks"
    return f"{blocks}.{first + block * (layers_per_block + 1) + number}.{int(part == 'attentions')}.{inner}"
