"""Train the default model `cots-mini`, from starting weights in packages to a model directory.

    python scripts/cots_mini/prepare.py --data DIR --out prepared
    python scripts/cots_mini/train.py --prepared prepared --out runs/cots-mini [--resume]

COTS on Flickr8k's training pictures, joined by the other domains that were prepared, plus the names
of ImageNet's classes as the stem's own classifier sees them in every picture. Stops and resumes at
any checkpoint; runs on a GPU unchanged. After each checkpoint the averaged weights are measured on
the dev split of every domain, in `dev.jsonl`; the shipped weights are those of the best mean of the
two hit@1 on Flickr8k's dev split, which is the only thing selected on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from costream.config import parse_settings
from costream.data import DataSet, open_image, read_data
from costream.encoders.device import default_device, inference_autocast, keep_freed_memory
from costream.encoders.dual import DualEncoder
from costream.encoders.efficientnet import EfficientNetConfig, EfficientNetLite
from costream.encoders.preprocess import tokenize
from costream.encoders.starting_weights import imagenet_stem, pretrained_mini
from costream.encoders.storage import save_model
from costream.evaluate import evaluate
from costream.methods import cots
from costream.objectives.names import NamesObjective
from costream.parts import Base
from costream.train.config import TrainConfig
from costream.train.log import draw_curves, read_metrics
from costream.train.loop import run

PHRASINGS = ("{}", "a photo of a {}", "a picture of the {}")
SELECTED_ON = "flickr8k"
TEACHER_PX = 240

LOOP = TrainConfig(
    steps=1000,
    batch_size=100,
    captions=2,
    max_tokens=28,
    learning_rate=6e-4,
    stem_rate=0.25,
    vision_rate=1.0,
    text_rate=0.25,
    embedding_rate=0.0,
    warmup_steps=100,
    weight_decay=0.05,
    average=0.99,
    image_px=192,
    crop_area=0.35,
    cache_images=True,
    checkpoint_every=150,
)
METHOD = cots.Config(
    contrast=0.5,
    online=1.0,
    mvm=0.1,
    mlm=0.0,
    kl=0.5,
    temperature=0.05,
    momentum=0.98,
    queue_size=2000,
    in_batch="momentum",
    filter_k=3.0,
    visual_tokenizer="kmeans",
    visual_codes=256,
)
NAMES_WEIGHT = 0.3


def read_domains(root: Path, split: str) -> dict[str, DataSet]:
    """The prepared domains, each sample's id and group told apart by the domain's name."""
    domains = {}
    for folder in sorted(root.iterdir()):
        manifest = folder / f"{split}.jsonl"
        if manifest.is_file():
            data = read_data(manifest)
            samples = tuple(
                replace(s, id=f"{folder.name}/{s.id}", group=f"{folder.name}/{s.group}")
                for s in data.samples
            )
            domains[folder.name] = DataSet(name=folder.name, samples=samples)
    return domains


def join(domains: Mapping[str, DataSet], others_share: float) -> DataSet:
    """One data set in which the other domains make up about `others_share` of the samples."""
    main = domains[SELECTED_ON].samples
    others = [s for name, data in domains.items() if name != SELECTED_ON for s in data.samples]
    if not others or others_share == 0:
        return DataSet(name=SELECTED_ON, samples=main)
    repeats = max(1, round(len(others) * (1 - others_share) / others_share / len(main)))
    return DataSet(name="joint", samples=main * repeats + tuple(others))


@torch.inference_mode()
def classifier_probabilities(data: DataSet, device: torch.device) -> Tensor:
    """ImageNet class probabilities float32 (G, 1000) of each group's first picture."""
    state, weight, bias = imagenet_stem()
    stem = EfficientNetLite(EfficientNetConfig()).eval()
    stem.load_state_dict(state)
    stem = stem.to(device, memory_format=torch.channels_last)
    weight, bias = weight.to(device), bias.to(device)
    sources = {s.group: s.slots["image"] for s in reversed(data.samples)}
    groups = list(dict.fromkeys(s.group for s in data.samples))
    settings = replace(pretrained_mini().config.image_preprocess, size_px=TEACHER_PX)
    rows = []
    for start in range(0, len(groups), 64):
        some = groups[start : start + 64]
        pictures = [open_image(sources[group], smallest_side=TEACHER_PX) for group in some]
        pixels = torch.from_numpy(np.stack([settings.pixels(p) for p in pictures])).to(device)
        normal = (pixels.float() - 127.0) / 128.0
        with torch.autocast(device.type, torch.bfloat16):
            pooled = stem(normal.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))
        rows.append((pooled.float() @ weight.T + bias).softmax(dim=1).cpu())
    return torch.cat(rows)


