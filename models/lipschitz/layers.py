"""Lipschitz constants of single layers in the Euclidean norm, from their weights only.

Sources: Qi et al., "LipsFormer", ICLR 2023 (published attention bound); arXiv 2510.23012 (softmax is ½-Lipschitz).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.spectral import largest_singular_value

# GELU's slope Φ(x) + x φ(x) is largest at x = √2, where its derivative φ(x) (2 − x²) is zero: 1.1289.
GELU = (1 + math.erf(1)) / 2 + math.exp(-1) / math.sqrt(math.pi)


def conv_bound(conv: nn.Conv2d) -> float:
    """Bound of a zero-padded convolution: σ₁ of the reshaped weight times √(number of patches that contain a pixel).

    Along an axis with kernel k, stride s and dilation d, a pixel is in at most ⌈k·gcd(s, d) / s⌉ patches. Extracting
    patches increases the norm by at most the square root of that number, and zero padding does not change it. If
    patches do not overlap (1x1, or kernel = stride), the number is 1 and the bound is exact. Groups act on separate
    channels, so the largest σ₁ counts.
    """
    matrices = conv.weight.detach().flatten(1).unflatten(0, (conv.groups, -1))
    sigma = max(largest_singular_value(matrix).item() for matrix in matrices)
    axes = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
    return sigma * math.sqrt(math.prod(math.ceil(k * math.gcd(s, d) / s) for k, s, d in axes))


def depthwise_fft_bounds(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Bound of each channel of a zero-padded depthwise convolution on a map of ``size``, float64 ``(dim,)``.

    On the map padded to (H + k − 1, W + k − 1) a circular convolution gives the same values. Its singular values are
    the absolute values of the kernel's Fourier transform. Padding and cropping do not increase the norm.

    Args:
        weight: kernels ``(dim, 1, k, k)``.
        size: (height, width).
    """
    kernels = weight.detach().double()[:, 0]
    padded = [side + kernel - 1 for side, kernel in zip(size, kernels.shape[1:], strict=True)]
    return torch.fft.rfft2(kernels, s=padded).abs().amax(dim=(1, 2))


def depthwise_norm(weight: Tensor, size: tuple[int, int], tolerance: float = 5e-3) -> float:
    """Spectral norm of a depthwise convolution K with "same" padding on a map of ``size``, by the Lanczos method.

    The σ₁ of the reshaped kernels is a different number and may be smaller. Convolutions have many singular values
    close to the largest, so power iteration can stop at a value that is too low. The error of the Lanczos method is
    known. After k steps in n dimensions from a random start, let μ be its estimate of the largest eigenvalue λ of KᵀK.
    Then λ > μ / (1 − ε) with a probability of at most 1.648 √n exp(−√ε (2k − 1)) (Kuczyński and Woźniakowski, SIAM J.
    Matrix Anal. Appl. 13(4), 1992). Here k makes this probability 10⁻⁶, and the result is √(μ / (1 − ε)). If k reaches
    n, μ is exact and the result is √μ.

    Args:
        weight: kernels ``(dim, 1, k, k)``, k odd.
        size: (height, width).
        tolerance: largest relative error of the result, which is too high rather than too low; ε is twice as large.
    """
    pixels, slack = math.prod(size), 2 * tolerance
    steps = math.ceil((math.log(1.648 * math.sqrt(pixels) * 1e6) / math.sqrt(slack) + 1) / 2)
    if steps >= pixels:
        steps, slack = pixels, 0.0
    limits = depthwise_fft_bounds(weight, size)
    kernels = weight.detach().double()[:, 0]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(kernels), 1, pixels, generator=generator, dtype=torch.float64).to(kernels.device)
    basis = F.normalize(start, dim=2)  # (channels, steps, pixels)
    images = basis[:, :0]  # KᵀK applied to the basis
    for step in range(1, steps + 1):
        image = _gram(kernels, basis[:, -1:].unflatten(2, size)).flatten(2)
        images = torch.cat([images, image], dim=1)
        if step % 8 == 0 or step == steps:
            largest = torch.linalg.eigvalsh(basis @ images.mT)[:, -1].max().clamp_min(0).sqrt()
            # Drop the channels whose bound is below the largest value so far.
            alive = limits >= largest * (1 - 1e-9)
            kernels, limits, basis, images, image = (t[alive] for t in (kernels, limits, basis, images, image))
        for _ in range(2):  # Gram-Schmidt, twice because of rounding errors
            image = image - (image @ basis.mT) @ basis
        basis = torch.cat([basis, F.normalize(image, dim=2)], dim=1)
    return min((largest / math.sqrt(1 - slack)).item(), limits.max().item())


