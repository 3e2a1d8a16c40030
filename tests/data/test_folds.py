"""Folds hold every row once, every class in proportion, and never split a group."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from scenes.competition.decisions import read_near_duplicates
from scenes.competition.table import Table
from scenes.config import Config
from scenes.console import UserError
from scenes.data.dataset import read_dataset
from scenes.data.folds import ALWAYS_TRAINED, given_folds, group_rows, keep_rare_classes, make_folds, write_or_compare
from scenes.runs import FULL, fold_name, parse_folds

few = settings(max_examples=25, derandomize=True, deadline=None)


# ----------------------------------------------------------------------------------------------- which folds


@pytest.mark.parametrize(
    ("text", "folds"),
    [
        ("0", [0]),
        ("4", [4]),
        ("0-4", [0, 1, 2, 3, 4]),
        ("2-2", [2]),
        ("3,1", [1, 3]),
        ("0,0", [0]),
        ("0-2,2,4", [0, 1, 2, 4]),
    ],
)
def test_folds_are_read(text: str, folds: list[int]) -> None:
    assert parse_folds(text, 5) == folds


def test_full_is_not_a_fold_number() -> None:
    assert parse_folds("full", 5) == [FULL]
    assert (fold_name(FULL), fold_name(0), fold_name(12)) == ("full", "fold0", "fold12")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "-1",
        "-",
        "0-",
        "1-0",
        "0,",
        ",",
        "0,,1",
        "0-1-2",
        "²",
        "٣",
        "0 1",
        "1.0",
        "+1",
        "Full",
        "0,full",
        "9" * 5000,
    ],
)
def test_what_is_no_list_of_folds(text: str) -> None:
    with pytest.raises(UserError, match="--folds takes 0, 0-4, 0,2,4 or full"):
        parse_folds(text, 5)


@pytest.mark.parametrize("text", ["5", "9", "0-5", "0-99999999999", "99999999999", "0,99999999999-999999999999"])
def test_folds_that_there_are_not_cost_nothing(text: str) -> None:
    with pytest.raises(UserError, match=r"there are 5 folds, 0 to 4 \(data\.folds\)"):
        parse_folds(text, 5)


# ---------------------------------------------------------------------------------------------------- groups


def test_equal_pixels_are_a_group() -> None:
    assert group_rows(np.array(["a", "b", "a", "c"])).tolist() == [0, 1, 0, 2]


def test_images_of_one_id_share_a_fold(workspace: Path) -> None:
    rows = pd.read_csv("input/train.csv", dtype=str)
    rows["case"] = [f"c{row // 3}" for row in range(len(rows))]
    rows.to_csv("input/train.csv", index=False)
    Path("input/test.csv").unlink()
    data = read_dataset(Config(name="x", image_size=32, data={"folds": 2, "id_column": "case"}))
    assert (pd.Series(data.fold_of).groupby(rows["case"]).nunique() == 1).all()


def test_groups_and_equal_pixels_are_joined_through_others() -> None:
    #         p1-g1   p2-g1   p2-g2   p3-g3   p4-g2
    pixels = np.array(["1", "2", "2", "3", "4"])
    groups = group_rows(pixels, ["x", "x", "y", "z", "y"])
    assert groups.dtype == np.int64
    assert groups[0] == groups[1] == groups[2] == groups[4] != groups[3]


@given(st.lists(st.tuples(*[st.integers(0, 12)] * 3), min_size=1, max_size=30))
@few
def test_groups_are_exactly_the_connected_rows(rows: list[tuple[int, int, int]]) -> None:
    pixels, names, alike = zip(*rows, strict=True)
    found = group_rows(np.array([f"{p:032x}" for p in pixels]), [f"g{n}" for n in names], np.array(alike))
    expected = list(range(len(rows)))  # a simple reference: lower the labels until nothing changes
    while True:
        lowered = [
            min(expected[j] for j in range(len(rows)) if any(a == b for a, b in zip(rows[i], rows[j], strict=True)))
            for i in range(len(rows))
        ]
        if lowered == expected:
            break
        expected = lowered
    assert (found[:, None] == found).tolist() == [[a == b for b in expected] for a in expected]


def near_duplicates(folder: Path, content: str) -> list[int]:
    """The groups that a file gives to a.jpg, b.jpg, c.jpg and d.jpg, with e.jpg left out."""
    file = folder / "near.csv"
    file.write_text(content)
    return read_near_duplicates(file, [f"{name}.jpg" for name in "abcd"], ["e.jpg"]).tolist()


def test_near_duplicates_share_a_number_and_the_others_have_their_own(tmp_path: Path) -> None:
    a, b, c, d = near_duplicates(tmp_path, "group,image_name\n-4,d.jpg\n7,e.jpg\n-4,a.jpg\n7,b.jpg\n")
    assert a == d
    assert len({a, b, c}) == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("image_name,group\na.jpg,1\nx.jpg,1\n", "line 3 ('x.jpg')"),
        ("image_name,group\na.jpg,1\nb.jpg,1\na.jpg,2\n", "line 4 ('a.jpg')"),
        ("image_name,group\na.jpg,1\nb.jpg, \n", "1 row with an empty group: line 3 ('b.jpg')"),
        ("image_name,group\na.jpg\n", "different number of cells"),
        ("image_name,fold\na.jpg,1\n", "no column 'group'; it has 'image_name', 'fold' (python src/check.py"),
        ("image_name,group\n", "a header but no rows"),
    ],
)
def test_near_duplicates_that_are_wrong_are_refused_with_their_line(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        near_duplicates(tmp_path, content)
    assert "near.csv" in str(caught.value)
    assert says in str(caught.value)


# ----------------------------------------------------------------------------------------------------- folds


# Rows of each class beyond one per fold.
surplus = st.lists(st.integers(0, 12), min_size=1, max_size=4)
counts = st.integers(2, 5)
seeds = st.integers(0, 2**32 - 1)


def shuffled(surplus: list[int], folds: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(surplus)), np.array(surplus) + folds))


@given(surplus, counts, seeds)
@few
def test_without_groups_each_class_is_spread_evenly(surplus: list[int], folds: int, seed: int) -> None:
    y = shuffled(surplus, folds, seed)
    fold_of = make_folds(y, np.arange(len(y)), folds, seed)
    assert fold_of.shape == y.shape
    assert set(fold_of) == set(range(folds))
    for label in np.unique(y):
        counts = np.bincount(fold_of[y == label], minlength=folds)
        assert abs(counts - (y == label).sum() / folds).max() < 1
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(y, y)  # as in runs started with it
    assert all((np.flatnonzero(fold_of == fold) == held).all() for fold, (_, held) in enumerate(splits))


@given(st.data(), surplus, counts, seeds)
@few
def test_no_group_is_split_and_no_fold_is_empty(data: st.DataObject, surplus: list[int], folds: int, seed: int) -> None:
    y = shuffled(surplus, folds, seed)
    groups = np.array(data.draw(st.lists(st.integers(0, 20), min_size=len(y), max_size=len(y))))
    fold_of = make_folds(y, groups, folds, seed)
    assert set(fold_of) <= set(range(folds))
    assert set(fold_of) == set(range(folds)) or len(set(groups)) < 2 * folds
    assert all(len(set(fold_of[groups == group])) == 1 for group in groups)


def test_a_few_duplicates_do_not_unbalance_the_folds() -> None:
    y = np.repeat(np.arange(6), 50)
    groups = np.arange(300)
    groups[[1, 60, 61]] = [0, 59, 59]
    fold_of = make_folds(y, groups, 5, 42)
    assert fold_of[0] == fold_of[1]
    assert fold_of[59] == fold_of[60] == fold_of[61]
    table = np.array([np.bincount(y[fold_of == fold], minlength=6) for fold in range(5)])
    assert abs(table - 10).max() <= 2


@pytest.mark.parametrize("groups", [np.arange(60), np.arange(60) // 2])
def test_the_seed_alone_decides(groups: np.ndarray) -> None:
    y = np.arange(60) // 2 % 3
    first = make_folds(y, groups, 3, 1)
    np.random.seed(0)
    assert (make_folds(y, groups, 3, 1) == first).all()
    assert (make_folds(y, groups, 3, 2) != first).any()


def test_fewer_groups_than_folds_leave_folds_empty() -> None:
    fold_of = make_folds(np.array([0, 1] * 3), np.array([7, 9] * 3), 3, 0)
    assert len(set(fold_of)) == 2
    assert len(set(fold_of[::2])) == 1


def test_strata_of_few_rows_are_split_all_the_same() -> None:
    fold_of = make_folds(np.arange(10), np.arange(10), 5, 0)
    assert np.bincount(fold_of).tolist() == [2] * 5


# -------------------------------------------------------------------------------------------- several labels


@given(st.integers(20, 60), st.integers(1, 4), counts, seeds)
@few
def test_each_label_is_spread_evenly(rows: int, labels: int, folds: int, seed: int) -> None:
    y = (np.random.default_rng(seed).random((rows, labels)) < 0.4).astype(np.int64)
    fold_of = make_folds(y, np.arange(rows), folds, seed)
    assert set(fold_of) == set(range(folds))
    sizes = np.bincount(fold_of, minlength=folds)
    assert sizes.max() - sizes.min() <= 2 + labels
    for label in range(labels):
        positive = np.bincount(fold_of[y[:, label] == 1], minlength=folds)
        assert abs(positive - y[:, label].sum() / folds).max() <= 3
    assert (make_folds(y, np.arange(rows), folds, seed) == fold_of).all()


@given(st.integers(20, 60), st.integers(1, 4), seeds)
@few
def test_groups_with_labels_are_never_split(rows: int, labels: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    y = (draw.random((rows, labels)) < 0.4).astype(np.int64)
    groups = draw.integers(0, 12, rows)
    fold_of = make_folds(y, groups, 3, seed)
    assert all(len(set(fold_of[groups == group])) == 1 for group in groups)


# ---------------------------------------------------------------------------------------------- rare classes


def test_classes_with_fewer_rows_than_folds_train_in_every_fold() -> None:
    targets = np.array([0] * 6 + [1] * 6 + [2] * 2 + [3])
    fold_of, rare = keep_rare_classes(targets, np.arange(15), np.arange(15) % 3, 3)
    assert rare == [2, 3]
    assert (fold_of[targets >= 2] == ALWAYS_TRAINED).all()
    assert (fold_of[:12] == np.arange(12) % 3).all()


def test_a_class_that_one_fold_would_hold_out_trains_in_every_fold() -> None:
    targets, fold_of = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 1])
    kept, rare = keep_rare_classes(targets, np.arange(5), fold_of, 0)
    assert (kept.tolist(), rare) == ([0, 1, -1, -1, -1], [1])


def test_what_shares_a_group_with_a_rare_class_is_held_out_nowhere() -> None:
    targets, groups = np.array([0, 0, 0, 0, 1]), np.array([0, 1, 2, 3, 3])
    kept, rare = keep_rare_classes(targets, groups, np.array([0, 1, 0, 1, 1]), 2)
    assert (kept.tolist(), rare) == ([0, 1, 0, -1, -1], [1])


# ----------------------------------------------------------------------------------------------- given folds


def table(*folds: str) -> Table:
    names = [f"{i}.jpg" for i in range(len(folds))]
    columns = pd.DataFrame({"image_name": names, "f": folds}, index=range(2, len(folds) + 2), dtype=str)
    return Table(Path("train.csv"), names, [Path(name) for name in names], columns)


def own_groups(count: int) -> np.ndarray:
    return np.arange(count)


def test_given_folds_are_taken_as_they_are() -> None:
    fold_of = given_folds(table("1", "0", "2", "0"), "f", 3, own_groups(4))
    assert (fold_of.tolist(), fold_of.dtype) == ([1, 0, 2, 0], np.int64)


@pytest.mark.parametrize("fold", ["3", "-1", "", "0.0", " 0", "00", "a", "²"])
def test_a_given_fold_outside_is_refused_with_its_line(fold: str) -> None:
    with pytest.raises(UserError) as caught:
        given_folds(table("1", "0", "2", fold), "f", 3, own_groups(4))
    assert f"train.csv: 1 row with a fold outside 0 … 2: line 5 ({fold!r})" in str(caught.value)


def test_a_fold_that_no_row_has_is_named() -> None:
    with pytest.raises(UserError, match="no row has the fold 2, 9, 11"):
        given_folds(table("0", "1", *map(str, range(3, 9)), "10"), "f", 12, own_groups(9))


def test_given_folds_may_not_split_a_group() -> None:
    with pytest.raises(UserError) as caught:
        given_folds(table("0", "1", "0", "1"), "f", 3, np.array([7, 7, 5, 6]))
    assert "2 problems" in str(caught.value)
    assert "no row has the fold 2" in str(caught.value)
    what = "2 rows with identical images or a group in several folds: line 2 ('0.jpg'), line 3 ('1.jpg')"
    assert what in str(caught.value)


# ------------------------------------------------------------------------------------------------- folds.csv


def content(**columns: list[object]) -> pd.DataFrame:
    base = {
        "image_name": ["001", "1.0", "NA"],
        "label": ["01", "nan", "1e3"],
        "pixels": np.array(["0" * 32, "1" * 32, "e" * 32]),
        "group": [0, 1, 2],
        "fold": [0, 1, 0],
    }
    return pd.DataFrame(base | columns)


def test_folds_are_written_once_and_then_compared(tmp_path: Path) -> None:
    file = tmp_path / "run/folds.csv"
    write_or_compare(file, content())
    assert file.read_text().splitlines()[:2] == ["image_name,label,pixels,group,fold", f"001,01,{'0' * 32},0,0"]
    file.chmod(0o444)
    before = file.stat().st_mtime_ns
    write_or_compare(file, content())
    assert file.stat().st_mtime_ns == before


odd = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=8)


@given(
    st.lists(
        odd | st.sampled_from(["001", "1.0", "NA", "nan", "", '"', "a,b", "#", "a\rb", "\r", " x ", "1e5"]),
        min_size=1,
        max_size=5,
    )
)
@few
def test_any_name_survives_the_file(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    file = tmp_path_factory.mktemp("folds") / "folds.csv"
    rows = pd.DataFrame({"image_name": names, "label": names[::-1], "fold": range(len(names))})
    write_or_compare(file, rows)
    write_or_compare(file, rows)
    changed = rows.assign(image_name=[name + "x" for name in names])
    with pytest.raises(UserError, match="the training data changed"):
        write_or_compare(file, changed)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"label": ["01", "nan", "1000"]}, "row 3: label is '1000', was '1e3'"),
        ({"label": ["1", "nan", "1e3"]}, "row 1: label is '1', was '01'"),
        ({"image_name": ["001", "1.0", ""]}, "row 3: image_name is '', was 'NA'"),
        ({"pixels": ["0" * 32, "2" * 32, "e" * 32]}, "row 2: pixels is '222"),
        ({"pixels": ["3" * 32, "4" * 32, "5" * 32]}, "an older version of this project"),
        ({"group": [0, 1, 1]}, "row 3: group is '1', was '2'"),
        ({"fold": [1, 1, 0]}, "row 1: fold is '1', was '0'"),
    ],
)
def test_changed_data_are_refused_with_the_row_and_the_ways_out(
    tmp_path: Path, change: dict[str, list[object]], part: str
) -> None:
    file = tmp_path / "folds.csv"
    write_or_compare(file, content())
    before = file.read_bytes()
    with pytest.raises(UserError) as caught:
        write_or_compare(file, content(**change))
    for expected in (part, f"since {tmp_path} began", "restore the data", "--set name=NEW", f"delete {tmp_path}"):
        assert expected in str(caught.value)
    assert file.read_bytes() == before


def test_other_rows_and_columns_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "folds.csv"
    write_or_compare(file, content())
    with pytest.raises(UserError, match="it has 2 rows, the run began with 3"):
        write_or_compare(file, content()[:2])
    with pytest.raises(UserError, match="different columns"):
        write_or_compare(file, content().drop(columns="group"))


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b'a,b\n"'])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "folds.csv"
    file.write_bytes(damage)
    with pytest.raises(UserError, match=r"folds\.csv: damaged"):
        write_or_compare(file, content())
