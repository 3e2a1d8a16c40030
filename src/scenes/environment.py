"""The Python environment: supported versions, switching to .venv, what a run records about it.

Runs before anything is installed, so importing it needs only the standard library, and Python 3.9 is enough.
"""

from __future__ import annotations  # for `X | Y` under Python 3.9

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, wraps
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NEEDED = (
    "torch",
    "timm",
    "cv2",
    "pandas",
    "pydantic",
    "albumentations",
    "sklearn",
    "safetensors",
    "ruamel",
)
# Four distributions of the same module: any one will do, and two at once overwrite each other.
OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
RECORDED = (
    *("torch", "torchvision", "timm", "albumentations", *OPENCV),
    *("numpy", "pandas", "scikit-learn", "safetensors", "pydantic", "pillow"),
)
REEXECUTED = "SCENES_REEXECUTED"
DYNAMO = "torch._dynamo.utils"


def unsatisfied(extra: str = "", pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """Lists the version requirements this interpreter does not meet, without importing any of the packages.

    Args:
        extra: A group of optional dependencies to check as well, such as "dev".
        pyproject: The file that holds the requirements.

    Returns:
        One line per unmet requirement.
    """
    try:
        import tomllib
    except ImportError:
        return [f"Python 3.11 or newer: found {platform.python_version()}"]
    for module in ("packaging.requirements", "pip._vendor.packaging.requirements"):
        try:
            parse = import_module(module).Requirement
            break
        except ImportError:
            continue
    else:
        return ["packaging: not installed (versions cannot be compared)"]

    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    ranges = [f"python{project['requires-python']}", *project["dependencies"]]
    ranges += project["optional-dependencies"][extra] if extra else []
    problems = []
    for line in ranges:
        requirement = parse(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        if requirement.name == "python":
            found = [".".join(map(str, sys.version_info[:3]))]
        else:
            found = list(_versions(*(OPENCV if requirement.name in OPENCV else (requirement.name,))).values())
        if not any(_within(requirement.specifier, each) for each in found):
            problems.append(f"{line}: {'found ' + ', '.join(found) if found else 'not installed'}")
    return problems


def _within(specifier: object, found: str) -> bool:
    """Whether a version is in a range; one that cannot be parsed is not."""
    try:
        return bool(specifier.contains(found, prereleases=True))  # type: ignore[attr-defined]
    except ValueError:
        return False


def _versions(*names: str) -> dict[str, str]:
    """The versions of those of the distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {name: text for name, text in found.items() if text}  # None: the remains of a broken install


def ensure_environment() -> None:
    """Restarts the script in .venv if this Python lacks the requirements; called first in every script of src/.

    So `python src/infer.py` works from a bare shell. Exits with code 2 if there is no .venv either.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing albumentations queries the package index
    missing = [name for name in NEEDED if find_spec(name) is None]
    again = os.environ.pop(REEXECUTED, None)  # not inherited by what this process starts
    if not missing:
        return
    venv = ROOT / ".venv"
    python = venv / "bin" / "python"
    if python.is_file() and Path(sys.prefix).resolve() != venv.resolve() and not again:
        sys.stdout.flush()
        sys.stderr.flush()
        os.environ[REEXECUTED] = "1"
        arguments = getattr(sys, "orig_argv", ["", *sys.argv])[1:]  # with -u, -m and the like; Python 3.9 has only argv
        with contextlib.suppress(OSError):  # a broken .venv: setup.sh repairs it
            os.execv(python, [str(python), *arguments])
    print(
        f"error: the requirements are not installed here (missing: {', '.join(missing)}); run: bash setup.sh",
        file=sys.stderr,
    )
    sys.exit(2)


_stand_ins: list[object] = []  # torch forgets an operator when the library that defined it is collected


def import_timm() -> None:
    """Imports timm and torchvision, even a CUDA torchvision with a CPU-only torch; call it before `import timm`.

    That combination fails to import because it lacks compiled operators, which this project never calls. They are
    declared without an implementation, and the import is retried.

    Raises:
        RuntimeError: If torchvision fails for any other reason.
    """
    with _deferred_compiler():
        try:
            import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            _declare_missing_operators()
            for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[module]  # partially imported
            import_module("torchvision")
        import_module("timm")


def _declare_missing_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _stand_ins.append(library)


@contextlib.contextmanager
def _deferred_compiler() -> Iterator[None]:
    """Replaces the functions imported from torch's compiler by ones that import it when they are called.

    torchvision and timm import it for a few functions, which takes as long as importing the rest of torch.
    """
    import torch

    if DYNAMO in sys.modules:
        yield
        return
    disable = torch.compiler.disable
    stand_in = ModuleType(DYNAMO)
    vars(stand_in)["is_compile_supported"] = lambda device: import_module(DYNAMO).is_compile_supported(device)

    def disable_later(function: Any = None, **options: Any) -> Any:
        if options or not isinstance(function, FunctionType):
            return disable(function, **options)
        return wraps(function)(lambda *args, **kwargs: disable(function)(*args, **kwargs))

    sys.modules[DYNAMO] = stand_in
    torch.compiler.disable = disable_later
    try:
        yield
    finally:
        del sys.modules[DYNAMO]
        torch.compiler.disable = disable


def usable_cores() -> int:
    """How many cores this process may use; a cluster may give a job only some of a machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, object]:
    """What a result depends on besides config and data: versions, device, threads, commit (for environment.json)."""
    import torch

    commit, dirty = commit_of(ROOT)
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(*RECORDED),
        "devices": devices or [processor()],
        "cpu_threads": torch.get_num_threads(),
        "commit": commit,
        "dirty": dirty,
    }


@cache
def processor() -> str:
    """The processor's name; `platform` does not know it on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit_of(root: Path) -> tuple[str | None, bool | None]:
    """The commit of a checkout and whether a tracked file differs from it; None where git cannot tell."""
    # With both paths given, git ignores a repository around an unpacked copy of this one.
    git = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}"]
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run([*git, *describe], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None, None
    commit, _, dirty = done.stdout.strip().partition("-")
    return commit, bool(dirty)


if __name__ == "__main__":
    lines = unsatisfied("".join(sys.argv[1:2]))
    print("\n".join(lines), end="\n" if lines else "")
    sys.exit(1 if lines else 0)
