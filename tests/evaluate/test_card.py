"""Figures and cards: names, round trips, and which figures are possible."""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from causalfusion.errors import UserError
from causalfusion.evaluate.cards.card import Card, load_card
from causalfusion.evaluate.features.extract import ExtractionSettings, extract_features
from causalfusion.evaluate.features.extractor import Features
from causalfusion.evaluate.figures import AvailableInputs, choose_measures, compute_figures
from causalfusion.evaluate.measures.figure import Figure, MeasureName, count_word, features_word, format_value
from causalfusion.evaluate.measures.frechet import frechet_distance
from causalfusion.evaluate.presets import changes, evaluation_names, load_evaluation
from causalfusion.evaluate.references.reference import ReferenceFeatures
from causalfusion.evaluate.references.reference import reference_of as reference_of_set
from causalfusion.evaluate.samples.images import ArrayImages


def figure(quantity: str = "frechet", features: str = "inception", count: int = 50_000, **more) -> Figure:
    return Figure(
        quantity=quantity, value=2.5, count=count, features=features, features_fingerprint="f", **more
    )


class Classifier:
    """Six numbers of an image; its first pixel, halved, is its class."""

    name, fingerprint, image_size = "own:classifier", "1", None

    def __call__(self, images: np.ndarray, /) -> Features:
        flat = (images.reshape(len(images), -1) / 255).astype(np.float32)
        logits = np.eye(10, dtype=np.float32)[images[:, 0, 0, 0] // 2 % 10] * 20
        return Features(flat[:, :6], spatial=flat[:, 6:9], logits=logits)


def reference_of(images: np.ndarray) -> ReferenceFeatures:
    return reference_of_set(ArrayImages(images), Classifier())


def measure(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    reference: ReferenceFeatures | None = None,
    measures: list[MeasureName] | None = None,
) -> dict[str, Figure]:
    """Figures of images (N, H, W, C) in the features of `Classifier`, as an evaluation makes them; a measure
    that is asked for and impossible is refused."""
    extractor = Classifier()
    samples = extract_features(ArrayImages(images, labels), extractor, ExtractionSettings())
    assert samples is not None and samples.logits is not None
    highest = 0 if labels is None else int(np.max(labels)) + 1
    available = AvailableInputs(
        features=extractor.name, count=len(images), has_spatial=True, num_logits=10, has_labels=labels is not
        None, num_classes=highest if highest > 10 else 0, reference=reference,
    )  # fmt: skip
    chosen = choose_measures(measures, available)
    if measures is not None and chosen.impossible:
        raise UserError(next(iter(chosen.impossible.values())))
    return compute_figures(samples, extractor, reference, chosen.possible)


@pytest.mark.parametrize(
    ("count", "word"),
    [(50_000, "50k"), (10_000, "10k"), (1_000, "1k"), (1797, "1797"), (50, "50"), (1500, "1500")],
)
def test_counts_in_names(count, word):
    assert count_word(count) == word and figure(count=count).name == f"fid_{word}"


@pytest.mark.parametrize(
    ("features", "word"),
    [
        ("pixels-8", "pixels8"), ("digits", "digits"), ("pixels:8", "pixels8"),
        ("resnet-cifar:resnet56_cifar10", "resnet56cifar10"),
        ("transformers:facebook/dinov2-base", "dinov2base"),
        ("my.module:Clip", "clip"), ("resnet-cifar:/a/b/judge.safetensors", "judge"),
    ],
)  # fmt: skip
def test_features_in_names(features, word):
    assert features_word(features) == word
    assert figure(features=features, count=10_000).name == f"frechet_{word}_10k"


def test_customary_names():
    names = ["frechet", "spatial_frechet", "inception_score", "kernel", "precision", "coverage"]
    assert [figure(name).name for name in names] == [
        "fid_50k", "sfid_50k", "is_50k", "kid_50k", "precision_50k", "coverage_50k",
    ]  # fmt: skip
    assert [format_value(v) for v in (13.7812, 0.0, 1e-5, 123456.0)] == [
        "13.78",
        "0",
        "1.000e-05",
        "1.235e+05",
    ]
    with pytest.raises(UserError, match="fid_50k is nan"):
        Figure(
            quantity="frechet",
            value=float("nan"),
            count=50_000,
            features="inception",
            features_fingerprint="",
        )


def test_a_standard_error_is_an_interval():
    low, high = figure(standard_error=1.0).interval or (0, 0)
    assert (low, high) == pytest.approx((2.5 - 1.96, 2.5 + 1.96), abs=1e-3)
    assert figure(low=1.0, high=3.0, standard_error=9.0).interval == (1.0, 3.0) and figure().interval is None


def test_a_card_comes_back_as_it_was(tmp_path):
    one = figure(standard_error=0.1, reference="r", warning="few")
    card = Card(
        figures={one.name: one}, samples={"name": "model", "count": 50_000},
        references=[{"name": "digits", "features": "inception"}],
        features=[{"name": "inception", "fingerprint": "f"}], warnings=["few"],
        run={"seconds": {"samples": 1.5}},
    )  # fmt: skip
    card.save(tmp_path / "card.json")
    assert load_card(tmp_path) == load_card(tmp_path / "card.json") == card
    values = json.loads((tmp_path / "card.json").read_text())
    assert "low" not in values["figures"]["fid_50k"], "what there is not is not said"
    values["figures"]["fid_10k"] = values["figures"].pop("fid_50k")
    (tmp_path / "changed.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="fid_10k says of itself that it is fid_50k; the card was changed"):
        load_card(tmp_path / "changed.json")
    for text, message in (("{", "is not valid JSON"), ("[]", "is not a result card"), ("", "not valid JSON"),
                          ('{"format": "causalfusion-card-1"}', "is not a whole result card")):  # fmt: skip
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_card(tmp_path / "broken.json")
    with pytest.raises(UserError, match="does not exist"):
        load_card(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"figures": {"fid_50k": {"quantity": "frechet", "value": "2"}}}, "value is '2'"),
        ({"figures": {"fid_50k": 3}}, "fid_50k is 3; expected a table"),
        ({"references": [{"name": ["digits"]}]}, "name is"),
        ({"references": [{"name": "digits", "mean_norm": "far"}]}, "mean_norm is 'far'"),
        ({"features": [{"fingerprint": "f"}]}, "name is missing"),
        ({"samples": {"count": "many"}}, "count is 'many'"),
        ({"warnings": [1]}, "warnings is 1"),
        ({"preset": 3}, "preset is 3"),
    ],
)
def test_a_card_of_other_types_is_one_line(tmp_path, change, said):
    one = figure()
    Card(figures={one.name: one}, samples={}, references=[], features=[]).save(tmp_path / "card.json")
    values = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(values | change))
    with pytest.raises(UserError, match=re.escape(said)):
        load_card(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_a_card_nested_without_end_is_one_line(tmp_path, text):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(UserError, match="not valid JSON"):
        load_card(tmp_path)


def test_every_figure_of_a_classifier_with_a_reference():
    random = np.random.default_rng(0)
    real, fake = (random.integers(0, top, (200, 3, 3, 1), np.uint8) for top in (250, 200))
    labels = fake[:, 0, 0, 0] // 2 % 10
    labels[:20] = (labels[:20] + 1) % 10
    figures = measure(fake, labels, reference_of(real))
    assert [name.removesuffix("_classifier_200") for name in figures] == [
        "frechet", "spatial_frechet", "inception_score", "kernel", "precision", "recall", "density",
        "coverage", "class_accuracy", "frechet_infinity",
    ]  # fmt: skip
    values = {figure.quantity: figure.value for figure in figures.values()}
    features = [Classifier()(images) for images in (fake, real)]
    assert values["frechet"] == pytest.approx(frechet_distance(features[0].pool, features[1].pool))
    spatial = [f.spatial for f in features if f.spatial is not None]
    assert values["spatial_frechet"] == pytest.approx(frechet_distance(spatial[0], spatial[1]))
    assert values["class_accuracy"] == pytest.approx(0.9)
    interval = figures["class_accuracy_classifier_200"].interval
    assert interval is not None and interval[0] < 0.9 < interval[1]
    assert values["frechet_infinity"] < values["frechet"], "few samples make the distance larger"
    error = figures["frechet_classifier_200"].standard_error
    assert error is not None and 0 < error < values["frechet"]


def test_the_standard_error_of_a_frechet_distance_is_that_of_other_samples():
    random = np.random.default_rng(1)
    reference = reference_of(random.integers(0, 250, (2000, 3, 3, 1), np.uint8))
    runs = [
        measure(random.integers(0, 200, (400, 3, 3, 1), np.uint8), None, reference, ["frechet"])
        for _ in range(40)
    ]
    figures = [run["frechet_classifier_400"] for run in runs]
    spread = np.std([figure.value for figure in figures])
    said = np.mean([figure.standard_error or 0 for figure in figures])
    assert 0.7 < said / spread < 1.4


def test_precision_and_density_lie_within_their_intervals():
    """Those of very many samples beside the same reference, in most repetitions."""
    random = np.random.default_rng(2)
    reference = reference_of(random.integers(0, 250, (150, 3, 3, 1), np.uint8))

    def figures(count: int) -> dict[str, Figure]:
        images = random.integers(0, 200, (count, 3, 3, 1), np.uint8)
        found = measure(images, None, reference, ["precision_recall", "density_coverage"])
        return {figure.quantity: figure for figure in found.values()}

    true = {name: figure.value for name, figure in figures(2000).items()}
    runs = [figures(200) for _ in range(20)]
    for name in ("precision", "density"):
        intervals = [run[name].interval or (0.0, 0.0) for run in runs]
        assert sum(low <= true[name] <= high for low, high in intervals) >= 17
        assert np.mean([high - low for low, high in intervals]) < 0.35 * true[name]
    assert runs[0]["recall"].interval is None and runs[0]["coverage"].interval is None


def test_what_cannot_be_measured_is_said():
    images = np.random.default_rng(0).integers(0, 250, (30, 3, 3, 1), np.uint8)
    reference = reference_of(images)
    few = reference_of(images[:3])
    cases: list[tuple[Any, Any, str]] = [
        (["frechet"], (images,), "there is no reference"),
        (["class_accuracy"], (images,), "the samples have no labels"),
        (["class_accuracy"], (images, np.full(30, 10)), "knows 10 classes, the samples 11"),
        (["fid"], (images,), "measure 'fid' is unknown"),
        (
            ["frechet"],
            (images[:1], None, reference),
            "there are 1 samples; it takes at least 2",
        ),
        (
            ["precision_recall"],
            (images, None, few),
            "the reference has 3 images; it takes at least 4",
        ),
    ]
    for measures, given, message in cases:
        with pytest.raises(UserError, match=message):
            measure(*given, measures=measures)
    assert list(measure(images)) == ["inception_score_classifier_30"]


def test_too_few_samples_are_warned_of():
    images = np.random.default_rng(0).integers(0, 250, (30, 3, 3, 1), np.uint8)
    reference = reference_of(images)
    few = measure(images[:5], None, reference, ["frechet"])["frechet_classifier_5"]
    assert "5 samples for features of D = 6" in few.warning
    enough = measure(images[:20], None, reference, ["frechet"])["frechet_classifier_20"]
    assert enough.warning == ""
    score = measure(images, None, reference, ["inception_score"])
    assert "each of 10 splits has 3 samples for 10 classes" in score["inception_score_classifier_30"].warning


def test_too_small_a_reference_is_warned_of():
    images = np.random.default_rng(3).integers(0, 256, size=(40, 4, 4, 1), dtype=np.uint8)
    few, enough = (measure(images, None, reference_of(images[:n]), ["frechet"]) for n in (5, 20))
    assert "the reference: 5 samples for features of D = 6" in few["frechet_classifier_40"].warning
    assert enough["frechet_classifier_40"].warning == ""
    of_others = replace(reference_of(images[:5]), count=None)  # its file does not say
    unknown = measure(images, None, of_others, ["frechet", "frechet_infinity"])
    assert all(figure.warning == "" for figure in unknown.values())


def test_presets_hold_the_papers_settings():
    assert evaluation_names() == ["paper-ablation", "paper-system", "paper-text"]
    for name, count in (("paper-ablation", 10_000), ("paper-system", 50_000), ("paper-text", 30_000)):
        values = load_evaluation(name)
        assert values["images"] == count and values["features"] == ["inception"]
        assert (values["diffusion_steps"], values["sampler"]) == ([250], "ddpm")
        assert (values["variance"], values["guidance_scale"]) == ("fixed_large", 1.0)
    assert changes("paper-system", {"images": 100, "sampler": "ddpm"}) == {"images": 100}
    with pytest.raises(
        UserError, match="preset 'paper' is unknown; expected one of paper-ablation, paper-system"
    ):
        load_evaluation("paper")
