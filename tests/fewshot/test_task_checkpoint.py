"""A task checkpoint: the same masks where it was made, no image in it, and clear words about files that will not do."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import (
    ORGAN,
    PocketDecoder,
    PocketEncoder,
    draw_volume,
    kept_and_read,
    labelled,
    quick,
    state_digest,
    two_labels,
)
from safetensors.torch import load, save, save_file

import ssmsam
from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adapted_task import LOCAL, AdaptedTask, SupportBanks, SupportCache, read_task, write_task
from ssmsam.fewshot.checkpoint_registry import CheckpointRegistry
from ssmsam.fewshot.pipeline import adapt, segment, with_support_again
from ssmsam.fewshot.support import digest
from ssmsam.fewshot.task_checkpoint import (
    LARGEST,
    TargetSummary,
    TaskCheckpoint,
    UnusableCheckpoint,
    delta_of,
    is_old,
    read_card,
)

HERE = "patient-4711"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(encoder=PocketEncoder())


@pytest.fixture(scope="module")
def decoder() -> PocketDecoder:
    return PocketDecoder()


@pytest.fixture(scope="module")
def task(embedder: Embedder, decoder: PocketDecoder) -> AdaptedTask:
    """Adapted, with pseudo-labels in other volumes, of an image whose id must not leave the machine."""
    support = {
        label: [replace(one, image=HERE) for one in slices] for label, slices in two_labels(embedder, (0, 2, 4)).items()
    }
    return adapt(support, embedder, decoder, config=quick())


@pytest.fixture(scope="module")
def data(task: AdaptedTask, decoder: PocketDecoder) -> bytes:
    return task.checkpoint(decoder).to_bytes()


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def with_card(data: bytes, **changes: object) -> bytes:
    """The same file with another card; None removes a key."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    card = json.loads(header["__metadata__"]["card"]) | changes
    card = {name: value for name, value in card.items() if value is not None}
    return save(load(data), {"card": json.dumps(card)})


def with_tensors(data: bytes, **changes: torch.Tensor | None) -> bytes:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors = {name: one for name, one in (load(data) | changes).items() if one is not None}
    return save(tensors, header["__metadata__"])


def read(data: bytes, decoder: PocketDecoder) -> AdaptedTask:
    checkpoint = TaskCheckpoint.from_bytes(data, "it")
    checkpoint.require_made_with(decoder, "pocket", "it")
    return AdaptedTask.of(checkpoint, decoder, "it")


def same_answers(one: AdaptedTask, other: AdaptedTask, embedder: Embedder) -> bool:
    pairs = [(segment(query, one), segment(query, other)) for query in map(embedder.open, two_volumes())]
    return all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for first, second in pairs
        for name in ("mask", "logits", "presence", "uncertainty")
    )


def two_volumes():
    return draw_volume(), draw_volume(seed=3)


def test_where_it_was_made_it_gives_the_same_bits(
    task: AdaptedTask, embedder: Embedder, decoder: PocketDecoder, tmp_path: Path
) -> None:
    before = state_digest(decoder)
    loaded = kept_and_read(task, tmp_path / "deep", decoder)
    assert state_digest(loaded.decoder) == state_digest(task.decoder) != before
    assert state_digest(decoder) == before, "the unadapted decoder stays as it is"
    assert loaded.labels == task.labels == ("organ", "other")
    assert not loaded.summarised
    assert same_answers(task, loaded, embedder)
    assert kept_and_read(loaded, tmp_path / "again", decoder).card == loaded.card


def test_lost_labelled_slices_are_made_again(
    task: AdaptedTask, embedder: Embedder, decoder: PocketDecoder, tmp_path: Path
) -> None:
    bare = adapt(two_labels(embedder), embedder, decoder, config=quick(), pseudo_labels=False)
    lost = kept_and_read(bare, tmp_path, decoder, elsewhere=True)
    assert lost.summarised
    again = replace(with_support_again(lost, two_labels(embedder), embedder), card=bare.card)
    assert not again.summarised
    assert same_answers(bare, again, embedder)


