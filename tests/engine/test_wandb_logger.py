"""The logger of Weights & Biases: whether its server answers, and the id that an agent of a sweep gives a run."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from engine.callbacks.wandb_logger import WandbLogger, _reachable
from engine.run_dir import RunDirectory
from tests.runs import SMALL, settings


class Refusing(BaseHTTPRequestHandler):
    """Answers every request with an error."""

    def do_GET(self):
        self.send_error(403)

    def log_message(self, *_):
        """Print nothing."""


def greet(server: socket.socket) -> None:
    """Answer one client as an SSH server does."""
    client, _ = server.accept()
    with client:
        client.recv(1000)
        client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def test_a_server_that_answers_with_an_error_can_be_reached():
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert _reachable(address)
    assert not _reachable(address), "nobody listens"
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"http://127.0.0.1:{other.getsockname()[1]}"
        threading.Thread(target=greet, args=(other,), daemon=True).start()
        assert not _reachable(address), "it does not speak HTTP"
    assert not _reachable("no address")


@pytest.mark.parametrize(
    ("by_agent", "found"), [(True, {"id": "new", "starts": 1}), (False, {"id": "old", "starts": 5})]
)
def test_a_run_with_an_agent_s_id_is_another_run(by_agent, found, here, monkeypatch):
    (here / "grid.yaml").write_text(yaml.safe_dump({"wandb_version": 1}))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    variables = {"WANDB_SWEEP_ID": "a_sweep", "WANDB_RUN_ID": "new", "WANDB_SWEEP_PARAM_PATH": "grid.yaml"}
    for name, value in variables.items() if by_agent else ():
        monkeypatch.setenv(name, value)
    run: Any = SimpleNamespace(cfg=settings(*SMALL, "data.root=unused", "name=a"), directory=RunDirectory(here / "a"))
    (here / "a").mkdir()
    logger = WandbLogger(run, {"id": "old", "best_top1": 3.0, "starts": 4})
    logger.on_end()
    assert logger.state == found | {"best_top1": 3.0}
