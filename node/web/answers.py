"""What the node tells about itself and its ledger, as typed values, and how they become JSON.

Why types first: whoever fills an answer gives plain integers and bytes, and their text (grains
as decimal strings, hashes as lower-case hex, accounts as `open1…`) is decided here once. A
JavaScript number would lose grains above 2^53.
What it does not know: where the values come from, HTTP.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from node.ledger.addresses import account_text

Grains = Annotated[int, "grains"]  # a decimal string in JSON
Hex = Annotated[bytes, "hex"]
Account = Annotated[bytes, "account"]


@dataclass(frozen=True, slots=True)
class Status:
    """The node at a glance; `checks` are those of /readyz, by name."""

    chain_id: Hex
    profile: str
    name: str
    roles: tuple[str, ...]
    node_account: Account
    height: int
    block_id: Hex
    time_ms: int  # of the last block
    lag_blocks: int  # behind the best height that peers claim
    peers: int
    validators: int
    signing: bool  # whether this node votes
    last_signed_height: int
    why_silent: str  # why a validator must not sign, and the mend; "" for all others
    damage: str  # what the disk has lost and peers did not give again, and the mend; "" mostly
    pool_transactions: int
    pool_bundles: int
    kept_bundles: int  # for other providers
    engine: str  # "none", "starting", "ready", "restarting", "down", "failed", "closed"
    models: tuple[str, ...]  # served here, "name@version"
    supply: Grains
    app_version: int
    build: str
    ready: bool
    checks: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Peer:
    peer_id: str
    address: str
    direction: str  # "in" or "out"
    rtt_ms: int
    height: int
    score: int
    admitted: bool  # told its chain; only then may it gossip and ask
    reserved: bool  # a validator's, or named by the operator: never pruned, always redialled
    software: str


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A version that this node holds; what it brought is since the node's start."""

    model: str  # name@version
    adapter: Hex  # empty: the base alone
    tier: str  # slot, ram, disk, or "none" while the engine does not have it
    bytes: int  # in the engine's memory
    ready: bool
    requests: int
    fees: Grains  # that payers signed for
    earned: Grains  # the provider's part of them, about: a block splits the sum of its fees


@dataclass(frozen=True, slots=True)
class HeldModels:
    models: tuple[HeldModel, ...]
    unknown: tuple[str, ...]  # names that the settings want and the ledger does not have


@dataclass(frozen=True, slots=True)
class Ban:
    peer_id: str
    seconds_left: int


@dataclass(frozen=True, slots=True)
class AccountAnswer:
    account: Account
    balance: Grains
    nonce: int  # as of the newest block
    next_nonce: int  # to sign with: behind what waits in this node's pool
    maturing: Grains  # paid, but inside the challenge window
    key: Account  # that signs for it: its own, until it was rotated


@dataclass(frozen=True, slots=True)
class ReleaseAnswer:
    """A channel on which this node serves nothing more, and what it served and has not settled."""

    channel: Hex
    paid: Grains
    unsettled: Grains
    in_flight: int  # answers under way


@dataclass(frozen=True, slots=True)
class ChannelAnswer:
    """The keys are those that sign for payer and provider now."""

    channel: Hex
    payer: Account
    payer_key: Account
    provider: Account
    provider_key: Account
    spender: Account
    cap: Grains
    paid: Grains
    state: str  # "open", "closing", "closed"
    opened_ms: int
    close_at_ms: int  # 0 while open


@dataclass(frozen=True, slots=True)
class ChannelList:
    """Of one account, newest first."""

    channels: tuple[ChannelAnswer, ...]
    older: int  # that are not told


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    provider: Account
    key: Account  # that its bundles and offers are signed with
    peer_key: Account
    reward_account: Account
    status: str  # "active", "paused", "jailed"
    takes_channels: bool  # active, and bonded with enough
    last_bundle: int  # the number of the last one that settled, 0 for none
    bonded: Grains
    channels: int  # to it that are not closed
    jailed_until_ms: int  # 0 while free; then it takes an unjailing


@dataclass(frozen=True, slots=True)
class Earning:
    """One row of what an account earned; what the rows are not named by is empty or 0."""

    kind: str  # "provider", "data", "creator"
    contribution: int  # 0 where it does not apply
    datanet: str
    model: str
    day: str  # YYYY-MM-DD in UTC, of the block that paid
    blocks: int  # in how many
    matured: Grains
    maturing: Grains


@dataclass(frozen=True, slots=True)
class Earnings:
    account: Account
    height: int
    matured: Grains
    maturing: Grains
    since_height: int  # what lies below is not counted
    complete: bool  # False where more was asked for than is read at once
    by: tuple[str, ...]  # which fields name a row
    items: tuple[Earning, ...]