def test_elsewhere_it_answers_from_the_summary(
    task: AdaptedTask, embedder: Embedder, decoder: PocketDecoder, tmp_path: Path
) -> None:
    loaded = kept_and_read(task, tmp_path, decoder, elsewhere=True)
    assert loaded.summarised
    assert loaded.labels == task.labels
    assert loaded.learned_from == {"organ": 3, "other": 3}
    assert not loaded.roi_banks and not loaded.atlases
    assert not set(loaded.card) & set(LOCAL)
    assert not loaded.lacks("any volume")
    for volume in two_volumes():
        found = segment(embedder.open(volume), loaded)
        assert found.labels == loaded.labels
        assert np.isfinite(found.presence).all()
    again = TaskCheckpoint.from_bytes(loaded.checkpoint(decoder).to_bytes(), "again")
    assert again.card["learned_from"] == loaded.learned_from


def test_a_summary_says_what_the_labelled_slices_say_of_other_volumes(
    task: AdaptedTask, decoder: PocketDecoder
) -> None:
    bank = task.banks["organ"]
    there = TargetSummary.of(bank).bank(decoder.logits_side)
    labelled, shows = ~bank.pseudo_labelled, bank.shows
    areas = (bank.distances[labelled & shows] > 0).sum(axis=(1, 2)) * bank.cell_mm[labelled & shows] ** 2
    standing = ~there.pseudo_labelled & there.shows
    area = (there.distances[standing] > 0).sum() * there.cell_mm[0] ** 2
    assert area == pytest.approx(areas.mean())
    assert there.in_one_piece == bank.in_one_piece
    assert np.ptp(there.positions[there.shows]) == pytest.approx(np.ptp(bank.positions[shows]))
    assert there.annotated("summary 0") == [0, 1], "an empty slice was annotated too"
    inside = bank.encoding.cells[torch.from_numpy(labelled & shows)]
    assert there.encoding.cells[0].norm(dim=1).max() <= inside.norm(dim=2).max()


def test_a_target_of_one_pixel_is_kept_too(embedder: Embedder, decoder: PocketDecoder) -> None:
    mask = np.zeros_like(ORGAN)
    mask[4, 20, 20] = True
    made = adapt({"dot": labelled(embedder, draw_volume(), mask, (4,))}, embedder, decoder, pseudo_labels=False)
    found = read(made.checkpoint(decoder).to_bytes(), decoder)
    assert segment(embedder.open(draw_volume(seed=3)), found).labels == ("dot",)


def test_it_holds_what_adaptation_changed_and_no_more(
    task: AdaptedTask, embedder: Embedder, decoder: PocketDecoder
) -> None:
    delta = delta_of(task.decoder, decoder)
    now, before = task.decoder.state_dict(), decoder.state_dict()
    assert set(delta) == {name for name in now if not torch.equal(now[name], before[name])}
    assert 0 < len(delta) < len(now), "what adaptation leaves alone is not written"
    unadapted = quick(adaptation=replace(quick().adaptation, steps=0))
    plain = adapt(two_labels(embedder), embedder, decoder, config=unadapted, pseudo_labels=False)
    assert not TaskCheckpoint.from_bytes(plain.checkpoint(decoder).to_bytes(), "it").delta
    assert len(plain.checkpoint(decoder).to_bytes()) < 300_000


