"""A funded network on one machine, in one command: its people, processes, goods and story."""
