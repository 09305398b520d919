"""Training runs in separate processes, shared by ComfyUI's nodes, the WebUI's tab and the standalone page.

The run folder holds the whole state. Nothing here needs a package of the trainer or a host.
"""
