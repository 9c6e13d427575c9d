"""What a person's shell brings along changes nothing, or is named in one line before anything starts."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from cluster import doctor
from cluster.connection import connect
from pipelines.errors import EspanError
from pipelines.run.stop_signals import StopRequested, stop_signals
from pipelines.system import cluster_session, surroundings
from pipelines.system.cluster_session import ray_session
from pipelines.train.worker.metrics import read_metrics
from tests.pipelines.train.conftest import ROOT, write_corpus

PATIENCE_SECONDS = 240

LEFTOVERS = {
    # mpirun, srun, torchrun and accelerate, each with another idea of who this process is
    **{"OMPI_COMM_WORLD_RANK": "7", "OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"},
    **{"PMI_RANK": "5", "PMIX_RANK": "5", "MV2_COMM_WORLD_LOCAL_RANK": "2", "MPI_LOCALRANKID": "1"},
    **{"SLURM_PROCID": "6", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2", "SLURM_JOB_ID": "77"},
    **{"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_RANK": "1"},
    **{"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1"},
    **{"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "DS_ACCELERATOR": "cuda"},
}


@pytest.fixture(autouse=True)
def hangups_end_processes() -> Iterator[None]:
    """Also where the tests run under nohup, whose processes would ignore them."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster_session, "_session", None)
    monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.fixture
