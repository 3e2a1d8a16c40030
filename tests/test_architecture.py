"""The layers of src/scenes: imports go downwards only, without cycles, and files stay short."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from scenes.environment import ROOT

SOURCE = ROOT / "src"
LAYERS = ("", "competition", "data", "model", "inference", "training", "insight", "kaggle")  # from the lowest
HEAVY = {"torch", "torchvision", "timm", "sklearn", "scipy", "albumentations", "cv2", "matplotlib", "ray", "optuna"}
LONGEST = 350  # lines

ALLOWED = {  # imports that are allowed to break a rule
    ("scenes.training.workers", "scenes.training.ray_tasks"),  # only with --parallel ray, inside a function
}

FILES = sorted((SOURCE / "scenes").rglob("*.py"))
MODULES = {".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
SCRIPTS = sorted(SOURCE.glob("*.py"))


def imports(file: Path, everywhere: bool = True) -> set[str]:
    """Returns what a file imports, optionally inside functions too; scenes by module, others by package."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            module = name if name in MODULES else name.rpartition(".")[0]
            found.add(module if module in MODULES else name.partition(".")[0])
    return found


def neighbours(module: str) -> set[str]:
    """Returns the modules of scenes that a module imports, except the allowed exceptions."""
    others = imports(MODULES[module]) & set(MODULES) - {module}
    return {other for other in others if (module, other) not in ALLOWED}


def layer(module: str) -> int:
    parts = module.split(".")
    return LAYERS.index(parts[1] if len(parts) > 2 or parts[-1] in LAYERS else "")


def test_every_package_is_a_layer() -> None:
    packages = {file.parent.name for file in FILES if file.parent != SOURCE / "scenes"}
    assert packages <= set(LAYERS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_downwards(module: str) -> None:
    upwards = [other for other in neighbours(module) if layer(other) > layer(module)]
    assert not upwards, f"{module} is below {', '.join(sorted(upwards))}"


def test_no_imports_in_a_circle() -> None:
    graph = {module: neighbours(module) for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' → '.join(error.args[1])}")


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_scripts_parse_their_arguments_before_heavy_imports(file: Path) -> None:
    loaded, waiting = set(), [file]
    while waiting:
        for name in imports(waiting.pop(), everywhere=False) - loaded:
            loaded.add(name)
            if name in MODULES:
                waiting.append(MODULES[name])
    assert not loaded & HEAVY


@pytest.mark.parametrize("file", [*FILES, *SCRIPTS], ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_are_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST
