"""Bytes and peers: the only place that knows libp2p."""
