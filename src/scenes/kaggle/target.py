"""The names of a run's dataset and kernel on Kaggle, and their metadata files."""

import hashlib
import re
from typing import Any

from scenes.console import UserError

SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
OWNER = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")
SLUG_LENGTH = 50  # Kaggle's limit for datasets, and for kernels
TWO_T4 = "NvidiaTeslaT4"  # Kaggle's name for a machine with two T4s


class Target:
    """The names of a dataset, its kernel, their owner and the competition."""

    def __init__(self, owner: str, competition: str, name: str) -> None:
        """Makes the slugs.

        Raises:
            UserError: If `owner` or `competition` is not a valid Kaggle slug.
        """
        if not OWNER.fullmatch(owner):
            raise UserError(f"--owner {owner!r}: not a Kaggle user name: the last part of your profile's address")
        if not SLUG.fullmatch(competition):
            raise UserError(f"--competition {competition!r}: not a competition's name: the last part of its address")
        self.owner, self.competition = owner, competition
        self.kernel, self.dataset = _slug(f"scenes {name}"), _slug(f"scenes {name} bundle")

    @property
    def dataset_id(self) -> str:
        """OWNER/SLUG."""
        return f"{self.owner}/{self.dataset}"

    @property
    def kernel_id(self) -> str:
        """OWNER/SLUG."""
        return f"{self.owner}/{self.kernel}"

    @property
    def dataset_metadata(self) -> dict[str, Any]:
        """What dataset-metadata.json holds; Kaggle wants exactly one licence."""
        return {"title": _title(self.dataset), "id": self.dataset_id, "licenses": [{"name": "other"}]}

    def kernel_metadata(self, code_file: str) -> dict[str, Any]:
        """What kernel-metadata.json holds; the title must resolve to the slug."""
        return {
            "id": self.kernel_id,
            "title": _title(self.kernel),
            "code_file": code_file,
            "language": "python",
            "kernel_type": "notebook" if code_file.endswith(".ipynb") else "script",
            "is_private": True,
            "enable_gpu": True,
            "enable_tpu": False,
            "enable_internet": False,
            "machine_shape": TWO_T4,
            "dataset_sources": [self.dataset_id],
            "competition_sources": [self.competition],
            "kernel_sources": [],
            "model_sources": [],
        }


def _slug(text: str) -> str:
    """Makes a slug of letters, digits and single hyphens; a hash keeps it unique if anything had to be left out."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if len(slug) > SLUG_LENGTH or not text.isascii():
        slug = f"{slug[: SLUG_LENGTH - 7].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return slug


def _title(slug: str) -> str:
    return slug.replace("-", " ").capitalize()
