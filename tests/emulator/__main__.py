"""Start the emulator: `python -m tests.emulator --help`."""

import argparse
from collections.abc import Sequence

from tests.emulator.engine import DEFAULT_MODELS, Engine, FakeEngine, ServedModel
from tests.emulator.faults import KINDS, SETTINGS, Faults
from tests.emulator.server import API_KEY, create_app, make_server, open_socket


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted; the first line printed is the base URL."""
    args = _parser().parse_args(argv)
    faults = Faults(**{name: _number(value) for name, _, value in (f.partition("=") for f in args.fault)})
    app = create_app(_engine(args), faults, api_key=args.api_key)
    with open_socket(args.host, args.port) as listener:
        print(f"http://{args.host}:{listener.getsockname()[1]}/v1", flush=True)
        make_server(app).run(sockets=[listener])


def _engine(args: argparse.Namespace) -> Engine:
    if args.engine == "causal":
        from tests.emulator.causal import CausalEngine

        name, _, path = args.model.rpartition("=")
        return CausalEngine(name or DEFAULT_MODELS[0].id, path)
    models = {m.id: m for m in DEFAULT_MODELS}
    for entry in args.accuracy:
        name, _, value = entry.partition("=")
        models[name] = ServedModel(name, float(value), tunable=True)
    return FakeEngine(tuple(models.values()))


def _parser() -> argparse.ArgumentParser:
    faults = "".join(f"  {kind:18} {meaning}\n" for kind, meaning in KINDS.items())
    faults += "settings:\n" + "".join(f"  {name:18} {meaning}\n" for name, (_, meaning) in SETTINGS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.emulator",
        description="A server that speaks the OpenAI API; it prints its base URL.",
        epilog=f"faults (--fault server_error=2 strikes two requests, --fault server_error=0.1 one in ten):\n{faults}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--api-key", default=API_KEY)
    parser.add_argument("--engine", choices=["fake", "causal"], default="fake", help="causal: a real language model")
    parser.add_argument("--model", default="pocket", metavar="[NAME=]PATH", help="folder or hub id, of causal")
    parser.add_argument("--accuracy", action="append", default=[], metavar="MODEL=SHARE", help="of the fake engine")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME=VALUE", help="see below")
    return parser


def _number(text: str) -> float:
    return float(text) if "." in text else int(text)


if __name__ == "__main__":
    main()
