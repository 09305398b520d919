"""The ComfyUI nodes: thin doors to `scdpo_core`.

Imports are relative: ComfyUI names this package by its path. What only a run needs is imported when it runs,
because ComfyUI loads every pack at its start and most runs use none of its nodes.
"""
