# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Average precision against cases worked out by hand, and against faster-coco-eval."""

import copy
import doctest

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask

import lsst.meas.maskrcnn.metrics.average_precision as average_precision_module
from lsst.meas.maskrcnn.deblend.deblend import DeblendSettings, find_sources
from lsst.meas.maskrcnn.deblend.image import MultibandImage
from lsst.meas.maskrcnn.deblend.shares import ShareSettings
from lsst.meas.maskrcnn.metrics.average_precision import (
    Outcomes,
    ap_statistic,
    average_precision,
    collect_outcomes,
    compute_ap,
)
from lsst.meas.maskrcnn.metrics.matching import IOU_THRESHOLDS, AreaRange, ImagePairs
from lsst.meas.maskrcnn.metrics.spans import SpanMasks
from lsst.meas.maskrcnn.network.inference import DetectionSettings
from lsst.meas.maskrcnn.network.model_file import load_model
from lsst.meas.maskrcnn.scenes.config import SceneConfig
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene

STAR, GALAXY = 1, 2
DEFINITIONS = ("perImage", "pooled", "coco")


def rows(*pieces):
    """Make masks of one row: (y, x0, x1) each."""
    y, x0, x1 = np.array(pieces, dtype=int).reshape(-1, 3).T
    return SpanMasks(np.arange(len(y) + 1), y, x0, x1)


def slots(*numbers):
    """Make masks of ten pixels, each in a row of its own."""
    return rows(*[(number, 4, 14) for number in numbers])


def compare(found, scores, truths, labels=STAR, truth_labels=STAR, **options):
    return ImagePairs.from_spans(
        found,
        scores,
        np.broadcast_to(labels, len(found)),
        truths,
        np.broadcast_to(truth_labels, len(truths)),
        **options,
    )


def all_ap(*images, label=None, **options):
    outcomes = collect_outcomes(images, label, **options)
    return [compute_ap(outcomes, definition).at(0.5) for definition in DEFINITIONS]


def test_the_example_of_the_docs():
    assert doctest.testmod(average_precision_module) == (0, 6)


def test_perfect():
    images = [compare(slots(0, 1, 2), [0.9, 0.8, 0.7], slots(2, 0, 1)), compare(slots(5), [0.6], slots(5))]
    for label in (None, STAR):
        outcomes = collect_outcomes(images, label)
        for definition in DEFINITIONS:
            result = compute_ap(outcomes, definition)
            assert result.ap.tolist() == [1.0] * 10 and result.mean == 1.0
            assert result.recall.tolist() == [1.0] * 10
            assert result.n_truth == 4


def test_one_duplicate():
    # Hit, false, hit of two: precision 1, 1/2, 2/3.
    image = compare(slots(0, 0, 1), [0.9, 0.8, 0.7], slots(0, 1))
    # 51 of the 101 recalls, 0 to 0.5, are reached at the first, the other 50 at the last.
    expected = [0.5 + 0.5 * 2 / 3, 0.5 + 0.5 * 2 / 3, (51 + 50 * 2 / 3) / 101]
    assert all_ap(image) == pytest.approx(expected)


def test_a_duplicate_of_the_lowest_score_costs_nothing():
    assert all_ap(compare(slots(0, 1, 1), [0.9, 0.8, 0.7], slots(0, 1))) == [1.0, 1.0, 1.0]


def test_one_miss():
    # Of 4 truths 3: recalls 0, 0.01, ..., 0.75 are 76.
    image = compare(slots(0, 1, 2), [0.9, 0.8, 0.7], slots(0, 1, 2, 3))
    assert all_ap(image) == pytest.approx([0.75, 0.75, 76 / 101])


def test_swapped_classes():
    image = compare(slots(0, 1), [0.9, 0.8], slots(0, 1), [STAR, GALAXY], [GALAXY, STAR])
    assert all_ap(image) == [1.0, 1.0, 1.0]
    for label in (STAR, GALAXY):
        assert all_ap(image, label=label) == [0.0, 0.0, 0.0]


