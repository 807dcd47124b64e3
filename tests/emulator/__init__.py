"""A server that speaks the OpenAI API, for tests and for trying a hosted pipeline on a laptop (docs/emulator.md)."""
