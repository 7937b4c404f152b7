"""Private keys, and the payer's side of a channel."""
