"""One transaction from payload to block: priced, shown, signed, sent, waited for.

Why the key stays here: the daemon never sees an operator key. A transaction is shown with its fee
before it is signed (`--dry-run` ends there), and waited for unless told otherwise.
What it does not know: what a transaction is for; whether the ledger will take it: its code comes
back.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from node.cli.arguments import account_in
from node.cli.frame import (
    FAILED,
    FUNDS,
    CommandError,
    Frame,
    frame_of,
    note,
    open_text,
    pairs,
    usage,
)
from node.cli.money import grains_of_open
from node.cli.passwords import read_password
from node.cli.waiting import telling

if TYPE_CHECKING:
    from node.ledger.wire.transactions import Payload
    from node.wallet.keystore import Key, KeyFile, Role
    from node.web.ask import Node, Unreachable

VALID_S: Final = 600
FEE_ROOM: Final = 2  # the base price may rise while a transaction waits
SETTLE_S: Final = 90
POLL_S: Final = 0.2
ANSWER_S: Final = 120.0  # the node hashes what it is to serve before it answers
FUNDS_CODES: Final = (9, 20)  # page 30 §11
GRAINS: Final = frozenset(  # fields that people read as OPEN
    {"amount", "cap", "stake_per_record", "p_in", "p_out", "p_call"}
    | {"deposit", "cost", "fee", "max_fee"}
)
TEXTS: Final = frozenset({"name"})
ACCOUNTS: Final = frozenset(  # fields that people type as open1…
    {"to", "provider", "spender", "target", "key", "peer_key", "reward_account"}
)
SIGNATURES: Final = frozenset(
    {"signature", "payer_signature", "provider_signature", "signature_a", "signature_b"}
)

Told = dict[str, Any]
Made = Callable[[], Mapping[str, int | str]]


@dataclass(frozen=True, slots=True)
class Options:
    """What every transaction takes beside its payload."""

    sender: str | None
    account: str | None
    max_fee: str | None
    dry_run: bool
    no_wait: bool
    offline: Path | None
    password_file: str | None


def options_of(ctx: typer.Context) -> Options:
    """The options that `tx` took for its sub-command."""
    given = ctx.obj
    assert isinstance(given, Options)
    return given


class Desk:
    """One call of a sub-command: the running node, its parameters, the key that will sign.

    The key is that of --from, else the home's first of `roles`; it signs for its own account, or
    for that of --account. Raises CommandError where there is no key, or where an option cannot be
    meant; Unreachable where no node runs.
    """

    def __init__(self, ctx: typer.Context, *roles: "Role") -> None:
        from node.ledger.addresses import account_text

        self.frame, self.options = frame_of(ctx), options_of(ctx)
        self.key = _key_file(self.frame, self.options.sender, roles or ("operator", "node"))
        named = self.options.account
        self.sender = self.key.public_key if named is None else account_in(named, "--account")
        self.account = account_text(self.sender)
        given, target = self.options.max_fee, self.options.offline
        self._max_fee = None if given is None else grains_of_open(given, "--max-fee")
        if target is not None and target.exists():
            usage(f"{target} exists")
        self.node = self.frame.daemon(timeout_s=ANSWER_S)
        self._params = self.node.get("/ledger/params")
        self._unlocked: dict[str, Key] = {}

    @property
    def chain_id(self) -> bytes:
        """Of the chain that the node is on."""
        return bytes.fromhex(self._params["chain_id"])

    def parameter(self, name: str) -> int:
        """A number that the ledger rules by."""
        return int(self._params["values"][name][0])

    def find_key(self, role: "Role") -> "KeyFile | None":
        """The home's first key of a role."""
        key: KeyFile | None = _keystore(self.frame).find(role)
        return key

    def find_signer(self, account: str) -> "KeyFile | None":
        """The home's key that is this account's own."""
        from node.ledger.addresses import account_text

        keys: list[KeyFile] = _keystore(self.frame).list()
        return next((key for key in keys if account_text(key.public_key) == account), None)

    def get_key(self, name: str) -> "KeyFile":
        """The home's key of that name; raises KeystoreError where there is none."""
        key: KeyFile = _keystore(self.frame).get(name)
        return key

    def sign(self, key: "KeyFile", tag: bytes, body: bytes) -> bytes:
        """The signature of `body` on this chain, by a key that is unlocked once a call."""
        if key.name not in self._unlocked:
            options = self.options
            question = f"password of {key.name}"
            password = read_password(options.password_file, question) if key.is_sealed else None
            self._unlocked[key.name] = _keystore(self.frame).unlock(key.name, password)
        return self._unlocked[key.name].sign(tag, self.chain_id, body)

    def do(
        self, payload: "Payload", *, deposit: int = 0, cost: int = 0, made: Made | None = None
    ) -> None:
        """Carry it out and tell how it ended; `made` finds what the ledger has now, by name."""
        told = self.carry_out(payload, deposit=deposit, cost=cost)
        if told is not None:
            self.tell(told, made)

    def carry_out(self, payload: "Payload", *, deposit: int = 0, cost: int = 0) -> Told | None:
        """Price, show, sign, send, wait; where it stands then, or None if nothing was sent.

        `deposit` comes back some day, `cost` does not: both leave the balance beside the fee.
        Raises CommandError with the ledger's code where a rule refused it.
        """
        fee = _weight(payload) * int(self._params["base_price"])
        limit = fee * FEE_ROOM if self._max_fee is None else self._max_fee
        shown = self._shown(payload, deposit, cost) | {"fee": str(fee), "max_fee": str(limit)}
        if self.options.dry_run:
            self.frame.show("tx.dry-run/1", shown, _lines(shown))
            return None
        raw = self._sign(payload, limit)
        if self.options.offline is None:
            return send(self.frame, raw, self.options.no_wait)
        write_new(self.options.offline, raw)
        told = {**shown, "file": str(self.options.offline)}
        self.frame.show("tx.offline/1", told, _lines(shown))
        note(f"next: olnode tx send {self.options.offline}")
        return None

    def tell(self, told: Told, made: Made | None = None) -> None:
        """How it ended, for people and programs; `made` is asked once a block has it."""
        is_settled = told["state"] == "settled"
        tell(self.frame, told, made() if made and is_settled else {})

    def _shown(self, payload: "Payload", deposit: int, cost: int) -> Told:
        beside = {"deposit": deposit, "cost": cost}
        return {
            "type": type(payload).__name__,
            "from": self.account,
            **_plain_fields(payload),
            **{name: str(grains) for name, grains in beside.items() if grains},
        }

    def _sign(self, payload: "Payload", limit: int) -> bytes:
        """The wire bytes, signed by the unlocked key."""
        from node.ledger.wire.transactions import TAG, encode_body, encode_transaction

        nonce = self.nonce
        valid_until_ms = time.time_ns() // 10**6 + VALID_S * 1_000
        body = encode_body(self.sender, nonce, limit, valid_until_ms, payload)
        return encode_transaction(body, self.sign(self.key, TAG, body))

    @cached_property
    def nonce(self) -> int:
        """What this call's transaction carries. Raises CommandError for an account that owns
        nothing, or that another key signs for: no password is asked for in vain."""
        from node.ledger.addresses import account_text
        from node.web.ask import Refusal

        try:
            told = self.node.get(f"/ledger/accounts/{self.account}")
        except Refusal as error:
            if error.status != 404:
                raise
            raise CommandError(
                f"the ledger does not know {self.account} ({self.key.name}): it owns nothing",
                status=FUNDS,
                mend=f"olnode tx transfer {self.account} AMOUNT --from KEY",
                code=error.code,
            ) from None
        if told["key"] != account_text(self.key.public_key):
            raise CommandError(
                f"{told['key']} signs for {self.account}, not the key {self.key.name}",
                mend="olnode keys list, then --from KEY --account ACCOUNT",
            )
        return int(told["next_nonce"])


