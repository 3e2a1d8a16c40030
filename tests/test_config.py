"""Experiment files are read strictly: errors are reported with their location, and never with a traceback."""

from io import StringIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from scenes.config import Config
from scenes.config_file import differences, dump, load_config, valid_keys, validate
from scenes.console import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
few = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def load(folder: Path, text: str | bytes, *pairs: str) -> Config:
    file = folder / "exp.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(file, pairs)


def refusal(folder: Path, text: str | bytes, *pairs: str) -> str:
    """The message the user reads, without the folder's path."""
    with pytest.raises(UserError) as caught:
        load(folder, text, *pairs)
    return str(caught.value).replace(f"{folder}/", "")


# ------------------------------------------------------------------------------------------------ good files


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_config_loads_and_is_named_after_its_file(file: Path) -> None:
    assert load_config(file).name == file.stem


def test_there_are_shipped_configs() -> None:
    assert "quickstart" in {file.stem for file in CONFIGS}


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "null", "\ufeff", "{}"])
def test_an_empty_file_is_all_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == Config(name="exp")


def test_nested_values_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    config = load(tmp_path, "\ufefftrain:\r\n  epochs: 7\r\n  lr: 3e-4\r\nseed: 4\r\n")
    assert (config.train.epochs, config.train.lr, config.seed) == (7, 3e-4, 4)
    assert config.train.batch_size == Config(name="x").train.batch_size


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 9  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 1e-3), ("1E-3", 1e-3), ("1e3", 1e3), ("+2.5e-1", 0.25), (".5", 0.5), ("5.", 5.0), ("010", 10), ("2", 2)],
)
def test_numbers_are_read_as_people_write_them(tmp_path: Path, text: str, number: float) -> None:
    assert load(tmp_path, f"train: {{lr: {text}}}").train.lr == number


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "y", "N", "2020-01-01", "1:30", "1_0", "+_", "=", "<<"])
def test_plain_words_stay_words(tmp_path: Path, word: str) -> None:
    assert load(tmp_path, f"data: {{class_names: [{word}, b]}}").data.class_names == [word, "b"]


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("false", False), ("True", True), ("no", False), ("yes", True)]
)
def test_switches(tmp_path: Path, text: str, value: bool) -> None:
    assert load(tmp_path, f"data: {{sample: {text}}}").data.sample is value


def test_stages_by_epoch(tmp_path: Path) -> None:
    assert load(tmp_path, "train: {trainable_stages: {0: 1, 2: all}}").train.trainable_stages == {0: 1, 2: "all"}


# ------------------------------------------------------------------------------------------- mistakes in files


def test_several_mistakes_are_listed_at_once_with_line_and_nearest_name(tmp_path: Path) -> None:
    text = "seed: one\ntrian:\n  epochs: 3\ntrain:\n  # why\n  epohcs: 3\n  lr: -1\nbatch_size: 3\n"
    message = refusal(tmp_path, text)
    assert "5 problems" in message
    assert "exp.yaml, line 1: seed: Input should be a valid integer" in message
    assert "exp.yaml, line 2: unknown key 'trian'\n      → did you mean 'train" in message
    assert "exp.yaml, line 6: unknown key 'train.epohcs'\n      → did you mean 'train.epochs'?" in message
    assert "exp.yaml, line 7: train.lr: Input should be greater than 0 (given: -1)" in message
    assert "exp.yaml, line 8: unknown key 'batch_size'\n      → did you mean" in message


def test_a_key_outside_its_section_is_named_with_the_section(tmp_path: Path) -> None:
    assert "did you mean 'train.epochs'?" in refusal(tmp_path, "epochs: 3")


def test_a_dotted_key_in_a_file_comes_with_the_nested_form(tmp_path: Path) -> None:
    message = refusal(tmp_path, "train.lr: 3")
    assert "line 1: unknown key 'train.lr'" in message
    assert "`train:` and, indented, `lr: …`" in message


