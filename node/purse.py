"""The payer's side composed: names to versions, prompts to ids, channels to transactions.

Why here: the wallet knows promises and the ledger knows names; the node joins them, so that
`olnode infer MODEL "…"` is one call.
What this file does not know: HTTP, how a provider works.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from consensus.primitives.errors import Invalid
from node.attribution.datanets import encode_prompt
from node.attribution.tokens import TextTokenizer, open_tokenizer
from node.holdings import Holdings, find_current, names_like
from node.ledger import tables
from node.ledger.rules.refuting import Claim
from node.ledger.state import State
from node.ledger.wire.bundles import CheckedBundle
from node.ledger.wire.orders import Offer, OrderSampling, channel_id
from node.ledger.wire.receipts import encode_receipt, receipt_id
from node.ledger.wire.transactions import CloseChannel, OpenChannel
from node.peering.blobstore import BASE, NoRoom
from node.peering.directory import Directory
from node.sender import Sender, Submit
from node.wallet.buying import Answer, Piece
from node.wallet.claims import Claims
from node.wallet.disclosure import Disclosure
from node.wallet.doubles import Doubles
from node.wallet.keystore import Key
from node.wallet.payer import Ask, Limits, NoteOpening, Payer
from node.wallet.promises import Opening, PromiseBook
from p2p.errors import NetworkError, Unreachable
from p2p.network import FrameStream, Network

SAMPLING_VERSION: Final = 1
DISCLOSURES_MAX: Final = 16  # with prompt and answer, for who asks for them at once
VERSION_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask: a model `name` or `name@version`, the text, and how to sample."""

    model: str
    prompt: str
    max_tokens: int
    temperature_milli: int = 0
    top_p_milli: int = 1_000
    top_k: int = 0
    seed: int | None = None
    max_fee: int | None = None
    provider: bytes | None = None


