"""Training runs in processes of their own: what ComfyUI's nodes, the WebUI's tab and the page alone share.

The run folder is the truth. Nothing here needs a package of the trainer's, nor a host.
"""
