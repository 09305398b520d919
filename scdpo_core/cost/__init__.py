"""The safety cost model: how harmful an image is, as one calibrated real number per image.

A frozen image encoder, a small trained adapter and a calibration that puts zero where the artist
wants it. `scorers` is what hosts import; the rest is for training.
"""
