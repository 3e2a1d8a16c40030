"""CSVs are read strictly, and all their errors are reported at once, with file, line and fix."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenes.competition.label_text import sort_labels
from scenes.competition.rows import Table, overlap, read_test, read_train
from scenes.competition.targets import Targets
from scenes.config import Config, DataConfig
from scenes.console import UserError
from small import images

GOOD = "image_name,label\na.jpg,0\nb.jpg,0\nc.jpg,1\nd.jpg,1\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "SceneImages").mkdir()
    add(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    return tmp_path


@pytest.mark.parametrize("values", [{"sample_submission": "sampl.csv"}, {"sample_submission": "/nowhere/s.csv"}])
def test_a_sample_that_is_named_must_be_there(root: Path, values: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"sample_submission: .*s.*\.csv"):
        read_test(DataConfig(root=root, **values))


def test_a_sample_may_lie_elsewhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    sample = tmp_path_factory.mktemp("elsewhere") / "s.csv"
    sample.write_text("image_name,label\na.jpg,0\n")
    assert read_test(DataConfig(root=root, sample_submission=sample))[0].names == ["a.jpg"]


def test_a_home_is_no_folder_of_that_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root))
    data = DataConfig(root="~", cache="~/c", near_duplicates=None)
    assert (data.root, data.cache, data.train_csv) == (root, root / "c", Path("train.csv"))
    assert Config(name="x", model={"weights": "~/w.pth"}).model.weights == f"{root}/w.pth"


def add(root: Path, *names: str) -> None:
    images(root / "SceneImages", *names)


def config(root: Path, **values: object) -> Config:
    return Config(name="x", data=DataConfig(root=root, **values))


def read(root: Path, content: str | bytes, **values: object) -> tuple[Table, Targets, dict[str, str]]:
    """Returns the table, the labels and the problems (problem → fix, without the file's name)."""
    (root / "train.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    table, labels, problems = read_train(config(root, **values))
    assert {problem.where for problem in problems} <= {str(root / "train.csv"), str(root / "SceneImages")}
    return table, labels, {problem.what: problem.remedy for problem in problems}


def problems(root: Path, content: str | bytes, **values: object) -> list[str]:
    return list(read(root, content, **values)[2])


def refusal(root: Path, content: str | bytes, **values: object) -> str:
    with pytest.raises(UserError) as caught:
        read(root, content, **values)
    return str(caught.value)


def rows(*lines: str, header: str = "image_name,label") -> str:
    return "".join(f"{line}\n" for line in (header, *lines))


# ------------------------------------------------------------------------------------------------ good files


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.rstrip("\n"),
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\r"),
        "\ufeff" + GOOD.replace("\n", "\r\n") + "\r\n\r\n",
        '"image_name","label"\n"a.jpg","0"\n"b.jpg",0\nc.jpg,"1"\nd.jpg,1\n',
        "\n" + GOOD.replace("\n", "\n\n"),
    ],
)
def test_all_shapes_of_a_plain_csv_are_the_same_table(root: Path, content: str) -> None:
    table, labels, wrong = read(root, content)
    assert not wrong
    assert table.names == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert table.paths == [root / "SceneImages" / name for name in table.names]
    assert len(table) == 4
    assert (labels.task.columns, labels.task.names) == (["0", "1"], ["0", "1"])
    assert labels.values.tolist() == [0, 0, 1, 1]
    assert labels.values.dtype == np.int64


@pytest.mark.parametrize(
    "name", ["a, b.jpg", 'say "x".jpg', "日本/straße.png", "NA", "1.0", "001", "line\nbreak.jpg", "'"]
)
def test_odd_names_are_read_as_they_are(root: Path, name: str) -> None:
    add(root, name)
    quoted = name.replace('"', '""')
    table, _, wrong = read(root, rows(f'"{quoted}",0', "b.jpg,0", "c.jpg,1", "d.jpg,1"))
    assert not wrong
    assert table.names[0] == name
    assert table.paths[0].is_file()