def class_names() -> list[str]:
    """The first word of WordNet's lemmas for each of ImageNet's classes."""
    lines = Path(__file__).with_name("imagenet_names.txt").read_text().splitlines()
    return [line.split(",")[0].strip() for line in lines]


def names_objective(model: DualEncoder, probabilities: Tensor) -> NamesObjective:
    """The names' objective with every class name in every phrasing."""
    texts = [phrase.format(name) for phrase in PHRASINGS for name in class_names()]
    ids, mask = tokenize(model.tokenizer, texts, model.config.text_preprocess)
    shape = (len(PHRASINGS), -1, ids.shape[1])
    return NamesObjective(
        probabilities, torch.from_numpy(ids).view(shape), torch.from_numpy(mask).view(shape)
    )


def measure(model: DualEncoder, dev: Mapping[str, DataSet]) -> dict[str, dict[str, float]]:
    """hit@1 in both directions on the dev split of every domain, in percent."""
    result = {}
    for name, data in dev.items():
        metrics = evaluate(model, data).metrics
        result[name] = {direction: values["hit@1"] for direction, values in metrics.items()}
    return result


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--others", type=float, default=0.2, help="share of the other domains")
    parser.add_argument("--names", type=float, default=NAMES_WEIGHT, help="weight of class names")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    words = dict(word.split("=", 1) for word in options.set)
    loop_names = {field.name for field in fields(TrainConfig)}
    loop = parse_settings(TrainConfig, {k: v for k, v in words.items() if k in loop_names}, LOOP)
    own = parse_settings(
        cots.Config, {k: v for k, v in words.items() if k not in loop_names}, METHOD
    )

    keep_freed_memory()
    device = default_device()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    data = join(read_domains(options.prepared, "train"), options.others)
    dev = read_domains(options.prepared, "dev")
    torch.manual_seed(loop.seed)
    model = pretrained_mini().to(device)
    base = Base(model=model, data=data, directory=out, seed=loop.seed)
    terms = list(cots.parts(own, base).objective)
    if options.names > 0:
        table = out / "probabilities.npy"
        if not table.exists():
            np.save(table, classifier_probabilities(data, device).numpy())
        probabilities = torch.from_numpy(np.load(table))
        terms.append((options.names, names_objective(model, probabilities)))
    best = [0.0]
    started = time.monotonic()

    def on_checkpoint(step: int, model: DualEncoder) -> None:
        with inference_autocast(device):
            values = measure(model, dev)
        mean = float(np.mean(list(values[SELECTED_ON].values())))
        line = {"step": step, "seconds": round(time.monotonic() - started), "hit@1": values}
        with (out / "dev.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        if mean > best[0]:
            best[0] = mean
            save_model(model, out / "model")
        draw_curves(read_metrics(out / "metrics.jsonl"), out / "curves.png")

    if options.resume and (out / "dev.jsonl").exists():
        for text in (out / "dev.jsonl").read_text().splitlines():
            earlier = json.loads(text)["hit@1"][SELECTED_ON].values()
            best[0] = max(best[0], float(np.mean(list(earlier))))

    def progress(done: int, total: int, losses: Mapping[str, float]) -> None:
        if done % loop.log_every == 0:
            shown = {name: round(value, 3) for name, value in losses.items()}
            print(f"{done}/{total} {time.monotonic() - started:.0f}s {shown}", flush=True)

    run(
        model,
        terms,
        data,
        loop,
        out,
        facts={"others": options.others, "names": options.names},
        resume=options.resume,
        progress=progress,
        on_checkpoint=on_checkpoint,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