def test_touching_and_nested_masks():
    # Two that touch, and a galaxy (5 x 8) with a star (3 x 3) upon it; all are found to the pixel.
    masks = [np.ones((4, 4), bool), np.ones((4, 4), bool), np.ones((5, 8), bool), np.ones((3, 3), bool)]
    truths = SpanMasks.from_masks(masks, [[0, 0], [0, 4], [10, 0], [11, 2]])
    labels = [STAR, GALAXY, GALAXY, STAR]
    image = compare(
        truths.select([3, 1, 0, 2]), [0.6, 0.7, 0.8, 0.9], truths, [STAR, GALAXY, STAR, GALAXY], labels
    )
    for label in (None, STAR, GALAXY):
        assert all_ap(image, label=label) == [1.0, 1.0, 1.0]
    # The galaxy alone, found as one with the star: the star is missed and nothing else is.
    image = compare(truths.select([0, 1, 2]), [0.8, 0.7, 0.9], truths, labels[:3], labels)
    assert all_ap(image, label=STAR)[1] == 0.5 and all_ap(image, label=GALAXY)[1] == 1.0


def test_no_truth_and_no_detections():
    nothing = compare(slots(), [], slots())
    false = compare(slots(0), [0.9], slots())
    missed = compare(slots(), [], slots(0))
    for image in (nothing, false):
        assert np.isnan(all_ap(image)).all()
    assert all_ap(missed) == [0.0, 0.0, 0.0]
    assert np.isnan(compute_ap(collect_outcomes([nothing, false]), "perImage").curves[0].precision).all()
    with pytest.raises(ValueError, match="at least one image"):
        collect_outcomes([])


def test_an_image_without_truth_in_the_published_definition():
    good = compare(slots(0), [0.9], slots(0))
    false = compare(slots(0), [0.9], slots())
    weak = compare(slots(0), [0.3], slots())
    nothing = compare(slots(), [], slots())
    outcomes = collect_outcomes([good, false, weak, nothing])
    assert compute_ap(outcomes, "perImage").at(0.5) == 1.0


def test_the_published_definition_is_the_mean_of_images():
    # One image of one source that is found, one of three of which one is found below the cut of 0.5.
    images = [compare(slots(0), [0.9], slots(0)), compare(slots(0, 1, 2), [0.8, 0.7, 0.4], slots(0, 2, 5))]
    outcomes = collect_outcomes(images)
    assert compute_ap(outcomes, "perImage").at(0.5) == pytest.approx((1 + 1 / 3) / 2)
    # A score of just the cut is in.
    images[1] = compare(slots(0, 1, 2), [0.8, 0.7, 0.5], slots(0, 2, 5))
    assert compute_ap(collect_outcomes(images), "perImage").at(0.5) == pytest.approx(
        (1 + 1 / 3 + 1 / 3 * 2 / 3) / 2
    )
    # The pool has four: hits at 0.9, 0.8, 0.4, false at 0.7.
    assert compute_ap(outcomes, "pooled").at(0.5) == pytest.approx(1 / 4 + 1 / 4 + 1 / 4 * 3 / 4)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_equal_scores_do_not_depend_on_the_order(definition):
    found = rows((0, 0, 10), (0, 1, 9), (1, 0, 10), (2, 0, 10), (2, 2, 10), (3, 0, 7))
    truths = rows((0, 0, 10), (2, 0, 9), (3, 0, 10), (4, 0, 10))
    scores = np.array([0.7, 0.7, 0.7, 0.7, 0.7, 0.6])
    rng = np.random.default_rng(2)
    values = set()
    for _ in range(20):
        i, j = rng.permutation(6), rng.permutation(4)
        outcomes = collect_outcomes([compare(found.select(i), scores[i], truths.select(j))])
        values.add(tuple(compute_ap(outcomes, definition).ap))
    assert len(values) == 1
    # At 0.5: two hits of five detections enter together, then one of one.
    expected = {"coco": 0.5 * 76 / 101}.get(definition, 0.5 * 3 / 4)
    assert values.pop()[0] == pytest.approx(expected)


