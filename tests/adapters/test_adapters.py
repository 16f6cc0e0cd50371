"""costream in LangChain, LlamaIndex and MTEB, with the real packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mteb
import numpy as np
import pytest
from datasets import Dataset
from llama_index.core.schema import ImageNode, QueryBundle
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from PIL import Image

import costream
from costream.adapters.langchain import CostreamRetriever as LangchainRetriever
from costream.adapters.llama_index import CostreamRetriever as LlamaRetriever
from costream.adapters.mteb import MtebModel
from costream.encoders.dual import DualEncoder
from costream.index.filters import Filter
from costream.search import Picture, Query, Searcher, Words

GALLERY = Path(costream.__file__).parent / "assets" / "gallery"
CAPTIONS = {
    "beach": "A dog runs along the beach.",
    "street": "Many people walk along a busy street.",
    "snow": "A man on skis jumps in the snow.",
}


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return costream.load("cots-mini")


@pytest.fixture(scope="module")
def searcher(model: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    folder = tmp_path_factory.mktemp("index")
    items = [
        costream.Item(id=name, path=f"/pictures/{name}.jpg", caption=text, tags=(name[0],))
        for name, text in CAPTIONS.items()
    ]
    with costream.Index.open(folder, create=True) as index:
        index.add(items, model.encode_texts(list(CAPTIONS.values())), model.space)
        yield Searcher(index, model)


def test_langchain_gets_what_the_searcher_finds(searcher: Searcher) -> None:
    documents = LangchainRetriever(searcher=searcher, top=2).invoke("a skier in winter")
    wanted = searcher.answer(Query(terms=(Words("a skier in winter"),), top=2)).results
    assert [document.id for document in documents] == [result.id for result in wanted]
    assert documents[0].page_content == CAPTIONS["snow"]
    assert documents[0].metadata["path"] == "/pictures/snow.jpg"
    assert documents[0].metadata["score"] == wanted[0].score
    only = LangchainRetriever(searcher=searcher, where=Filter(tags=("b",)))
    assert [document.id for document in only.invoke("a skier in winter")] == ["beach"]


def test_llama_index_asks_by_words_and_by_pictures(searcher: Searcher, tmp_path: Path) -> None:
    nodes = LlamaRetriever(searcher, top=3).retrieve("a crowd in a city")
    assert nodes[0].node.node_id == "street"
    assert isinstance(nodes[0].node, ImageNode)
    assert nodes[0].node.image_path == "/pictures/street.jpg"
    assert nodes[0].score == max(each.score or 0 for each in nodes)
    picture = tmp_path / "grey.png"
    Image.new("RGB", (64, 64), "grey").save(picture)
    both = QueryBundle("a crowd in a city", image_path=str(picture))
    alone = QueryBundle("", image_path=str(picture))
    scores = [LlamaRetriever(searcher, top=3).retrieve(query)[0].score for query in (both, alone)]
    assert scores[0] != scores[1] != nodes[0].score


class Colours(AbsTaskRetrieval):
    """A task of MTEB on pictures made here: find the picture of a description."""

    metadata = TaskMetadata(
        name="ColoursT2IRetrieval",
        description="Find pictures by captions.",
        reference=None,
        dataset={"path": "none/none", "revision": "0"},
        type="Any2AnyRetrieval",
        category="t2i",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        modalities=["text", "image"],
        sample_creation=None,
        bibtex_citation="",
    )
    pictures: dict[str, Path]

    def load_data(self, num_proc: int | None = None, **kwargs: object) -> None:
        names = list(self.pictures)
        images = [Image.open(path).convert("RGB") for path in self.pictures.values()]
        corpus = {"id": names, "image": images}
        queries = {"id": [f"q{name}" for name in names], "text": names}
        split = {
            "corpus": Dataset.from_dict(corpus).cast_column("image", _image_feature()),
            "queries": Dataset.from_dict(queries),
            "relevant_docs": {f"q{name}": {name: 1} for name in names},
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def _image_feature() -> object:
    from datasets import Image as ImageFeature

    return ImageFeature()


def test_mteb_measures_what_costream_measures(model: DualEncoder) -> None:
    files = sorted(GALLERY.rglob("*.jpg"))[:12]
    Colours.pictures = {file.stem.replace("_", " "): file for file in files}
    task = Colours()
    result = mteb.evaluate(MtebModel(model), task, cache=None, show_progress_bar=False)
    (scores,) = result.task_results[0].scores["test"]
    images = model.encode_images([Image.open(file).convert("RGB") for file in files])
    best = (model.encode_texts(list(Colours.pictures)) @ images.T).argmax(axis=1)
    hits = float((best == np.arange(len(files))).mean())
    assert scores["hit_rate_at_1"] == pytest.approx(hits, abs=1e-4)


def test_an_input_of_both_is_a_query_of_two_terms(model: DualEncoder, searcher: Searcher) -> None:
    grey = Image.new("RGB", (64, 64), "grey")
    batch = {"text": ["a wall"], "image": [grey]}
    vector = MtebModel(model).encode([batch], task_metadata=None, hf_split="", hf_subset="")
    wanted = searcher.embed([Words("a wall"), Picture(grey)])
    np.testing.assert_allclose(vector[0], wanted, atol=1e-6)
