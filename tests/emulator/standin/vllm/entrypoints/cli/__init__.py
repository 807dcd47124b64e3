"""Stands in for vLLM in tests (tests/emulator/vllm_standin.py)."""