@dataclass(frozen=True, slots=True)
class Payout:
    """A leaf of a block's payouts: who gets what part of a version's fees."""

    kind: str
    account: Account | None  # None where the payee is a fund, a pool, stakers or the burn
    contribution: int
    model: str
    version: int
    amount: Grains
    matures_ms: int


@dataclass(frozen=True, slots=True)
class Accusation:
    """Evidence in a block: what was done at which height, and by whom."""

    evidence: Hex  # its SHA-256
    offence: str  # "double_vote", "double_proposal", "second_block", "lunatic_header" or "unknown"
    height: int
    accused: tuple[Account, ...]  # none where this node no longer holds that height


@dataclass(frozen=True, slots=True)
class BlockAnswer:
    height: int
    block_id: Hex
    parent_id: Hex
    time_ms: int
    proposer: Account
    state_root: Hex
    supply: Grains
    transactions: tuple[Hex, ...]
    bundles: tuple[Hex, ...]
    signers: tuple[Account, ...]
    payouts: tuple[Payout, ...]
    evidence: tuple[Accusation, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What people compare between operators, then type as HEIGHT:BLOCK_ID."""

    height: int
    block_id: Hex


@dataclass(frozen=True, slots=True)
class LightBlockAnswer:
    """`light_block` is page 70's encoding: header, certificate, the set, the next set."""

    height: int
    block_id: Hex
    time_ms: int
    light_block: Hex


@dataclass(frozen=True, slots=True)
class TransactionAnswer:
    transaction: Hex
    state: str  # "pending" or "settled"
    height: int  # 0 while pending
    code: int  # 0 done; page 30's number where a rule refused it
    reason: str  # the number's word, "" when done
    sender: Account
    type_name: str
    nonce: int
    max_fee: Grains


@dataclass(frozen=True, slots=True)
class Credit:
    contribution: int
    contributor: Account
    datanet: str
    share_bps: int
    amount: Grains  # of this fee alone; the block splits its sum, so a grain may differ


@dataclass(frozen=True, slots=True)
class ReceiptAnswer:
    receipt: Hex
    height: int
    bundle: Hex
    provider: Account
    payer: Account | None  # None once the channel is forgotten
    channel: Hex
    lane: int
    seq: int
    order: Hex
    model: str
    version: int
    tokens_in: int
    tokens_out: int
    fee: Grains
    started_ms: int
    finished_ms: int
    status: str  # "complete" or "partial"
    split: Mapping[str, Grains]  # the fee by role
    credits: tuple[Credit, ...]
    fund_share_bps: int  # of the data part: what nothing earned, so the model's maintenance fund
    fund_amount: Grains  # about, as the amounts of the credits


@dataclass(frozen=True, slots=True)
class PaidRecord:
    """One record that an answer paid, by its place in a contribution."""

    contribution: int
    contributor: Account
    datanet: str
    position: int
    share_bps: int  # of the answer's data part
    gradient_bps: int  # of the share: what the gradient pays,
    span_bps: int  # what stretches of the record's own words in the answer pay,
    citation_bps: int  # and what its citations do
    score_bps: int  # its score over the threshold's: 10,000 would just not be paid
    text: str | None  # at most 160 characters; None where this node cannot get the record


@dataclass(frozen=True, slots=True)
class Shares:
    """Why an answer paid whom: its provider's statement, checked against the settled credits."""

    receipt: Hex
    model: str
    version: int
    index_rows: int
    floor: int | None  # the panel's median |score|; None where nobody is paid
    threshold: int | None  # the score above which a record is paid
    records: tuple[PaidRecord, ...]  # the largest share first
    fund_share_bps: int  # what they leave for the model's maintenance fund


@dataclass(frozen=True, slots=True)
class ShareCheck:
    """Whether a settled receipt's shares are what the index gives, as far as this node can tell."""

    receipt: Hex
    model: str
    version: int
    credits: int  # how many contributions it pays
    verdict: str  # "true", "false", "unknown": the sketch is not shown to this node
    why: str  # the word of the first difference, "" for none
    index_rows: int  # 0 where nothing is credited, and rightly
    paid_rows: int  # that were opened, or recomputed
    panel_rows: int
    drawn_rows: int  # all of the index where it is here


@dataclass(frozen=True, slots=True)
class SketchAudit:
    """How a sketch made here from an answer's texts agrees with the one its receipt commits to."""

    receipt: Hex
    model: str
    version: int
    verdict: str  # "pass", "suspect", "fail" (page 60 §9)
    why: str  # "sketch", "credits" that its statement does not give, "no_sketch", or "" for none
    early_ppm: int  # the cosine of each half, in millionths; 0 where nothing was compared
    middle_ppm: int
    moved_bps: int  # of the shares that follow from it
    swing_bps: int  # so much more or less of the gradient's part is paid
    gradient_dtype: str
    least_ppm: int  # what passes in this dtype
    moved_bps_max: int
    swing_bps_max: int


@dataclass(frozen=True, slots=True)
class DisclosureAnswer:
    """What opens a receipt's hashes; token ids are big-endian u32."""

    receipt: Hex
    order: Hex
    payer_nonce: Hex
    provider_nonce: Hex
    prompt: Hex
    answers: tuple[Hex, ...]
    sketch: Hex
    statement: Hex


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    number: int
    name: str
    version: int  # the active one; 0 before the first
    creator: Account
    base: Hex
    adapter: Hex
    datanet: str  # of the version's snapshot, "" for a base-only one
    records: int
    price_in: Grains  # per 1,000,000 tokens
    price_out: Grains
    price_call: Grains
    fund: Grains
    providers: int  # with a live offer
    status: str  # "active", "dormant", "retiring", "retired"
    ends_ms: int  # what of the version is started from then on does not settle; 0: no end is set


@dataclass(frozen=True, slots=True)
class DatanetAnswer:
    number: int
    name: str
    steward: Account
    contributions: int
    accepted: int
    records: int
    contributors: int
    mode: str  # "open" or "permissioned"
    quorum: int
    licences: tuple[str, ...]  # that its charter takes
    stake_per_record: Grains  # a contribution's bond, beside `contribution_bond`
    review_ms: int


@dataclass(frozen=True, slots=True)
class ContributionAnswer:
    number: int
    contributor: Account
    root: Hex
    records: int
    status: str
    earned: Grains  # matured so far, before the curation cut


@dataclass(frozen=True, slots=True)
class ContributionPage:
    """Contributions of one Datanet; a page may be short, or empty, and yet not the last."""

    contributions: tuple[ContributionAnswer, ...]
    more_after: int  # go on from here; 0 when all have been looked at


@dataclass(frozen=True, slots=True)
class SnapshotAnswer:
    """What a version may be trained on: the root over the accepted contributions up to `last`."""

    number: int
    datanet: str
    root: Hex
    last_contribution: int
    records: int
    made_ms: int


@dataclass(frozen=True, slots=True)
class ValidatorAnswer:
    key: Account
    power: int  # 0 for one that sits out
    proposer_next: bool
    this_node: bool
    status: str  # "active", "jailed", "frozen" or "tombstoned"
    jailed_until_ms: int  # 0 while free or only frozen; then it still takes an unjailing
    bonded: Grains


@dataclass(frozen=True, slots=True)
class Params:
    height: int
    chain_id: Hex
    app_version: int
    base_price: Grains  # of one unit of a transaction's weight, in the next block
    values: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class InferenceReceipt:
    """The last line of an answer's stream: what was paid for, and the payer's own checks."""

    receipt: Hex
    provider: Account
    model: str
    version: int
    fee: Grains
    tokens_in: int
    tokens_out: int
    status: str
    body: Hex  # the signed receipt
    signature: Hex
    checks: Mapping[str, bool]  # fee, counts, answer_root: what the payer compared


def as_json(answer: Any) -> Any:
    """JSON-able form of an answer, by its declared types; field order as declared."""
    return _converter(type(answer))(answer)


_converters: dict[Any, Callable[[Any], Any]] = {}  # one entry per declared type


def _converter(kind: Any) -> Callable[[Any], Any]:
    found = _converters.get(kind)
    if found is None:
        found = _converters[kind] = _make_converter(kind)
    return found


def _make_converter(kind: Any) -> Callable[[Any], Any]:
    if is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        parts = [(f.name, _converter(hints[f.name])) for f in fields(kind)]
        return lambda value: {name: show(getattr(value, name)) for name, show in parts}
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _TEXT_OF[inner[1]]
    if origin is tuple:
        item = _converter(inner[0])
        return lambda value: [item(member) for member in value]
    if origin is Mapping:
        item = _converter(inner[1])
        return lambda value: {key: item(member) for key, member in value.items()}
    if origin in (Union, UnionType):
        present = _converter(next(one for one in inner if one is not NoneType))
        return lambda value: None if value is None else present(value)
    assert kind in (int, str, bool), kind  # bytes and floats must say how they are shown
    return lambda value: value


_TEXT_OF: dict[str, Callable[[Any], Any]] = {
    "grains": str,
    "hex": bytes.hex,
    "account": account_text,
}
