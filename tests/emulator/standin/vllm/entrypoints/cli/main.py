"""`python -m vllm.entrypoints.cli.main serve MODEL ...`, as the real one is started."""

from tests.emulator.vllm_standin import main

if __name__ == "__main__":
    main()
