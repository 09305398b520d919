"""The folder of a run: its files, who holds its lock, its event log, and what state it is in."""
