"""Pictures a second from files to vectors, beside `transformers` with the same weights.

    pip install costream[hub]
    python benchmarks/files_to_vectors.py [--phone 96] [--web 384] [--out FILE.json]

The model has the size of CLIP ViT-B/32 and random weights, which cost what trained ones do. The
pictures are made of the sample gallery: as phones take them (4032 x 3024) and as the web has them
(1280 x 960), with grain, as JPEG. costream runs what `costream index` runs: files are hashed,
decoded in processes of their own, embedded, and stored durably. `transformers` only makes the
vectors, once in a plain loop and once with the pictures opened and preprocessed by worker
processes. Each contender runs in a process of its own; loading the model is not counted. Beside
them what decoding alone and the model alone reach, and the matrix products of the model alone. The
time of the processor, over all processes and cores, says more than the clock where others run, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from _machine import load_warning, machine, versions
from numpy.typing import NDArray
from PIL import Image

Vectors = NDArray[np.float32]
Work = Callable[[], Vectors]

CONTENDERS = {
    "transformers, loop": "CLIPImageProcessor and CLIPModel",
    "transformers, workers": "the same, opened and preprocessed in a DataLoader's processes",
    "transformers, workers, bfloat16": "the same, with bfloat16 weights",
    "costream": "`costream index`",
    "costream, bfloat16": "`costream index --precision bfloat16`",
    "decoding alone": "the decoding and scaling of `costream index`",
    "model alone": "the model of `costream index`",
    "model alone, bfloat16": "the same in bfloat16",
    "products alone": "its matrix products only, in float32",
    "products alone, bfloat16": "the same in bfloat16",
}
BATCH = 64
SIZES = {"phone": (4032, 3024, 90), "web": (1280, 960, 85)}


def main() -> int:
    """Run the benchmark and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--phone", type=int, default=96, help="pictures of 12 megapixels")
    parser.add_argument("--web", type=int, default=384, help="pictures of 1.2 megapixels")
    parser.add_argument("--out", type=Path, help="where to write the numbers")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_one(options.run, options.folder)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder, "model"))
        result: dict[str, Any] = {"machine": machine(), "versions": versions(["transformers"])}
        for kind, count in (("phone", options.phone), ("web", options.web)):
            result[kind] = {"pictures": count, **make_pictures(Path(folder, kind), kind, count)}
            for contender in CONTENDERS:
                if kind == "web" and contender.startswith(("model", "products")):
                    result[kind][contender] = result["phone"][contender]  # they see no files
                    continue
                result[kind][contender] = measured(contender, Path(folder, kind), count)
                print(f"{kind}: {contender}: {result[kind][contender]}", file=sys.stderr)
            result[kind]["agreement"] = agreement(Path(folder, kind))
    result["warning"] = load_warning()
    print_table(result)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def print_table(result: dict[str, Any]) -> None:
    """Print pictures a second."""
    phone, web = result["phone"], result["web"]
    print(f"{result['machine']}, {', '.join(result['versions'])}. {result['warning']}".strip())
    print()
    columns = "pictures a second | times | CPU ms a picture"
    print(f"| | 4032 x 3024: {columns} | 1280 x 960: {columns} |")
    print("|---|" + "---|" * 6)
    for contender, what in CONTENDERS.items():
        cells = []
        for kind in (phone, web):
            best = max(kind["transformers, loop"]["rate"], kind["transformers, workers"]["rate"])
            own = kind[contender]
            cells.append(f"{own['rate']:.1f} | {own['rate'] / best:.2f} | {own['cpu_ms']:.0f}")
        print(f"| {contender}: {what} | {' | '.join(cells)} |")
    print()
    for name, kind in (("4032 x 3024", phone), ("1280 x 960", web)):
        print(f"{name}: {kind['pictures']} files of {kind['megabytes']:.2f} MB; ", end="")
        print("; ".join(f"{what} {value:.5f}" for what, value in kind["agreement"].items()))


# --- what the contenders get ---


