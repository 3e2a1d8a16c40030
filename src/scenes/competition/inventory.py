"""What a competition's folder holds: its tables, and its images by name."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from scenes.competition.coco import JOIN_KEYS, are_objects, as_text, id_key, load
from scenes.competition.csv_file import read_cells
from scenes.competition.find import image_files, is_litter, normal, split_suffix
from scenes.competition.path_pattern import check_utf8
from scenes.console import UserError

CELLS = 2_000_000  # of a CSV to read
TRIED = 200  # names of a table to search for
ROLES = ("train", "test", "val")
SAMPLES = ("*sample*submission*", "*submission*sample*", "*sample_sub*", "*submission_format*")
TABLES = (".csv", ".json", ".csv.gz", ".tsv", ".parquet", ".xlsx")  # the first two are read
DEPTH = 3  # levels of folders to search for tables


@dataclass(frozen=True)
class Source:
    """A file with rows.

    Attributes:
        file: Its path below the competition's folder.
        columns: Its cells by column.
        is_json: Whether it is COCO-style JSON.
    """

    file: str
    columns: dict[str, list[str]]
    is_json: bool = False

    @property
    def stem(self) -> str:
        """The file's name in lower case, without suffix."""
        return Path(self.file).stem.lower()

    @property
    def is_sample(self) -> bool:
        """Whether its name is that of a sample submission."""
        return any(fnmatch(self.stem, like) for like in SAMPLES)

    @property
    def role(self) -> str:
        """``train``, ``test`` or ``val`` if its name, else its path, says so; or nothing."""
        return next((word for text in (self.stem, self.file.lower()) for word in ROLES if word in text), "")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def cells(self, columns: Sequence[str]) -> list[tuple[str, ...]]:
        """The rows' cells in some columns."""
        return list(zip(*(self.columns[column] for column in columns), strict=True))


class Place(NamedTuple):
    """Where a column's images are.

    Attributes:
        folder: Below the competition's folder.
        share: How many of the names are found there, 0 … 1.
        suffix: The suffix that the names lack.
    """

    folder: str
    share: float
    suffix: str


class Inventory:
    """The tables and images below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # The built-in sample may have been drawn next to the competition's own files.
        skipped = "sample" if (root / "sample" / "test_labels.csv").exists() else ""
        self.images = [file for file in image_files(root) if file.split("/")[0] != skipped]
        check_utf8(self.images)
        self.tables: list[Source] = []
        self.unreadable: dict[str, str] = {}  # why tables are not read
        self.json: dict[str, object] = {}
        for file in _tables(root, skipped):
            name = file.relative_to(root).as_posix()
            if file.suffix.lower() == ".csv":
                self._add_csv(file, name)
            elif file.suffix.lower() != ".json":
                self.unreadable[name] = f"{file}: neither .csv nor .json; unpack or convert it"
            else:
                self._add_json(file, name)
        self._by_stem: dict[str, list[str]] = {}
        for image in self.images:
            self._by_stem.setdefault(normal(split_suffix(image.rpartition("/")[2])[0]), []).append(image)

    def _add_csv(self, file: Path, name: str) -> None:
        try:
            self.tables += _csv_source(file, name)
        except UserError as error:
            self.unreadable[name] = str(error)

    def _add_json(self, file: Path, name: str) -> None:
        try:
            content = load(file)
        except UserError as error:
            self.unreadable[name] = str(error)
            return
        source = _json_source(content, name)
        if source:
            self.tables.append(source)
        else:
            self.json[name] = content

    def place(self, names: Sequence[str], word: str) -> Place:
        """Finds the folder that a column's images are in.

        Args:
            names: The column's cells.
            word: ``train`` or ``test``: which of two equally good folders is meant.
        """
        tried = [name for name in names[:: max(1, len(names) // TRIED)] if name.strip()]
        hits, exact = Counter[str](), Counter[tuple[str, str]]()
        for name in tried:
            above: set[str] = set()
            for image in self.candidates(name):
                folders = [parent.as_posix() for parent in Path(image).parents]
                above.update(folders)
                exact.update((folder, end) for folder in folders if (end := _rest(image, folder, name)) is not None)
            hits.update(above)
        if not hits:
            return Place(".", 0.0, "")
        most = max(hits.values())
        best = [folder for folder, count in hits.items() if count == most]

        def rank(folder: str) -> tuple[int, bool, bool, int]:
            here = max((count for (place, _), count in exact.items() if place == folder), default=0)
            other = "test" if word == "train" else "train"
            return here, word in folder.lower(), other not in folder.lower(), folder.count("/") + (folder != ".")

        chosen = max(sorted(best), key=rank)
        ends = [end for (folder, end), count in exact.items() if folder == chosen and count == most]
        return Place(chosen, most / len(tried), min(ends, default=""))

    def candidates(self, name: str) -> list[str]:
        """The images with a name, in any folders that agree with those in the name."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        found = self._by_stem.get(normal(split_suffix(parts[-1])[0]), []) if parts else []
        return [image for image in found if _agree(image.split("/")[:-1], parts[:-1])]

    def variants(self, names: Sequence[str]) -> list[str]:
        """What follows the names in their images' stems, such as ``_red``, if each name has several images."""
        stems = set(self._by_stem)
        ends: Counter[str] = Counter()
        wanted = {normal(name) for name in names[:TRIED]}
        for stem in stems:
            cuts = [at for at, sign in enumerate(stem) if sign in "_-." and stem[:at] in wanted]
            ends.update(stem[at:] for at in cuts)
        return sorted(end for end, count in ends.items() if count >= 0.9 * len(wanted))