def test_other_columns_are_kept_as_text(root: Path) -> None:
    table, _, wrong = read(
        root, rows("7,a.jpg,0,NA", "8,b.jpg,0,", "9,c.jpg,1,1.0", "10,d.jpg,1,007", header=",image_name,label,note")
    )
    assert not wrong
    assert table.columns["note"].tolist() == ["NA", "", "1.0", "007"]


def test_other_columns_folders_and_a_suffix_can_be_named(root: Path) -> None:
    content = rows("x,a", "x,b", "y,c", "y,d", header="Class,Id")
    (root / "SceneImages").rename(root / "pics")
    names = {"image_column": "Id", "label_column": "Class", "image_suffix": ".jpg", "image_dir": "pics"}
    table, labels, wrong = read(root, content, **names)
    assert not wrong
    assert (table.names[0], table.paths[0].name, labels.task.columns) == ("a", "a.jpg", ["x", "y"])


def test_images_below_folders_links_and_a_linked_image_folder(root: Path) -> None:
    add(root, "deep/er/e.jpg")
    (root / "SceneImages/link.jpg").symlink_to(root / "SceneImages/a.jpg")
    (root / "SceneImages").rename(root / "elsewhere")
    (root / "SceneImages").symlink_to(root / "elsewhere", target_is_directory=True)
    absolute = root / "SceneImages/b.jpg"
    assert problems(root, rows("deep/er/e.jpg,0", "link.jpg,0", f"{absolute},1", "deep/../c.jpg,1")) == []


def test_a_test_csv_needs_no_labels_and_may_have_its_own_folder(root: Path) -> None:
    (root / "test.csv").write_text("image_name\nx.jpg\n")
    (root / "other").mkdir()
    (root / "other/x.jpg").touch()
    table, wrong = read_test(DataConfig(root=root, test_image_dir="other"))
    assert (table.names, table.paths, wrong) == (["x.jpg"], [root / "other/x.jpg"], [])
    table, wrong = read_test(DataConfig(root=root))
    assert "whose image is not in" in wrong[0].what
    (root / "test.csv").unlink()
    with pytest.raises(UserError, match="no such file"):
        read_test(DataConfig(root=root))


# ---------------------------------------------------------------------------------------------------- labels


def test_integer_labels_are_ordered_by_number_and_words_by_letter() -> None:
    assert sort_labels(["10", "9", "-1", "0"]) == ["-1", "0", "9", "10"]
    assert sort_labels(["sea", "Sea", "10", "9"]) == ["10", "9", "Sea", "sea"]
    assert sort_labels(["1", "01"]) == sort_labels(["01", "1"]) == ["01", "1"]
    assert sort_labels(["9" * 5000, "1"]) == ["1", "9" * 5000]


@given(st.lists(st.integers(-(10**17), 10**17).map(str) | st.text(max_size=3), unique=True))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_the_order_of_labels_does_not_depend_on_the_rows(labels: list[str]) -> None:
    assert sort_labels(labels) == sort_labels(labels[::-1])
    assert set(sort_labels(labels)) == set(labels)


def test_targets_are_positions_in_the_classes(root: Path) -> None:
    _, labels, wrong = read(root, rows("a.jpg,10", "b.jpg,9", "c.jpg,9", "d.jpg,10"))
    assert not wrong
    assert (labels.task.columns, labels.values.tolist()) == (["9", "10"], [1, 0, 0, 1])


def test_class_names_are_for_people(root: Path) -> None:
    _, labels, wrong = read(root, GOOD, class_names=["sea", "land"])
    assert (labels.task.columns, labels.task.names, wrong) == (["0", "1"], ["sea", "land"], {})
    assert problems(root, GOOD, class_names=["a"]) == ["data.class_names has 1 names for 2 labels (0, 1)"]
    assert problems(root, GOOD, class_names=["a", "a"]) == ["data.class_names repeats 'a'"]


