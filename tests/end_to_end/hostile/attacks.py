"""All attacks on a running node, by name."""

from typing import Final

import attacks_by_gossip
import attacks_by_streams
import attacks_on_infer
from attacking import Attack

ON_ANY_NODE: Final[dict[str, Attack]] = {
    **attacks_by_streams.ATTACKS,
    **attacks_by_gossip.ATTACKS,
}
ON_A_PROVIDER: Final[dict[str, Attack]] = attacks_on_infer.ATTACKS
ATTACKS: Final = ON_ANY_NODE | ON_A_PROVIDER
