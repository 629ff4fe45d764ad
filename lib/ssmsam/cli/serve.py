"""``ssmsam serve``: MONAI Label's server with this package's app."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import click
import platformdirs

from ssmsam.cli.command import Program, json_option
from ssmsam.report import record_run

APP = Path(__file__).parents[1] / "server" / "app_folder" / "main.py"


@click.command(cls=Program)
@click.argument("studies")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 for all networks: anybody can then ask.")
@click.option("--port", type=int, default=8000, show_default=True)
@click.option("--conf", nargs=2, multiple=True, metavar="KEY VALUE", help="A setting of the server; may be repeated.")
@json_option
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS...]")
def command(
    *, studies: str, host: str, port: int, conf: Sequence[tuple[str, str]], record: Path | None, more: Sequence[str]
) -> int:
    """Start the server. STUDIES is a folder of images or the address of a DICOMweb store.

    \b
    ssmsam serve samples/abdomen --port 8001 --conf encoder small

    What follows -- goes to `monailabel start_server` as it is, such as --ssl_keyfile FILE.
    """
    if "://" not in studies and not Path(studies).is_dir():
        raise ValueError(
            f"there is no folder {studies}: `ssmsam samples --out samples` makes one to try, samples/abdomen"
        )
    if find_spec("monailabel") is None:
        raise ModuleNotFoundError("No module named 'monailabel'", name="monailabel")
    scheme = "https" if any(word.startswith("--ssl_certfile") for word in more) else "http"
    url = f"{scheme}://{host}:{port}"
    print(f"serving {studies}; stop with Ctrl-C")
    print(f"   3D Slicer, MONAI Label module, server address: {url}")
    print(f"   its page, to annotate in the browser:          {url}/", flush=True)
    record_run(record, {"url": url}, protocol="serve")
    settings = [part for key, value in conf for part in ("--conf", key, value)]
    options = ["--app", str(app_folder()), "--studies", studies, "--host", host, "--port", str(port), *settings, *more]
    return run_monailabel(["start_server", *options])


def app_folder(folder: Path | None = None) -> Path:
    """The app copied into a folder, by default one of the user's: MONAI Label writes logs beside it, and packages may
    be read only."""
    folder = folder or platformdirs.user_data_path("ssmsam") / "app"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(APP, folder / APP.name)
    return folder


def run_monailabel(arguments: Sequence[str]) -> int:
    """MONAI Label's own command in place of this process, with this interpreter's programs first on PATH."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    line = [sys.executable, "-m", "monailabel.main", *arguments]
    if os.name == "posix":
        os.execv(sys.executable, line)  # signals then reach the server itself
    return subprocess.call(line)