def test_it_is_small_and_shows_no_patient(task: AdaptedTask, data: bytes, embedder: Embedder) -> None:
    assert len(data) < 4_000_000
    bank = task.banks["organ"]
    secrets = [HERE.encode(), *(name.encode() for name in set(bank.volumes)), task.card["support_digest"].encode()]
    secrets += [bytes.fromhex(name) for name in set(bank.volumes)]
    stored = two_labels(embedder)["organ"][0].embeddings.slice(2)["image"].numpy()
    secrets += [stored[0, :, row, column].tobytes() for row in range(8) for column in range(8)]
    secrets += [cell.numpy().tobytes() for cell in bank.encoding.cells[1][bank.encoding.valid[1]]]
    secrets += [bank.distances[1].tobytes(), bank.distances[1][20].tobytes()]
    # a mean of several slices is kept, which is that of the slice where there is but one
    several = [k for k in range(len(bank)) if (bank.shows == bank.shows[k]).sum() > 1]
    assert several
    secrets += [bank.descriptors[k].numpy().tobytes() for k in several]
    voxels = draw_volume().array
    secrets += [voxels[4, row].tobytes() for row in range(4)] + [ORGAN[4].tobytes(), np.packbits(ORGAN[4]).tobytes()]
    assert [one[:20] for one in secrets if one in data] == []
    widest = max(tensor.numel() for name, tensor in load(data).items() if name.startswith("target"))
    assert widest <= 2 * 40 * 128, "a handful of vectors, no maps"


def test_files_are_for_their_owner_alone(
    task: AdaptedTask, decoder: PocketDecoder, tmp_path: Path, data: bytes, open_umask: None
) -> None:
    registry = CheckpointRegistry(tmp_path / "heads")
    name = registry.publish(task, decoder=decoder)
    registry.activate(name, pin=True)
    registry.add_file(data, "imported", decoder, weights_sha256="pocket")
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in [registry.folder, *registry.folder.rglob("*")]}
    assert len([path for path in found if path.parent.name == "support"]) == 1
    assert {path.name: oct(mode) for path, mode in found.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}