class Purse:
    """Asks and pays with the spending key of the home."""

    def __init__(
        self,
        *,
        key: Key,
        chain_id: bytes,
        folder: Path,
        evidence: Path,
        claims: Path,
        limits: Limits,
        network: Network,
        directory: Directory,
        holdings: Holdings,
        get_state: Callable[[], State],
        find_code: Callable[[bytes], int | None],
        next_nonce: Callable[[bytes], int],
        submit: Submit,
        now_ms: Callable[[], int],
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._chain_id = chain_id
        self._network, self._directory, self._holdings = network, directory, holdings
        self._get_state, self._run_blocking = get_state, run_blocking
        self.sender = Sender(
            key=key,
            chain_id=chain_id,
            next_nonce=next_nonce,
            find_code=find_code,
            submit=submit,
            now_ms=now_ms,
        )
        self._tokenizers: dict[bytes, TextTokenizer] = {}
        self.claims = Claims(claims, now_ms=now_ms)
        self._disclosures: dict[bytes, Disclosure] = {}  # oldest first, never on the disk
        self._book = PromiseBook(
            folder,
            chain_id=chain_id,
            spender=key.public_key,
            sign=key.message_signer(b"voucher", chain_id),
        )
        self._doubles = Doubles(
            folder=evidence,
            get_state=get_state,
            accuse=self.sender.send,
            run_blocking=run_blocking,
        )
        for raw, signature in self._book.recent_receipts():
            self._doubles.note(raw, signature)
        self._payer = Payer(
            account=key.public_key,
            book=self._book,
            limits=limits,
            get_state=get_state,
            get_offers=directory.offers,
            open_stream=self._open_stream,
            open_channel=self._open_channel,
            close_channel=self._close_channel,
            note_signed=self._doubles.note,
            chain_id=chain_id,
            now_ms=now_ms,
            run_blocking=run_blocking,
        )

    def close(self) -> None:
        """Let go of the journal."""
        self._book.close()

    async def run(self) -> None:
        """Accuse who signs two receipts for one request of ours, for ever."""
        await self._doubles.run()

    def note_bundle(self, bundle: CheckedBundle) -> None:
        """A checked bundle of anybody's: a claim from one of our holds shows a signed receipt."""
        for checked in bundle.sections:
            section = checked.section
            if section.last_receipt_sig and self._book.knows(section.channel):
                raw = encode_receipt(checked.receipts[-1])
                self._doubles.note(raw, section.last_receipt_sig)

    async def ask(self, question: Question, tell: Callable[[str], Awaitable[None]]) -> Answer:
        """Buy the answer; `tell` gets each piece of text.

        Raises Invalid or PaymentFailed, in the groups of the nurseries it was found in.
        """
        model, version = self._find_version(question.model)
        tokenizer = await self._tokenizer(self._get_state().get(tables.MODEL, model).base)
        sampling = OrderSampling(
            SAMPLING_VERSION,
            question.temperature_milli,
            question.top_p_milli,
            question.top_k,
            question.max_tokens,
            1,
            (),
            0,
        )
        seed = None if question.seed is None else question.seed.to_bytes(32, "big")
        asked = Ask(
            model=model,
            version=version,
            prompt=encode_prompt(tokenizer, question.prompt),
            sampling=sampling,
            seed=seed,
            provider=question.provider,
            fee_max=question.max_fee,
        )
        answer: Answer | None = None
        async with self._payer.infer(asked) as pieces:
            async for piece in pieces:
                if isinstance(piece, Piece):
                    await tell(piece.text.decode("utf-8", "replace"))
                else:
                    answer = piece
        assert answer is not None
        await self._remember(receipt_id(answer.receipt_raw), answer.disclosure)
        return answer

    async def _remember(self, receipt: bytes, told: Disclosure) -> None:
        self._disclosures[receipt] = told
        while len(self._disclosures) > DISCLOSURES_MAX:
            del self._disclosures[next(iter(self._disclosures))]
        claim = Claim(told.sketch, told.statement)
        with trio.CancelScope(shield=True):  # paid for, also where its caller hangs up just now
            await self._run_blocking(self.claims.keep, receipt, claim)

    def find_bought(self) -> list[bytes]:
        """Receipts of the answers bought, by id, oldest first; those of earlier lives as well."""
        return self.claims.receipts()

    def find_claim(self, receipt: bytes) -> Claim | None:
        """Sketch and statement of an answer that was bought, by its receipt's id."""
        return self.claims.find(receipt)

    def find_disclosure(self, receipt: bytes) -> Disclosure | None:
        """What opens the receipt of one of the newest answers bought in this life."""
        return self._disclosures.get(receipt)

    def _find_version(self, label: str) -> tuple[int, int]:
        name, at, version = label.partition("@")
        state = self._get_state()
        which = find_current(state, name)
        if which is not None and not at:
            return which
        if which is not None and VERSION_NUMBER.fullmatch(version):
            named = which[0], int(version)
            if state.has(tables.VERSION, *named):
                return named
        likest = ", ".join(names_like(state, name))
        mend = f"olnode query models; the likest: {likest}" if likest else "olnode query models"
        raise Invalid("payer.unknown_model", model=label, mend=mend)

    async def _tokenizer(self, base: bytes) -> TextTokenizer:
        found = self._tokenizers.get(base)
        if found is None:
            try:
                folder = await self._holdings.fetch(BASE, base)
            except (NetworkError, NoRoom, OSError) as error:
                raise Invalid("payer.not_ready", why=f"no tokenizer: {error}") from None
            found = self._tokenizers[base] = await self._run_blocking(open_tokenizer, folder)
        return found

    # --- what the wallet needs of the node

    async def _open_stream(self, offer: Offer) -> FrameStream:
        peer = self._directory.find_peer(offer.provider)
        if peer is None:
            raise Unreachable("the provider's peer is not known")
        await self._network.reach(peer, offer.addresses)
        return await self._network.open(peer, "infer")

    async def _open_channel(self, provider: bytes, cap: int, note: NoteOpening) -> bytes:
        me = self.sender.account
        async with self.sender.turn() as turn:
            channel = channel_id(self._chain_id, me, provider, turn.nonce)
            await note(Opening(channel, provider, cap, *turn))
            await self.sender.send_in(turn, OpenChannel(provider, me, cap, 0))
        return channel

    async def _close_channel(self, channel: bytes) -> None:
        await self.sender.send(CloseChannel(channel))