def test_a_key_like_no_other_comes_with_where_all_keys_are_listed(tmp_path: Path) -> None:
    assert "src/scenes/config.py" in refusal(tmp_path, "zzzzqqqq: 1")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed: [1, 2]", ["line 1: seed: ", "(given: [1, 2])"]),
        ("seed: 1.5", ["seed: ", "1.5"]),
        ("seed: true", ["seed: must not be true or false"]),
        ("train: {trainable_stages: true}", ["train.trainable_stages: must not be true"]),
        ("train: {trainable_stages: most}", ["train.trainable_stages: ", "'all'", "; or "]),
        ("image_size: 8", ["image_size: ", "16"]),
        ("image_size: 99999999999", ["image_size: ", "4096"]),
        ("image_size:", ["image_size: ", "None"]),
        ("train: {epochs: -1}", ["train.epochs: ", "-1"]),
        ("train: {epochs: 10001}", ["train.epochs: "]),
        ("train: {batch_size: 10000000000000000000000}", ["train.batch_size: "]),
        ("train: {batch_size: 0}", ["train.batch_size: "]),
        ("train: {label_smoothing: 1}", ["train.label_smoothing: "]),
        ("train: {warmup_epochs: 1e300}", ["train.warmup_epochs: "]),
        ("train: {class_weights: [1, -1]}", ["train.class_weights: ", "-1"]),
        ("train: {optimizer: adamax}", ["train.optimizer: ", "'adamw' or 'sgd'", "'adamax'"]),
        ("model: {hidden: 1e12}", ["model.hidden: "]),
        ("data: {folds: 1}", ["data.folds: "]),
        ("data: {pixel_range: [5, 5]}", ["data.pixel_range: ", "(given: "]),
        ("data: {pixel_range: [5]}", ["data.pixel_range"]),
        ("data: {folds: 99999999999}", ["data.folds: "]),
        ("data: {fold_seed: -1}", ["data.fold_seed: "]),
        ("data: {fold_seed: 4294967296}", ["data.fold_seed: "]),
        ("data: {root: 3}", ["data.root: ", "path"]),
        ("data: {class_names: [1, 2]}", ["data.class_names: ", "string"]),
        ("loader: {workers: some}", ["loader.workers: ", "'auto'"]),
        ("augment: heavy", ["augment: ", "'light'", "'heavy'"]),
        ("augment: [3]", ["augment: "]),
        ("train: [1]", ["line 1: train: expected a section", "[1]"]),
        ("seed: 1\ntrain:\n", ["line 2: train: expected a section"]),
        ("train: yes\n", ["train: expected a section"]),
        ("3: 4", ["line 1: unknown key '3'"]),
        ("~: 4", ["line 1: unknown key '~'"]),
        ("train: {3: 4}", ["line 1: unknown key 'train.3'"]),
        ("train: {linear_probe: true}\nmodel: {hidden: 5}", ["train.linear_probe needs a linear head"]),
        ("train: {epochs: 0, linear_probe: false}", ["train.epochs: 0 trains nothing"]),
        ("train: {accumulate: 65}", ["train.accumulate is larger"]),
        ("seed: " + "9" * 5000, ["digits"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(("The config cannot be used: 1 problem\n  1. exp.yaml", "exp.yaml: not valid YAML"))
    for part in parts:
        assert part in message


def test_a_whole_number_of_any_size_is_a_seed(tmp_path: Path) -> None:
    assert load(tmp_path, "seed: " + "9" * 400).seed == int("9" * 400)
    assert load(tmp_path, "seed: -5").seed == -5


def test_a_long_wrong_value_is_quoted_shortly(tmp_path: Path) -> None:
    message = refusal(tmp_path, f"seed: {'x' * 5000}")
    assert "xxx…" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed: 1\nseed: 2", "line 2: not valid YAML: duplicate key 'seed'"),
        ("train:\n  lr: 1\n  lr: 2", "line 3: not valid YAML: duplicate key 'lr'"),
        ("train: {trainable_stages: {0: 1, '0': 2}}", "duplicate key '0'"),
        ("train: {trainable_stages: {'0': 1, 0: 2}}", "duplicate key '0'"),
        ("seed: &a 3\nimage_size: *a", "line 2: not valid YAML: aliases"),
        ("seed: *a", "aliases"),
        ("seed: 1\nmodel: !!python/object:os.system {}", "line 2: not valid YAML: the tag"),
        ("seed: !!python/object/apply:os.system [echo]", "the tag"),
        ("seed: !!timestamp x", "the tag"),
        ("seed: !!bool x", "the tag"),
        ("!!map [a]", "the tag"),
        ("seed: !!set {a, b}", "the tag"),
        ("? [1]\n: 3", "line 1: not valid YAML: a key must be a plain word"),
        ("{a: 1}: 3", "a key must be a plain word"),
        ("train:\n\tepochs: 3", "line 2: not valid YAML"),
        ("seed: [1", "not valid YAML"),
        ("seed: 1\n---\nseed: 2", "line 2: not valid YAML"),
        ("seed: 1\nname: a\0b", "line 2: not valid YAML"),
        ('data: {root: "a\\0b"}', "line 1: not valid YAML: 'a\\x00b' is not text"),
        ('data: {root: "\\ud800"}', "is not text"),
        ("train:\n  lr: .nan", "line 2: not valid YAML: .nan is not a finite number"),
        ("train: {lr: -.inf}", "not a finite number"),
        ("train: {lr: 1e400}", "not a finite number"),
        ("augment: [{A: {p: .inf}}]", "not a finite number"),
        ("%YAML 9.9\n---\na: 1", "not valid YAML"),
        ("seed 1", "`key: value` lines, found a str"),
        ("- seed", "`key: value` lines, found a list"),
        ("3", "`key: value` lines, found a int"),
        ("a: " + "[" * 700 + "]" * 700, "nested too deeply"),
        ("{a: " * 2000 + "}" * 2000, "nested too deeply"),
        ("\n".join(" " * i + "a:" for i in range(600)), "nested too deeply"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(tmp_path: Path, text: str, part: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith("exp.yaml")
    assert part in message


def test_a_quoted_nan_is_no_number_either(tmp_path: Path) -> None:
    assert "finite" in refusal(tmp_path, "train: {lr: 'nan'}")


@pytest.mark.parametrize("content", [b"\xff\xfes\x00e\x00", b"name: caf\xe9", bytes(range(256))])
def test_bytes_that_are_no_utf8(tmp_path: Path, content: bytes) -> None:
    assert "save it as UTF-8" in refusal(tmp_path, content)


def test_a_missing_file_lists_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").touch()
    (tmp_path / "b.yaml").touch()
    with pytest.raises(UserError, match=r"c\.yaml: no such config; available: .*a\.yaml, .*b\.yaml"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("name", [".", "x" * 300 + ".yaml"])
def test_what_is_no_readable_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "..", ".", "''", "'a\\n'", '"a\\nb"', "-rf", ".x", "'a b'", "ä", "a" * 101, "3", "null"]
)
def test_a_name_is_one_plain_folder_name(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, f"name: {name}")
    assert "line 1: name: " in message


def test_a_file_name_that_is_no_run_name_says_what_it_is_about(tmp_path: Path) -> None:
    (tmp_path / "my exp.yaml").touch()
    with pytest.raises(UserError, match=r"name: a run's name, by default the file's, .*'my exp'"):
        load_config(tmp_path / "my exp.yaml")
    assert load_config(tmp_path / "my exp.yaml", ["name=mine"]).name == "mine"


@given(st.text(max_size=60))
@few
def test_any_text_is_a_config_or_a_plain_refusal(tmp_path: Path, text: str) -> None:
    try:
        load(tmp_path, text.encode("utf-8", "surrogatepass"))
    except UserError as error:
        assert "exp.yaml" in str(error)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=3), st.dates()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([key.split(".") for key in valid_keys()]), values)
@few
def test_any_value_of_any_key_is_taken_or_refused(tmp_path: Path, key: list[str], value: object) -> None:
    text = StringIO()
    YAML(typ="safe", pure=True).dump({key[0]: {key[1]: value} if key[1:] else value}, text)
    try:
        config = load(tmp_path, text.getvalue())
    except UserError:
        return
    assert load(tmp_path, dump(config)) == config


# ------------------------------------------------------------------------------------------------------- --set


def test_set_wins_over_the_file_and_the_last_one_over_the_first(tmp_path: Path) -> None:
    config = load(tmp_path, "train: {epochs: 1, lr: 0.5}", "train.epochs=2", "seed=9", "train.epochs=3")
    assert (config.train.epochs, config.train.lr, config.seed) == (3, 0.5, 9)


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("data.label_column=a=b", "a=b"),
        ("data.label_column==", "="),
        ("data.label_column=", None),
        ("data.label_column='1e-3'", "1e-3"),
        ("data.label_column=no", "no"),
        (" data.label_column = x ", "x"),
        ("data.label_column=日本", "日本"),
    ],
)
def test_set_splits_at_the_first_equals_sign_and_reads_yaml(tmp_path: Path, pair: str, value: str | None) -> None:
    if value is None:
        assert f"--set {pair}: data.label_column: " in refusal(tmp_path, "", pair)
    else:
        assert load(tmp_path, "", pair).data.label_column == value