def test_the_card_tells_the_story_and_leaves_out_who(task: AdaptedTask, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    path.write_bytes(data)
    card = read_card(path)
    assert card["labels"] == ["organ", "other"]
    assert card["learned_from"] == {"organ": 3, "other": 3}
    assert (card["encoder"], card["weights_sha256"]) == ("pocket", "pocket")
    assert card["settings"]["adaptation"]["steps"] == 3
    assert card["steps"] == 3
    assert set(card["dice_estimate"]["organ"]) >= {"before", "after", "slices"}
    assert card["created"].endswith("+00:00")
    assert not set(card) & set(LOCAL)


def test_a_bounded_cache_forgets_what_was_not_used_for_longest(task: AdaptedTask, tmp_path: Path) -> None:
    size = len(task.support.to_bytes())
    cache = SupportCache(tmp_path / "support", quota_bytes=int(2.5 * size))
    for number, key in enumerate("abc"):
        cache.put(key, task.support)
        os.utime(tmp_path / "support" / f"{key}.safetensors", (number, number))
        if key == "b":
            assert cache.find("a", task.decoder) is not None, "and this counts as a use"
    assert cache.find("b", task.decoder) is None
    assert isinstance(cache.find("a", task.decoder), SupportBanks)
    SupportCache(tmp_path / "none", quota_bytes=size - 1).put("a", task.support)
    assert not list((tmp_path / "none").iterdir()), "what never fits is not kept"
    (tmp_path / "support" / "a.safetensors").write_bytes(b"damaged")
    assert cache.find("a", task.decoder) is None
    assert cache.clear() == size


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_damaged_file_is_refused(data: bytes, decoder: PocketDecoder, keep: int) -> None:
    with pytest.raises(UnusableCheckpoint, match="it is no task checkpoint, or is damaged: export it again"):
        read(data[:keep], decoder)


def test_other_weights_are_refused(data: bytes, decoder: PocketDecoder) -> None:
    checkpoint = TaskCheckpoint.from_bytes(data, "it")
    with pytest.raises(UnusableCheckpoint, match=r"made with other weights \(pocket, sha256 pocket\).*adapt again"):
        checkpoint.require_made_with(decoder, "another", "it")
    with pytest.raises(UnusableCheckpoint, match="another version of the few-shot decoder"):
        checkpoint.require_made_with(PocketDecoder(seed=1), "pocket", "it")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"format": 99}, "format '99', this version reads 6"),
        ({"format": 5}, "holds copies of patients' images.*adapt again"),
        ({"labels": ["organ", "organ"]}, "labels that are no names"),
        ({"labels": ["organ", 7]}, "labels that are no names"),
        ({"labels": "organ"}, "'labels' is a str"),
        ({"created": None}, "lacks 'created'"),
        ({"dice_estimate": {"organ": {"before": 1}}}, "without a before and after"),
        ({"dice_estimate": {"organ": {"before": "x", "after": 1}}}, "is no estimate"),
        ({"support_check": {"organ": {"dice": 0.5, "more": 1}}}, "'support_check' is none"),
        ({"settings": {"adaptation": {"steps": "3"}}}, "'settings' are none"),
        ({"learned_from": {"organ": -1}}, "does not count"),
        ({"targets": []}, "what was seen of each label"),
        ({"targets": [{}, {}]}, "lacks parts of a task checkpoint"),
        ({"extra": "x" * 2**21}, "a card of 2 MB"),
    ],
)
def test_cards_that_make_no_sense_are_refused(
    data: bytes, decoder: PocketDecoder, card: dict[str, object], message: str
) -> None:
    with pytest.raises(UnusableCheckpoint, match=message):
        read(with_card(data, **card), decoder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("target0.tokens", None, "lacks parts"),
        ("target1.valid", None, "lacks parts"),
        ("target1.looks", torch.zeros(2, 3), "descriptors is"),
        ("target0.cells", torch.full((2, 40, 128), float("nan")), "no number"),
        ("target0.kinds", torch.full((2, 6), 99), "out of range"),
        ("target7.tokens", torch.zeros(1), "more than a task checkpoint"),
        ("image", torch.zeros(1), "more than a task checkpoint"),
        ("delta.nothing", torch.zeros(1), "changes 'nothing', which this decoder does not have"),
        ("delta.blend.weight", torch.zeros(3, 3), "changes 'blend.weight', which this decoder does not have"),
        ("delta.blend.weight", torch.full((1, 2), float("inf")), "no number in blend.weight"),
    ],
)
def test_tensors_that_make_no_sense_are_refused(
    data: bytes, decoder: PocketDecoder, name: str, value: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(UnusableCheckpoint, match=message):
        read(with_tensors(data, **{name: value}), decoder)


def test_other_files_are_refused(tmp_path: Path, decoder: PocketDecoder) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no task checkpoint none\.safetensors"):
        TaskCheckpoint.load(tmp_path / "none.safetensors")
    plain = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(3)}, plain)
    with pytest.raises(UnusableCheckpoint, match="no task checkpoint"):
        read_card(plain)
    save_file({"a": torch.zeros(3)}, plain, {"card": "[1, 2]"})
    with pytest.raises(UnusableCheckpoint, match="no card"):
        read_card(plain)
    huge = tmp_path / "huge.safetensors"
    with huge.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UnusableCheckpoint, match="at most 48: is this an exported one"):
        TaskCheckpoint.load(huge)


def test_a_pickle_is_never_opened(tmp_path: Path, decoder: PocketDecoder) -> None:
    touched = tmp_path / "touched"

    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(touched).touch, ())  # type: ignore[return-value]

    torch.save({"card": Touch()}, tmp_path / "it.safetensors")
    for data in ((tmp_path / "it.safetensors").read_bytes(), pickle.dumps(Touch())):
        with pytest.raises(UnusableCheckpoint):
            read(data, decoder)
    assert not touched.exists()


def test_the_product_unpickles_nothing() -> None:
    library = Path(ssmsam.__file__).parent
    calls = [
        (path.name, ast.unparse(node))
        for path in library.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load")
    ]
    assert calls
    safe = ("weights_only=True", "allow_pickle=False", "mmap_mode")
    assert [call for call in calls if not any(one in call[1] for one in safe)] == []
    readers = re.compile(r"pickle\.(load|loads|Unpickler)|joblib|dill|marshal\.load")
    assert [path.name for path in library.rglob("*.py") if readers.search(path.read_text())] == []