def test_thousands_of_classes(root: Path) -> None:
    names = [f"{i}.jpg" for i in range(4000)]
    add(root, *names)
    _, labels, wrong = read(root, rows(*(f"{name},{i // 2}" for i, name in enumerate(names))))
    assert not wrong
    assert len(labels.task.columns) == 2000
    assert labels.values.tolist() == [i // 2 for i in range(4000)]


@pytest.mark.parametrize(
    "label", ["0.0", "1.", ".5", "1.0e+02", "None", "null", "NA", "cat ", "1.5.2", "nano", "-", "."]
)
def test_a_label_is_text(root: Path, label: str) -> None:
    _, labels, wrong = read(root, rows("a.jpg,b", "b.jpg,b", f'c.jpg,"{label}"', f'd.jpg,"{label}"'))
    assert not wrong
    assert labels.task.columns == sorted(["b", label])


@pytest.mark.parametrize("label", ["nan", "NaN"])
def test_a_missing_value_among_numbers_is_no_label(root: Path, label: str) -> None:
    found = problems(root, rows("a.jpg,0", "b.jpg,0", "c.jpg,1", f"d.jpg,{label}"))
    assert len(found) == 1
    assert f"line 5 ({label!r})" in found[0]


def test_empty_labels_and_those_that_differ_in_spaces_are_no_classes_of_their_own(root: Path) -> None:
    found = problems(root, rows("a.jpg,0", "b.jpg,0", "c.jpg,", 'd.jpg," "', "e.jpg, 0"), on_bad_image="skip")
    assert "line 4 (''), line 5 (' ')" in found[0]
    assert "line 6 (' 0')" in found[1]
    assert "'0'" in found[2]
    assert len(found) == 3


def test_one_class(root: Path) -> None:
    assert problems(root, rows("a.jpg,0", "b.jpg,0")) == ["all rows have the label '0'"]


# ----------------------------------------------------------------------------------------------------- names


def test_everything_that_is_wrong_is_said_at_once_with_lines(root: Path) -> None:
    outside = root / "secret.jpg"
    outside.touch()
    (root / "SceneImages/out.jpg").symlink_to(outside)
    (root / "SceneImages/folder").mkdir()
    content = rows(
        "a.jpg,0",
        "a.jpg,1",
        ",0",
        " b.jpg,0",
        "../secret.jpg,0",
        f"{outside},0",
        "out.jpg,0",
        "nul\0.jpg,0",
        "gone.jpg,0",
        "folder,0",
        ".,0",
        "c.jpg,",
        "d.jpg,1,extra",
        "d.jpg",
        f"{'long' * 1000},0",
    )
    found = read(root, content)[2]
    lines = {
        "a different number of cells": ["line 14 ('d.jpg,1,extra')", "line 15 ('d.jpg')"],
        "empty image name": ["line 4 ('')"],
        "duplicate image name": ["line 3 ('a.jpg')"],
        "path that leaves": ["line 6 ('../secret.jpg')", f"line 7 ({str(outside)[:80]!r})", "line 9", "line 12 ('.')"],
        "image is not in": ["line 5 (' b.jpg')", "line 10 ('gone.jpg')", "line 11 ('folder')", "line 16"],
        "empty label": ["line 13 ('')"],
    }
    said = {
        what: [line for text in found if what in text for line in places if line in text]
        for what, places in lines.items()
    }
    assert said == lines
    assert len(found) == len(lines)
    assert "'b.jpg' for ' b.jpg'" in next(remedy for text, remedy in found.items() if "image is not in" in text)


@pytest.mark.parametrize("name", ["../SceneImages2/x.jpg", "/etc/passwd", "a/../../b.jpg", "..", "link/../../x.jpg"])
def test_a_path_may_not_leave_the_image_folder(root: Path, name: str) -> None:
    (root / "SceneImages2").mkdir()
    (root / "SceneImages2/x.jpg").touch()
    (root / "SceneImages/link").symlink_to(root / "SceneImages2", target_is_directory=True)
    assert "with a path that leaves" in problems(root, GOOD + f"{name},0\n")[0]


def test_lines_are_right_after_blank_lines_and_cells_of_several_lines(root: Path) -> None:
    content = 'image_name,label,note\n\na.jpg,0,"one\ntwo\r\nthree"\nb.jpg,0,\r\n\r\ngone.jpg,1,x\nc.jpg,1,\n'
    assert "line 8 ('gone.jpg')" in problems(root, content)[0]


def test_many_rows_of_one_problem_are_one_problem_with_examples(root: Path) -> None:
    found = problems(root, rows(*(f"no{i}.jpg,{i % 2}" for i in range(1000))))
    assert len(found) == 1
    assert found[0].startswith("1000 rows whose image")
    assert found[0].endswith("line 6 ('no4.jpg') and 995 more")


def test_a_missing_image_folder_hides_no_other_problem(root: Path) -> None:
    (root / "train.csv").write_text(GOOD + "e.jpg,\n")
    _, _, found = read_train(config(root, image_dir="gone"))
    assert [(p.where, p.what) for p in found] == [
        (f"{root}/gone", "no such image folder"),
        (f"{root}/train.csv", "1 row with an empty label: line 6 ('')"),
    ]
    assert "data.image_dir" in found[0].remedy


def test_a_file_or_an_impossible_name_is_no_image_folder(root: Path) -> None:
    for name in ("train.csv", "x" * 5000):
        (root / "train.csv").write_text(GOOD)
        assert read_train(config(root, image_dir=name))[2][0].what == "no such image folder"


def test_test_rows_that_are_training_rows(root: Path) -> None:
    train, _, _ = read(root, GOOD)
    (root / "test.csv").write_text("image_name\ne.jpg\n\n./b.jpg\na.jpg\n")
    add(root, "e.jpg")
    test, _ = read_test(DataConfig(root=root))
    found = overlap(train, test)
    assert [problem.where for problem in found] == [str(root / "test.csv")]
    assert found[0].what.startswith("2 rows also a training image")
    assert found[0].what.endswith(": line 4 ('./b.jpg'), line 5 ('a.jpg')")
    (root / "other").mkdir()
    elsewhere, _ = read_test(DataConfig(root=root, test_image_dir="other"))
    assert overlap(train, elsewhere) == []


def test_every_row_needs_a_group(root: Path) -> None:
    content = rows("a.jpg,0,p", "b.jpg,0,", "c.jpg,1, ", "d.jpg,1,p", header="image_name,label,patient")
    assert problems(root, content) == []
    assert problems(root, content, group_column="patient") == [
        "2 rows with an empty group: line 3 ('b.jpg'), line 4 ('c.jpg')"
    ]


def test_links_that_the_user_made_are_followed(root: Path) -> None:
    (root / "collection").mkdir()
    for name in ("x.jpg", "y.jpg"):
        (root / "collection" / name).touch()
    (root / "SceneImages/x.jpg").symlink_to(root / "collection/x.jpg")
    (root / "SceneImages/link").symlink_to(root / "collection", target_is_directory=True)
    table, _, wrong = read(root, rows("a.jpg,0", "x.jpg,0", "link/y.jpg,1", "y.jpg,1", "c.jpg,1"))
    assert list(wrong) == ["1 row with the image of an earlier row under another name: line 5 ('y.jpg: y.jpg')"]
    assert all(path.is_file() for path in table.paths)


# ------------------------------------------------------------------------------------------- no table at all


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "empty; it needs a header line with image_name, label"),
        ("\ufeff\n\r\n\n", "empty; it needs a header"),
        ("image_name,label\n", "a header but no rows"),
        ("image_name,label\n\n\n", "a header but no rows"),
        (
            "image_name,label\na.jpg\nb.jpg,1,2\n",
            "2 rows with a different number of cells than the header's 2: line 2 ('a.jpg')",
        ),
        (
            "a.jpg,0\nb.jpg,1\n",
            "no column 'image_name', 'label'; it has 'a.jpg', '0' (names are set by data.image_column",
        ),
        ("image_name;label\na.jpg;0\n", "separate the columns by commas, not semicolons"),
        ("image_name\tlabel\na.jpg\t0\n", "separate the columns by commas, not tabs"),
        ("image_name, label\na.jpg,0\n", "no column 'label'; it has 'image_name', ' label'"),
        ("image_name,Label\na.jpg,0\n", "no column 'label'"),
        ("image_name,label,label\na.jpg,0,1\n", "several columns 'label'"),
        ('image_name,label\na.jpg,0\nb.jpg,"0\nc.jpg,1\n', "line 3: not a comma-separated table"),
        ('image_name,label\n"a"b.jpg,0\n', "line 2: not a comma-separated table"),
        (b"image_name,label\na.jpg,0\ncaf\xe9.jpg,1\n", "line 3: not UTF-8 text; save it as UTF-8"),
        ("image_name,label\na.jpg,0\n".encode("utf-16"), "line 1: not UTF-8 text"),
        (b"PK\x03\x04\xff\xfe", "not UTF-8 text"),
    ],
)
def test_a_file_of_which_no_table_can_be_made(root: Path, content: str | bytes, part: str) -> None:
    message = refusal(root, content)
    assert str(root / "train.csv") in message
    assert part in message


