"""The image: what goes in, who runs it, and its own steps taken without Docker."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from curvserve.api_keys import new_key
from tests.client.servers import closed_port
from tests.deployment.dockerfile import Build, Stage, copied, stages, tracked
from tests.deployment.files import (
    COMPOSE,
    COMPOSE_CPU,
    COMPOSE_RAY,
    DOCKERFILE,
    OPTIONS,
    read,
    seconds,
)
from tests.server.process import PATIENCE, ROOT

WHEELS, INSTALL, FINAL = stages()
HEALTH = re.fullmatch(r"(?P<options>.*?) +CMD (?P<command>\[.*\])", FINAL.one("HEALTHCHECK"))
PACKAGES = {"curvserve": "curvserve", "curvserve_client": "client/curvserve_client"}
COMPILED: dict[str, set[str]] = {
    "curvserve": {"curvserve/engine/native/_kernels"} if shutil.which("cc") else set(),
    "curvserve_client": set(),
}


def sources() -> list[str]:
    return [source for each in WHEELS.all("COPY") for source in copied(each)[0]]


def test_every_source_of_a_copy_is_in_the_repository() -> None:
    assert [source for source in sources() if not tracked(source)] == []
    others = [source for s in (INSTALL, FINAL) for c in s.all("COPY") for source in copied(c)[0]]
    assert others == []


def test_nothing_but_what_is_copied_reaches_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert allowed == {source.split("/")[0] for source in sources()}


def test_a_compiler_is_there_before_the_wheels_are_built() -> None:
    first, *_, last = [each.value for each in WHEELS.all("RUN")]
    assert re.search(r"apt-get install .*\bgcc\b.*\blibc6-dev\b", first) and "pip wheel" in last


def test_every_stage_begins_with_one_pinned_python() -> None:
    text = DOCKERFILE.read_text()
    assert re.search(r"^ARG PYTHON=python:3\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${PYTHON}"] * 3


def test_torch_is_asked_for_as_the_package_asks_for_it() -> None:
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    first = INSTALL.all("RUN")[1].value
    asked = re.findall(r'"([^"]+)"', first)
    assert asked == [each for each in needs if each.startswith("torch")]


def test_the_image_runs_as_nobody_with_one_folder_of_its_own() -> None:
    user = FINAL.one("USER")
    assert re.fullmatch(r"(\d+):\1", user) and user != "0:0"
    uid = user.partition(":")[0]
    made = FINAL.all("RUN")[0].value
    assert f"--uid {uid}" in made and f"--owner {uid} --group {uid} --mode 0700 /data" in made
    assert FINAL.one("VOLUME") == FINAL.environment["CURVSERVE_DATA_DIR"] == "/data"
    assert FINAL.one("STOPSIGNAL") == "SIGTERM"
    assert FINAL.one("EXPOSE") == FINAL.environment["CURVSERVE_PORT"]
    named = {name for name in FINAL.environment if name.startswith("CURVSERVE_")}
    assert named <= OPTIONS


def test_no_secret_is_in_a_layer() -> None:
    text = DOCKERFILE.read_text().lower()
    set_there = re.findall(r"^(?:arg|env) (\w+)|^ +(\w+)=", text, re.MULTILINE)
    names = {name for pair in set_there for name in pair if name}
    assert names and not any(re.search("key|secret|token|password", name) for name in names)


def test_the_health_check_is_that_of_the_compose_files() -> None:
    assert HEALTH
    options = dict(re.findall(r"--([a-z-]+)=(\S+)", HEALTH["options"]))
    for path in (COMPOSE, COMPOSE_CPU, COMPOSE_RAY):
        check = read(path)["services"]["curvserve"]["healthcheck"]
        assert check["test"] == ["CMD", *json.loads(HEALTH["command"])]
        assert {name.replace("_", "-"): str(value) for name, value in check.items()} == {
            "test": str(check["test"]), **options,
        }  # fmt: skip
    assert seconds(options["timeout"]) < seconds(options["interval"])


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Package -> files of its wheel, built as the image builds them, but with what is here."""
    root = tmp_path_factory.mktemp("image")
    build = Build(root, os.environ)
    folder = build.take(WHEELS, without=("RUN",))
    command = WHEELS.all("RUN")[-1].value
    command = command.replace("python", sys.executable, 1)
    build.run(f"{command} --no-build-isolation --quiet", folder)
    found = {}
    for wheel in (root / "wheels").iterdir():
        names = zipfile.ZipFile(wheel).namelist()
        found[wheel.name.split("-")[0]] = {name for name in names if ".dist-info/" not in name}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheels_hold_every_file_of_the_packages_and_no_other(
    package: str, wheels: dict[str, set[str]]
) -> None:
    folder = PACKAGES[package]
    kept = {name.removeprefix("client/") for name in tracked(folder)}
    compiled = {
        name for name in wheels[package] if name.endswith(sysconfig.get_config_vars()["EXT_SUFFIX"])
    }
    assert wheels[package] - compiled == kept
    assert {name.partition(".")[0] for name in compiled} == COMPILED[package]


