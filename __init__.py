"""ComfyUI's door. Nothing is imported before ComfyUI asks for the nodes."""

WEB_DIRECTORY = "./comfy_nodes/web"


async def comfy_entrypoint():  # type: ignore[no-untyped-def]
    """The nodes, for ComfyUI."""
    try:
        from .comfy_nodes.extension import open_door

        return open_door()
    except Exception:
        import logging

        # ComfyUI itself shows the message alone.
        logging.exception("The safety nodes (SC-DPO) could not be loaded.")
        raise