def send(frame: Frame, raw: bytes, no_wait: bool) -> Told:
    """Hand signed bytes to the node; where the transaction stands, settled unless `no_wait`.

    Raises CommandError where a rule refused it, after SETTLE_S, or where the node fell silent once
    it was asked; Unreachable where it was not.
    """
    from node.ledger.wire.transactions import decode_transaction
    from node.web.ask import Unreachable

    node = frame.daemon()
    try:
        tx_id = node.post_bytes("/ledger/transactions", raw)["transaction"]
    except Unreachable as error:
        if not error.was_asked:
            raise
        raise _lost(decode_transaction(raw).tx_id.hex(), error) from None
    if no_wait:
        return {"transaction": tx_id, "state": "pending"}
    with telling(frame):
        told = _wait_settled(node, tx_id)
    if told["code"]:
        is_of_funds = told["code"] in FUNDS_CODES
        raise CommandError(
            f"{tx_id} was refused in block {told['height']}: {told['reason']} ({told['code']})",
            status=FUNDS if is_of_funds else FAILED,
            mend=f"olnode query account {told['sender']}" if is_of_funds else "",
            code=told["reason"],
        )
    return told


def _wait_settled(node: "Node", tx_id: str) -> Told:
    """Where the transaction stands once a block has it; raises CommandError after SETTLE_S."""
    told, until = _standing(node, tx_id), time.monotonic() + SETTLE_S
    while told is None or told["state"] == "pending":
        if time.monotonic() > until:
            raise CommandError(
                f"{tx_id} is in no block after {SETTLE_S} s",
                mend=f"olnode status, for peers and height; then olnode tx show {tx_id}",
            )
        time.sleep(POLL_S)
        told = _standing(node, tx_id)
    return told


