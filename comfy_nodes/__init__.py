"""The ComfyUI nodes: thin doors to `scdpo_core`.

Imports are relative: ComfyUI names this package by its path.
"""
