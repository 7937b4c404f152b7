"""Peers as their operator sees and steers them: who is connected, who is banned, add, ban, unban.

What this file does not know: how peers are found, how the operator asks.
"""

import math

from consensus.primitives.errors import Invalid
from node.web import answers
from node.web.peers import Peers
from p2p.errors import Misbehaving
from p2p.network import Libp2pNetwork, PeerId
from p2p.peers import key_of_peer_id, peer_id_text


def make_peers(network: Libp2pNetwork) -> Peers:
    """What the routes under /peers ask for."""

    def connected() -> tuple[answers.Peer, ...]:
        return tuple(
            answers.Peer(
                peer_id=peer_id_text(view.peer),
                address=view.addresses[0] if view.addresses else "",
                direction="out" if view.outbound else "in",
                rtt_ms=view.ping_ms or 0,
                height=view.facts.height,
                score=view.score,
                admitted=view.admitted,
                reserved=view.reserved,
                software=view.software,
            )
            for view in network.peers()
        )

    def banned() -> tuple[answers.Ban, ...]:
        bans = sorted(network.bans().items(), key=lambda ban: -ban[1])
        return tuple(answers.Ban(peer_id_text(peer), math.ceil(left_s)) for peer, left_s in bans)

    def add(address: str) -> str:
        try:
            return peer_id_text(network.add(address))
        except ValueError as error:
            raise Invalid("peers.bad_address", why=str(error)) from None

    return Peers(
        connected=connected,
        banned=banned,
        add=add,
        ban=lambda text, seconds: network.ban(_peer_of(text, network.me), seconds),
        unban=lambda text: network.unban(_peer_of(text, network.me)),
    )


def _peer_of(text: str, me: PeerId) -> PeerId:
    try:
        peer = key_of_peer_id(text)
    except Misbehaving:
        raise Invalid("peers.bad_id", peer_id=text[:80]) from None
    if peer == me:
        raise Invalid("peers.bad_id", why="this node itself")
    return peer
