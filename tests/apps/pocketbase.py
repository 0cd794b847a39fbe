"""PocketBase: as examples/run-pocketbase.sh shows it."""

import pathlib

from harness import run

root = pathlib.Path(__file__).resolve().parents[2]
said = run([root / "examples/run-pocketbase.sh", "--once"]).strip()
print("PocketBase 0.40: " + said.splitlines()[-1])