def test_set_takes_lists_maps_and_whole_sections(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "data: {folds: 3, class_names: [x]}",
        "augment=[HorizontalFlip, {Rotate: {limit: 5}}]",
        "data.class_names=[a, b]",
        "train={epochs: 8}",
        "train.lr=1e-5",
        "train.trainable_stages.0=1",
    )
    assert config.augment == ["HorizontalFlip", {"Rotate": {"limit": 5}}]
    assert (config.data.class_names, config.data.folds) == (["a", "b"], 3)
    assert (config.train.epochs, config.train.lr, config.train.trainable_stages) == (8, 1e-5, {0: 1})


@pytest.mark.parametrize("pair", ["epochs", "", "=3", " =3", "train.epochs:3"])
def test_set_without_a_key_or_an_equals_sign(tmp_path: Path, pair: str) -> None:
    assert f"--set takes key=value pairs, e.g. --set train.epochs=5; got {pair!r}" in refusal(tmp_path, "", pair)


def test_a_mistake_in_set_is_placed_there_and_not_in_the_file(tmp_path: Path) -> None:
    text = "train:\n  epochs: 3\n  lr: 1\nsede: 3\n"
    message = refusal(tmp_path, text, "train.epohcs=3", "train.epochs=-1")
    assert "3 problems" in message
    assert "--set train.epohcs=3: unknown key 'train.epohcs'\n      → did you mean 'train.epochs'?" in message
    assert "--set train.epochs=-1: train.epochs: " in message
    assert "exp.yaml, line 4: unknown key 'sede'\n      → did you mean 'seed'?" in message
    assert "--set train={lr: -1}: train.lr: " in refusal(tmp_path, "train: {lr: 1}", "train={lr: -1}")
    assert "--set train={lrr: 1}: unknown key 'train.lrr'" in refusal(tmp_path, "train: {lr: 1}", "train={lrr: 1}")


