"""A worker process without Celery: does one run's work. `python -m tests.integration.child CONFIG RUN`."""

import sys
from pathlib import Path

from workers import backup, replicate, settings
from workers.catalogue import Catalogue
from workers.models import RunKind
from workers.run import Here


def main() -> None:
    configured = settings.load(Path(sys.argv[1]))
    here = Here(configured, Catalogue.open(configured.catalogue))
    kind = here.catalogue.run(sys.argv[2]).kind
    work = backup.run if kind is RunKind.BACKUP else replicate.run
    print(work(here, sys.argv[2]).model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
