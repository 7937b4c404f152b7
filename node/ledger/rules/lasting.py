"""How long versions last whose data was taken back, in Datanets whose charter says so.

Why by snapshot, and when a contribution goes: whoever checks a version then reads one number for
each of its snapshots, however many contributions went. A marked snapshot leaves the list of those
that may be marked, so none is found twice.
What this file does not know: a model's own end, who serves it.
"""

from typing import Final

from consensus.primitives.encoding import INT_MAX
from node.ledger import tables
from node.ledger.amounts import checked
from node.ledger.state import State

RETIRES_VERSIONS: Final = 1  # of a charter's `withdrawal`
TAKEN_NAME: Final = b"taken/"


def note_snapshot(state: State, number: int, made: tables.Snapshot) -> None:
    """Remember a snapshot as one that a withdrawal may end."""
    terms = tables.Terms(*state.get(tables.DATANET, made.datanet).terms)
    if terms.withdrawal == RETIRES_VERSIONS:
        key = (TAKEN_NAME, made.datanet, _newest_first(made.made_ms), number)
        state.put(tables.TAKEN, key, tables.Counter(1))


def note_withdrawal(
    state: State, number: int, found: tables.Contribution, withdrawn_ms: int
) -> None:
    """An accepted contribution goes: what was trained on it ends after a while."""
    oldest = _newest_first(found.accepted_ms) + 1
    for key, _ in state.scan(tables.TAKEN, TAKEN_NAME, found.datanet, below=oldest):
        snapshot = int.from_bytes(key[-1], "big")
        if number <= state.get(tables.SNAPSHOT, snapshot).last_contribution:
            lasts_ms = checked(withdrawn_ms + state.parameter("withdrawn_version_ms"))
            state.set_counter(_lasts_name(snapshot), lasts_ms)
            state.remove(tables.TAKEN, *key)


def snapshot_lasts_ms(state: State, snapshot: int) -> int:
    """Until when a snapshot may be served from; INT_MAX while nothing of it went."""
    return state.counter(_lasts_name(snapshot)) or INT_MAX


def version_lasts_ms(state: State, version: tables.Version) -> int:
    """The same of a version, by its own snapshot and those of its parts."""
    snapshots = [version.snapshot]
    for model, part, _ in version.parts:
        snapshots.append(state.get(tables.VERSION, model, part).snapshot)
    return min(snapshot_lasts_ms(state, snapshot) for snapshot in snapshots)


def _lasts_name(snapshot: int) -> bytes:
    return b"lasts/" + snapshot.to_bytes(8, "big")


def _newest_first(time_ms: int) -> int:
    """A number for keys, so that a scan from the newest ends at a time."""
    return INT_MAX - time_ms
