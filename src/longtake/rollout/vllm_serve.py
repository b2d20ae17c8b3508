"""`vllm serve` where the command itself does not work: `python -m longtake.rollout.vllm_serve serve MODEL ...`.

vLLM's command imports torchvision before any plugin of ours, and so without the shim; and it looks for a distribution named `vllm`, which
that for CPUs is not. Processes that the server spawns import this module too, under another name, and have the shim first.
"""

from __future__ import annotations

import importlib

from longtake.models.torchvision_shim import make_torchvision_importable

make_torchvision_importable()


def main() -> None:
    """What vLLM's own `main` does for its command `serve`."""
    importlib.import_module("vllm.entrypoints.serve.utils.api_utils").cli_env_setup()
    parser = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser(prog="vllm")
    commands = parser.add_subparsers(required=True)
    (command,) = importlib.import_module("vllm.entrypoints.cli.serve").cmd_init()
    command.subparser_init(commands)
    arguments = parser.parse_args()
    command.validate(arguments)
    command.cmd(arguments)


if __name__ == "__main__":
    main()
