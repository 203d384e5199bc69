"""Initialisations of vision transformers that timm lacks (``model.init``)."""

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn


@torch.no_grad()
def theory_init_(model: VisionTransformer) -> None:
    """The initialisation that the theory of Xiong et al. (ICML 2020, section 3.2) assumes.

    Weights are Xavier normal and biases 0. The weights of queries and keys are 0, so attention takes the mean of all
    tokens. The theory assumes input tokens with independent entries of variance 1. Here embedded patches of normalised
    pixels and the class token have that variance.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    blocks: Any = model.blocks
    for block in blocks:
        queries_and_keys, values = block.attn.qkv.weight.split([2 * model.embed_dim, model.embed_dim])
        nn.init.zeros_(queries_and_keys)
        nn.init.xavier_normal_(values)
    for layer in model.patch_embed.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    if model.cls_token is not None:
        nn.init.normal_(model.cls_token)
    if model.pos_embed is not None:
        nn.init.zeros_(model.pos_embed)


def deit_init_(model: VisionTransformer) -> None:
    """Draw the class token and the registers from a truncated normal distribution with 0.02, as DeiT's code does.

    DeiT trained on timm 0.3.2, which began the class token so. timm's 1e-6 of today is Google's.
    """
    for token in (model.cls_token, model.reg_token):
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02)


@torch.no_grad()
def separate_qkv_(model: VisionTransformer) -> None:
    """Draw the weights of queries, keys and values as three Xavier-uniform matrices, as Google's code does.

    timm's port draws them as one matrix of three times the rows, which makes them smaller by the factor √2.
    """
    blocks: Any = model.blocks
    for block in blocks:
        for part in block.attn.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(part)
