"""Scoring existing files: whole folders in, one row for every image out, whatever state it is in."""
