"""The folder of a run: its files, lock, event log and state."""
