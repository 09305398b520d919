"""The evaluation suite: prompt files in, images with and without a safety LoRA, judged, a report out."""
