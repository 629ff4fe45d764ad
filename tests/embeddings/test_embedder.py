from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fakes import BlockEncoder, RemakingEncoder, TinyEncoder, a_volume
from ssmsam.embeddings.embedder import Embedder, nearest_first
from ssmsam.embeddings.store import EmbeddingStore
from ssmsam.models.encoder import EncoderSpec
from ssmsam.models.small_encoder import SmallEncoder
from ssmsam.progress import Cancelled
from ssmsam.volume.geometry import Plane
from ssmsam.volume.intensity import CtWindow, MrPercentiles
from ssmsam.volume.volume import Volume


@pytest.fixture(params=["memory", "store"])
def embedder(request, tmp_path) -> Embedder:
    return Embedder(encoder=TinyEncoder(), store=EmbeddingStore(tmp_path) if request.param == "store" else None)


def test_a_slice_is_encoded_once(embedder):
    volume = embedder.open(a_volume())
    first = volume.slice(3)
    again = volume.slice(3)
    assert torch.equal(first["image"], again["image"])
    assert first["image"].dtype == torch.float32
    assert embedder.encoded == 1


def test_an_embedding_is_what_the_encoder_makes_of_the_slice(embedder):
    volume = a_volume()
    opened = embedder.open(volume, recipe=CtWindow(-100, 200))
    unit = np.clip((volume.array[[4, 5, 6]] + 100.0) / 300, 0, 1).astype(np.float32)
    expected = embedder.encoder.encode(opened.frame.to_input(torch.from_numpy(unit)[None]))
    torch.testing.assert_close(opened.slice(5)["image"], expected["image"], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(opened.slice(5)["levels"][0], expected["levels"][0], rtol=2e-3, atol=2e-3)


def test_levels_that_are_not_kept_on_disk_are_made_again(tmp_path):
    first = Embedder(encoder=RemakingEncoder(), store=EmbeddingStore(tmp_path)).open(a_volume()).slice(3)
    assert [file.name for file in tmp_path.rglob("level*.npy")] == []
    again = Embedder(encoder=RemakingEncoder(), store=EmbeddingStore(tmp_path))
    opened = again.open(a_volume())
    for _ in range(2):
        second = opened.slice(3)
    torch.testing.assert_close(second["image"], first["image"])
    torch.testing.assert_close(second["levels"][0], first["levels"][0])
    assert again.encoded == 0 and again.encoder.remakes == 1


def test_half_the_precision_gives_nearly_the_same_and_is_kept_apart(tmp_path):
    store, volume = EmbeddingStore(tmp_path), a_volume()
    encoder = SmallEncoder().eval().requires_grad_(False)
    encoder.weights_sha256 = "random"
    exact, fast = (Embedder(encoder=encoder, store=store, bfloat16=half).open(volume) for half in (False, True))
    one, other = exact.slice(5)["image"], fast.slice(5)["image"]
    assert exact.key.digest != fast.key.digest
    assert not torch.equal(one, other)
    assert float((one - other).norm() / one.norm()) < 0.03


def test_the_first_and_last_slice_stand_in_for_neighbours(embedder):
    volume = embedder.open(a_volume())
    inputs = volume.inputs([0, 1, 11])
    assert torch.equal(inputs[0, 0], inputs[0, 1])
    assert torch.equal(inputs[0, 2], inputs[1, 1])
    assert torch.equal(inputs[2, 1], inputs[2, 2])
    assert not torch.equal(inputs[1, 0], inputs[1, 1])


def test_without_context_the_slice_fills_all_channels():
    encoder = TinyEncoder()
    encoder.spec = EncoderSpec("tiny", 32, 4, 8, level_strides=(2,), level_channels=(4,), context=0)
    inputs = Embedder(encoder=encoder).open(a_volume()).inputs([2, 7])
    assert inputs.shape == (2, 3, 32, 32)
    assert torch.equal(inputs[:, 0], inputs[:, 1])
    assert torch.equal(inputs[:, 0], inputs[:, 2])


@pytest.mark.parametrize(("axis", "count"), [(0, 12), (1, 20), (2, 28)])
def test_planes(embedder, axis, count):
    volume = a_volume()
    opened = embedder.open(volume, plane=Plane(axis))
    assert opened.count == count
    pixels = CtWindow().scale(volume).apply(np.take(volume.array, 2, axis=axis))
    expected = opened.frame.to_input(torch.from_numpy(pixels)[None, None])[0, 0]
    assert torch.equal(opened.inputs([2])[0, 1], expected)
    opened.slice(2)
    assert opened.done.sum() == 1


def test_plane_recipe_and_image_are_kept_apart(embedder):
    volume = a_volume()
    opened = [
        embedder.open(volume),
        embedder.open(volume, plane=Plane(1)),
        embedder.open(volume, recipe=MrPercentiles()),
        embedder.open(a_volume(seed=1)),
        embedder.open(Volume(volume.array, np.diag([-1.0, 1.0, 4.0, 1.0]), modality="CT")),
    ]
    for each in opened:
        each.slice(1)
    assert embedder.encoded == len(opened)


def test_the_same_volume_gives_the_same_object(embedder):
    first = embedder.open(a_volume())
    assert embedder.open(a_volume()) is first


def test_threads_that_want_the_same_slice_encode_it_once(embedder):
    embedder.encoder.seconds = 0.05
    volume = embedder.open(a_volume())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: volume.slice(index)["image"], [2, 5] * 8))
    assert embedder.encoded == 2
    assert all(torch.equal(image, found[number % 2]) for number, image in enumerate(found))


