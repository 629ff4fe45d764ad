from __future__ import annotations

import os

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from fakes import TinyEncoder, a_volume
from ssmsam.embeddings import embedder as embedders
from ssmsam.embeddings.embedder import Embedder
from ssmsam.embeddings.store import EmbeddingStore, fingerprint
from ssmsam.volume.errors import UnreadableVolume
from ssmsam.volume.geometry import Plane
from ssmsam.volume.intensity import CtWindow, MrPercentiles


@pytest.fixture
def source(tmp_path):
    image = sitk.GetImageFromArray(a_volume().array)
    image.SetSpacing((1.0, 1.5, 3.0))
    sitk.WriteImage(image, str(tmp_path / "image.nrrd"))
    return tmp_path / "image.nrrd"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Every source whose pixels are read."""
    seen: list[str] = []
    read = embedders.read_volume
    monkeypatch.setattr(embedders, "read_volume", lambda path: seen.append(str(path)) or read(path))
    return seen


def an_embedder(tmp_path) -> Embedder:
    return Embedder(encoder=TinyEncoder(), store=EmbeddingStore(tmp_path / "store"))


def test_a_stored_slice_touches_no_pixels(tmp_path, source, reads):
    first = an_embedder(tmp_path).open_source(source)
    made = first.slice(4)
    assert len(reads) == 1
    embedder = an_embedder(tmp_path)
    again = embedder.open_source(source)
    assert torch.equal(again.slice(4)["image"], made["image"])
    assert again.grid.matches(first.grid)
    assert again.recipe == first.recipe
    assert (again.count, again.frame) == (12, first.frame)
    assert embedder.encoded == 0
    assert len(reads) == 1
    again.slice(5)
    assert len(reads) == 2


def test_source_and_volume_share_their_embeddings(tmp_path, source, reads):
    an_embedder(tmp_path).open_source(source)
    embedder = an_embedder(tmp_path)
    opened = embedder.open_source(source)
    assert embedder.open(opened.volume) is opened


def test_a_changed_source_is_read_again(tmp_path, source, reads):
    an_embedder(tmp_path).open_source(source)
    image = sitk.GetImageFromArray(a_volume(seed=1).array)
    sitk.WriteImage(image, str(source))
    os.utime(source, ns=(1, 1))
    opened = an_embedder(tmp_path).open_source(source)
    assert len(reads) == 2
    assert np.array_equal(opened.volume.array, a_volume(seed=1).array)


def test_a_source_that_changes_under_our_hands_is_refused(tmp_path, source, reads):
    an_embedder(tmp_path).open_source(source)
    opened = an_embedder(tmp_path).open_source(source)
    sitk.WriteImage(sitk.GetImageFromArray(a_volume(seed=1).array), str(source))
    with pytest.raises(UnreadableVolume, match="open it again"):
        opened.slice(0)


def test_recipe_and_plane_are_chosen_each_time(tmp_path, source, reads):
    an_embedder(tmp_path).open_source(source)
    embedder = an_embedder(tmp_path)
    opened = [
        embedder.open_source(source),
        embedder.open_source(source, plane=Plane(2)),
        embedder.open_source(source, recipe=CtWindow(0, 100)),
        embedder.open_source(source, recipe=MrPercentiles(1, 99)),
    ]
    assert len({each.key.digest for each in opened}) == 4
    assert opened[2].recipe == CtWindow(0, 100)
    assert len(reads) == 1


def test_a_damaged_catalogue_costs_one_reading(tmp_path, source, reads):
    an_embedder(tmp_path).open_source(source)
    (entry,) = (tmp_path / "store" / "catalogue").glob("*.json")
    entry.write_text('{"pixel_digest": "x"}')
    an_embedder(tmp_path).open_source(source)
    an_embedder(tmp_path).open_source(source)
    assert len(reads) == 2


def test_what_an_older_reader_found_counts_no_more(tmp_path, source, reads, monkeypatch):
    an_embedder(tmp_path).open_source(source)
    monkeypatch.setattr("ssmsam.embeddings.store.READER", -1)
    an_embedder(tmp_path).open_source(source)
    assert len(reads) == 2


def test_every_file_of_a_folder_counts(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"one")
    seen = {fingerprint(folder)}
    (folder / "2.dcm").write_bytes(b"two")
    seen.add(fingerprint(folder))
    os.utime(folder / "1.dcm", ns=(5, 5))
    seen.add(fingerprint(folder))
    (folder / "2.dcm").write_bytes(b"three")
    seen.add(fingerprint(folder))
    assert len(seen) == 4
    assert fingerprint(folder) in seen
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "nothing")
