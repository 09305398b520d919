"""A1111's door for command-line flags: run by the host before it reads its own."""

from argparse import ArgumentParser


def preload(parser: ArgumentParser) -> None:
    """Add ours. What may be read is decided here and not in the settings, which Forge's API can change."""
    parser.add_argument(
        "--scdpo-folder",
        action="append",
        default=[],
        metavar="FOLDER",
        help="SC-DPO: let the API score the images in this folder too; may be given several times",
    )