def test_threads_and_background_work_encode_every_slice_once(embedder):
    embedder.encoder.seconds = 0.002
    volume = embedder.open(a_volume(slices=40))
    with ThreadPoolExecutor(6) as pool:
        background = [pool.submit(volume.embed, order) for order in (range(40), range(39, -1, -1))]
        clicks = [pool.submit(volume.slice, index) for index in np.random.default_rng(0).permutation(40).tolist()]
        for future in background + clicks:
            future.result()
    assert embedder.encoded == 40
    assert volume.done.all()
    assert not embedder.encoder.overlapped


def test_a_click_does_not_wait_for_the_whole_background(embedder):
    embedder.encoder.seconds = 0.05
    volume = embedder.open(a_volume(slices=44))
    background = threading.Thread(target=volume.embed)
    background.start()
    time.sleep(0.1)
    start = time.perf_counter()
    volume.slice(43)
    waited = time.perf_counter() - start
    left = int((~volume.done).sum())
    background.join()
    assert waited < 1.5, "at most one batch of half a second and the slice itself"
    assert left > 12
    assert embedder.encoded == 44


def test_a_click_passes_in_the_middle_of_a_slice():
    encoder = BlockEncoder()
    embedder = Embedder(encoder=encoder)
    volume = embedder.open(a_volume(slices=2))
    background = threading.Thread(target=volume.embed, args=([0],))
    background.start()
    assert encoder.began.wait(10)
    clicked = volume.slice(1)
    assert not volume.done[0], "the click did not wait for the slice that was begun"
    background.join()
    torch.testing.assert_close(volume.slice(1)["image"], clicked["image"])
    alone = Embedder(encoder=encoder).open(a_volume(slices=2))
    torch.testing.assert_close(volume.slice(0)["image"], alone.slice(0)["image"])
    assert not encoder.blocks[0]._forward_pre_hooks


def test_a_click_on_a_slice_that_is_being_made_goes_before_other_clicks():
    encoder = BlockEncoder()
    embedder = Embedder(encoder=encoder)
    volume, other = embedder.open(a_volume(slices=2)), embedder.open(a_volume(slices=30, seed=1))
    stop = threading.Event()

    def click_on(indices: range) -> None:
        for index in indices:
            if not stop.is_set():
                other.slice(index)

    background = threading.Thread(target=volume.embed, args=([0],))
    clickers = [threading.Thread(target=click_on, args=(range(first, 30, 2),)) for first in range(2)]
    background.start()
    assert encoder.began.wait(10)
    for one in clickers:  # one of them always waits for the encoder
        one.start()
    volume.slice(0)
    assert not other.done.all(), "those that came later were not all done first"
    stop.set()
    for one in (background, *clickers):
        one.join()


