"""ResNet: the published sizes, its output, what is frozen, and where its weights come from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras as keras

from espalier import CheckpointError, ConfigError
from espalier.trainer import hardware, images, keras_weights
from espalier.trainer.families import resnet

DATA = ([120.0, 110.0, 100.0], [60.0, 61.0, 62.0])
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")


def build(start: str = "resnet20", classes: int = 10, **settings: Any) -> keras.Model:
    settings = {"size": 32} | settings
    channels = 1 if settings.get("color") == "grey" else 3
    learned = tuple(x[:channels] for x in DATA) if start in resnet.SMALL else None
    return resnet.build(resnet.Settings(start=start, **settings), classes, learned)


def trained(model: keras.Model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


# Table 6 of the paper, in millions; 269,722 is what ten classes and option A come to.
@pytest.mark.parametrize(
    ("start", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85)],
)
def test_the_small_ones_have_the_papers_weights(start: str, millions: float) -> None:
    assert trained(build(start)) / 1e6 == pytest.approx(millions, abs=0.006)


def test_resnet20_layer_by_layer() -> None:
    model = build()
    assert trained(model) == 269_722
    convolutions = [one for one in model.layers if isinstance(one, keras.layers.Conv2D)]
    assert len(convolutions) == 19  # and the head makes 20
    shapes = [model.get_layer(f"stage{n}_block3_out").output.shape[1:] for n in (1, 2, 3)]
    assert [tuple(shape) for shape in shapes] == [(32, 32, 16), (16, 16, 32), (8, 8, 64)]
    norms = [one for one in model.layers if isinstance(one, keras.layers.BatchNormalization)]
    assert {norm.momentum for norm in norms} == {0.9}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("start", ["resnet20", "resnet50", "resnet50v2"])
def test_logits_are_float32_under_any_precision(start: str, precision: str) -> None:
    with hardware.precision(precision):
        model = build(start, classes=4)
    logits = model({"image": PIXELS})
    assert logits.shape == (2, 4)
    assert logits.dtype == "float32"
    assert np.isfinite(logits).all()


def test_pixels_are_normalised_first() -> None:
    model = build()
    inner = keras.Model(model.input, model.get_layer("normalization").output)
    expected = (PIXELS - np.array(DATA[0])) / np.array(DATA[1])
    assert np.allclose(inner({"image": PIXELS}), expected, atol=1e-4)


def test_grey_and_oblong_pictures() -> None:
    settings = resnet.Settings(start="resnet20", size=[16, 24], color="grey")
    assert resnet.pixel_shapes(settings) == {"image": (16, 24, 1)}
    model = resnet.build(settings, 3, ([100.0], [50.0]))
    assert model({"image": np.zeros((5, 16, 24, 1), "float32")}).shape == (5, 3)


@pytest.mark.parametrize("start", ["resnet20", "resnet50", "resnet50v2"])
def test_freezing_goes_stage_by_stage_and_back(start: str) -> None:
    model, head = build(start), 0
    counts = []
    parts = resnet.depth(resnet.Settings(start=start))
    for part in range(parts + 1):
        resnet.freeze(model, part)
        counts.append(trained(model))
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == parts + 1
    resnet.freeze(model, "all")
    head = trained(model)
    assert head == np.prod(model.get_layer("logits").kernel.shape) + 10
    resnet.freeze(model, 0)
    assert trained(model) == counts[0]


def test_what_does_not_exist_is_said() -> None:
    with pytest.raises(CheckpointError, match="no ImageNet weights for this architecture"):
        resnet.check(resnet.Settings(start="resnet20", weights="imagenet"))
    with pytest.raises(CheckpointError, match="no file 'gone.h5'"):
        resnet.check(resnet.Settings(start="resnet50", weights="gone.h5"))
    with pytest.raises(ConfigError, match="needs 32 x 32"):
        resnet.check(resnet.Settings(start="resnet50", size=16))


def test_imagenet_is_asked_for_by_keras_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def get_file(*arguments: Any, **options: Any) -> str:
        asked.append((*arguments, options))
        raise ValueError("URL fetch failure: no network")

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    with pytest.raises(CheckpointError, match=r"could not be fetched: .* no network.*local \.h5"):
        resnet.check(resnet.Settings(start="resnet50v2", weights="imagenet"))
    ((name, url, options),) = asked
    assert name == "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert url.endswith(name)
    assert len(options["file_hash"]) == 32


class TestWeightFiles:
    """A file made by Keras gives its weights to all but the head."""

    @pytest.fixture
    def other(self) -> keras.Model:
        keras.utils.set_random_seed(7)
        return build(classes=5)

    @pytest.mark.parametrize("name", ["weights.h5", "model.h5", "model.keras"])
    def test_the_backbone_gets_them(self, other: keras.Model, tmp_path: Path, name: str) -> None:
        file = tmp_path / name
        (other.save_weights if name == "weights.h5" else other.save)(str(file))
        model = build(classes=3, weights=str(file))
        for layer in model.layers:
            if layer.weights and layer.name != "logits":
                for one, two in zip(
                    layer.get_weights(), other.get_layer(layer.name).get_weights(), strict=True
                ):
                    assert np.array_equal(one, two)
        assert model({"image": PIXELS}).shape == (2, 3)

    def test_a_nested_backbone_is_read_too(self, tmp_path: Path) -> None:
        backbone = keras.applications.ResNet50(False, None, input_shape=(32, 32, 3))
        nested = keras.Sequential([backbone, keras.layers.Flatten(), keras.layers.Dense(2)])
        nested.save(tmp_path / "nested.keras")
        model = build("resnet50", classes=3, weights=str(tmp_path / "nested.keras"))
        name = "conv3_block2_1_conv"
        expected = backbone.get_layer(name).get_weights()[0]
        assert np.array_equal(model.get_layer(name).get_weights()[0], expected)

    def test_another_architecture_is_named(self, other: keras.Model, tmp_path: Path) -> None:
        file = str(tmp_path / "small.h5")
        other.save_weights(file)
        with pytest.raises(CheckpointError, match="layer 1 .* Is it the same architecture"):
            build("resnet20", color="grey", weights=file)
        with pytest.raises(CheckpointError, match="39 layers with weights, and this"):
            build("resnet32", weights=file)

    def test_it_is_found_by_building_once(self, other: keras.Model, tmp_path: Path) -> None:
        file = str(tmp_path / "small.h5")
        other.save_weights(file)
        for start in ("resnet20", "resnet32"):
            settings = resnet.Settings(start=start, size=32, weights=file)
            if start == "resnet20":
                images.try_weights(resnet, settings)
            else:
                with pytest.raises(CheckpointError, match="Is it the same one"):
                    images.try_weights(resnet, settings)

    @pytest.mark.parametrize("name", ["text.h5", "text.keras"])
    def test_what_is_no_weights_file(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("no weights")
        with pytest.raises(CheckpointError, match="cannot be read as Keras weights"):
            build(weights=str(tmp_path / name))

    def test_numbers_that_are_not_finite_are_refused(
        self, other: keras.Model, tmp_path: Path
    ) -> None:
        other.weights[0].assign(np.full(other.weights[0].shape, np.nan))
        other.save_weights(str(tmp_path / "w.h5"))
        with pytest.raises(CheckpointError, match=r"w\.h5 holds numbers that are not finite"):
            build(weights=str(tmp_path / "w.h5"))

    def test_other_names_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "model.bin").write_text("")
        with pytest.raises(CheckpointError, match=r"should end in \.h5 or \.keras"):
            keras_weights.resolve(str(tmp_path / "model.bin"), None)

    def test_the_fingerprint_is_the_files(self, other: keras.Model, tmp_path: Path) -> None:
        file = tmp_path / "w.h5"
        other.save_weights(str(file))
        settings = resnet.Settings(start="resnet20", weights=str(file))
        before = resnet.fingerprint(settings)
        build(classes=5).save_weights(str(file))
        assert resnet.fingerprint(settings) != before
        assert before != resnet.fingerprint(resnet.Settings(start="resnet20"))
