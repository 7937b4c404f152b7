"""Where agreed rules meet real peers."""