def test_an_ignored_truth():
    # The second detection lies on a truth that does not count: as if neither were there.
    found, truths = slots(0, 1, 2), slots(0, 1, 2, 3)
    flags = np.array([False, True, False, True])
    image = compare(found, [0.8, 0.9, 0.7], truths, truth_ignored=flags)
    outcomes = collect_outcomes([image])
    assert all_ap(image) == [1.0, 1.0, 1.0]
    assert (outcomes.n_truth.tolist(), outcomes.scores.tolist()) == ([2], [0.8, 0.7])
    assert all_ap(compare(found, [0.8, 0.9, 0.7], truths))[1] == 0.75
    # Without the flag and the truth it is false, and the first of three.
    image = compare(found, [0.8, 0.9, 0.7], truths.select([0, 2]))
    assert all_ap(image)[1] == pytest.approx(2 / 3)
    assert (
        all_ap(compare(found, [0.8, 0.9, 0.7], truths.select([0, 2]), ignored=[False, True, False]))[1] == 1.0
    )


def test_a_curve_by_hand():
    # +: a hit, -: false; ten detections of scores 1.0, 0.9, ..., of eight truths.
    signs = "+-++---+-+"
    hit = np.array([sign == "+" for sign in signs])
    found = slots(*[k if sign == "+" else 50 + k for k, sign in enumerate(signs)])
    truths = slots(*np.flatnonzero(hit), 20, 21, 22)
    scores = np.linspace(1.0, 0.1, 10)
    curve = compute_ap(collect_outcomes([compare(found, scores, truths)]), "pooled").curves[0]
    np.testing.assert_allclose(curve.recall, np.array([1, 2, 3, 4, 5]) / 8)
    np.testing.assert_allclose(curve.precision, [1, 2 / 3, 3 / 4, 4 / 8, 5 / 10])
    np.testing.assert_allclose(curve.interpolated, [1, 3 / 4, 3 / 4, 1 / 2, 1 / 2])
    np.testing.assert_allclose(curve.scores, [1.0, 0.8, 0.7, 0.3, 0.1])
    expected = (1 + 3 / 4 + 3 / 4 + 1 / 2 + 1 / 2) / 8
    assert average_precision(scores, hit, 8) == pytest.approx(expected)
    # Recalls 0 to 0.12 are 13, to 0.37 are 25 more, to 0.62 are 25 more; 0.625 ends it.
    image = compare(found, scores, truths)
    assert all_ap(image)[1:] == pytest.approx([expected, (13 + 25 * 3 / 4 + 25 / 2) / 101])
    at_recalls = compute_ap(collect_outcomes([image]), "coco").curves[0]
    assert at_recalls.scores[30] == pytest.approx(0.7) and np.isnan(at_recalls.scores[63:]).all()


def test_equal_scores_enter_together():
    hit = np.array([True, False, True, False])
    scores = np.full(4, 0.5)
    values = {
        average_precision(scores, hit[order], 2) for order in ([0, 1, 2, 3], [3, 1, 0, 2], [1, 3, 2, 0])
    }
    assert values == {0.5}


def test_nothing():
    assert average_precision(np.zeros(0), np.zeros(0, dtype=bool), 3) == 0.0
    assert np.isnan(average_precision(np.array([0.9]), np.array([False]), 0))


