"""Lipschitz constants of single layers in the Euclidean norm, from weights alone: no input is needed.

Sources: Qi et al., "LipsFormer", ICLR 2023 (published attention bound); arXiv 2510.23012 (softmax is ½-Lipschitz).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.spectral import largest_singular_value

# The slope Φ(x) + x φ(x) is largest where its derivative φ(x) (2 − x²) vanishes, at x = √2: 1.1289.
GELU = (1 + math.erf(1)) / 2 + math.exp(-1) / math.sqrt(math.pi)


def conv_bound(conv: nn.Conv2d) -> float:
    """Bound of a zero-padded convolution: σ₁ of the reshaped matrix times the root of how often a pixel is read.

    Along an axis with kernel k, stride s and dilation d a pixel lies in at most ⌈k·gcd(s, d) / s⌉ patches, so cutting
    out patches stretches by at most the root of that, and padding by nothing. Where patches do not overlap (1x1, or
    kernel = stride) it is 1 and the bound exact. Groups act on channels of their own: the largest counts.
    """
    matrices = conv.weight.detach().flatten(1).unflatten(0, (conv.groups, -1))
    sigma = max(largest_singular_value(matrix).item() for matrix in matrices)
    axes = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
    return sigma * math.sqrt(math.prod(math.ceil(k * math.gcd(s, d) / s) for k, s, d in axes))


def depthwise_fft_bounds(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Bound of each channel of a zero-padded depthwise convolution on a map of ``size``, float64 ``(dim,)``.

    On the map padded to (H + k − 1, W + k − 1) a circular convolution does the same; its singular values are the
    moduli of the kernel's Fourier transform, and padding and cropping do not stretch.

    Args:
        weight: kernels ``(dim, 1, k, k)``.
        size: (height, width).
    """
    kernels = weight.detach().double()[:, 0]
    padded = [side + kernel - 1 for side, kernel in zip(size, kernels.shape[1:], strict=True)]
    return torch.fft.rfft2(kernels, s=padded).abs().amax(dim=(1, 2))


def depthwise_norm(weight: Tensor, size: tuple[int, int], tolerance: float = 5e-3) -> float:
    """The norm of a depthwise convolution with "same" padding on a map of ``size``, by iteration on the operator K.

    The reshaped kernels' σ₁ is another number, which may be smaller. Singular values of convolutions crowd below the
    largest, where plain power iteration stalls too low unnoticed; here its iterates span a space, the method of
    Lanczos, with a known end: after k steps in n dimensions from a random start the largest eigenvalue λ of KᵀK exceeds
    the one found over (1 − ε) with a probability of at most 1.648 √n exp(−√ε (2k − 1)) (Kuczyński and Woźniakowski,
    SIAM J. Matrix Anal. Appl. 13(4), 1992), here 10⁻⁶. That upper end is returned; n steps are exact.

    Args:
        weight: kernels ``(dim, 1, k, k)``, k odd.
        size: (height, width).
        tolerance: how far, relatively, the result may be too high.
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
    images = basis[:, :0]  # KᵀK of it
    for step in range(1, steps + 1):
        image = _gram(kernels, basis[:, -1:].unflatten(2, size)).flatten(2)
        images = torch.cat([images, image], dim=1)
        if step % 8 == 0 or step == steps:
            largest = torch.linalg.eigvalsh(basis @ images.mT)[:, -1].max().clamp_min(0).sqrt()
            # Channels that cannot hold the largest value any more are left out.
            alive = limits >= largest * (1 - 1e-9)
            kernels, limits, basis, images, image = (t[alive] for t in (kernels, limits, basis, images, image))
        for _ in range(2):  # Gram-Schmidt, twice for the sake of rounding
            image = image - (image @ basis.mT) @ basis
        basis = torch.cat([basis, F.normalize(image, dim=2)], dim=1)
    return min((largest / math.sqrt(1 - slack)).item(), limits.max().item())


def _gram(kernels: Tensor, x: Tensor) -> Tensor:
    """KᵀKx for kernels ``(dim, k, k)`` and ``x`` ``(dim, 1, height, width)``, with "same" padding."""
    for turned in (kernels, kernels.flip(1, 2)):
        x = F.conv2d(x.transpose(0, 1), turned.unsqueeze(1), padding="same", groups=len(kernels)).transpose(0, 1)
    return x


def attention_slopes(form: str, tokens: int, temperature: float) -> tuple[float, float, float]:
    """How far attention moves when its normalised queries, keys or values, all at most 1 long, move by 1.

    With P = softmax(τ Q̂K̂ᵀ + B) the output P V̂ moves by dP V̂ + P dV̂. The tight form: ‖P‖₂ ≤ √N, for its rows sum to 1;
    ‖V̂‖₂, ‖K̂‖₂, ‖Q̂‖₂ ≤ √N, for N rows are at most 1 long; softmax is ½-Lipschitz: √N · ½ · τ√N for queries and for
    keys. None of it depends on P, so neither on the position bias B, which is constant. One token attends to itself
    whatever the logits are.

    Args:
        form: ``"published"`` as in LipsFormer's theorem; ``"half_softmax"`` the same with a ½-Lipschitz softmax;
            ``"tight"`` as above.
        tokens: N of a window.
        temperature: τ.
    """
    n, t = tokens, abs(temperature)
    if form == "published":
        return 2 * (n - 1) * t, 2 * n * (n - 1) * t, 2 * n
    if form == "half_softmax":
        return n * t, n * n * t, 2 * n
    logits = n / 2 * t if n > 1 else 0.0
    return logits, logits, math.sqrt(n)


@dataclass(frozen=True)
class Heads:
    """The heads of one branch of certified attention; windows partition the tokens, so one window's bound is the map's.

    Attributes:
        count: heads.
        tokens: of a window or stripe.
        temperature: τ of the logits.
        epsilon: ε of the normalisation x / √(‖x‖² + ε), whose slope is at most ε^−½, at 0.
        gain: factor of the output, ν included.
        lepe: (published, tight) bounds of what is added to the attention by a convolution of the normalised values.
    """

    count: int
    tokens: int
    temperature: float
    epsilon: float
    gain: float
    lepe: tuple[float, float] = (0.0, 0.0)

    def slopes(self, form: str) -> Tensor:
        """Slopes of each head in its queries, keys and values before they are normalised: ``(count, 3)``."""
        query, key, value = attention_slopes(form, self.tokens, self.temperature)
        value += self.lepe[0 if form == "published" else 1]
        slopes = torch.tensor([query, key, value], dtype=torch.float64) * abs(self.gain) / math.sqrt(self.epsilon)
        return slopes.expand(self.count, 3)


def certified_attention_bounds(weight: Tensor, branches: list[Heads]) -> tuple[float, float]:
    """Published and tight bound of certified attention from its input to its heads, before the output projection.

    Head h moves by at most a_h‖dQ_h‖ + b_h‖dK_h‖ + c_h‖dV_h‖. Heads, those of other branches too, are other channels of
    the output: squares add up. Then either each head has its Lip_h = a_h‖W_Q,h‖ + … and all together √Σ Lip_h²; or, by
    Minkowski's inequality, all together move by at most max a‖dQ‖ + …, which is max a‖W_Q‖ + … with whole matrices.
    The published form is the second, for one head the theorem itself; the tight form is the smaller of the two.

    Args:
        weight: of the fused layer, ``(3 * dim, in_dim)``: queries, keys, values, in each the heads in turn.
        branches: whose heads follow each other.
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
