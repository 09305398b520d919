"""How the embedded model is built from openly licensed art; see `tools.micro_model.build`."""