def old_file(task: AdaptedTask, path: Path) -> None:
    """As earlier versions wrote it: the whole decoder, all banks and atlases."""
    shown, reported = task.support.to_bytes(), {}
    header = json.loads(shown[8 : 8 + int.from_bytes(shown[:8], "little")])
    reported = json.loads(header["__metadata__"]["told"])
    tensors = {f"decoder.{name}": tensor for name, tensor in task.decoder.state_dict().items()} | load(shown)
    card = {**{key: value for key, value in task.card.items() if key != "learned_from"}, "format": 5, **reported}
    save_file(tensors, path, {"card": json.dumps(card)})
    path.with_suffix(".json").write_text(json.dumps(dict(task.card)))


def test_files_of_earlier_versions_are_refused(
    task: AdaptedTask, decoder: PocketDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = CheckpointRegistry(tmp_path / "heads")
    registry.folder.mkdir()
    old_file(task, registry.folder / "old.safetensors")
    assert is_old(registry.path("old"))
    assert registry.cards() == {}
    old = registry.path("old").read_bytes()
    for largest in (2**30, 1000):
        monkeypatch.setattr("ssmsam.fewshot.task_checkpoint.LARGEST", largest)
        with pytest.raises(UnusableCheckpoint, match="holds copies of patients' images"):
            registry.load("old", decoder, weights_sha256="pocket")
    monkeypatch.setattr("ssmsam.fewshot.task_checkpoint.LARGEST", 2**30)
    with pytest.raises(UnusableCheckpoint, match="holds copies of patients' images"):
        registry.add_file(old, "imported", decoder, weights_sha256="pocket")
    assert registry.names() == ["old"]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One of many ways in which a file goes wrong: bits, bytes, cuts, doubled parts, and numbers in the header."""
    found, header = bytearray(data), 8 + int.from_bytes(data[:8], "little")
    way, end = int(rng.integers(6)), header if rng.random() < 0.7 else len(data)
    if way == 0:
        found[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
    elif way == 1:
        for _ in range(int(rng.integers(1, 20))):
            found[int(rng.integers(end))] = int(rng.integers(256))
    elif way == 2:
        del found[int(rng.integers(end)) :]
    elif way == 3:
        start = int(rng.integers(end))
        del found[start : start + int(rng.integers(1, 200))]
    elif way == 4:
        start = int(rng.integers(end))
        found[start:start] = found[start : start + int(rng.integers(1, 200))]
    else:
        digits = [n for n in range(8, header) if chr(found[n]).isdigit()]
        for place in rng.choice(digits, 3):
            found[int(place)] = ord(str(rng.integers(10)))
    return bytes(found)


def survive(data: bytes, decoder: PocketDecoder, count: int) -> None:
    """Nothing but :class:`UnusableCheckpoint` comes of damaged files, or a task checkpoint that answers."""
    rng, refused = np.random.default_rng(0), 0
    for _ in range(count):
        try:
            read(mutated(data, rng), decoder)
        except UnusableCheckpoint:
            refused += 1
    assert refused > count / 3


def test_damaged_files_raise_one_error(data: bytes, decoder: PocketDecoder) -> None:
    survive(data, decoder, 200)


@pytest.mark.faults
def test_many_damaged_files_raise_one_error(data: bytes, decoder: PocketDecoder) -> None:
    survive(data, decoder, 10_000)


def test_written_files_are_whole_or_not_there(task: AdaptedTask, decoder: PocketDecoder, tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    write_task(path, task, base=decoder, cache=SupportCache(tmp_path / "support"))
    assert [one.name for one in tmp_path.rglob("*") if one.name.startswith(".")] == []
    local = json.loads(path.with_suffix(".json").read_text())
    assert local["support_digest"] == task.card["support_digest"]
    path.with_suffix(".json").write_text("{")
    loaded = read_task(path, base=decoder, weights_sha256="pocket", cache=SupportCache(tmp_path / "support"))
    assert loaded.summarised
    assert digest({}) != local["support_digest"]
