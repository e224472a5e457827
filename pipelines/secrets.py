"""What of an address must not be seen: logins and tokens."""

from __future__ import annotations

import re

# A login ends at the last `@` before the path. If it has a colon that no port follows, it has a password, and that may
# have slashes: then it ends at the last `@` of all.
LOGIN = re.compile(
    r"""(?P<scheme>[a-z][a-z0-9+.-]{0,30})://
    (?P<login>[^\s/@:"<>]*:(?!\d+(?:[/?\#\s"'),;\]]|$))[^\s"<>]* | [^\s/"<>]*)@""",
    re.IGNORECASE | re.VERBOSE,
)
RUN = re.compile(r"""([\s"<>]+)""")
"""Between what may be a login's address."""
NAMES_ONLY = {"abfs", "abfss", "adl", "ftp", "sftp", "smb", "ssh", "wasb", "wasbs"}
"""Schemes in which a login without a password is a name or a container, not a token."""
WORDS = "sig|signature|credential|token|secret|passw(?:or)?d|pwd|auth|api[_-]?key|access[_-]?key(?:[_-]?id)?"
TOKEN = re.compile(rf"""([?&\#;](?:key|code|[\w.%-]*(?:{WORDS}))=|\b(?:password|pwd)=)[^&\s\#"'<>]+""", re.IGNORECASE)

NAMES = re.compile(r"(?:KEY|KEY_ID|TOKEN|SECRET|PASSWORD|PASSWD|PWD|CONNECTION_STRING)$", re.IGNORECASE)
"""Names of environment variables that hold secrets; those that end with FILE, PATH or ARN hold references."""


def is_secret(name: str, value: str) -> bool:
    """Whether an environment variable holds a secret, by its name or by a login or token in its value."""
    return bool(NAMES.search(name)) or shown(value) != value


def shown(text: str) -> str:
    """An address, or a message that has some in it, without logins, and without tokens in queries and fragments."""
    return TOKEN.sub(r"\1***", _without_logins(text, "***@"))


def without_login(uri: str) -> str:
    """An address for others, who have a login of their own."""
    return TOKEN.sub(r"\1***", _without_logins(uri, ""))


def _without_logins(text: str, instead: str) -> str:
    """Each ends with an `@`: what follows the last one is not looked at, or a long text would take the square of it."""
    runs = ((run[: run.rfind("@") + 1], run[run.rfind("@") + 1 :]) for run in RUN.split(text))
    return "".join(LOGIN.sub(lambda match: _without(match, instead), head) + tail for head, tail in runs)


def _without(match: re.Match[str], instead: str) -> str:
    is_name = match["scheme"].lower() in NAMES_ONLY and not re.search(":|%3a", match["login"], re.IGNORECASE)
    return match[0] if is_name else f"{match['scheme']}://{instead}"