def tell(frame: Frame, told: Told, made: Mapping[str, int | str]) -> None:
    """What `send` gave, and what came of it, as the command's result."""
    tx_id, is_settled = told["transaction"], told["state"] == "settled"
    line = f"done in block {told['height']}: {tx_id}" if is_settled else f"sent {tx_id}"
    frame.show("tx/1", {**told, **made}, [line, *pairs(made.items())])


def _lost(tx_id: str, error: "Unreachable") -> CommandError:
    """It may be in a block already: who does not know its id would pay twice."""
    return CommandError(
        f"{tx_id} was sent, but {error.what}",
        status=error.exit_status,
        mend=f"olnode tx show {tx_id}",
        why=error.why,
    )


def _standing(node: "Node", tx_id: str) -> Told | None:
    from node.web.ask import Refusal, Unreachable

    try:
        return node.get(f"/ledger/transactions/{tx_id}")
    except Refusal as error:
        if error.status != 404:
            raise
        return None  # between pool and block
    except Unreachable as error:
        raise _lost(tx_id, error) from None


def _weight(payload: "Payload") -> int:
    """What it will weigh at most: nonce and signature change that by a few bytes only."""
    from node.ledger.wire.transactions import decode_transaction, encode_body, encode_transaction

    widest = 2**63 - 1
    body = encode_body(bytes(32), widest, widest, widest, payload)
    return decode_transaction(encode_transaction(body, bytes(64))).weight


def _keystore(frame: Frame) -> Any:
    return frame.keystore(frame.initialised())


def _key_file(frame: Frame, name: str | None, roles: tuple["Role", ...]) -> "KeyFile":
    store = _keystore(frame)
    found = store.get(name) if name else None
    for role in roles:
        found = found or store.find(role)
    if found is None:
        raise CommandError(
            f"this home has no key to sign with: it takes {' or '.join(roles)}",
            mend="olnode keys add NAME",
        )
    key: KeyFile = found
    return key


def write_new(path: Path, raw: bytes) -> None:
    """Write a file that was not there; raises CommandError."""
    try:
        with path.open("xb") as file:
            file.write(raw)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None


def _plain_fields(record: Any) -> Told:
    """The fields of a payload for JSON; those of a record inside it stand beside them."""
    from node.ledger.addresses import account_text

    fields: Told = {}
    for name, value in record._asdict().items():
        if name in SIGNATURES:
            continue
        if hasattr(value, "_asdict"):
            fields |= _plain_fields(value)
        elif name == "payments":
            fields[name] = [[account_text(to), str(amount)] for to, amount in value]
        elif name in ACCOUNTS:
            fields[name] = account_text(value)
        elif name in TEXTS:
            fields[name] = value.decode("ascii")
        elif name in GRAINS:
            fields[name] = str(value)  # as everywhere: a JavaScript number would lose grains
        else:
            fields[name] = _plain(value)
    return fields


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(member) for member in value]
    return value.hex() if isinstance(value, bytes) else value


def _lines(shown: Told) -> list[str]:
    rows: list[tuple[str, str]] = []
    for name, value in shown.items():
        if name == "payments":
            rows += [(name, f"{to} {open_text(amount)}") for to, amount in value]
        else:
            rows.append((name, open_text(value) if name in GRAINS else value))
    return pairs(rows)
