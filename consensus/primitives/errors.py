"""The one refusal of bytes from outside: a stable word, and the facts beside it.

Why one class: whoever sent the bytes is told by `code`, a word that never changes, and the
handler at the door (a peer, a route, a light client) needs no list of exception types.
Our own faults are assertions and never this.
"""


class Invalid(Exception):
    """Bytes or a request from outside break a rule; `code` is a stable `part.reason` word."""

    def __init__(self, code: str, **facts: object) -> None:
        super().__init__(code, facts)
        self.code = code
        self.facts = facts

    def __str__(self) -> str:
        told = ", ".join(f"{name}={_short(value)}" for name, value in self.facts.items())
        return f"{self.code} ({told})" if told else self.code


def _short(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 32 else f"{value[:8].hex()}… ({len(value)} bytes)"
    return str(value)
