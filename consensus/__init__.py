"""Agreement: what must be equal to the byte on every node. No I/O, clock, chance, float."""
