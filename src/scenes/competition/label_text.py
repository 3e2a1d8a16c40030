"""Labels as text: their order, and how 0 and 1 are spelled."""

import re

FLAGS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "False": 0.0, "True": 1.0}  # cells of 0/1 columns


def sort_labels(labels: list[str]) -> list[str]:
    """Sorts labels: numerically if all are integers, else alphabetically."""
    if all(re.fullmatch(r"-?\d{1,18}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
