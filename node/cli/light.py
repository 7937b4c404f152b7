"""`olnode light`: follow the chain by its headers, without a ledger, and keep them for `verify`.

Why it asks several nodes: one node can show one client a chain of its own. Nodes of other
operators either confirm what the first tells, or prove that somebody lied; then it exits 6.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.frame import DONE, NOT_VERIFIED, Frame, frame_of, new_noun, note, usage
from node.cli.trust import named_block, read_genesis

if TYPE_CHECKING:
    from node.lightclient import Look

app = new_noun()


@app.command()
def light(
    ctx: typer.Context,
    trust: Annotated[
        str | None, typer.Option(help="HEIGHT:BLOCK_ID that you trust; else the genesis")
    ] = None,
    witness: Annotated[
        list[str] | None, typer.Option(help="address of a node with /p2p/<peer id>; repeat")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="one look, then end")] = False,
) -> int:
    """Follow headers; exit 6 when two nodes prove two chains."""
    from node import observe

    frame = frame_of(ctx)
    settings = frame.initialised()
    config = settings.config
    observe.set_up(frame.log_level or "error", config.log.format, {})
    genesis = read_genesis(settings.home / config.chain.genesis)
    addresses = [*config.p2p.bootstrap, *(witness or ())]
    if not addresses:
        usage("nobody to ask", "olnode light --witness ADDRESS, or bootstrap in [p2p]")
    named = None if trust is None else named_block(trust)
    if named is None and config.chain.trusted_id:
        named = named_block(f"{config.chain.trusted_height}:{config.chain.trusted_id}")
    import trio

    from node.lightclient import LightClient, open_network, peers_of

    try:
        peers, leading = peers_of(addresses), peers_of(config.p2p.bootstrap)
    except ValueError as error:
        usage(str(error))
    for address in witness or ():
        if leading and peers_of([address])[0] in leading:
            note(f"warning: {address} is a peer of bootstrap in [p2p] too: no witness beside it")
    client = LightClient(
        network=open_network(genesis.chain_id, addresses, config.p2p.network),
        peers=peers,
        home=settings.home,
        genesis=genesis,
        trust=named,
    )
    told: list[Look] = []

    def tell(look: "Look") -> None:
        followed = look.followed
        if not told or followed.blocks or followed.warnings or followed.attacks:
            _show(frame, look)
        told[:] = [look]

    async def run() -> None:
        await client.run(tell, once=once)

    trio.run(run)
    return NOT_VERIFIED if told[0].followed.attacks else DONE


def _show(frame: Frame, look: "Look") -> None:
    followed, head = look.followed, look.head
    for name, why in followed.dropped:
        note(f"dropped {name}: {why}")
    for warning in followed.warnings:
        note(f"warning: {warning}")
    for attack in followed.attacks:
        note(
            f"ATTACK: {attack.primary} and {attack.witness} each prove another block "
            f"{attack.by_primary.block.height}; neither is trusted, both proofs are in evidence/"
        )
    lines = [
        f"height {head.height}  {head.block_id.hex()}  + {len(followed.blocks)} blocks, "
        f"{look.kept} kept, confirmed by {len(followed.confirmed)}"
    ]
    frame.show("light/1", _fields(look), lines)


def _fields(look: "Look") -> dict[str, Any]:
    followed, head = look.followed, look.head
    return {
        "chain_id": head.header.chain_id.hex(),
        "height": head.height,
        "block_id": head.block_id.hex(),
        "time_ms": head.header.time_ms,
        "added": len(followed.blocks),
        "kept": look.kept,
        "primary": followed.primary,
        "confirmed": list(followed.confirmed),
        "dropped": [{"source": name, "why": why} for name, why in followed.dropped],
        "warnings": list(followed.warnings),
        "attacks": [
            {
                "primary": attack.primary,
                "witness": attack.witness,
                "height": attack.by_primary.block.height,
                "common_height": attack.by_primary.common_height,
                "reported": list(attack.reported),
            }
            for attack in followed.attacks
        ],
    }
