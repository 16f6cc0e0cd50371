"""Say what is installed, what this machine can do, and how to install what is missing."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from costream.cli.options import DEFAULT_MODEL, AsJson
from costream.cli.output import json_text, say, say_json, say_table
from costream.errors import CostreamError

_NEEDED = ("numpy", "pillow", "rich", "safetensors", "tokenizers", "torch", "typer")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Extra:
    module: str
    package: str
    what_for: str
    install: str


def _extra(module: str, package: str, what_for: str, extra: str) -> _Extra:
    return _Extra(
        module=module,
        package=package,
        what_for=what_for,
        install=f"pip install 'costream[{extra}]'",
    )


_EXTRAS = (
    _extra("pillow_heif", "pillow-heif", "HEIC pictures", "heif"),
    _extra("av", "av", "videos", "video"),
    _extra("soxr", "soxr", "sounds", "audio"),
    _extra("transformers", "transformers", "models of the hub", "hub"),
    _extra("huggingface_hub", "huggingface-hub", "downloads from the hub", "hub"),
    _extra("datasets", "datasets", "Hugging Face data sets", "datasets"),
    _extra("matplotlib", "matplotlib", "curves of a training run", "train"),
    _extra("tensorboard", "tensorboard", "TensorBoard logs", "train"),
)


def run(as_json: AsJson = False) -> int:
    """Look at this installation."""
    found = diagnose()
    if as_json:
        say_json(found)
    else:
        _say(found)
    return 1 if found["problems"] else 0


def diagnose() -> dict[str, Any]:
    """Look at the installation and the machine.

    Returns:
        Plain values: `python`, `packages`, `machine`, `compute`, `model`, `codecs`, `missing`
        (optional parts with the command that installs them), `problems` (what has to be mended).
    """
    problems: list[str] = []
    packages = {name: _version(name) for name in _NEEDED}
    problems += [
        f"{name} is not installed: pip install costream"
        for name, v in packages.items()
        if v is None
    ]
    model = _model(problems)
    missing = [asdict(each) for each in _EXTRAS if find_spec(each.module) is None]
    return {
        "costream": _version("costream"),
        "python": {"version": platform.python_version(), "executable": json_text(sys.executable)},
        "packages": packages | {each.package: _version(each.package) for each in _EXTRAS},
        "machine": _machine(),
        "compute": _compute(problems),
        "model": model,
        "codecs": _codecs(),
        "missing": missing,
        "problems": problems,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    memory = None
    if "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {"system": platform.platform(), "cores": allowed, "memory_bytes": memory}


def _compute(problems: list[str]) -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:
        problems.append(f"torch cannot be loaded ({error}): pip install --force-reinstall torch")
        return {}
    from costream.encoders.device import autocast_dtype, default_device

    device = default_device()
    chosen = autocast_dtype(device)
    speeds = {
        name: round(_gigaflops(torch, device, dtype), 1)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "training_dtype": str(chosen or torch.float32).removeprefix("torch."),
        "gigaflops": speeds,
        "threads": torch.get_num_threads(),
    }


def _gigaflops(torch: Any, device: Any, dtype: Any, size: int = 1024) -> float:
    """Best speed of three matrix products, in 10^9 operations a second."""
    import time

    matrix = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        # Asking for a value waits until a GPU has really finished.
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return float(2 * size**3 / best / 1e9)


def _model(problems: list[str]) -> dict[str, Any]:
    """Load the default model, which checks its weights against what its configuration promises."""
    try:
        from costream.encoders.storage import load

        model = load(DEFAULT_MODEL)
    except (CostreamError, ImportError, OSError) as error:
        problems.append(f"the default model {DEFAULT_MODEL} cannot be used: {error}")
        return {"name": DEFAULT_MODEL, "verified": False}
    return {"name": DEFAULT_MODEL, "verified": True, "weights_hash": model.space.weights_hash}


def _codecs() -> dict[str, bool]:
    from PIL import features

    codecs = {name: bool(features.check(name)) for name in ("jpg", "webp", "avif")}
    return codecs | {"heic": find_spec("pillow_heif") is not None}


def _say(found: dict[str, Any]) -> None:
    machine, compute = found["machine"], found["compute"]
    memory = machine["memory_bytes"]
    speeds = ", ".join(f"{name} {v:g}" for name, v in compute.get("gigaflops", {}).items())
    rows = [
        ("costream", found["costream"] or "not installed"),
        ("python", f"{found['python']['version']} ({found['python']['executable']})"),
        ("system", machine["system"]),
        ("cores", str(machine["cores"])),
        ("memory", "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("device", f"{compute.get('device', 'none')} ({compute.get('device_name', '-')})"),
        ("trains in", compute.get("training_dtype", "-")),
        ("speed (GFLOP/s)", speeds or "-"),
        ("default model", f"{found['model']['name']} {_verdict(found['model'])}"),
        ("pictures", ", ".join(name for name, there in found["codecs"].items() if there)),
    ]
    rows += [(name, version or "not installed") for name, version in found["packages"].items()]
    say_table(("what", "found"), rows)
    if found["missing"]:
        missing = [(m["package"], m["what_for"], m["install"]) for m in found["missing"]]
        say("")
        say_table(("optional, missing", "for", "install with"), missing)
    for problem in found["problems"]:
        say(f"\nproblem: {problem}")


def _verdict(model: dict[str, Any]) -> str:
    return f"verified ({model['weights_hash']})" if model["verified"] else "cannot be used"
