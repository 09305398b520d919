"""Settings of a training run: sections, bounds, presets, and their way into and out of TOML."""
