"""The embedded text-to-image world: a small, complete Stable-Diffusion-shaped model that ships with us.

It draws 64x64 emoji images from captions. Everything that the project does on real models can be
done on it in minutes on a CPU, with harm that is nothing worse than a drawing of a knife.
"""
