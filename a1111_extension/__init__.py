"""A1111's and Forge's door: the score under every image, the safety LoRA in every prompt, and an API."""
