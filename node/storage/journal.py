"""The journal: what this validator was told and what it promised at each height, before it spoke.

Every own message is in two files before it leaves: SIGNED in `journal/<height>.log` and the slot
in `signer`; either alone restores it. Messages and blocks of others are appended as they come
and become durable with our next promise: a lock's block and polka before its precommit.
Why a second guard at signing: no vote leaves whose body is not recorded, whatever the caller does.
What this file does not know: what a message means, and where the private key is.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from consensus.certificate import VOTE_TAG
from consensus.messages import PROPOSAL_TAG
from consensus.primitives.encoding import U8, U63, Bytes, Fixed, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.records import SIGNED_PROPOSAL, SignerRecord
from node.storage.errors import StorageError
from node.storage.frames import FrameFormat, read_all
from node.storage.segments import read_file, sync_directory, write_at
from node.storage.signer import (
    RECORD_BYTES,
    CannotSign,
    SignerFile,
    decode_record,
    encode_record,
)

MAGIC: Final = b"OLJF"
VERSION: Final = 1
KIND_HEAD: Final = 0
KIND_MESSAGE: Final = 1
KIND_BLOCK: Final = 2
KIND_SIGNED: Final = 3
KIND_END: Final = 4

MESSAGE_BYTES_MAX: Final = 64 << 10
BLOCK_BYTES_MAX: Final = 2 << 20
PAYLOAD_BYTES_MAX: Final = BLOCK_BYTES_MAX + 64
HEIGHT_BYTES_MAX: Final = 1 << 30  # of one height's file: months of rounds without a decision
HEIGHTS_KEPT: Final = 16

# When no file surely holds our last word, the key must not speak again.
LOST_MEND: Final = "unbond this key and bond a new key: nobody knows what this one said last"

FORMAT: Final = FrameFormat(MAGIC, has_height=False, payload_bytes_max=PAYLOAD_BYTES_MAX)
_HEAD: Final = Record(U8, Fixed(32), U63)
_MESSAGE: Final = Record(Bytes(MESSAGE_BYTES_MAX), U8, U8)

Sign = Callable[[bytes, bytes], bytes]  # (tag, body) → signature


class DoubleSign(AssertionError):
    """We were about to promise two things: a fault of ours that must end the consensus task."""


class LoggedMessage(NamedTuple):
    """A message given to the engine, with the verdicts given beside it."""

    raw: bytes
    valid: bool
    timely: bool


class Recovered(NamedTuple):
    """What the files hold of one height. `signed` is our last promise of that height."""

    signed: SignerRecord | None
    promises: tuple[SignerRecord, ...]
    blocks: tuple[bytes, ...]
    messages: tuple[LoggedMessage, ...]
    is_ended: bool

    @property
    def is_empty(self) -> bool:
        """Whether nothing was heard or said: no need to start past the gate."""
        return not (self.promises or self.blocks or self.messages or self.signed)


class Journal:
    """Journal and signer record of one validator key. All calls from one thread at a time."""

    def __init__(self, directory: Path, signer: SignerFile, chain_id: bytes) -> None:
        """Open both. Raises `CannotSign` if the newest journal is damaged."""
        self._directory = directory
        self._signer = signer
        self._chain_id = chain_id
        self._descriptor = -1
        self._end = 0
        self._promises: dict[tuple[int, int, int], bytes] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="journal-sync")
        self.height = 0
        self.cut_bytes = 0
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._last = signer.record
        self._learn_from_newest()
        if signer.bad_slots and self._last is not None:
            signer.write(self._last)
            signer.sync()

    @property
    def last(self) -> SignerRecord | None:
        """Our greatest promise, from whichever file has it."""
        return self._last

    def may_sign(self, height: int) -> bool:
        """Whether the chain has passed our record: after a restore it may be behind it."""
        return self._last is None or height >= self._last.height

    def begin(self, height: int) -> Recovered:
        """Open the journal of `height` and give back what it holds. Blocks for an fsync if new.

        Cuts a torn tail. Raises `CannotSign` for damage, or a file of another chain.
        """
        self._close_file()
        path = self._path(height)
        is_new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.height = height
        recovered, self._end = self._recover(path, height)
        if self._end == 0:
            self._append(KIND_HEAD, encode((VERSION, self._chain_id, height)))
        if recovered.signed is not None and recovered.signed not in recovered.promises:
            # Only the signer had it: the next two promises would push it out of there.
            self._append(KIND_SIGNED, encode_record(recovered.signed))
            recovered = recovered._replace(promises=(*recovered.promises, recovered.signed))
        if is_new:
            sync_directory(self._directory)
        if recovered.signed is not None:
            self._learn(recovered.signed)
        self._promises = {record.place(): record.body for record in recovered.promises}
        if self._last is not None:
            self._promises[self._last.place()] = self._last.body
        self._forget_old(height)
        return recovered

    def message(self, raw: bytes, *, valid: bool = True, timely: bool = True) -> None:
        """Note a message given to the engine; durable with the next `persist`."""
        self._append(KIND_MESSAGE, encode((raw, int(valid), int(timely))))

    def block(self, raw: bytes) -> None:
        """Note a proposal's block; durable with the next `persist`."""
        self._append(KIND_BLOCK, raw)

    def persist(self, record: SignerRecord) -> None:
        """Make a promise durable in both files. Blocks for two fsyncs side by side.

        Raises `DoubleSign` unless (height, round, kind) is greater than our last, or equal with
        an equal body; `StorageError` if the disk failed: then nothing may be signed any more.
        """
        self._check_order(record)
        try:
            self._signer.write(record)
            other = self._pool.submit(self._signer.sync)
            self._append(KIND_SIGNED, encode_record(record))
            try:
                os.fdatasync(self._descriptor)
            finally:
                other.result()
        except OSError as error:
            raise StorageError(
                "a promise could not be made durable",
                why=error.strerror or "",
                mend="free space on the disk, then restart olnode",
            ) from error
        self._last = record
        self._promises[record.place()] = record.body

    def sign(self, record: SignerRecord, sign: Sign) -> bytes:
        """The signature of a recorded body. Raises `DoubleSign` for one that no file holds."""
        if self._promises.get(record.place()) != record.body:
            raise DoubleSign(f"no record holds the body of {record.place()}")
        return sign(PROPOSAL_TAG if record.kind == SIGNED_PROPOSAL else VOTE_TAG, record.body)

    def end(self) -> None:
        """Note that this height is durable in the chain. Not synced: it can be told again."""
        self._append(KIND_END, b"")

    def close(self) -> None:
        """Let go of both files."""
        self._close_file()
        self._pool.shutdown()
        self._signer.close()

    def _check_order(self, record: SignerRecord) -> None:
        if record.height != self.height:
            raise DoubleSign(f"a promise of height {record.height} in journal {self.height}")
        if self._last is None or record.place() > self._last.place():
            return
        if record.place() == self._last.place() and record.body == self._last.body:
            return
        raise DoubleSign(f"{record.place()} after {self._last.place()}")

    def _append(self, kind: int, payload: bytes) -> None:
        assert self._descriptor >= 0, "begin a height first"
        frame = FORMAT.encode(kind, payload)
        if self._end + len(frame) > HEIGHT_BYTES_MAX:
            raise StorageError(
                f"the journal of height {self.height} is full",
                why=f"{self._end} bytes without a decision",
                mend="find out why the network does not decide",
            )
        try:
            write_at(self._descriptor, frame, self._end)
        except OSError as error:
            raise StorageError(
                f"cannot write to {self._path(self.height)}",
                why=error.strerror or "",
                mend="free space on the disk, then restart olnode",
            ) from error
        self._end += len(frame)

    # -- recovery

    def _learn(self, record: SignerRecord) -> None:
        if self._last is None or record.place() > self._last.place():
            self._last = record

    def _learn_from_newest(self) -> None:
        # A rotted slot may have held a promise that only an older height's journal still has.
        known = self._heights()
        record = self._signer.record
        if self._signer.bad_slots and record is not None and max(known, default=0) < record.height:
            raise CannotSign(
                f"one slot of the signer record {self._signer.path} is damaged, and there is no "
                "journal to tell what it held: this node will not validate",
                mend=LOST_MEND,
            )
        for height in known if self._signer.bad_slots else known[-1:]:
            self.begin(height)
            self._close_file()

    def _recover(self, path: Path, height: int) -> tuple[Recovered, int]:
        data = read_file(self._descriptor)
        frames, gaps, end = read_all(FORMAT, data)
        if gaps:
            raise self._damaged(path, f"a bad frame at byte {gaps[0].start}, a good one after it")
        if end < len(data):
            self.cut_bytes += len(data) - end
            os.ftruncate(self._descriptor, end)
            os.fdatasync(self._descriptor)
        promises: list[SignerRecord] = []
        blocks: list[bytes] = []
        messages: list[LoggedMessage] = []
        is_ended = False
        for number, frame in enumerate(frames):
            if (number == 0) != (frame.kind == KIND_HEAD):
                raise self._damaged(path, "its first frame is not the head")
            if frame.kind == KIND_HEAD:
                self._check_head(path, frame.payload, height)
            elif frame.kind == KIND_MESSAGE:
                messages.append(self._message_in(path, frame.payload))
            elif frame.kind == KIND_BLOCK:
                blocks.append(frame.payload)
            elif frame.kind == KIND_SIGNED and len(frame.payload) == RECORD_BYTES:
                promises.append(decode_record(frame.payload))
            elif frame.kind == KIND_END:
                is_ended = True
            else:
                raise self._damaged(path, f"a frame of unknown kind {frame.kind}")
        signed = [r for r in (*promises, self._last) if r is not None and r.height == height]
        greatest = max(signed, key=SignerRecord.place, default=None)
        recovered = Recovered(greatest, tuple(promises), tuple(blocks), tuple(messages), is_ended)
        return recovered, end

    def _check_head(self, path: Path, payload: bytes, height: int) -> None:
        try:
            version, chain_id, noted = decode(payload, _HEAD, 64, "journal.head")
        except Invalid as error:
            raise self._damaged(path, str(error)) from error
        if (version, chain_id, noted) != (VERSION, self._chain_id, height):
            raise self._damaged(path, "it is of another version, chain or height")

    def _message_in(self, path: Path, payload: bytes) -> LoggedMessage:
        try:
            raw, valid, timely = decode(payload, _MESSAGE, PAYLOAD_BYTES_MAX, "journal.message")
        except Invalid as error:
            raise self._damaged(path, str(error)) from error
        return LoggedMessage(raw, bool(valid), bool(timely))

    def _damaged(self, path: Path, why: str) -> CannotSign:
        """The safe remedy: without this file a whole signer record still knows our last word."""
        mend = (
            f"olnode stop, mv {path} {path}.damaged, olnode start: "
            "the signer record keeps this key safe"
        )
        if self._signer.bad_slots:
            mend = LOST_MEND
        return CannotSign(
            f"the journal {path} is damaged: this node will not validate", why=why, mend=mend
        )

    # -- files

    def _path(self, height: int) -> Path:
        return self._directory / f"{height}.log"

    def _heights(self) -> list[int]:
        names = [path.stem for path in self._directory.glob("*.log")]
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def _forget_old(self, height: int) -> None:
        for old in self._heights():
            if old <= height - HEIGHTS_KEPT:
                self._path(old).unlink(missing_ok=True)

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_journal(home: Path, chain_id: bytes, key: bytes) -> Journal:
    """The journal of validator `key` in `home`, or `CannotSign` with the reason to tell."""
    signer = SignerFile(home / "signer", chain_id, key)
    try:
        return Journal(home / "journal", signer, chain_id)
    except BaseException:
        signer.close()
        raise