def test_a_cell_may_be_long(root: Path) -> None:
    add(root, "a.jpg", "b.jpg")
    content = rows("a.jpg,0,1 2", f"b.jpg,1,{'7 1 ' * 50_000}", header="image_name,label,mask")
    assert len(read(root, content)[0]) == 2


def test_a_pattern_tells_apart_images_of_one_name(root: Path) -> None:
    for folder in ("north", "south"):
        (root / "SceneImages" / folder).mkdir(parents=True, exist_ok=True)
        add(root, f"{folder}/0.jpg")
    content = rows("north,0.jpg,0", "south,0.jpg,1", header="site,image_name,label")
    assert read(root, content, image_pattern="{site}/{image_name}")[0].names == ["north/0.jpg", "south/0.jpg"]


def test_a_missing_file_says_where_to_put_it_and_how_to_try_without(root: Path) -> None:
    with pytest.raises(UserError, match=r"train\.csv: no such file.*input/README\.md.*quickstart\.yaml"):
        read_train(config(root))


def test_a_folder_in_place_of_the_csv(root: Path) -> None:
    (root / "train.csv").mkdir()
    with pytest.raises(UserError, match=r"train\.csv: cannot be read"):
        read_train(config(root))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_csv(root: Path) -> None:
    (root / "train.csv").write_text(GOOD)
    (root / "train.csv").chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        read_train(config(root))


def test_missing_group_and_fold_columns_are_named(root: Path) -> None:
    assert "no column 'patient', 'fold'" in refusal(root, GOOD, group_column="patient", fold_column="fold")


@given(
    st.lists(st.lists(st.text(st.sampled_from('a0,"\n\r \0é.;/'), max_size=4), max_size=4), max_size=5), st.booleans()
)
@settings(max_examples=150, derandomize=True, deadline=None)
def test_any_bytes_are_a_table_or_a_plain_refusal(
    tmp_path_factory: pytest.TempPathFactory, cells: list[list[str]], has_header: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    (folder / "SceneImages").mkdir(parents=True, exist_ok=True)
    text = "\n".join(",".join(row) for row in ([["image_name", "label"]] if has_header else []) + cells)
    try:
        table, labels, wrong = read(folder, text)
    except UserError:
        return
    assert wrong
    assert len(table) == len(labels.values) > 0
