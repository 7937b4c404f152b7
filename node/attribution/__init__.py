"""Proof of Attribution: whose data shaped an answer."""
