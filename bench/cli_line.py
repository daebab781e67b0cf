"""The Docker CLI of a container, while it runs."""
import pathlib


def cli_line(container):
    """What it was started with, word by word; None where it does not run."""
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")[:-1]
        except OSError:
            continue
        if f"--name={container}" in words:
            return words
    return None