@pytest.mark.parametrize(
    ("pair", "part"),
    [
        ("seed=[1", "--set seed=[1, line 1: not valid YAML"),
        ("seed.a=1", "seed is the value 3"),
        ("seed=1=2", "--set seed=1=2: seed: Input should be a valid integer"),
        ("seed=*a", "aliases"),
        ("train=3", "--set train=3: train: expected a section"),
        ("train.lr.x=3", "--set train.lr.x=3"),
        (".=3", "unknown key"),
        ("a..b=3", "unknown key 'a'"),
        ("name=../x", "--set name=../x: name: "),
        ("seed=\udcff", "not valid YAML"),
    ],
)
def test_set_of_something_impossible(tmp_path: Path, pair: str, part: str) -> None:
    assert part in refusal(tmp_path, "seed: 3", pair)


# ------------------------------------------------------------------------------------------ dump and differences


stages = st.just("all") | st.integers(0)
word = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12) | st.sampled_from(
    ["no", "1e-3", "010", "true", "null", "~", "2020-01-01", "0x1f", "1_0", ".5", "=", "<<", "- a", "a: b", "#", "1:30"]
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(),
            "image_size": st.integers(16, 4096),
            "augment": st.lists(word | st.dictionaries(word, st.dictionaries(word, st.integers() | word), max_size=2)),
            "data": st.fixed_dictionaries({"label_column": word, "class_names": st.none() | st.lists(word)}),
            "model": st.fixed_dictionaries({"name": word, "weights": word}),
            "train": st.fixed_dictionaries(
                {
                    "lr": st.floats(1e-300, 1e300),
                    "wandb": st.none() | word,
                    "trainable_stages": stages | st.dictionaries(st.integers(0), stages),
                    "class_weights": st.none() | st.just("balanced") | st.lists(st.floats(1e-9, 1e9), max_size=3),
                }
            ),
        },
    )
)
@few
def test_a_dumped_config_reads_back_equal(tmp_path: Path, values: dict[str, object]) -> None:
    config = validate({"name": "exp", **values}, "test")
    again = load(tmp_path, dump(config))
    assert again == config
    assert differences(config, again) == []
    assert dump(again) == dump(config)


