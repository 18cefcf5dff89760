"""Small sets in TFDS's format, written by TFDS itself, and a data folder of their own."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import REAL_DATA


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder that `TFDS_DATA_DIR` names; no cache outside tmp_path is touched."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def real_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `TFDS_DATA_DIR` named, if MNIST is prepared in it."""
    if not list(Path(REAL_DATA or "/nowhere").glob("mnist/*/dataset_info.json")):
        pytest.skip("needs prepared MNIST: set TFDS_DATA_DIR")
    monkeypatch.setenv("TFDS_DATA_DIR", REAL_DATA)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(REAL_DATA)


@pytest.fixture
def write_set(data_dir: Path) -> Callable[..., Path]:
    """Writes a set with TFDS, by default grey 4x4 PNG images of three classes."""
    import tensorflow_datasets as tfds

    def write(
        name: str,
        splits: Mapping[str, Sequence[Mapping[str, Any]]],
        *,
        features: Mapping[str, Any] | None = None,
        version: str = "1.0.0",
        config: str | None = None,
        supervised_keys: tuple[str, str] | None = ("image", "label"),
        num_shards: int | None = None,
    ) -> Path:
        described = features or {
            "image": tfds.features.Image(shape=(4, 4, 1)),
            "label": tfds.features.ClassLabel(names=["red", "green", "blue"]),
        }

        def info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(described) if isinstance(described, dict) else described,
                supervised_keys=supervised_keys,
            )

        with tfds.core.registered.skip_registration():
            builder_class = type(
                name.title().replace("_", ""),
                (tfds.core.GeneratorBasedBuilder,),
                {
                    "name": name,
                    "VERSION": tfds.core.Version(version),
                    "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config)] if config else [],
                    "_info": info,
                    "_split_generators": lambda self, dl_manager: {
                        split: self._generate_examples(split) for split in splits
                    },
                    "_generate_examples": lambda self, split: enumerate(splits[split]),
                },
            )
        tfds.disable_progress_bar()
        builder = builder_class(data_dir=data_dir)
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(num_shards=num_shards, try_download_gcs=False),
        )
        return Path(builder.data_dir)

    return write
