# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A trained model in a Butler repository: formatter, seed configuration, ingest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lsst.meas.maskrcnn.network.tensor_file as tensor_file
from lsst.daf.butler import (
    Butler,
    CollectionType,
    Config,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    FileDataset,
)
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.images.normalize import LuptonSettings
from lsst.meas.maskrcnn.ingest.ingest_model import DATASET_TYPE, IngestModelError, ingest_model
from lsst.meas.maskrcnn.ingest.repo import SEED_CONFIG, register_datasets
from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.model_file import (
    MaskRcnnModel,
    ModelFileError,
    ModelMetadata,
    read_metadata,
    read_model,
    write_model,
)
from lsst.meas.maskrcnn.network.spec import NetworkSpec


def make_model(name: str = "tiny", seed: int = 1) -> MaskRcnnModel:
    """A network of a few hundred kilobytes with random weights."""
    spec = NetworkSpec(
        in_channels=3,
        backbone="resnet18",
        returned_layers=(1,),
        fpn_channels=8,
        anchor_sizes=((8.0,), (16.0,)),
        box_features=16,
        mask_channels=(8,),
    )
    metadata = ModelMetadata(
        name=name, architecture=spec, bands=("z", "r", "g"), normalization=LuptonSettings(), pixel_scale=0.168
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskRcnnModel.from_network(build_network(spec), metadata)


@pytest.fixture(scope="module")
def model() -> MaskRcnnModel:
    return make_model()


@pytest.fixture
def model_path(model: MaskRcnnModel, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    write_model(model, path)
    return path


def make_seeded(root: Path) -> Butler:
    """Repository created with the seed configuration."""
    Butler.makeRepo(str(root), config=Config(SEED_CONFIG))
    return Butler.from_config(str(root), writeable=True)


def make_included(root: Path) -> Butler:
    """Repository that existed before and gets the include afterwards."""
    Butler.makeRepo(str(root))
    with open(root / "butler.yaml", "a") as stream:
        stream.write(f"\nincludeConfigs:\n  - {SEED_CONFIG}\n")
    return Butler.from_config(str(root), writeable=True)


@pytest.fixture(params=[make_seeded, make_included])
def butler(request: pytest.FixtureRequest, tmp_path: Path) -> Butler:
    return request.param(tmp_path / "repo")


def test_put_and_get(butler: Butler, model: MaskRcnnModel, monkeypatch: pytest.MonkeyPatch) -> None:
    butler.registry.registerDatasetType(
        DatasetType(DATASET_TYPE, (), "MaskRcnnModel", universe=butler.dimensions)
    )
    butler.collections.register("models/a")
    ref = butler.put(model, DATASET_TYPE, run="models/a")
    assert butler.getURI(ref).getExtension() == ".safetensors"

    stored = butler.get(DATASET_TYPE, collections="models/a")
    assert isinstance(stored, MaskRcnnModel)
    assert stored.metadata == model.metadata
    assert stored.state.keys() == model.state.keys()
    assert all(torch.equal(stored.state[key], value) for key, value in model.state.items())

    # The header must not cost the weights.
    monkeypatch.setattr(tensor_file.safetensors.torch, "load", None)
    metadata = butler.get(f"{DATASET_TYPE}.metadata", collections="models/a")
    assert metadata == model.metadata


def test_ingest_copies_the_file_and_repeats(tmp_path: Path, model_path: Path) -> None:
    butler = make_seeded(tmp_path / "repo")
    ref = ingest_model(butler, model_path, "models/a", bands=["z", "r", "g"])
    assert ref.run == "models/a"
    assert butler.getURI(ref).read() == model_path.read_bytes()
    assert model_path.exists()
    assert ingest_model(butler, model_path, "models/a") == ref
    # Another collection takes the same model as a dataset of its own.
    assert ingest_model(butler, model_path, "models/b").id != ref.id
    assert butler.get(DATASET_TYPE, collections=["models/b", "models/a"]).metadata.name == "tiny"


def test_ingest_refuses_a_second_model(tmp_path: Path, model_path: Path) -> None:
    butler = make_seeded(tmp_path / "repo")
    ingest_model(butler, model_path, "models/a")
    other = tmp_path / "other.safetensors"
    write_model(make_model("other", seed=2), other)
    with pytest.raises(IngestModelError, match=r"already holds another model, 'tiny'"):
        ingest_model(butler, other, "models/a")
    butler.collections.register("chain", CollectionType.CHAINED)
    with pytest.raises(IngestModelError, match="CHAINED"):
        ingest_model(butler, other, "chain")


def test_ingest_refuses_bad_files(tmp_path: Path, model_path: Path, model: MaskRcnnModel) -> None:
    """Each is refused for what is wrong with it, and the repository stays as it was."""
    butler = make_seeded(tmp_path / "repo")
    data = model_path.read_bytes()

    def bad(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    with pytest.raises(ModelFileError, match="truncated"):
        ingest_model(butler, bad("short.safetensors", data[:-100]), "models/a")
    with pytest.raises(ModelFileError, match="truncated"):
        ingest_model(butler, bad("shorter.safetensors", data[:40]), "models/a")
    for name, content in (("empty", b""), ("text", b"SIMPLE  =  T" * 50)):
        with pytest.raises(ModelFileError, match="not a model file"):
            ingest_model(butler, bad(f"{name}.safetensors", content), "models/a")
    newer = data.replace(b'\\"format_version\\":3,', b'\\"format_version\\":9,', 1)
    assert newer != data
    with pytest.raises(ModelFileError, match="version 9"):
        ingest_model(butler, bad("newer.safetensors", newer), "models/a")
    with pytest.raises(ModelFileError, match=r"'z', 'r', 'g'.*'g', 'r', 'z'"):
        ingest_model(butler, model_path, "models/a", bands=["g", "r", "z"])
    state = dict(model.state)
    state.popitem()
    lacking = tmp_path / "lacking.safetensors"
    write_model(MaskRcnnModel(model.metadata, state), lacking)
    with pytest.raises(ModelFileError, match="do not fit the architecture"):
        ingest_model(butler, lacking, "models/a")
    with pytest.raises(IngestModelError, match=r"rename it to tiny\.safetensors"):
        ingest_model(butler, bad("tiny.bin", data), "models/a")
    with pytest.raises(IngestModelError, match="is a folder"):
        ingest_model(butler, tmp_path, "models/a")
    with pytest.raises(FileNotFoundError):
        ingest_model(butler, tmp_path / "none.safetensors", "models/a")

    assert butler.collections.query("*") == []
    assert [t.name for t in butler.registry.queryDatasetTypes()] == []
    files = [p.name for p in (tmp_path / "repo").rglob("*") if p.is_file()]
    assert sorted(files) == ["butler.yaml", "gen3.sqlite3"]


@pytest.mark.parametrize("place", ["lsst.daf.butler.direct_butler.DirectButler.ingest", "register_datasets"])
def test_ingest_leaves_nothing_after_a_failure(
    place: str, tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    butler = make_seeded(tmp_path / "repo")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place if "." in place else f"lsst.meas.maskrcnn.ingest.ingest_model.{place}", fail)
        with pytest.raises(OSError, match="No space"):
            ingest_model(butler, model_path, "models/a")
    assert butler.collections.query("*") == []
    assert [t.name for t in butler.registry.queryDatasetTypes()] == []
    ingest_model(butler, model_path, "models/a")


def test_copies_of_a_killed_process_are_removed(tmp_path: Path, model_path: Path) -> None:
    butler = make_seeded(tmp_path / "repo")
    folder = tmp_path / "repo/models/a/maskRcnnModel"
    folder.mkdir(parents=True)
    copy, other = folder / "l77f_2qg5m1dx0w8.safetensors", folder / "notes_of_mine.safetensors"
    copy.write_bytes(b"half")
    other.write_bytes(b"mine")
    path = Path(butler.getURI(ingest_model(butler, model_path, "models/a")).ospath)
    assert not copy.exists() and other.exists() and path.exists()
    # That of a dataset stays, whatever its name is.
    copy.write_bytes(path.read_bytes())
    register_datasets(butler, [], "models/a")
    assert not copy.exists() and path.exists()
    with butler.transaction():
        ref = DatasetRef(
            butler.get_dataset_type(DATASET_TYPE),
            DataCoordinate.make_empty(butler.dimensions),
            run="models/b",
        )
        butler.collections.register("models/b")
        copy = tmp_path / "repo/models/b" / copy.name
        copy.parent.mkdir()
        copy.write_bytes(path.read_bytes())
        butler.ingest(FileDataset(path=str(copy), refs=[ref]), transfer=None)
    register_datasets(butler, [], "models/b")
    assert copy.exists() and butler.get(ref).metadata.name == "tiny"


def test_ingest_into_other_repositories(tmp_path: Path, model_path: Path) -> None:
    """What a repository lacks, or has of its own, is said; nothing is left in it."""
    make_seeded(tmp_path / "seeded")  # this process knows the storage class from here on
    Butler.makeRepo(str(tmp_path / "plain"))
    butler = Butler.from_config(str(tmp_path / "plain"), writeable=True)
    with pytest.raises(IngestModelError, match="a formatter of 'MaskRcnnModel'.*") as caught:
        ingest_model(butler, model_path)
    assert SEED_CONFIG in str(caught.value)
    assert butler.collections.query("*") == []
    assert [t.name for t in butler.registry.queryDatasetTypes()] == []

    butler = make_seeded(tmp_path / "taken")
    butler.registry.registerDatasetType(
        DatasetType(DATASET_TYPE, (), "StructuredDataDict", universe=butler.dimensions)
    )
    with pytest.raises(IngestModelError, match="StructuredDataDict"):
        ingest_model(butler, model_path)


def test_repository_learns_the_storage_class(tmp_path: Path, model_path: Path) -> None:
    """A repository that does not know models is told how to learn it, and then does."""
    root = tmp_path / "repo"
    Butler.makeRepo(str(root))
    # Storage classes live in the process once any repository has defined
    # them, so this needs processes of its own.
    script = Path(__file__).resolve().parent.parent / "bin" / "ingest_model"
    command = [sys.executable, str(script), str(root), str(model_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert SEED_CONFIG in done.stderr
    with open(root / "butler.yaml", "a") as stream:
        stream.write(done.stderr.split("`")[1] + "\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'tiny' (bands z, r, g)" in done.stdout


def test_command_line(tmp_path: Path, model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path / "repo")
    butler = make_seeded(Path(root))
    assert maskrcnn("ingest-model", [root, str(model_path), "--bands", "g", "r", "z"]) == 1
    assert "trained on bands" in capsys.readouterr().err
    assert maskrcnn("ingest-model", [root, str(tmp_path / "none.safetensors")]) == 1
    assert "none.safetensors" in capsys.readouterr().err
    assert maskrcnn("ingest-model", [str(tmp_path / "norepo"), str(model_path)]) == 1
    assert "norepo' is no Butler repository" in capsys.readouterr().err
    for _ in range(2):
        assert maskrcnn("ingest-model", [root, str(model_path), "--collection", "models/x"]) == 0
        captured = capsys.readouterr()
        assert "models/x" in captured.out and "no figures in the file" in captured.out
        assert "was not validated" in captured.err and "is not calibrated" in captured.err
    assert maskrcnn("ingest-model", [root]) == 0
    captured = capsys.readouterr()
    assert "Validation: ap50" in captured.out and not captured.err
    assert butler.get(DATASET_TYPE, collections="models/x").metadata.name == "tiny"


def test_a_model_to_start_from_has_a_type_of_its_own(tmp_path: Path, model_path: Path) -> None:
    butler = make_seeded(tmp_path / "repo")
    name = "maskRcnnInitialModel"
    assert (
        maskrcnn(
            "ingest-model",
            [str(tmp_path / "repo"), str(model_path), "--collection", "m", "--dataset-type", name],
        )
        == 0
    )
    butler.registry.refresh()
    assert butler.get(name, collections="m").metadata.bands == ("z", "r", "g")
    # The same collection still has room for the model that comes of it.
    assert ingest_model(butler, model_path, "m").datasetType.name == "maskRcnnModel"


def test_formatter_refuses_other_things(tmp_path: Path, model: MaskRcnnModel) -> None:
    butler = make_seeded(tmp_path / "repo")
    butler.registry.registerDatasetType(
        DatasetType(DATASET_TYPE, (), "MaskRcnnModel", universe=butler.dimensions)
    )
    butler.collections.register("models/a")
    with pytest.raises(Exception, match="MaskRcnnModel"):
        butler.put({"not": "a model"}, DATASET_TYPE, run="models/a")
    ref = butler.put(model, DATASET_TYPE, run="models/a")
    path = butler.getURI(ref).ospath
    assert read_metadata(path) == read_model(path).metadata
