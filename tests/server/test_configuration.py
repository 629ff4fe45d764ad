from __future__ import annotations

from pathlib import Path

import pytest

from ssmsam.models.registry import ENCODER_VARIABLE, ENCODERS
from ssmsam.server.configuration import DEFAULT_LABELS, RESERVED_LABELS, Configuration
from ssmsam.service.errors import ConfigurationError

MODELS = ("sam_2d", "sam_3d")


def parse(**conf: str) -> Configuration:
    return Configuration.parse(conf, models=MODELS, encoders=ENCODERS)


def test_nothing_said_means_everything_with_the_best_encoder_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENCODER_VARIABLE)
    configuration = parse()
    assert configuration.models == MODELS
    assert configuration.encoder == "auto"
    assert configuration.labels == DEFAULT_LABELS
    assert configuration.precompute
    assert not configuration.download
    assert configuration.bfloat16 is None


def test_the_environment_may_name_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENCODER_VARIABLE, "medsam_vit_b")
    assert parse().encoder == "medsam_vit_b"
    assert parse(encoder="sam_vit_b").encoder == "sam_vit_b"
    monkeypatch.setenv(ENCODER_VARIABLE, "large")
    with pytest.raises(ConfigurationError, match=rf"{ENCODER_VARIABLE}=large: .*medsam_lite"):
        parse()


def test_all_values_are_read(tmp_path: Path) -> None:
    configuration = parse(
        models="sam_3d", encoder="sam_vit_b", weights=str(tmp_path), download="yes", store=str(tmp_path / "new"),
        store_gb="1.5", memory_gb="3", device="cuda:1", threads="4", precompute="false", labels="liver, left kidney",
        bfloat16="true",
    )  # fmt: skip
    assert configuration == Configuration(
        models=("sam_3d",), encoder="sam_vit_b", weights=tmp_path, download=True, store=tmp_path / "new", store_gb=1.5,
        memory_gb=3.0, device="cuda:1", threads=4, precompute=False, labels=("liver", "left kidney"),
        bfloat16=True,
    )  # fmt: skip


@pytest.mark.parametrize("text", ["all", " all ", "sam_2d,sam_3d", "sam_3d, sam_3d, sam_2d"])
def test_models_by_name_or_all(text: str) -> None:
    assert set(parse(models=text).models) == set(MODELS)


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        ("model", "sam_2d", "models"),
        ("models", "sam_4d", "sam_2d, sam_3d"),
        ("models", "", "separated by commas"),
        ("encoder", "large", "sam_vit_b"),
        ("weights", "/no/such/folder", "no such folder"),
        ("download", "maybe", "true and false"),
        ("store_gb", "-1", "above 0"),
        ("store_gb", "nan", "above 0"),
        ("memory_gb", "much", "above 0"),
        ("device", "gpu", "cuda:N"),
        ("device", "cuda:x", "cuda:N"),
        ("threads", "0", "auto"),
        ("threads", "two", "auto"),
        ("precompute", "2", "true and false"),
        ("labels", "liver,background", "background"),
        ("labels", "foreground_scribbles", "foreground_scribbles"),
    ],
)
def test_what_is_wrong_and_what_would_be_right(key: str, value: str, valid: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse(**{key: value})
    assert key in str(refused.value)
    assert valid in str(refused.value)


def test_keys_of_sample_apps_have_no_effect() -> None:
    assert parse(preload="true", skip_trainers="true", sam2="false", server_mode="true") == parse()


def test_published_labels_do_not_collide_with_what_viewers_send() -> None:
    assert not RESERVED_LABELS & set(DEFAULT_LABELS)
    assert len(set(DEFAULT_LABELS)) == len(DEFAULT_LABELS)


def test_the_store_goes_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSMSAM_CACHE", str(tmp_path))
    assert tmp_path in parse().store.parents
