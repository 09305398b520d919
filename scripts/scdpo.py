"""A1111's door: hands over to a1111_extension. The host finds the script's class by its name here."""

from a1111_extension.support import why_unsupported

if UNSUPPORTED := why_unsupported():
    # SD.Next keeps what a script prints in its log. Nothing else happens there: half a filter is none.
    print(UNSUPPORTED)
else:
    from a1111_extension.register import register
    from a1111_extension.script import SafetyScript as SafetyScript

    register()