def _gram(kernels: Tensor, x: Tensor) -> Tensor:
    """KᵀKx for kernels ``(dim, k, k)`` and ``x`` ``(dim, 1, height, width)``, with "same" padding."""
    for turned in (kernels, kernels.flip(1, 2)):
        x = F.conv2d(x.transpose(0, 1), turned.unsqueeze(1), padding="same", groups=len(kernels)).transpose(0, 1)
    return x


def attention_slopes(form: str, tokens: int, temperature: float) -> tuple[float, float, float]:
    """Lipschitz constants of attention in its normalised queries, keys and values, whose rows have length 1 at most.

    With P = softmax(τ Q̂K̂ᵀ + B) the output P V̂ changes by dP V̂ + P dV̂. The tight form uses three facts: ‖P‖₂ ≤ √N,
    because its rows sum to 1; ‖Q̂‖₂, ‖K̂‖₂, ‖V̂‖₂ ≤ √N, because each has N rows of length 1 at most; softmax is
    ½-Lipschitz. The constants are √N · ½ · τ√N for queries and for keys, and √N for values. They do not depend on the
    position bias B, because B is constant and P does not appear in them. A single token attends only to itself, so
    its queries and keys have the constant 0.

    Args:
        form: ``"published"`` as in LipsFormer's theorem; ``"tight"`` as above.
        tokens: N of a window.
        temperature: τ.
    """
    n, t = tokens, abs(temperature)
    if form == "published":
        return 2 * (n - 1) * t, 2 * n * (n - 1) * t, 2 * n
    logits = n / 2 * t if n > 1 else 0.0
    return logits, logits, math.sqrt(n)


@dataclass(frozen=True)
class Heads:
    """The heads of one branch of certified attention.

    Windows do not share tokens, so the bound of one window is the bound of the whole map.

    Attributes:
        count: number of heads.
        tokens: tokens of a window or stripe.
        temperature: τ of the logits.
        epsilon: ε of the normalisation x / √(‖x‖² + ε), whose largest slope is ε^−½, at 0.
        gain: factor of the output, including ν.
        lepe: (published, tight) bounds of LePE, the convolution of the normalised values.
    """

    count: int
    tokens: int
    temperature: float
    epsilon: float
    gain: float
    lepe: tuple[float, float] = (0.0, 0.0)

    def slopes(self, form: str) -> Tensor:
        """Lipschitz constants of each head in its queries, keys and values before normalisation: ``(count, 3)``."""
        query, key, value = attention_slopes(form, self.tokens, self.temperature)
        value += self.lepe[0 if form == "published" else 1]
        slopes = torch.tensor([query, key, value], dtype=torch.float64) * abs(self.gain) / math.sqrt(self.epsilon)
        return slopes.expand(self.count, 3)


def certified_attention_bounds(weight: Tensor, branches: list[Heads]) -> tuple[float, float]:
    """Published and tight bound of certified attention from its input to its heads, before the output projection.

    The output of head h changes by at most a_h‖dQ_h‖ + b_h‖dK_h‖ + c_h‖dV_h‖. The heads of all branches fill different
    output channels, so the squares of their changes add up. Two bounds follow:

    - by head: Lip_h = a_h‖W_Q,h‖ + b_h‖W_K,h‖ + c_h‖W_V,h‖, and √Σ Lip_h² for all heads;
    - with whole matrices, by Minkowski's inequality: max a_h · ‖W_Q‖ + max b_h · ‖W_K‖ + max c_h · ‖W_V‖.

    The published form is the second bound; for one head it is the paper's theorem. The tight form is the smaller one.

    Args:
        weight: weight of the fused qkv layer, ``(3 * dim, in_dim)``: all queries, all keys, all values, each by head.
        branches: the branches, in the order of their heads in ``weight``.
    """
    weight = weight.detach().double()
    whole = torch.stack([largest_singular_value(part) for part in weight.chunk(3)]).cpu()
    heads = sum(branch.count for branch in branches)
    each = torch.linalg.matrix_norm(weight.unflatten(0, (3, heads, -1)), ord=2).T.cpu()
    published = torch.cat([branch.slopes("published") for branch in branches])
    tight = torch.cat([branch.slopes("tight") for branch in branches])
    by_head = (tight * each).sum(dim=1).norm()
    at_once = (tight.amax(dim=0) * whole).sum()
    return (published.amax(dim=0) * whole).sum().item(), torch.minimum(by_head, at_once).item()
