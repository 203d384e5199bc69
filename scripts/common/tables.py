"""Tables in Markdown."""


def head(*names: str) -> str:
    """The two lines at the top of a table."""
    return f"{row(*names)}\n{row(*['---'] * len(names))}"


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"