@pytest.fixture
def image() -> Iterator[Path]:
    """A folder that everybody may look into, as an image's root is."""
    folder = Path(tempfile.mkdtemp(prefix="curvserve-image-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def others(folder: Path) -> Path:
    """Return what is installed here, but for curvserve: torch need not be fetched again."""
    folder.mkdir()
    for each in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "curvserve" not in each.name and "distutils" not in each.name:
            (folder / each.name).symlink_to(each)
    return folder


def may_be_run_by_others(programs: Path) -> bool:
    """Whether this process may become another, and that one may reach Python and its packages."""
    needed = [(programs / "python").resolve(), Path(sysconfig.get_paths()["purelib"])]
    above = [folder for path in needed for folder in path.parents]
    return os.geteuid() == 0 and all(folder.stat().st_mode & 0o001 for folder in above)


@pytest.mark.campaign
def test_the_images_steps_give_a_server_that_is_healthy(image: Path) -> None:
    """Every step but the making of the user, whose number is used all the same."""
    assert HEALTH
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    build = Build(image, {**os.environ, "PATH": path, "TORCH_INDEX": ""})
    build.take(WHEELS)
    create, *installs = INSTALL.all("RUN")
    build.take(Stage("", [create]))
    (site,) = (image / "opt" / "curvserve" / "lib").glob("python3*/site-packages")
    (site / "others.pth").write_text(f"{others(image / 'others')}\n")
    build.take(Stage("", installs))
    build.take(FINAL)

    uid, gid = map(int, FINAL.one("USER").split(":"))
    who = {"user": uid, "group": gid} if may_be_run_by_others(image / "opt/curvserve/bin") else {}
    if who:
        os.chown(image / "data", uid, gid)
    key, entry = new_key("loop", ["read"])
    (image / "keys.toml").write_text(entry.to_toml())
    port = str(closed_port())
    environment = {
        **{name: build.here(value) for name, value in FINAL.environment.items()},
        "CURVSERVE_API_KEYS": str(image / "keys.toml"),
        "CURVSERVE_PORT": port,
    }
    environment["PATH"] = environment["PATH"].replace("$PATH", os.environ["PATH"])
    command = json.loads(FINAL.one("ENTRYPOINT")) + json.loads(FINAL.one("CMD"))
    there = {"cwd": image / "data", "env": environment, "text": True}
    with subprocess.Popen(
        [image / "opt/curvserve/bin" / command[0], *command[1:]],
        stdout=subprocess.PIPE,
        **there,
        **who,
    ) as server:
        assert server.stdout is not None
        assert (
            server.stdout.readline() == f"curvserve: serving mnist_cnn at http://0.0.0.0:{port}\n"
        )
        check = json.loads(HEALTH["command"].replace(":8000", f":{port}"))
        check[0] = image / "opt/curvserve/bin" / check[0]
        healthy = subprocess.run(check, capture_output=True, **there, **who)
        assert healthy.returncode == 0 and "takes work" in healthy.stdout, healthy.stdout
        server.send_signal(getattr(signal, FINAL.one("STOPSIGNAL")))
        assert server.wait(PATIENCE) == 0
        assert subprocess.run(check, capture_output=True, **there, **who).returncode == 1
    kept = {file.name for file in (image / "data").iterdir()}
    assert {"lock", "journal.sqlite", "sessions"} <= kept
