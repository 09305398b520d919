"""The steps that build the embedded world's weights from the art; see `scdpo_core.micro.build`."""
