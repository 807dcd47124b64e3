"""`python -m semievol`."""

from semievol.cli import main

main()
