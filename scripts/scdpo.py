"""A1111's door: hands over to a1111_extension. The host finds the script's class by its name here."""

from a1111_extension.register import register
from a1111_extension.script import SafetyScript

__all__ = ["SafetyScript"]

register()