def make_model(folder: Path) -> None:
    """A CLIP of the size of ViT-B/32 with random weights, as a hub directory."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "dog": 3}
    text = {"vocab_size": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    CLIPModel(CLIPConfig(text_config=text)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="dog"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def make_pictures(folder: Path, kind: str, count: int) -> dict[str, float]:
    """JPEG files of the gallery's pictures, enlarged and with grain, no two alike."""
    folder.mkdir()
    width, height, quality = SIZES[kind]
    gallery = resources.files("costream") / "assets" / "gallery"
    sources = sorted(Path(str(gallery)).glob("*.jpg"))
    grain = np.random.default_rng(0).normal(0, 6, (height, width + count, 1))

    def make(number: int) -> None:
        with Image.open(sources[number % len(sources)]) as source:
            large = source.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(large) + grain[:, number : number + width].astype(np.float32)
        made = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        made.save(folder / f"{number:05d}.jpg", quality=quality)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, range(count)))
    sizes = [path.stat().st_size for path in files_of(folder)]
    return {"megabytes": round(sum(sizes) / len(sizes) / 1e6, 3)}


def files_of(folder: Path) -> list[Path]:
    """The pictures in their order."""
    return sorted(folder.glob("*.jpg"))


# --- one contender, in a process of its own ---


def measured(contender: str, folder: Path, count: int) -> dict[str, float]:
    """Pictures a second of a contender, and what one costs the processor in milliseconds."""
    command = [sys.executable, __file__, "--run", contender, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    wall_s, cpu_s = json.loads(done.stdout.splitlines()[-1])
    return {"rate": round(count / wall_s, 1), "cpu_ms": round(1e3 * cpu_s / count, 1)}


def run_one(contender: str, folder: Path) -> None:
    """Load the model, warm it up, time the work, and keep the vectors."""
    precision = "bfloat16" if contender.endswith("bfloat16") else "float32"
    if contender.startswith("transformers"):
        warm, work = with_transformers(folder, precision, in_workers="workers" in contender)
    elif contender == "decoding alone":
        warm, work = decoding(folder)
    elif contender.startswith("products alone"):
        warm, work = products_alone(len(files_of(folder)), precision)
    elif contender.startswith("model alone"):
        warm, work = model_alone(folder, precision)
    else:
        warm, work = with_costream(folder, precision)
    warm()
    start, before = time.perf_counter(), os.times()
    vectors = work()
    # Times of this process and of those that it started and that have ended.
    cpu_s = sum(os.times()[:4]) - sum(before[:4])
    print(json.dumps([time.perf_counter() - start, cpu_s]))
    np.save(folder / f"{contender}.npy", vectors)


def with_transformers(folder: Path, precision: str, *, in_workers: bool) -> tuple[Work, Work]:
    """The processor and the model of `transformers`, 64 pictures a batch."""
    import torch
    from torch.utils.data import DataLoader, Dataset
    from transformers import CLIPImageProcessor, CLIPModel

    processor = CLIPImageProcessor.from_pretrained(folder.parent / "model")
    dtype = getattr(torch, precision)
    model = CLIPModel.from_pretrained(folder.parent / "model", dtype=dtype).eval()

    class Pixels(Dataset[Any]):
        def __init__(self, paths: Sequence[Path]) -> None:
            self.paths = paths

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, number: int) -> Any:
            with Image.open(self.paths[number]) as picture:
                pixels = processor(images=picture.convert("RGB"), return_tensors="pt")
            return pixels["pixel_values"][0]

    def run(paths: Sequence[Path]) -> Vectors:
        workers = os.cpu_count() or 1
        loader = DataLoader(Pixels(paths), BATCH, num_workers=workers if in_workers else 0)
        rows = []
        with torch.inference_mode():
            for pixels in loader:
                found = model.get_image_features(pixel_values=pixels.to(dtype))
                made = found if isinstance(found, torch.Tensor) else found.pooler_output
                rows.append(torch.nn.functional.normalize(made.float(), dim=-1).numpy())
        return np.concatenate(rows)

    paths = files_of(folder)
    return (lambda: run(paths[:4])), (lambda: run(paths))


