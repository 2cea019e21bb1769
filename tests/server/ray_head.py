"""A program: a local Ray that serves the deployment file it is given, until its standard input ends.

Without a dashboard, and with no more shared memory than a test needs.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import ray
import yaml
from ray import serve

from qwen3moe_engine.server.ray_deployment import Replicas


def main() -> None:
    deployment = yaml.safe_load(Path(sys.argv[1]).read_text())
    application = deployment["applications"][0]
    module, name = application["import_path"].split(":")
    ray.init("local", num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
    serve.start(http_options=deployment["http_options"])
    built = getattr(import_module(module), name)(Replicas(**application["args"]))
    serve.run(built, name=application["name"], route_prefix=application["route_prefix"])
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
