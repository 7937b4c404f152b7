"""Proofs that the ledger takes, as files: `olnode tx fraud-proof` sends one from any machine.

Why a file first: a proof is money, and the node that found it may not get through.
What this file does not know: what is proved, who is told.
"""

from pathlib import Path

from node.ledger.wire.transactions import FraudProof, encode_fraud
from node.observe import get_log
from node.storage.segments import sync_directory, write_durably

log = get_log("storage")


def keep_proof(path: Path, payload: FraudProof) -> bool:
    """Durably, in a folder that is made if need be. False on a full disk: who found it accuses all
    the same."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(path, encode_fraud(payload))
        sync_directory(path.parent)
    except OSError as error:
        log.warning("a proof is not kept", why=str(error))
        return False
    return True
