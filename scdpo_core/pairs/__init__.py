"""Preference pairs out of one's own model and lists of prompts."""
