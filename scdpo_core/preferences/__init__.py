"""From a folder of chosen and rejected images to batches on the training device.

`folder` reads and checks, `relabel` applies the combined reward, `cache` encodes once, `batches` deals.
"""
