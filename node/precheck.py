"""What of a home's settings is read before anything is opened: a slip is one sentence.

What this file does not know: the parts that the settings are for.
"""

from functools import partial
from pathlib import Path

from consensus.primitives.errors import Invalid
from node.config import ConfigError, Engine, Metrics, P2p, Serving, host_and_port
from node.ledger.addresses import account_of
from p2p.addresses import addresses_of, announced_of
from p2p.network import denied_of


def check_addresses(p2p: P2p) -> None:
    """Raise ConfigError for an address of the operator's that is none, and open nothing."""
    own, others = partial(addresses_of, with_peer=False), partial(addresses_of, with_peer=True)
    for key, texts, read in (
        ("listen", p2p.listen, own),
        ("announce", p2p.announce, partial(announced_of, reach=p2p.network)),
        ("bootstrap", p2p.bootstrap, others),
        ("reserved", p2p.reserved, others),
        ("deny", p2p.deny, denied_of),
    ):
        try:
            read(texts)
        except ValueError as error:
            mend = f"{key} under [p2p] in config.toml"
            raise ConfigError(f"[p2p] {key}: {error}", mend=mend) from None


def rotated_account(serving: Serving) -> bytes | None:
    """The account that was rotated to this node's key and that it serves as; None: the key's own.
    Raises ConfigError."""
    if not serving.account:
        return None
    try:
        return account_of(serving.account)
    except Invalid as error:
        mend = "account under [serving] in config.toml"
        raise ConfigError(f"[serving] account: {error}", mend=mend) from None


def engine_token(engine: Engine) -> str:
    """What remote engines want to see; "" where nothing is named. Raises ConfigError."""
    if not engine.token_file:
        return ""
    try:
        return Path(engine.token_file).expanduser().read_text("ascii").strip()
    except (OSError, ValueError) as error:
        mend = "token_file under [engine] in config.toml"
        raise ConfigError(f"[engine] token_file: {error}", mend=mend) from None


def check_metrics(metrics: Metrics) -> None:
    """Raise ConfigError for a port that `instance` has pushed out of range."""
    if metrics.listen:
        host_and_port(metrics.listen)
