"""Score existing files: whole folders in, one row for every image out, broken ones included."""
