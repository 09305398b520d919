"""The core of SC-DPO: safety cost model, preference training, and the LoRAs that come of it.

It knows no host, parses no command line and prints nothing; the doors do that.
"""
