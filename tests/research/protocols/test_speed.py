import numpy as np
import pytest
import torch

from ssmsam.models.registry import load_encoder
from ssmsam.volume.volume import Volume
from ssmsam_research.protocols.speed import SpeedProtocol, measure_model, middle_slices, write_random_weights


def test_slices_come_from_the_middle():
    assert middle_slices(20, 4) == [8, 9, 10, 11]
    assert middle_slices(3, 9) == [0, 1, 2]


def test_encoding_on_every_click_costs_more_than_a_click_on_an_embedded_slice(random_small):
    image = np.random.default_rng(0).normal(0, 50, size=(12, 64, 64)).astype(np.float32)
    volume = Volume(image, np.diag([1.0, 1.0, 2.0, 1.0]), modality="CT")
    steps = []
    found = measure_model(
        random_small,
        volume,
        SpeedProtocol(rounds=5, warm_up=1, threads=torch.get_num_threads()),
        progress=lambda phase, done, total: steps.append((done, total)),
    )
    seconds = found["seconds"]
    assert all(timing["n"] == 5 for timing in seconds.values())
    assert found["ratio"] == pytest.approx(
        seconds["reencoding_click"]["median"] / seconds["later_click"]["median"], rel=0.05
    )
    # the processor's time does not depend on how busy the machine is
    assert seconds["reencoding_click"]["processor_median"] > seconds["later_click"]["processor_median"]
    assert found["peak_memory_mb"] > 100
    assert steps[-1] == (6, 6)


@pytest.mark.slow
def test_random_weights_have_the_official_layout(tmp_path):
    write_random_weights("sam_vit_b", tmp_path)
    encoder = load_encoder("sam_vit_b", folder=tmp_path, allow_unverified=True)
    assert encoder.spec.input_size == 1024
