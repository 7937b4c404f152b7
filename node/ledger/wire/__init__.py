"""Wire objects of the ledger: their shapes, encodings and sizes."""
