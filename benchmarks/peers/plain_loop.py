"""A plain PyTorch and torchvision training loop on one fold, as in tutorials.

    python benchmarks/peers/plain_loop.py input folds.csv 0 3 out.json --weights FILE

Writes {"points": [{"seconds": …, "accuracy": …}, …]}, a point after each epoch, in seconds since this process began.
benchmarks/time_to_accuracy.py makes folds.csv and the weights file, and calls this.
"""

import json
import sys
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from trial import make_parser, point, read_rows

from scenes.environment import import_timm

import_timm()  # a CPU-only torch cannot import it otherwise
import timm  # noqa: E402
from torchvision import transforms  # noqa: E402

NORMALIZE = transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # as these weights were trained


class Scenes(Dataset):
    """The images and labels of a table's rows."""

    def __init__(self, folder: Path, table: pd.DataFrame, transform: transforms.Compose) -> None:
        self.folder, self.transform = folder, transform
        self.names, self.targets = table["image_name"].tolist(), table["target"].tolist()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        image = Image.open(self.folder / self.names[row]).convert("RGB")
        return self.transform(image), self.targets[row]


def main() -> None:
    """Trains and validates."""
    arguments = make_parser(__doc__, 1e-3).parse_args()

    size = arguments.size
    training = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.6, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            NORMALIZE,
        ]
    )
    validation = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor(), NORMALIZE])
    table = read_rows(arguments)
    table["target"] = pd.factorize(table["label"], sort=True)[0]
    held = table["is_valid"]
    images = arguments.root / "SceneImages"
    batch, workers = arguments.batch, torch.get_num_threads()
    training_rows = Scenes(images, table[~held], training)
    train_loader = DataLoader(training_rows, batch, shuffle=True, drop_last=True, num_workers=workers)
    held_loader = DataLoader(Scenes(images, table[held], validation), batch, num_workers=workers)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    overlay = {"file": arguments.weights}
    classes = table["target"].nunique()
    model = timm.create_model(arguments.model, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay)
    model.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.epochs * len(train_loader))
    points = []
    for _ in range(arguments.epochs):
        model.train()
        for inputs, targets in train_loader:
            loss = criterion(model(inputs.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        hits = 0
        with torch.no_grad():
            for inputs, targets in held_loader:
                hits += int((model(inputs.to(device)).argmax(1).cpu() == targets).sum())
        points.append(point(hits / int(held.sum())))
        print(points[-1], flush=True)
    arguments.out.write_text(json.dumps({"points": points}))


if __name__ == "__main__":
    main()
