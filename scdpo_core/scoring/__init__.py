"""Scoring existing files: whole folders in, one row for every picture out, whatever state it is in."""
