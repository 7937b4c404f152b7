"""One file per part of the rules; each changes the state it is given."""
