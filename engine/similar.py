"""Suggest names that are similar to an unknown one."""

from difflib import SequenceMatcher, get_close_matches


def nearest(name: str, names: list[str], otherwise: str = "--help lists all") -> str:
    """Return the end of an error message about an unknown name: the most similar ones, or all if they are few.

    Names may be dotted. They are similar only if their last parts are.

    Args:
        name: the unknown name.
        names: the known ones.
        otherwise: what to say if none is similar and there are many.
    """
    leaf = name.rsplit(".", 1)[-1]
    near = [n for n in get_close_matches(name, names, n=3, cutoff=0.6) if _alike(n.rsplit(".", 1)[-1], leaf) >= 0.5]
    if near and _alike(near[0], name) >= 0.9:  # so alike that less similar names would only distract
        near = [n for n in near if _alike(n, name) >= 0.8]
    if not near:  # perhaps the right name in the wrong group
        near = [n for n in names if n.rsplit(".", 1)[-1] == leaf][:3]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose {', '.join(names)}" if 0 < len(names) < 30 else otherwise


def _alike(name: str, other: str) -> float:
    """Return how similar two names are, from 0 to 1."""
    return SequenceMatcher(None, name, other).ratio()
