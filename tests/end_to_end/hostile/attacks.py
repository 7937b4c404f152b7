"""All attacks on a running node, by name."""

from typing import Final

import attacks_by_gossip
import attacks_by_streams
from attacking import Attack

ATTACKS: Final[dict[str, Attack]] = {**attacks_by_streams.ATTACKS, **attacks_by_gossip.ATTACKS}
