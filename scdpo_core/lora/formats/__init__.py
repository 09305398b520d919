"""Every dialect of LoRA weight names, converted to and from one canonical form."""