def test_embed_follows_the_order_and_leaves_out_what_is_done(embedder):
    embedder.encoder.seconds = 0.3  # so that a batch is one slice
    volume = embedder.open(a_volume())
    volume.slice(5)
    calls: list[tuple[str, int, int]] = []
    order: list[int] = []

    def progress(phase: str, done: int, total: int) -> None:
        calls.append((phase, done, total))
        order.extend(index for index in np.flatnonzero(volume.done).tolist() if index not in order)

    volume.embed([6, 5, 2, 6], progress=progress)
    assert embedder.encoded == 3
    assert order == [5, 6, 2]
    assert calls[0] == ("embed", 1, 3)
    assert calls[-1] == ("embed", 3, 3)


def test_embedding_what_is_all_done_costs_nothing(embedder):
    volume = embedder.open(a_volume())
    volume.embed()
    batches = len(embedder.encoder.batches)
    volume.embed()
    volume.embed([])
    assert len(embedder.encoder.batches) == batches
    assert embedder.encoded == 12


def test_cancelling_keeps_what_is_finished(embedder):
    volume = embedder.open(a_volume())

    def stop_at_four(phase: str, done: int, total: int) -> None:
        if done >= 4:
            raise Cancelled

    with pytest.raises(Cancelled):
        volume.embed(progress=stop_at_four)
    kept = int(volume.done.sum())
    assert 4 <= kept == embedder.encoded
    volume.embed()
    assert embedder.encoded == 12


def test_a_small_memory_forgets_but_does_not_loop(tmp_path):
    embedder = Embedder(encoder=TinyEncoder(), memory_bytes=10_000)
    volume = embedder.open(a_volume())
    volume.embed()
    assert embedder.encoded == 12
    assert 0 < volume.done.sum() < 12
    assert volume.done[11]
    stored = Embedder(encoder=TinyEncoder(), store=EmbeddingStore(tmp_path), memory_bytes=0).open(a_volume())
    stored.embed()
    assert stored.done.all()
    assert stored.slice(4)["image"].shape == (1, 8, 8, 8)


def test_a_failing_encoder_blocks_nobody(embedder, monkeypatch):
    volume = embedder.open(a_volume())
    encode = embedder.encoder.encode

    def fail(slices: torch.Tensor) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(embedder.encoder, "encode", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        volume.slice(3)
    with pytest.raises(RuntimeError, match="out of memory"):
        volume.embed()
    monkeypatch.setattr(embedder.encoder, "encode", encode)
    volume.embed()
    assert volume.done.all()


@pytest.mark.parametrize("index", [-1, 12, 1000])
def test_slices_outside_the_volume_are_refused(embedder, index):
    volume = embedder.open(a_volume())
    with pytest.raises(ValueError, match="12 slices"):
        volume.slice(index)
    with pytest.raises(ValueError, match="12 slices"):
        volume.embed([index])


def test_embeddings_can_be_trained_on(embedder):
    image = embedder.open(a_volume()).slice(0)["image"]
    task = torch.nn.Conv2d(8, 1, 1)
    task(image).sum().backward()
    assert task.weight.grad is not None


@given(st.integers(1, 60).flatmap(lambda count: st.tuples(st.integers(0, count - 1), st.just(count))))
def test_nearest_first_visits_all_by_distance(case):
    index, count = case
    order = nearest_first(index, count)
    assert sorted(order) == list(range(count))
    distances = [abs(near - index) for near in order]
    assert distances == sorted(distances)


def test_nearest_first_refuses_a_slice_outside():
    with pytest.raises(ValueError, match="not in a volume"):
        nearest_first(5, 5)
