"""Secrets stay in the environment: options that hold one are refused, and messages show ``***`` in their place.

A run keeps every option, in ``config.yaml``, in checkpoints and in the files of its loggers. It also prints them.
"""

import os
import re
from collections.abc import Iterable
from typing import Any

from engine.errors import UserError

# The name of an environment variable.
SECRET_NAME = re.compile(
    r"((^|_)(KEY|TOKEN|SECRET|JWT|PASS|PAT)|_PWD|APIKEY|PASSWORD|PASSWD|CREDENTIALS?)(_ID)?$", re.IGNORECASE
)
SHORTEST = 8  # characters: shorter values, such as "true", are in many texts by chance
HARMLESS = re.compile(r"[a-z]+|[~/].*")  # a word, or the path of a file with a key
FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*(\w+)")
IN_ADDRESS = re.compile(r"(?<=://)[^\s/'\"]+@")  # the user and password of a web address
ADVICE = "a run keeps its options in its files; leave it out, programs such as W&B read secrets from the environment"


def _secrets() -> dict[str, str]:
    """Return the secrets in the environment by name."""
    named = {name: value.strip() for name, value in os.environ.items() if SECRET_NAME.search(name)}
    return {name: value for name, value in named.items() if len(value) >= SHORTEST and not HARMLESS.fullmatch(value)}


def masked(text: str) -> str:
    """Return a text with ``***`` for each secret of the environment, and for the password in a web address."""
    for secret in sorted(_secrets().values(), key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, "***")
    return IN_ADDRESS.sub("***@", text)


def refuse_secrets(options: Iterable[tuple[str, Any]]) -> None:
    """Refuse options that hold a secret, whether it is written out or stands in ``${oc.env:NAME}``.

    Args:
        options: name and value of each. Values may hold interpolations.

    Raises:
        UserError: naming the first such option, and not its value.
    """
    secrets = _secrets()
    for key, value in options:
        text = str(value)
        named = next((name for name in FROM_ENVIRONMENT.findall(text) if SECRET_NAME.search(name)), None)
        held = next((name for name, secret in secrets.items() if secret in text), named)
        if held is not None:
            raise UserError(f"{key} holds the secret of the environment variable {held}: {ADVICE}")
        if IN_ADDRESS.search(text):
            raise UserError(f"{key} holds a web address with a user or password: {ADVICE}")
