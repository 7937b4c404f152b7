"""The ground under everything that is hashed or signed."""
