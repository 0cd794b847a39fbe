"""A nats-server for the scripts that measure, and the waiting for it."""

import subprocess
import sys
import time

PATIENCE = 300


def until(is_done, what):
    """Waits for a condition; ends the script if it does not come in time."""
    deadline = time.monotonic() + PATIENCE
    while not is_done():
        if time.monotonic() > deadline:
            sys.exit(f"in vain: {what}")
        time.sleep(0.001)


def start_server(program, folder):
    """Starts a server with JetStream on a free port; returns its process and host:port."""
    ports = folder / "ports"
    ports.mkdir()
    server = subprocess.Popen(
        [program, "-js", "-sd", str(folder / "js"), "-a", "127.0.0.1", "-p", "-1",
         "--ports_file_dir", str(ports)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    until(lambda: any(ports.glob("*.ports")) and next(ports.glob("*.ports")).stat().st_size,
          "the nats-server")
    text = next(ports.glob("*.ports")).read_text()
    return server, text.split('"nats://')[1].split('"')[0]