def test_a_dump_is_plain_yaml_too() -> None:
    config = validate({"name": "x", "data": {"class_names": ["no", "1e-3", "2020-01-01", "007"]}}, "test")
    read = YAML(typ="safe", pure=True).load(dump(config))
    assert read["data"]["class_names"] == ["no", "1e-3", "2020-01-01", "007"]


def test_names_and_labels_of_relabel_are_taken_as_written(tmp_path: Path) -> None:
    config = load(tmp_path, "data: {relabel: {007: '01', 1e3: a, 2020-01-01: b}}")
    assert config.data.relabel == {"007": "01", "1e3": "a", "2020-01-01": "b"}


FREE = {
    "name": "other",
    "data.root": "elsewhere",
    "data.train_csv": "t.csv",
    "data.test_csv": "t.csv",
    "data.sample_submission": "s.csv",
    "data.image_dir": "img",
    "data.test_image_dir": "img",
    "data.class_names": ["a"],
    "data.cache": "c",
    "data.sample": True,
    "submission": "labels",
    "train.accumulate": 2,
    "selected_on": ["a run"],
    "train.checkpoint_minutes": 3,
    "train.time_budget_minutes": 3,
    "train.wandb": "project",
    "loader.workers": 3,
    "infer.batch_size": 3,
    "infer.on_bad_image": "prior",
    "report": False,
}
BINDING = {  # some of the many others
    "seed": 1,
    "image_size": 151,
    "augment": "none",
    "metric": "log_loss",
    "data.label_columns": ["a", "b"],
    "data.folds": 3,
    "data.relabel": {"a.jpg": "1"},
    "data.pixel_range": [0, 4095],
    "model.name": "m",
    "train.linear_probe": False,
    "train.trainable_stages": {0: 1},
    "train.clip_norm": None,
    "train.deterministic": True,
    "infer.image_size": 160,
    "infer.tta": "none",
}


@pytest.mark.parametrize("key", [*FREE, *BINDING])
def test_differences_ignores_exactly_what_cannot_change_a_result(key: str) -> None:
    base: dict[str, object] = {"name": "x", "train": {"linear_probe": False}}
    old = validate(base if key != "train.linear_probe" else {"name": "x"}, "old")
    section, _, field = key.rpartition(".")
    value = (FREE | BINDING)[key]
    values = old.model_dump()
    (values[section] if section else values)[field] = value
    new = validate(values, "new")
    assert new != old
    assert [name for name, _, _ in differences(old, new)] == ([key] if key in BINDING else [])


def test_a_difference_shows_both_values() -> None:
    old, new = (validate({"name": "x", "train": {"trainable_stages": {0: n}}}, "test") for n in (1, 2))
    assert differences(old, new) == [("train.trainable_stages", {"0": 1}, {"0": 2})]


@pytest.mark.parametrize("separator", ["|", ">", " ", ",", "' '", '"|"'])
def test_a_separator_is_itself(tmp_path: Path, separator: str) -> None:
    config = load(tmp_path, "seed: 3", f"data.label_separator={separator}")
    assert config.data.label_separator == separator.strip("'\"")
    with pytest.raises(UserError, match="label_separator"):
        load(tmp_path, "data: {label_separator: ''}")