def _tables(root: Path, skipped: str) -> list[Path]:
    """The CSV and JSON files near the top, the nearest first, and tables of other kinds."""
    found: list[Path] = []
    folders = [root]
    for _ in range(DEPTH):
        inner = [entry for folder in folders for entry in sorted(folder.iterdir()) if not is_litter(entry.name)]
        found += [entry for entry in inner if entry.name.lower().endswith(TABLES) and entry.is_file()]
        folders = [entry for entry in inner if entry.is_dir() and entry != root / skipped][:1000]
    return found


def _csv_source(file: Path, name: str) -> list[Source]:
    """A CSV's columns; none if it is not a table."""
    header = (read_cells(file, 1)[1] or [[]])[0]
    _, rows = read_cells(file, max(100, CELLS // max(1, len(header))))
    full = [row for row in rows[1:] if len(row) == len(header)]
    return [Source(name, {column: [row[at] for row in full] for at, column in enumerate(header)})] if full else []


def _json_source(content: object, name: str) -> Source | None:
    """A COCO file's images, with their first annotation."""
    images = content.get("images") if isinstance(content, dict) else content
    if not are_objects(images) or not (key := id_key(images)):
        return None
    columns = {column: [as_text(image.get(column)) for image in images] for column in images[0]}
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if are_objects(annotations) and (join := next((each for each in JOIN_KEYS if each in annotations[0]), None)):
        labels: dict[str, dict[str, list[str]]] = {}
        for annotation in annotations:
            for column, value in annotation.items():
                texts = map(as_text, value if isinstance(value, list) else [value])
                labels.setdefault(column, {}).setdefault(as_text(annotation.get(join)), []).extend(texts)
        for column, of in labels.items():
            if column not in columns and column not in JOIN_KEYS:
                columns[column] = [" ".join(dict.fromkeys(of.get(name, []))) for name in columns[key]]
    return Source(name, columns, is_json=True)


def _agree(folders: Sequence[str], named: Sequence[str]) -> bool:
    common = min(len(folders), len(named))
    return not common or list(map(normal, folders[-common:])) == list(map(normal, named[-common:]))


def _rest(image: str, folder: str, name: str) -> str | None:
    """What follows a name in an image's path below a folder; None if the path does not begin with the name."""
    below = image if folder == "." else image[len(folder) + 1 :]
    end = below[len(name) :]
    return end if below.startswith(name) and (not end or split_suffix(f"x{end}")[0] == "x") else None
