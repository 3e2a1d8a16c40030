"""A resume state is whole, belongs to the run and contains no code, or it is refused with a way out."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from scenes.console import UserError
from scenes.files import write_atomic
from scenes.training import checkpoint

IDENTITY = "tiny fold0"


def state(step: int = 3) -> dict[str, Any]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "identity": IDENTITY,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "averaged": None,
        "step": step,
        "history": [{"epoch": 1, "val_loss": 0.25, "train_loss": None}, {"epoch": 2, "val_loss": math.inf}],
        "best": {"val_loss": 0.25, "model": model.state_dict()},
        "loss_sum": torch.tensor(1.5),
    }


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def loaded(folder: Path) -> dict[str, Any]:
    content = checkpoint.load(folder, IDENTITY)
    assert content is not None
    return {key: value for key, value in content.items() if key != "format"}


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, IDENTITY) is None
    assert checkpoint.load(tmp_path / "absent", IDENTITY) is None


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    first, second, third = state(1), state(2), state(3)
    checkpoint.save(tmp_path / "fold0", first)
    assert_same(loaded(tmp_path / "fold0"), first)
    checkpoint.save(tmp_path / "fold0", second)
    checkpoint.save(tmp_path / "fold0", third)
    assert_same(loaded(tmp_path / "fold0"), third)
    assert sorted(path.name for path in (tmp_path / "fold0").iterdir()) == ["last.pt", "previous.pt"]
    (tmp_path / "fold0/last.pt").unlink()
    assert_same(loaded(tmp_path / "fold0"), second)


def test_a_kill_between_the_renames_loses_one_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, state(1))

    def killed(path: Path, write: Any) -> None:
        write(path.with_name(".last.pt.1.tmp"))
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, state(2))
    assert not (tmp_path / "last.pt").exists()
    assert loaded(tmp_path)["step"] == 1
    monkeypatch.setattr(checkpoint, "write_atomic", write_atomic)
    checkpoint.save(tmp_path, state(3))
    assert loaded(tmp_path)["step"] == 3
    (tmp_path / "last.pt").unlink()
    assert loaded(tmp_path)["step"] == 1


def test_a_full_disk_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, state(1))
    checkpoint.save(tmp_path, state(2))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, state(3))
    assert loaded(tmp_path)["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-200], lambda whole: b"<html>" * 99])
def test_a_damaged_state_is_named_with_the_one_before(tmp_path: Path, damage: Any) -> None:
    checkpoint.save(tmp_path, state(1))
    checkpoint.save(tmp_path, state(2))
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    last.write_bytes(damage(last.read_bytes()))
    with pytest.raises(UserError, match=rf"(?s)^{last}: damaged.*delete {last} to resume from {previous}"):
        checkpoint.load(tmp_path, IDENTITY)
    last.unlink()  # as the message says
    assert loaded(tmp_path)["step"] == 1
    previous.write_bytes(damage(previous.read_bytes()))
    with pytest.raises(UserError, match=rf"(?s)^{previous}: damaged.*delete {previous} to restart this fold"):
        checkpoint.load(tmp_path, IDENTITY)


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_code_in_a_checkpoint_never_runs(tmp_path: Path) -> None:
    target = tmp_path / "attacked"
    content = {"format": checkpoint.FORMAT, "identity": IDENTITY, "model": Attack(target)}
    for write in (torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))):
        write(content, tmp_path / "last.pt")
        with pytest.raises(UserError, match=r"last.pt: damaged or not a checkpoint.*\n.*from scratch"):
            checkpoint.load(tmp_path, IDENTITY)
        assert not target.exists()
    pickle.loads(pickle.dumps(content))
    assert target.exists()  # so unpickling would have written it


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"format": checkpoint.FORMAT, "identity": "tiny fold1"}, "belongs to 'tiny fold1', expected 'tiny fold0'"),
        ({"format": checkpoint.FORMAT}, "belongs to None"),
        ({"format": "scenes-checkpoint-0", "identity": IDENTITY}, "not a checkpoint of this version"),
        ({"model": {}}, "not a checkpoint of this version"),
        ([1, 2], "not a checkpoint of this version"),
    ],
)
def test_a_foreign_state_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(UserError, match=rf"(?s)last.pt: {says}.*delete .*last.pt to restart this fold from scratch"):
        checkpoint.load(tmp_path, IDENTITY)
