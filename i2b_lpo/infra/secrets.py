"""Secrets in settings and messages: blanked before anything is shown or written.

>>> redact({"policy": "https://me:hunter2@host/model", "steps": 60})
{'policy': 'https://[redacted]@host/model', 'steps': 60}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["REDACTED", "redact"]

REDACTED = "[redacted]"
"""What is shown in the place of a secret."""

_SECRET = re.compile(
    r"""
    (?<=://) [^/?\#\s]+ (?=@)                             # user:password@ of an address
    | (?<![A-Za-z0-9]) (?:
        hf_[A-Za-z0-9]{20,}                               # Hugging Face
      | (?:gh[pousr]_ | github_pat_ | glpat-) [\w-]{20,}  # GitHub, GitLab
      | sk-(?:\w{1,12}-){0,3}[A-Za-z0-9]{20,}[\w-]*       # OpenAI, Anthropic
      | xox[abprs]-[A-Za-z0-9-]{10,}                      # Slack
      | (?:AKIA | ASIA)[A-Z0-9]{16}                       # AWS key id
      | AIza[\w-]{35}                                     # Google
      | eyJ[\w-]{10,}\.eyJ[\w-]+\.[\w-]+                  # JSON web token
    )
    | (?<=[Bb]earer\ ) [\w.~+/=-]{16,}
    | (?P<name>
          [?&;] [\w.%-]*? (?i:                            # in the query of an address
            token | secret | password | passwd | key | keyid | sig | signature | credential | auth)
        | (?<![A-Za-z0-9]) (?i:(?:aws_)?secret_?(?:access_)?key | api_?key | password | passwd)
      ) \s?=\s?["']? [^&\#\s"']+
    """,
    re.VERBOSE,
)
_SECRET_FIELDS = {
    "access_key",
    "api_key",
    "authorization",
    "hf_token",
    "password",
    "secret",
    "token",
}


def redact(value: Any) -> Any:
    """A copy with secrets replaced by ``[redacted]``, for everything that is written or shown.

    Recognised in any text: access tokens of Hugging Face, GitHub, GitLab, OpenAI, Anthropic, Slack,
    AWS and Google, and JSON web tokens, by their form; ``user:password@`` in an address; values of
    ``?token=``, ``&signature=``, ``&key=`` and the like; ``password=…``, ``api_key=…``,
    ``AWS_SECRET_ACCESS_KEY=…``. In a mapping, also every text under a name such as ``password``. A
    secret of any other form looks like a name: keep it out of settings.

    Args:
        value: text, number, or mappings, lists and tuples of them.
    """
    if isinstance(value, str):
        return _SECRET.sub(lambda m: f"{m['name']}={REDACTED}" if m["name"] else REDACTED, value)
    if isinstance(value, Mapping):
        return {
            redact(k): REDACTED
            if isinstance(v, str) and v and str(k).lower() in _SECRET_FIELDS
            else redact(v)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(map(redact, value))
    return value
