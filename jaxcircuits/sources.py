"""Where models are: built, bundled with the package, in a folder, on the hub; and what records call them."""

from pathlib import Path
from typing import Any

from .formats import CONVERSION_OF_MODEL, CONVERSION_OF_STATE, read_format
from .gguf_names import is_gguf
from .models import GATES
from .tensors import WEIGHT_FILES

BUILT = {f"gate-{name}": build for name, build in GATES.items()}
"""Bundled models that are built, not read from files."""

NORMS, BIASES = ", layer norms folded", ", value biases folded"
"""What a source says of a model that was changed as it was loaded."""


def of_source(source: str) -> tuple[str, dict[str, Any]]:
    """The name in a checkpoint's `source`, and what it says besides."""
    said: dict[str, Any] = {"revision": None}
    for folded in (BIASES, NORMS):
        said[folded] = source.endswith(folded)
        source = source.removesuffix(folded)
    name = source.removeprefix("bundled ")
    if source.startswith("hub "):
        name, _, revision = source.removeprefix("hub ").partition(" at ")
        said["revision"] = revision or None
    return name, said


def find(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder or GGUF file of a name, and what to call it in records."""
    if name in bundled():
        return _bundled_folder() / name, f"bundled {name}"
    if Path(name).is_dir() or is_gguf(name):
        return Path(name), name
    if Path(name).exists():
        expected = "the folder of a model (config.json and model.safetensors), or a file that ends in .gguf"
        raise ValueError(f"{name} is a file: expected {expected}")
    if name.lower().endswith(".gguf"):
        raise ValueError(f"no file {name}")
    return _download(name, revision), f"hub {name}" + (f" at {revision}" if revision else "")


def bundled() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    folders = sorted(path.parent.name for path in _bundled_folder().glob("*/config.json"))
    return (*folders, *BUILT)


def _bundled_folder() -> Path:
    """`weights/`: beside this file in a wheel, one level up in a checkout."""
    package = Path(__file__).parent
    return package / "weights" if (package / "weights").is_dir() else package.parent / "weights"


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    patterns, folder = ["*.json", "merges.txt", "vocab.txt", "*.model", "*.jinja"], ""
    try:
        for weights in ("*.safetensors", "flax_model.msgpack"):
            folder = snapshot_download(
                name, revision=revision, allow_patterns=[*patterns, weights], ignore_patterns=["*/*"]
            )
            if any((Path(folder) / file).is_file() for file in WEIGHT_FILES):
                return Path(folder)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name!r} is no bundled model ({', '.join(bundled())}), no folder, and the hub did not give it: {reason}"
        ) from None
    local = name.split("/")[-1]
    conversion = CONVERSION_OF_MODEL.format(folder=name).replace(f"{name}-safetensors", local)
    if (config := Path(folder) / "config.json").is_file() and read_format(config).conversion == CONVERSION_OF_STATE:
        command = CONVERSION_OF_STATE.format(folder=local, file="model_final.pth")
        conversion = f"hf download {name} --local-dir {local} && {command}"
    raise ValueError(
        f"the hub's {name!r} has neither safetensors nor flax weights; convert its pickle once, with torch installed: "
        f"{conversion} and load that folder"
    )
