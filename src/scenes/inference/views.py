"""Test-time views: the ways in which a network sees an image; their predictions are averaged."""

from typing import NamedTuple

from torch import Tensor

from scenes.config import Config


class View(NamedTuple):
    """One way to look at an image.

    Attributes:
        name: Its name in messages and files.
        scale: The image is resized to scale × size.
        crop: The position of the size × size crop in it, as (down, right) in 0 … 1; None takes the whole image.
        flip: Whether it is flipped left to right.
        turns: The number of quarter turns after that.
    """

    name: str
    scale: float = 1.0
    crop: tuple[float, float] | None = None
    flip: bool = False
    turns: int = 0

    def canvas(self, size: int) -> int:
        """The side in pixels of the resized image."""
        return round(size * self.scale)

    def apply(self, canvas: Tensor, size: int) -> Tensor:
        """Cuts the view out of resized images (n, h, w, 3)."""
        if self.crop:
            room = canvas.shape[1] - size
            down, right = (round(part * room) for part in self.crop)
            canvas = canvas[:, down : down + size, right : right + size]
        canvas = canvas.flip(2) if self.flip else canvas
        return canvas.rot90(self.turns, (1, 2)) if self.turns else canvas


PLAIN = View("plain")
HFLIP = View("hflip", flip=True)
VIEWS: dict[str, list[View]] = {
    "none": [PLAIN],
    "hflip": [PLAIN, HFLIP],
    "multiscale": [PLAIN, HFLIP, View("large", 1.25), View("large hflip", 1.25, flip=True)],
    "five_crop": [
        View("centre", 1.15, (0.5, 0.5)),
        View("top left", 1.15, (0.0, 0.0)),
        View("top right", 1.15, (0.0, 1.0)),
        View("bottom left", 1.15, (1.0, 0.0)),
        View("bottom right", 1.15, (1.0, 1.0)),
    ],
    "all": [
        PLAIN,
        HFLIP,
        *(View(f"turned {90 * turns}", turns=turns) for turns in (1, 2, 3)),
        *(View(f"hflip turned {90 * turns}", flip=True, turns=turns) for turns in (1, 2, 3)),
    ],
}
BY_SYMMETRY = {"none": "none", "mirror": "hflip", "all": "all"}  # what infer.tta: auto means


def views_of(config: Config) -> list[View]:
    """The views of ``infer.tta`` that the competition's symmetry allows.

    With ``auto``, if prediction uses another image size than training, every other view has the training size.
    """
    views = VIEWS[BY_SYMMETRY[config.symmetry] if config.infer.tta == "auto" else config.infer.tta]
    size, trained = config.predict_size, config.image_size
    if config.infer.tta == "auto" and size != trained:  # two sizes see more, and the smaller one costs less
        views = [
            view._replace(name=f"{view.name} at {trained} px", scale=trained / size) if number % 2 else view
            for number, view in enumerate(views)
        ]
    flips, turns = config.symmetry != "none", config.symmetry == "all"
    return [view for view in views if (flips or not view.flip) and (turns or not view.turns)]


def sizes_seen(config: Config) -> set[int]:
    """The image sizes, in pixels, that networks see with the views of ``infer.tta``."""
    size = config.predict_size
    return {size if view.crop else view.canvas(size) for view in views_of(config)}
