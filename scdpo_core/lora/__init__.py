"""LoRAs: the adapter in a network (`adapter`), the names of its weights (`keys`), and its file (`file`).

Nothing is imported here: `keys` and `file` run inside old hosts, which lack the peft that `adapter` needs.
"""