def dead_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # taken, and nobody listens
        yield int(listener.getsockname()[1])


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, dead_port: int) -> str:
    """A proxy that does not answer, named by all variables there are for it."""
    url = f"http://127.0.0.1:{dead_port}"
    for name in surroundings.PROXIES:
        monkeypatch.setenv(name, url)
        monkeypatch.setenv(name.upper(), url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile goes again
        monkeypatch.delenv(name)
    return url


def test_a_run_trains_amid_leftovers_and_ends_whole_when_its_terminal_does(
    corpus: Path, tmp_path: Path, dead_port: int
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        textwrap.dedent(f"""
            name: amid-leftovers
            workspace: {tmp_path / "run"}
            seed: 3
            stages:
              tuned:
                train:
                  data: {corpus}
                  model: builtin:tiny
                  attention: {{kind: span, chunk_sizes: [16, 32], block_size: 8, top_k: 2}}
                  hylora: {{rank: 2, alpha: 4}}
                  steps: 100000
                  checkpoint_every: 100000
                  tokens_per_step: 256
                  workers: 2
                  learning_rate: 1.0e-3
            """)
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= LEFTOVERS | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "LC_ALL": "C"}
    environment |= dict.fromkeys(surroundings.PROXIES, f"http://127.0.0.1:{dead_port}")
    environment |= {"RAY_TRAIN_V2_ENABLED": "0", "CUDA_VISIBLE_DEVICES": "", "RAY_task_retry_delay_ms": "10"}
    # A head that was announced here and is gone.
    announced = tmp_path.parent.parent / "t" / "ray" / "ray_current_cluster"
    announced.parent.mkdir(parents=True, exist_ok=True)
    announced.write_text(f"127.0.0.1:{dead_port}")
    environment["TMPDIR"] = str(announced.parent.parent)
    process = psutil.Popen(
        ["sh", "-c", f"ulimit -S -n 256; exec {sys.executable} -m cluster.cli run {recipe} <&-"],
        **{"env": environment, "cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
        **{"text": True, "start_new_session": True},
    )
    started: set[psutil.Process] = set()
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        steps = str(tmp_path / "run" / "tuned" / "metrics.jsonl")
        while len(read_metrics(steps)) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
            started |= set(process.children(recursive=True))
        trained = read_metrics(steps)
        process.send_signal(signal.SIGHUP)
        printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        gone, alive = psutil.wait_procs(started, timeout=20)
        for each in [*alive, process]:
            if each.is_running():
                each.kill()
    assert len(trained) >= 2, printed
    assert process.returncode == 128 + signal.SIGHUP, printed
    assert "Ray starts with settings from the environment: RAY_task_retry_delay_ms\n" in printed
    assert "stopped by SIGHUP; run the same command again to go on from there" in printed
    assert [each.name() for each in alive] == []
    assert len(gone) >= 6  # Ray's own processes, the controller, two workers


def test_a_hangup_stops_a_run_unless_it_is_ignored_as_nohup_asks() -> None:
    def hangs_up() -> None:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(60)

    with pytest.raises(StopRequested) as stopped:
        hangs_up()
    assert stopped.value.name == "SIGHUP"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_a_process_group_keeps_the_ranks_it_was_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LEFTOVERS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with monkeypatch.context() as patched:
        patched.setattr("torch.distributed.is_initialized", lambda: True)
        surroundings.forget_launchers()
    kept = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK"}
    assert set(surroundings.leftovers()) == kept
    with monkeypatch.context() as patched:
        patched.setattr("torch.distributed.is_initialized", lambda: False)
        surroundings.forget_launchers()
    assert surroundings.leftovers() == []
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets below it; pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_the_longest_folder_for_temporary_files_is_the_longest_that_holds_rays_sockets(
    variable: str, short_folder: Path, monkeypatch: pytest.MonkeyPatch, no_session: None
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    base, fits = short_folder, None
    for length in range(len(str(base)) + 2, 120):
        folder = base / ("x" * (length - len(str(base)) - 1))
        folder.mkdir()
        monkeypatch.setenv(variable, str(folder))
        sockets = folder / "ray" / f"session_2026-01-02_03-04-05_678901_{os.getpid()}" / "sockets"
        sockets.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(str(sockets / "plasma_store"))
            except OSError:
                break
        assert surroundings.temporary_folder_problem() is None
        assert not doctor.temporary_files().failed
        fits = length
    assert fits is not None
    assert doctor.temporary_files().failed
    with pytest.raises(EspanError, match=rf"^Ray cannot start: {variable} is {folder} .*set a shorter one"):
        ray_session()


@pytest.mark.parametrize(
    ("folder", "what"), [("nowhere", "not a folder"), ("relative", "absolute"), ("file", "not a folder")]
)
def test_a_folder_for_temporary_files_that_is_none_is_named(
    folder: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_session: None
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", folder if folder == "relative" else str(tmp_path / folder))
    with pytest.raises(EspanError, match=rf"^Ray cannot start: TMPDIR is .*{what}"):
        ray_session()


def test_rays_variables_are_named_when_ray_does_not_start() -> None:
    program = """
from pipelines.system.cluster_session import ray_session
from pipelines.errors import EspanError
try:
    ray_session()
except EspanError as error:
    print(error)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": ROOT, "RAY_NUM_REDIS_GET_RETRIES": "many", "RAY_USE_TLS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60
    )
    assert done.stdout == (
        "Ray does not start: invalid literal for int() with base 10: 'many'; unset what is not meant for "
        "this machine: RAY_NUM_REDIS_GET_RETRIES, RAY_USE_TLS\n"
    ), done.stderr


class _Here(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"here")

    def log_message(self, *words: object) -> None: ...


def test_half_an_address_is_nobodys(proxy: str) -> None:
    surroundings.reach_loopback_directly("http://[::1")
    assert surroundings.proxy_for("http://[::1") is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.7", "0.0.0.0"])
@pytest.mark.parametrize("exempt", [None, "", "example.org"])
def test_this_machine_is_reached_without_the_proxy(
    proxy: str, host: str, exempt: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if exempt is not None:
        monkeypatch.setenv("no_proxy", exempt)
    with http.server.ThreadingHTTPServer(("0.0.0.0", 0), _Here) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://{host}:{server.server_address[1]}"
        with pytest.raises(requests.exceptions.ProxyError):
            requests.get(url, timeout=10)
        surroundings.reach_loopback_directly(url)
        assert requests.get(url, timeout=10).content == b"here"
        server.shutdown()
    assert surroundings.proxy_for("http://head.example.com:8265") == "http_proxy"
    assert surroundings.proxy_for("https://head.example.com") == "https_proxy"
    assert (surroundings.proxy_for("http://example.org") is None) == (exempt == "example.org")


def test_a_head_elsewhere_that_the_proxy_hides_is_refused_with_the_proxys_variable(proxy: str) -> None:
    with pytest.raises(EspanError) as caught:
        connect("http://head.example.com:8265")
    assert str(caught.value) == (
        "no Ray head answers at http://head.example.com:8265 (ProxyError) through the proxy that http_proxy "
        "names (to reach it directly, add head.example.com to no_proxy); check --address, and that it was "
        "started with --head"
    )


def test_the_doctor_names_leftovers_proxies_and_switches(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "0")
    checks = {check.name: check for check in (doctor.proxies(), doctor.launchers(), doctor.ray_variables())}
    assert "http_proxy and https_proxy set" in checks["proxy"].found
    assert "SLURM_PROCID" in checks["launchers"].found
    assert checks["ray switches"].advice == "runs set RAY_TRAIN_V2_ENABLED to 1"
    assert not any(check.failed for check in checks.values())