def load_model(folder: Path, precision: str) -> Any:
    """The same weights, as `costream index` has them."""
    import costream
    from costream.encoders.device import keep_freed_memory

    keep_freed_memory()
    model = costream.load(folder.parent / "model")
    model.precision = precision
    return model


def with_costream(folder: Path, precision: str) -> tuple[Work, Work]:
    """What `costream index` does."""
    from costream.index import Index, update_index

    model = load_model(folder, precision)
    smallest_side = model.config.image_preprocess.decoded_px
    paths = files_of(folder)

    def run(names: Sequence[Path]) -> Vectors:
        with (
            tempfile.TemporaryDirectory() as place,
            Index.open(Path(place, "index"), create=True) as index,
        ):
            report = update_index(index, model, names, smallest_side=smallest_side)
            assert report.embedded == len(names), report  # noqa: S101
            return index.vectors([str(name.resolve()) for name in names]).astype(np.float32)

    return (lambda: run(paths[:4])), (lambda: run(paths))


def decoding(folder: Path) -> tuple[Work, Work]:
    """Files to pixels, with as many processes as there are cores."""
    from costream.data.decode_apart import Decoders

    model = load_model(folder, "float32")
    smallest_side = model.config.image_preprocess.decoded_px

    def run(paths: Sequence[Path]) -> Vectors:
        with Decoders() as decoders, ThreadPoolExecutor(os.cpu_count()) as pool:

            def decode(path: Path) -> None:
                picture = decoders.decode(path.read_bytes(), str(path), smallest_side=smallest_side)
                model.prepare_image(picture)

            for _ in pool.map(decode, paths):
                pass
        return np.zeros((0, 0), dtype=np.float32)

    paths = files_of(folder)
    return (lambda: run(paths[:4])), (lambda: run(paths))


def model_alone(folder: Path, precision: str) -> tuple[Work, Work]:
    """Pixels in memory to vectors."""
    model = load_model(folder, precision)
    side = model.config.image_preprocess.size_px
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 3, side, side), dtype=np.uint8)
    count = len(files_of(folder))

    def run(batches: Iterator[int]) -> Vectors:
        rows = [model.encode_prepared(list(pixels[:size]), batch_size=BATCH) for size in batches]
        return np.concatenate(rows)

    sizes = [min(BATCH, count - start) for start in range(0, count, BATCH)]
    return (lambda: run(iter([4]))), (lambda: run(iter(sizes)))


def products_alone(count: int, precision: str) -> tuple[Work, Work]:
    """The products of ViT-B/32 for a batch after the other, by what is fastest here."""
    import torch

    from costream.encoders.linear import Linear

    tokens, width = 50 * BATCH, 768
    # Of a layer: query, key and value; output; two of the feed-forward part.
    sizes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    dtype = getattr(torch, precision)
    layers = [Linear(*size, bias=False).to(dtype) for size in sizes]
    inputs = [torch.randn(tokens, size[0], dtype=dtype) for size in sizes]

    def run(batches: float) -> Vectors:
        with torch.inference_mode():
            for _ in range(round(12 * batches)):
                for layer, x in zip(layers, inputs, strict=True):
                    layer(x)
        return np.zeros((0, 0), dtype=np.float32)

    return (lambda: run(1 / 12)), (lambda: run(count / BATCH))


def agreement(folder: Path) -> dict[str, float]:
    """Least cosine of each picture's vectors."""
    vectors = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    theirs = vectors["transformers, loop"]

    def least(name: str, other: Vectors) -> float:
        return float((vectors[name] * other).sum(axis=1).min())

    return {
        "least cosine of costream and transformers": least("costream", theirs),
        "of bfloat16 and float32": least("costream, bfloat16", vectors["costream"]),
    }


if __name__ == "__main__":
    sys.exit(main())