def blobs(rng, number, shape):
    """Draw elliptical masks, cut at the edge of the image."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    images = []
    for _ in range(number):
        cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        a, b = np.exp(rng.normal(1.4, 0.5, 2))
        images.append(((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1)
    return [image for image in images if image.any()]


def painted(masks, origins, shape):
    """Put masks into images of the full size."""
    images = np.zeros((len(masks), *shape), dtype=bool)
    for image, mask, (y0, x0) in zip(images, masks, origins):
        image[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
    return list(images)


def noisy_detections(rng, truths, shape):
    """Move, shrink, double and forget the truths, and add some that are none."""
    found = []
    for mask in truths:
        for _ in range(rng.choice([0, 1, 2], p=[0.2, 0.65, 0.15])):
            moved = np.roll(mask, rng.integers(-1, 2, 2), axis=(0, 1))
            moved = moved & (rng.random(shape) < rng.uniform(0.7, 1.0))
            found.append(moved if moved.any() else mask)
    return found + blobs(rng, len(truths) // 4, shape)


class BothSides:
    """Images with truths and detections, as this package has them and as COCO has them."""

    def __init__(self, shape):
        self.images = []
        self.results = []
        self.truth = {
            "info": {},
            "images": [],
            "annotations": [],
            "categories": [{"id": STAR, "name": "star"}, {"id": GALAXY, "name": "galaxy"}],
        }
        self.shape = shape

    def add(self, found, scores, labels, truths, truth_labels):
        """Add an image, with its masks as images of the full size."""
        number = len(self.images) + 1
        spans, truth_spans = (SpanMasks.from_masks(m, [[0, 0]] * len(m)) for m in (found, truths))
        self.images.append(
            ImagePairs.from_spans(spans, scores, labels, truth_spans, truth_labels, name=str(number))
        )
        height, width = self.shape
        self.truth["images"].append(
            {"id": number, "height": height, "width": width, "file_name": str(number)}
        )
        for k, mask in enumerate(truths):
            self.truth["annotations"].append(
                {
                    "id": len(self.truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": int(truth_labels[k]),
                    "segmentation": self.rle(mask),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "bbox": [0, 0, 1, 1],
                }
            )
        for k, mask in enumerate(found):
            self.results.append(
                {
                    "image_id": number,
                    "category_id": int(labels[k]),
                    "segmentation": self.rle(mask),
                    "score": float(scores[k]),
                }
            )

    @staticmethod
    def rle(mask):
        encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": encoded["size"], "counts": encoded["counts"]}

    def reference(self, areas, classes=True):
        """AP (T, class, area) and recall as faster-coco-eval has them."""
        truth = COCO(copy.deepcopy(self.truth))  # both are written to
        evaluation = COCOeval_faster(truth, truth.loadRes(copy.deepcopy(self.results)), iouType="segm")
        evaluation.params.maxDets = [10_000]
        evaluation.params.areaRng = [[area.low, area.high] for area in areas]
        evaluation.params.areaRngLbl = [area.name for area in areas]
        evaluation.params.useCats = int(classes)
        evaluation.evaluate()
        evaluation.accumulate()
        precision = evaluation.eval["precision"][..., 0].mean(axis=1)
        return precision, evaluation.eval["recall"][..., 0]


def random_set(seed, n_images=5, n_sources=40, shape=(90, 130)):
    rng = np.random.default_rng(seed)
    data = BothSides(shape)
    for _ in range(n_images):
        truths = blobs(rng, rng.integers(0, 2 * n_sources), shape)
        found = noisy_detections(rng, truths, shape)
        truth_labels = rng.choice([STAR, GALAXY], len(truths))
        labels = rng.choice([STAR, GALAXY], len(found))
        # Most detections of a truth are given its class.
        for i, mask in enumerate(found):
            overlap = [(mask & truth).sum() for truth in truths]
            if truths and max(overlap) and rng.random() < 0.85:
                labels[i] = truth_labels[int(np.argmax(overlap))]
        data.add(found, rng.random(len(found)), labels, truths, truth_labels)
    return data


AREAS = (
    AreaRange("all", 0, 1e10),
    AreaRange("small", 0, 40),
    AreaRange("medium", 40, 90),
    AreaRange("large", 90, 1e10),
)


def check_against_reference(data):
    for labels in ((STAR, GALAXY), (None,)):
        precision, recall = data.reference(AREAS, labels[0] is not None)
        assert 0.05 < precision[0, 0, 0] < 0.95
        for k, label in enumerate(labels):
            for a, area in enumerate(AREAS):
                ours = compute_ap(collect_outcomes(data.images, label, area=area), "coco")
                for mine, theirs in ((ours.ap, precision), (ours.recall, recall)):
                    # Without truths theirs is -1.
                    mine = np.nan_to_num(mine, nan=-1.0)
                    np.testing.assert_allclose(mine, theirs[:, k, a], atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", [1, 2])
def test_coco_is_that_of_faster_coco_eval(seed):
    check_against_reference(random_set(seed))


def test_coco_is_that_of_faster_coco_eval_for_the_model():
    """Masks of simulated scenes, overlapping as they do, and what the model finds there."""
    model = load_model()
    settings = DeblendSettings(
        detection=DetectionSettings(score_threshold=0.05), shares=ShareSettings(template="mask")
    )
    config = SceneConfig(shape=(200, 260), bands=("z", "r", "g"), noise=False)
    data = BothSides(config.shape)
    for seed in range(3):
        scene = simulate_scene(config, np.random.default_rng(seed))
        image = MultibandImage(scene.images, config.bands, config.pixel_scale, scene.variance)
        found = find_sources(image, model, settings).detections
        real = [k for k, mask in enumerate(scene.masks) if mask.any()]
        truths = painted([scene.masks[k] for k in real], scene.origins[real], config.shape)
        labels = np.where(scene.sources["is_star"][real], STAR, GALAXY)
        found_labels = np.where(found.p_star > 0.5, STAR, GALAXY)
        data.add(
            painted(found.masks, found.origins, config.shape), found.scores, found_labels, truths, labels
        )
    check_against_reference(data)


def test_an_open_area_range_is_all():
    data = random_set(5)
    whole = collect_outcomes(data.images, STAR)
    ranged = collect_outcomes(data.images, STAR, area=AreaRange("all"))
    np.testing.assert_array_equal(compute_ap(whole, "pooled").ap, compute_ap(ranged, "pooled").ap)


def test_finer_recalls_make_pooled_of_coco():
    """With many truths the two differ by less than a step of recall."""
    outcomes = collect_outcomes(random_set(6, n_sources=60).images)
    np.testing.assert_allclose(compute_ap(outcomes, "pooled").ap, compute_ap(outcomes, "coco").ap, atol=0.01)
    assert (np.diff(compute_ap(outcomes, "pooled").ap) <= 0).all()


def test_images_one_at_a_time_are_images_together():
    images = random_set(7).images
    whole = collect_outcomes(iter(images), GALAXY)
    parts = Outcomes.concatenate([collect_outcomes([image], GALAXY) for image in images])
    assert whole.names == parts.names == tuple("12345")
    for name in ("n_truth", "image", "scores", "hit", "false"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    with pytest.raises(ValueError, match="cannot be joined"):
        Outcomes.concatenate([whole, collect_outcomes(images, STAR)])


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_the_statistic_is_the_figure_of_the_images_drawn(definition):
    images = random_set(8, n_images=6, n_sources=25).images
    statistic = ap_statistic(collect_outcomes(images, STAR), definition)
    rng = np.random.default_rng(4)
    weights = rng.multinomial(6, [1 / 6] * 6, size=5).astype(float)
    values = statistic.function(weights)
    for drawn, value in zip(weights.astype(int), values):
        again = collect_outcomes([image for image, n in zip(images, drawn) for _ in range(n)], STAR)
        np.testing.assert_allclose(value, compute_ap(again, definition).ap, atol=1e-12)
    np.testing.assert_allclose(
        statistic.value, compute_ap(collect_outcomes(images, STAR), definition).ap, atol=1e-12
    )


def test_fewer_steps_are_near(monkeypatch):
    outcomes = collect_outcomes(random_set(9, n_sources=60).images)
    exact = compute_ap(outcomes, "pooled").ap
    assert outcomes.hit[0].sum() > 150
    monkeypatch.setattr(average_precision_module, "_MAX_STEPS", 50)
    rough = ap_statistic(outcomes).value
    assert 0 < np.abs(rough - exact).max() < 0.02


def test_the_statistic_of_ties_and_of_nothing():
    images = [compare(slots(0, 0, 1), [0.7, 0.7, 0.7], slots(0, 1)), compare(slots(0), [0.7], slots())]
    outcomes = collect_outcomes(images)
    for definition in DEFINITIONS:
        statistic = ap_statistic(outcomes, definition)
        np.testing.assert_allclose(statistic.value, compute_ap(outcomes, definition).ap)
        values = statistic.function(np.array([[0.0, 2.0]]))
        assert np.isnan(values).all()  # only the image without truth
        nothing = ap_statistic(collect_outcomes([compare(slots(), [], slots(0))]), definition)
        assert nothing.value.tolist() == [0.0] * len(IOU_THRESHOLDS)


def test_what_is_not_there_is_refused():
    outcomes = collect_outcomes([compare(slots(0), [0.9], slots(0))], thresholds=(0.5, 0.75))
    result = compute_ap(outcomes, "pooled")
    assert result.at(0.75) == 1.0
    with pytest.raises(ValueError, match=r"No AP at IoU 0.6; there is one at \[0.5, 0.75\]"):
        result.at(0.6)
    for function in (compute_ap, ap_statistic):
        with pytest.raises(ValueError, match="must be 'perImage', 'pooled' or 'coco'"):
            function(outcomes, "voc")
