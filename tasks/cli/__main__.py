"""python -m tasks.cli: the command without its installed script."""

from tasks.cli import main

main()
